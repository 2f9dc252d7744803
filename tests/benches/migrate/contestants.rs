//! Those who send the memory: two processes of ours, and two of QEMU's.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use integration_tests::qemu::Qemu;
use serde_json::json;

use crate::memory::Memory;
use crate::transport::Transport;
use crate::{AnyError, failed};

/// A process that answers lines.
struct Side {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Side {
    fn start(side: &str, memory: &Memory) -> Result<Self, AnyError> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--side")
            .arg(side)
            .args(memory.words())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (orders, answers) = (child.stdin.take(), child.stdout.take());
        let (Some(orders), Some(answers)) = (orders, answers) else {
            return Err(failed("a process without pipes"));
        };
        let mut side = Self { child, orders, answers: BufReader::new(answers) };
        side.answer()?; // it is ready
        Ok(side)
    }

    fn order(&mut self, words: &str) -> Result<(), AnyError> {
        Ok(writeln!(self.orders, "{words}")?)
    }

    fn answer(&mut self) -> Result<String, AnyError> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err(failed("a process has ended"));
        }
        Ok(line.trim().to_owned())
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two processes of ours, for the migration and for the bare copy.
pub(crate) struct Ours {
    source: Side,
    destination: Side,
}

impl Ours {
    pub(crate) fn start(memory: &Memory) -> Result<Self, AnyError> {
        let source = Side::start("source", memory)?;
        Ok(Self { source, destination: Side::start("destination", memory)? })
    }

    /// What the source says when both are done.
    fn run(&mut self, destination: &str, source: &str) -> Result<Vec<f64>, AnyError> {
        self.destination.order(destination)?;
        let address = self.destination.answer()?;
        self.source.order(&format!("{source} {address}"))?;
        let answer = self.source.answer()?;
        self.destination.answer()?;
        Ok(answer.split_whitespace().map(str::parse).collect::<Result<_, _>>()?)
    }

    /// Milliseconds, and bytes on all connections.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a count
    pub(crate) fn migrate(
        &mut self,
        transport: Transport,
        channels: usize,
    ) -> Result<(f64, u64), AnyError> {
        let order = format!("migrate {transport} {channels}");
        match self.run(&order, &order)?.as_slice() {
            [time, bytes] => Ok((*time, *bytes as u64)),
            _ => Err(failed(order)),
        }
    }

    /// Milliseconds.
    pub(crate) fn copy(
        &mut self,
        transport: Transport,
        channels: usize,
        bytes: u64,
    ) -> Result<f64, AnyError> {
        let order = format!("copy {transport} {channels} {bytes}");
        self.run(&order, &order)?.first().copied().ok_or_else(|| failed(order))
    }

    /// Milliseconds of downtime.
    pub(crate) fn downtime(&mut self, aim: u64, rate: u64) -> Result<f64, AnyError> {
        let order = format!("downtime unix 1 {aim} {rate}");
        self.run("migrate unix 1", &order)?.first().copied().ok_or_else(|| failed(order))
    }

    /// Milliseconds of one read of the source's memory.
    pub(crate) fn read(&mut self) -> Result<f64, AnyError> {
        self.source.order("read")?;
        Ok(self.source.answer()?.parse()?)
    }
}

/// A QEMU with the memory, and for each migration another one.
pub(crate) struct Peers {
    source: Qemu,
    len: u64,
    populated: bool,
}

impl Peers {
    pub(crate) fn start(memory: &Memory) -> Result<Self, AnyError> {
        let len = memory.len;
        let backend = match memory.path() {
            Some(path) => format!(
                "memory-backend-file,id=m,size={len},mem-path={},share=on,prealloc=on",
                path.display()
            ),
            None => format!("memory-backend-ram,id=m,size={len},reserve=off"),
        };
        let source = start(&backend, len, &["-S"])?;
        Ok(Self { source, len, populated: memory.is_populated() })
    }

    /// Milliseconds, as the source says.
    pub(crate) fn migrate(
        &mut self,
        transport: Transport,
        channels: usize,
    ) -> Result<f64, AnyError> {
        let len = self.len;
        let how = if self.populated { "prealloc=on" } else { "reserve=off" };
        let backend = format!("memory-backend-ram,id=m,size={len},{how}");
        let mut destination = start(&backend, len, &["-incoming", "defer"])?;
        let state = channels > 1;
        for qemu in [&mut self.source, &mut destination] {
            let multifd = json!([{ "capability": "multifd", "state": state }]);
            qemu.execute("migrate-set-capabilities", json!({ "capabilities": multifd }))?;
            qemu.execute(
                "migrate-set-parameters",
                json!({ "max-bandwidth": 107_374_182_400u64, "multifd-channels": channels.max(2) }),
            )?;
        }
        let uri = match transport {
            Transport::Unix => format!("unix:{}", destination.path("in").display()),
            Transport::Tcp => "tcp:127.0.0.1:0".to_owned(),
        };
        let address = destination.incoming(&uri)?;
        self.source.migrate(&format!("{transport}:{address}"))?;
        let state = self.source.wait_migrated()?;
        destination.wait_migrated()?;
        // Else the next migration would be refused.
        self.source.execute("cont", json!({}))?;
        self.source.execute("stop", json!({}))?;
        state["total-time"].as_f64().ok_or_else(|| failed("QEMU does not say how long it took"))
    }
}

fn start(backend: &str, len: u64, more: &[&str]) -> Result<Qemu, AnyError> {
    let mib = format!("{}M", len >> 20);
    let mut arguments =
        vec!["-object", backend, "-machine", "none,memory-backend=m", "-m", mib.as_str()];
    arguments.extend(more);
    Ok(Qemu::start("migrate", &arguments)?)
}
