//! Lets cargo build the library for the page.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::AnyError;
use crate::target::{TARGET, missing, tool};

/// The module.
pub fn wasm() -> Result<Vec<u8>, AnyError> {
    if let Some(reason) = missing() {
        return Err(reason.into());
    }
    let output = Command::new(tool("CARGO", "cargo"))
        .args(["build", "--release", "--package", env!("CARGO_PKG_NAME"), "--lib"])
        .args(["--target", TARGET, "--message-format", "json-render-diagnostics"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("cargo cannot build the page's WebAssembly: {}", output.status).into());
    }
    let messages = String::from_utf8(output.stdout)?;
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let files = messages.filter_map(|message| message["filenames"].as_array().cloned()).flatten();
    let mut modules = files.filter_map(|file| {
        let path = Path::new(file.as_str()?);
        path.extension().is_some_and(|end| end == "wasm").then(|| path.to_owned())
    });
    Ok(std::fs::read(modules.next().ok_or("cargo has built no WebAssembly")?)?)
}
