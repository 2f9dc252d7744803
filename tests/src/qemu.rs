//! A QEMU as the peer of a test, driven through its monitor protocol (QMP).

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::Need;

const PROGRAM: &str = "qemu-system-x86_64";
const PATIENCE: Duration = Duration::from_secs(60);

/// What tests against QEMU need (Debian: `qemu-system-x86`).
pub fn need() -> Need {
    let version = Command::new(PROGRAM).arg("--version").output();
    let missing = version.err().map(|error| format!("{PROGRAM} cannot be run: {error}"));
    Need { name: "QEMU", required_by: "REQUIRE_QEMU", missing }
}

/// A running QEMU with a folder of its own; both go when it is dropped.
#[derive(Debug)]
pub struct Qemu {
    child: Child,
    folder: PathBuf,
    monitor: BufReader<UnixStream>,
}

impl Qemu {
    /// Starts QEMU with `arguments`, in which `{dir}` stands for its folder.
    ///
    /// # Errors
    ///
    /// If it does not start, or its monitor does not answer.
    pub fn start(name: &str, arguments: &[&str]) -> io::Result<Self> {
        let folder = std::env::temp_dir().join(format!("qemu-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let socket = folder.join("qmp");
        let place = folder.display().to_string();
        let child = Command::new(PROGRAM)
            .args(["-display", "none", "-nodefaults", "-accel", "tcg", "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .args(arguments.iter().map(|argument| argument.replace("{dir}", &place)))
            .stdin(Stdio::null())
            .spawn()?;
        let stream = connect(&socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut qemu = Self { child, folder, monitor: BufReader::new(stream) };
        qemu.line()?; // its greeting
        qemu.execute("qmp_capabilities", json!({}))?;
        Ok(qemu)
    }

    /// A path in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn line(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        if self.monitor.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// Executes a command; returns what it returned.
    ///
    /// # Errors
    ///
    /// If QEMU refuses it, or is gone.
    pub fn execute(&mut self, command: &str, arguments: Value) -> io::Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.monitor.get_mut(), "{request}")?;
        loop {
            let mut answer = self.line()?; // perhaps an event
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(io::Error::other(format!("{command}: {error}")));
            }
        }
    }

    /// Waits until its migration has completed.
    ///
    /// # Errors
    ///
    /// If it fails, or takes longer than a minute.
    pub fn wait_migrated(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let state = self.execute("query-migrate", json!({}))?;
            match state["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed") => return Err(io::Error::other(state.to_string())),
                _ if Instant::now() > deadline => return Err(io::ErrorKind::TimedOut.into()),
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// `len` bytes of its physical memory from address 0 on.
    ///
    /// # Errors
    ///
    /// If QEMU refuses, or is gone.
    pub fn memory(&mut self, len: u64) -> io::Result<Vec<u8>> {
        let file = self.path("memory");
        self.execute("pmemsave", json!({ "val": 0, "size": len, "filename": file }))?;
        std::fs::read(file)
    }
}

/// Connects to a socket that is about to be there.
///
/// # Errors
///
/// If it is not there within a minute.
pub fn connect(socket: &Path) -> io::Result<UnixStream> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(socket) {
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
            connected => return connected,
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
