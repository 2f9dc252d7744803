//! A side of a migration, or its connection, that is lost at any byte: the survivor's state is
//! right, and a second try succeeds.
//!
//! Source and destination are processes of their own, between which this one passes the bytes
//! on. When a given number has passed, one of the two gets SIGKILL, or nothing passes any more.
//! A dozen of such ends for each; `KILLS=200` makes them as many.

mod proxy;
mod side;

use machines::deadline::seconds;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use libtest_mimic::{Arguments, Trial};

use proxy::{Proxy, SocketPath};
use side::{Numbers, SIDE};

/// The longest that nothing is heard of a side: a hang is a fault.
fn patience() -> Duration {
    seconds(20)
}

/// What is lost.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Lost {
    Source,
    Destination,
    Connection,
}

fn main() -> ExitCode {
    if let Ok(side) = std::env::var(SIDE) {
        return side::run(&side);
    }
    let test = |name: &str, lost| {
        Trial::test(name, move || {
            kills(lost);
            Ok(())
        })
    };
    let tests = vec![
        test("the_source_is_killed", Lost::Source),
        test("the_destination_is_killed", Lost::Destination),
        test("the_connection_is_cut", Lost::Connection),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

/// One side: it is told lines, and says lines.
struct Side {
    child: Child,
    orders: ChildStdin,
    said: Receiver<String>,
    /// What it has said so far.
    lines: Vec<String>,
}

impl Side {
    fn start(side: &str, seed: u64, channels: usize) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env(SIDE, format!("{side} {seed} {channels}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (orders, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (say, said) = channel();
        std::thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            lines.take_while(|line| say.send(line.clone()).is_ok()).for_each(drop);
        });
        Self { child, orders, said, lines: Vec::new() }
    }

    fn order(&mut self, words: &str) {
        writeln!(self.orders, "{words}").unwrap();
    }

    /// The rest of the next line that begins with `word`; `None` if it ends before.
    fn hear(&mut self, word: &str) -> Option<String> {
        loop {
            match self.said.recv_timeout(patience()) {
                Ok(line) => self.lines.push(line),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => panic!("it hangs after {:?}", self.lines),
            }
            if let Some(rest) = self.lines.last().and_then(|line| rest(line, word)) {
                return Some(rest.to_owned());
            }
        }
    }

    /// How its migration has ended.
    fn end(&mut self) -> String {
        self.hear("ended").unwrap_or_else(|| "killed".to_owned())
    }

    /// The rest of the last line so far that begins with `word`.
    fn last(&self, word: &str) -> Option<&str> {
        self.lines.iter().rev().find_map(|line| rest(line, word))
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.kill();
    }
}

fn rest<'a>(line: &'a str, word: &str) -> Option<&'a str> {
    line.strip_prefix(word)?.strip_prefix(' ')
}

/// Starts a migration through a proxy that ends what is lost after so many bytes; says how many
/// passed, and how both say that it ended.
fn migrate(
    source: &mut Side,
    destination: &mut Side,
    channels: usize,
    lost: Option<(Lost, u64)>,
) -> (u64, String, String) {
    let (far, near) = (SocketPath::new(), SocketPath::new());
    destination.order(&format!("receive {}", far.address()));
    assert!(destination.hear("listens").is_some(), "{:?}", destination.lines);
    let proxy = Proxy::listen(&near, &far, channels);
    source.order(&format!("send {}", near.address()));
    let (who, bytes) = lost.unzip();
    let kill = || match who {
        Some(Lost::Source) => source.kill(),
        Some(Lost::Destination) => destination.kill(),
        Some(Lost::Connection) | None => {}
    };
    let passed = proxy.run(bytes.map(|bytes| (bytes, kill)));
    (passed, source.end(), destination.end())
}

/// Loses one side or the connection when so many bytes have passed, looks at who is left, and
/// lets that try once more.
fn lose_after(lost: Lost, bytes: u64, channels: usize, seed: u64) {
    let mut source = Side::start("source", seed, channels);
    let mut destination = Side::start("destination", seed, channels);
    let (passed, sent, came) =
        migrate(&mut source, &mut destination, channels, Some((lost, bytes)));
    assert_eq!(passed, bytes, "nobody was killed");
    let what = format!(
        "{lost:?} after {bytes} bytes, {channels} channels, seed {seed}: {:?}, {:?}",
        source.lines, destination.lines
    );
    // What was restored is what was saved: all of it, or nothing at all.
    let (saved, restored) = (source.last("saved"), destination.last("restored"));
    assert!(restored.is_none() || restored == saved, "{what}");
    match (lost, sent.as_str(), came.as_str()) {
        // It knows that the other side had everything.
        (Lost::Destination, "left true" | "left false", "killed" | "runs") => {
            assert!(restored.is_some(), "{what}");
        }
        (Lost::Destination, "failed", "killed") => {}
        // Only who was told that the source had let go.
        (Lost::Source, "killed" | "left true", "runs") => assert!(restored.is_some(), "{what}"),
        (Lost::Source, "killed", "unclaimed") => assert!(restored.is_some(), "{what}"),
        (Lost::Source, "killed", "failed") => {}
        (Lost::Connection, "left true" | "left false", "runs" | "unclaimed") => {
            assert!(restored.is_some(), "{what}");
        }
        (Lost::Connection, "failed", "unclaimed" | "failed") => {}
        _ => panic!("{what}"),
    }
    match lost {
        // Another machine, to where a part of the first one is.
        Lost::Source => source = Side::start("source", seed + 1000, channels),
        Lost::Destination => destination = Side::start("destination", seed, channels),
        Lost::Connection => {}
    }
    if lost != Lost::Source {
        // It goes on as if nothing had been.
        source.order("check");
        assert_eq!(source.hear("machine").as_deref(), Some("runs"), "{what}");
    }
    let ends = migrate(&mut source, &mut destination, channels, None);
    let (_, sent, came) = &ends;
    let lines = (&source.lines, &destination.lines);
    assert_eq!((sent.as_str(), came.as_str()), ("left true", "runs"), "{what}, then {lines:?}");
    let (saved, restored) = (source.last("saved"), destination.last("restored"));
    assert!(saved.is_some() && saved == restored, "{what}, then {lines:?}");
}

fn kills(lost: Lost) {
    let count = std::env::var("KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(12u64);
    let mut numbers = Numbers(0);
    let all = [0, 2].map(|channels| {
        let mut source = Side::start("source", 0, channels);
        let mut destination = Side::start("destination", 0, channels);
        let (all, ..) = migrate(&mut source, &mut destination, channels, None);
        (channels, all)
    });
    for seed in 0..count {
        let (channels, all) = all[usize::try_from(seed % 2).unwrap()];
        // Anywhere, or near the end, where the devices, the answer and the last words are.
        let most = if seed % 3 == 2 { 300 } else { all };
        lose_after(lost, all - numbers.next() % most, channels, seed);
    }
}
