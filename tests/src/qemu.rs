//! A QEMU as the peer of a test, driven through its monitor protocol (QMP).

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::Need;
use machines::deadline::seconds;

const PROGRAM: &str = "qemu-system-x86_64";
fn patience() -> Duration {
    seconds(60)
}

/// What tests against QEMU need (Debian: `qemu-system-x86`).
pub fn need() -> Need {
    let missing = Program::default().version().err();
    Need { name: "QEMU", required_by: "REQUIRE_QEMU", missing }
}

/// What tests against a second QEMU of another version need: the variable `OTHER_QEMU` names it
/// (`.ci/qemu-backports` makes one).
pub fn need_other() -> Need {
    let missing = Program::other().and_then(|other| other.version().map(drop)).err();
    Need { name: "another QEMU", required_by: "REQUIRE_OTHER_QEMU", missing }
}

/// The first line of what the installed QEMU says of its version.
///
/// # Errors
///
/// Why it cannot be run.
pub fn version() -> Result<String, String> {
    Program::default().version()
}

/// QEMU's version, as its machines have it in their names: 8.1.
///
/// # Errors
///
/// Why it is not known.
pub fn release() -> Result<(u32, u32), String> {
    Program::default().release()
}

/// A QEMU that can be started; by default the one that is installed.
#[derive(Clone, Debug)]
pub struct Program(PathBuf);

impl Default for Program {
    fn default() -> Self {
        Self(PROGRAM.into())
    }
}

impl Program {
    /// The one that `OTHER_QEMU` names.
    ///
    /// # Errors
    ///
    /// That the variable is not set.
    pub fn other() -> Result<Self, String> {
        match std::env::var_os("OTHER_QEMU") {
            Some(path) if !path.is_empty() => Ok(Self(path.into())),
            _ => Err("OTHER_QEMU is not set".to_owned()),
        }
    }

    /// The first line of what it says of its version.
    ///
    /// # Errors
    ///
    /// Why it cannot be run.
    pub fn version(&self) -> Result<String, String> {
        let program = &self.0;
        let output = Command::new(program).arg("--version").output();
        let failed = |error| format!("{} cannot be run: {error}", program.display());
        let output = output.map_err(failed)?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }

    /// Its version, as its machines have it in their names: 8.1.
    ///
    /// # Errors
    ///
    /// Why it is not known.
    pub fn release(&self) -> Result<(u32, u32), String> {
        release_in(&self.version()?)
    }

    /// Starts it, as [`Qemu::start_with`].
    ///
    /// # Errors
    ///
    /// As [`Qemu::start_with`].
    pub fn start_with(
        &self,
        name: &str,
        arguments: &[&str],
        files: &[(&str, &[u8])],
    ) -> io::Result<Qemu> {
        Qemu::start_program(self, name, arguments, files)
    }
}

fn release_in(text: &str) -> Result<(u32, u32), String> {
    let number = text.split_whitespace().nth(3).unwrap_or_default();
    let mut parts = number.split('.').map(str::parse::<u32>);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => Err(format!("no version in \"{text}\"")),
    }
}

/// A running QEMU with a folder of its own; both go when it is dropped.
#[derive(Debug)]
pub struct Qemu {
    process: Process,
    monitor: BufReader<UnixStream>,
}

