//! Whether the toolchain can build the page's WebAssembly.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

/// WebAssembly without an operating system.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// Why it cannot, and what helps.
pub fn missing() -> Option<String> {
    let mut rustc = Command::new(tool("RUSTC", "rustc"));
    let output = rustc.args(["--print", "target-libdir", "--target", TARGET]).output();
    let folder = match output {
        Ok(output) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Err(error) => return Some(format!("rustc cannot be run: {error}")),
    };
    let is_there = !folder.is_empty() && Path::new(&folder).is_dir();
    (!is_there).then(|| {
        format!("The toolchain has no library for {TARGET}: run `rustup target add {TARGET}`")
    })
}

/// A tool of the toolchain: cargo names itself, and a compiler that is not the usual one, to what
/// it runs.
pub fn tool(variable: &str, name: &str) -> OsString {
    std::env::var_os(variable).unwrap_or_else(|| name.into())
}
