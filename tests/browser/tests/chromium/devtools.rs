//! Chromium without a window, by the DevTools protocol over a pipe: messages of JSON that end in a
//! zero byte (`--remote-debugging-pipe`).

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use serde_json::{Value, json};

use crate::deadline;

pub const CHROMIUM: &str = "chromium";
/// Tests bring no processor for pictures, and the page is ours: root has no sandbox.
const OPTIONS: [&str; 6] = [
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
];
/// Chromium reads messages from its descriptor 3, and writes to 4.
const PIPES: &str = "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null";

/// A browser, which ends with this.
pub struct Browser {
    process: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    last: u64,
    /// Its files, removed with it.
    folder: PathBuf,
}

impl Browser {
    pub fn start() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("browser-test-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir(&folder).unwrap();
        let mut process = Command::new("sh")
            .args(["-c", PIPES, "sh", CHROMIUM])
            .args(OPTIONS)
            .arg(format!("--user-data-dir={}", folder.join("profile").display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(folder.join("log")).unwrap())
            .spawn()
            .unwrap();
        let (to, from) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let (sender, receiver) = channel();
        // Ends when the browser does.
        std::thread::spawn(move || {
            let messages = BufReader::new(from).split(0).map_while(Result::ok);
            for message in messages {
                let _ = sender.send(serde_json::from_slice(&message).unwrap());
            }
        });
        Self { process, to, from: receiver, last: 0, folder }
    }

    /// Calls a method, of the page of `session` if there is one; returns its result, or what is
    /// wrong with the call.
    pub fn call(
        &mut self,
        session: Option<&str>,
        method: &str,
        parameters: Value,
    ) -> Result<Value, String> {
        self.last += 1;
        let mut message = json!({ "id": self.last, "method": method, "params": parameters });
        if let Some(session) = session {
            message["sessionId"] = session.into();
        }
        let mut bytes = serde_json::to_vec(&message).unwrap();
        bytes.push(0);
        self.to.write_all(&bytes).unwrap_or_else(|error| panic!("{error}: {}", self.log()));
        let deadline = Instant::now() + deadline::seconds(60);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = self.from.recv_timeout(left);
            let answer = answer.unwrap_or_else(|e| panic!("{method}: {e}: {}", self.log()));
            // Others are events.
            if answer["id"] == self.last {
                let error = answer["error"]["message"].as_str();
                return error
                    .map_or(Ok(answer["result"].clone()), |e| Err(format!("{method}: {e}")));
            }
        }
    }

    /// What it has to say of itself.
    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its processes then end, and write no more files; a browser that hangs is killed.
        let _ = self.to.write_all(b"{\"id\":0,\"method\":\"Browser.close\"}\0");
        while self.from.recv_timeout(deadline::seconds(5)).is_ok() {}
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
