//! What lies between two sides, and counts what passes.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use machines::link::Address;

use crate::patience;

/// How long the last bytes before the end are given to pass.
const LAST: Duration = Duration::from_millis(100);

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// A path for a socket, which goes with it: a process that is killed leaves its sockets' files.
pub(crate) struct SocketPath(PathBuf);

impl SocketPath {
    pub(crate) fn new() -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("kills-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = std::fs::remove_file(&path);
        Self(path)
    }

    pub(crate) fn address(&self) -> Address {
        Address::Unix(self.0.clone())
    }
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Passes on what comes, until somebody is lost.
pub(crate) struct Proxy {
    listener: UnixListener,
    far: Vec<UnixStream>,
}

/// What has passed, and may still pass; what ends one side when that is nothing.
struct State<F> {
    passed: u64,
    left: u64,
    end: Option<F>,
}

impl Proxy {
    /// Connects to a destination, and listens for its source.
    pub(crate) fn listen(near: &SocketPath, far: &SocketPath, channels: usize) -> Self {
        let listener = UnixListener::bind(&near.0).unwrap();
        let far = (0..=channels).map(|_| UnixStream::connect(&far.0).unwrap()).collect();
        Self { listener, far }
    }

    /// Passes bytes on until both sides have closed their ends; or so many, after which `end`
    /// is called and nothing passes any more. Says how many passed, in both directions.
    pub(crate) fn run(self, end: Option<(u64, impl FnOnce() + Send)>) -> u64 {
        let near: Vec<_> = self.far.iter().map(|_| self.listener.accept().unwrap().0).collect();
        let (left, end) = end.map_or((u64::MAX, None), |(bytes, end)| (bytes, Some(end)));
        let state = Mutex::new(State { passed: 0, left, end });
        let ends: Vec<_> = near.iter().chain(&self.far).collect();
        ends.iter().for_each(|end| end.set_read_timeout(Some(patience())).unwrap());
        let (state, ends) = (&state, ends.as_slice());
        std::thread::scope(|scope| {
            for (near, far) in near.iter().zip(&self.far) {
                scope.spawn(move || pass(state, near, far, ends));
                scope.spawn(move || pass(state, far, near, ends));
            }
        });
        state.lock().unwrap().passed
    }
}

fn pass<F: FnOnce()>(
    state: &Mutex<State<F>>,
    mut from: &UnixStream,
    mut to: &UnixStream,
    ends: &[&UnixStream],
) {
    let mut bytes = [0; 3000];
    loop {
        let count = match from.read(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                ends.iter().for_each(|end| drop(end.shutdown(Shutdown::Both)));
                panic!("it hangs");
            }
            count => count.unwrap_or(0),
        };
        let mut now = state.lock().unwrap();
        if now.left == 0 {
            return;
        }
        let some = count.min(usize::try_from(now.left).unwrap_or(usize::MAX));
        now.passed += some as u64;
        now.left -= some as u64;
        let end = if now.left == 0 { now.end.take() } else { None };
        drop(now);
        if end.is_some() {
            // Nobody passes anything any more: who is to read this may wait for others first.
            to.set_write_timeout(Some(LAST)).unwrap();
        }
        let broken = to.write_all(&bytes[..some]).is_err();
        if let Some(end) = end {
            end();
            ends.iter().for_each(|end| drop(end.shutdown(Shutdown::Both)));
            return;
        }
        if count == 0 || broken {
            // One side has ended; the other one hears of it, as a reader and as a writer.
            let _ = to.shutdown(Shutdown::Write);
            let _ = from.shutdown(Shutdown::Read);
            return;
        }
    }
}