#[derive(Debug)]
struct Process {
    child: Child,
    folder: PathBuf,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Qemu {
    /// Starts QEMU with `arguments`, in which `{dir}` stands for its folder; without a
    /// display and default devices, and with TCG unless an accelerator is among them.
    ///
    /// # Errors
    ///
    /// If it does not start, or its monitor does not answer.
    pub fn start(name: &str, arguments: &[&str]) -> io::Result<Self> {
        Self::start_with(name, arguments, &[])
    }

    /// As [`start`](Self::start), with files of these names and contents in its folder.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start), and if a file cannot be written.
    pub fn start_with(name: &str, arguments: &[&str], files: &[(&str, &[u8])]) -> io::Result<Self> {
        Self::start_program(&Program::default(), name, arguments, files)
    }

    fn start_program(
        program: &Program,
        name: &str,
        arguments: &[&str],
        files: &[(&str, &[u8])],
    ) -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = format!("qemu-{name}-{}-{count}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        std::fs::create_dir_all(&folder)?;
        for (name, contents) in files {
            std::fs::write(folder.join(name), contents)?;
        }
        let socket = folder.join("qmp");
        let place = folder.display().to_string();
        let mut command = Command::new(&program.0);
        command
            .args(["-display", "none", "-nodefaults", "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .args(arguments.iter().map(|argument| argument.replace("{dir}", &place)))
            .stdin(Stdio::null());
        if !arguments.contains(&"-accel") {
            command.args(["-accel", "tcg"]);
        }
        let process = Process { child: command.spawn()?, folder };
        let stream = connect(&socket)?;
        stream.set_read_timeout(Some(patience()))?;
        let mut qemu = Self { process, monitor: BufReader::new(stream) };
        qemu.line()?; // its greeting
        qemu.execute("qmp_capabilities", json!({}))?;
        Ok(qemu)
    }

    /// A path in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.process.folder.join(name)
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

    /// Switches on capabilities of its migration.
    ///
    /// # Errors
    ///
    /// As [`execute`](Self::execute).
    pub fn capabilities(&mut self, names: &[&str]) -> io::Result<()> {
        let on = |name: &&str| json!({ "capability": name, "state": true });
        let all: Vec<_> = names.iter().map(on).collect();
        self.execute("migrate-set-capabilities", json!({ "capabilities": all })).map(drop)
    }

    /// Begins to listen for a migration, having been started with `-incoming defer`; returns
    /// where: the path or the address.
    ///
    /// # Errors
    ///
    /// As [`execute`](Self::execute).
    pub fn incoming(&mut self, uri: &str) -> io::Result<String> {
        self.execute("migrate-incoming", json!({ "uri": uri }))?;
        let state = self.execute("query-migrate", json!({}))?;
        let address = &state["socket-address"][0];
        let text = |name: &str| address[name].as_str().unwrap_or_default().to_owned();
        match address["type"].as_str() {
            Some("unix") => Ok(text("path")),
            _ => Ok(format!("{}:{}", text("host"), text("port"))),
        }
    }

    /// Begins to send its machine to `uri`.
    ///
    /// # Errors
    ///
    /// As [`execute`](Self::execute).
    pub fn migrate(&mut self, uri: &str) -> io::Result<()> {
        self.execute("migrate", json!({ "uri": uri })).map(drop)
    }

    /// Waits until its migration has completed; returns what it says of it.
    ///
    /// # Errors
    ///
    /// If it fails, or takes longer than a minute.
    pub fn wait_migrated(&mut self) -> io::Result<Value> {
        let deadline = Instant::now() + patience();
        loop {
            let state = self.execute("query-migrate", json!({}))?;
            match state["status"].as_str() {
                Some("completed") => return Ok(state),
                Some("failed") => return Err(io::Error::other(state.to_string())),
                _ if Instant::now() > deadline => return Err(io::ErrorKind::TimedOut.into()),
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// `len` bytes of its physical memory from `address` on.
    ///
    /// # Errors
    ///
    /// If QEMU refuses, or is gone.
    pub fn memory(&mut self, address: u64, len: u64) -> io::Result<Vec<u8>> {
        let file = self.path("memory");
        self.execute("pmemsave", json!({ "val": address, "size": len, "filename": file }))?;
        std::fs::read(file)
    }
}

/// Connects to a socket that is about to be there.
///
/// # Errors
///
/// If it is not there within a minute.
pub fn connect(socket: &Path) -> io::Result<UnixStream> {
    let deadline = Instant::now() + patience();
    loop {
        match UnixStream::connect(socket) {
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
            connected => return connected,
        }
    }
}
