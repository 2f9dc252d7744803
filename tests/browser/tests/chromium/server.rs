//! The program that builds and serves the page, as one starts it by hand.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;

use crate::deadline;

/// A server, which ends with this.
pub struct Server {
    process: Child,
    /// Of its page.
    pub address: String,
}

impl Server {
    pub fn start() -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_browser"))
            .args(["--port", "0"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            output.read_line(&mut line).map(|_| sender.send(line))
        });
        let mut server = Self { process, address: String::new() };
        // It may compile for as long as this, and ends without a line if it cannot.
        let line = receiver.recv_timeout(deadline::seconds(600)).unwrap();
        server.address = line.split_whitespace().next().expect("the page is served").to_owned();
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
