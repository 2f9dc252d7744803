//! A VNC viewer, or the other side of a migration, whose machine goes without a word: its cable
//! is pulled, or its battery empty.
//!
//! Each test is a process in a network of its own, whose only link is cut.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use display_vga::{Screen, VncServer};
use integration_tests::harness::{self, Named, Need, Test};
use machines::deadline::scaled;
use machines::link::{Listener, Socket};
use memory_region::MemoryMap;
use migration_ram::{Deadlines, Precopy, ReceiveError, Receiver, SendError};
use ram_block::RamBlock;

#[path = "../../display-vga/tests/common/mod.rs"]
mod common;

use common::{BASE, Board, Pc};

const TESTS: [Test; 4] = [
    ("who_is_idle_and_gone_leaves_a_place", idle),
    ("who_is_sent_something_and_gone_leaves_a_place", sent_something),
    ("a_source_that_is_gone_is_not_waited_for", source_is_gone),
    ("a_destination_that_is_gone_is_not_waited_for", destination_is_gone),
];

fn main() -> ExitCode {
    let tests = TESTS.into_iter().map(|(name, body)| -> Named {
        (name.to_owned(), Box::new(move || in_own_network(name, body)))
    });
    harness::run(&need_network(), tests.collect())
}

/// Set in the processes that have a network of their own.
const INSIDE: &str = "IN_OWN_NETWORK";

/// A program in a network of its own, of which it is root.
fn own_network(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "--"]).arg(program);
    command
}

/// What the tests need (Debian: `util-linux`, `iproute2`).
fn need_network() -> Need {
    let mut ip = own_network("ip");
    let missing = match ip.args(["link", "set", "lo", "up"]).output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(format!("unshare: {error}")),
    };
    Need { name: "a network of their own", required_by: "REQUIRE_NETWORK", missing }
}

fn in_own_network(name: &str, body: fn()) {
    if std::env::var_os(INSIDE).is_some() {
        set_link("up");
        return body();
    }
    let output = own_network(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

fn set_link(state: &str) {
    let status = Command::new("ip").args(["link", "set", "lo", state]).status().unwrap();
    assert!(status.success());
}

/// A server with a place for one viewer, who is there.
struct Stage {
    board: Board,
    screen: Screen,
    server: VncServer,
    viewer: TcpStream,
}

/// How long the server waits for a viewer.
const LIMIT: Duration = Duration::from_secs(2);

impl Stage {
    fn new() -> Self {
        let board = Board::new(1 << 20);
        let server = VncServer::loopback(0).unwrap().max_viewers(1).write_timeout(LIMIT);
        let server = server.start().unwrap();
        board.vga.set_mode(64, 64, 32).unwrap();
        let viewer = TcpStream::connect(server.local_addr().unwrap()).unwrap();
        let mut stage = Self { screen: board.screen(), board, server, viewer };
        stage.publish(1);
        // RFB 3.3 without a password; then its first picture, which comes as raw pixels.
        stage.take(12);
        stage.viewer.write_all(b"RFB 003.003\n").unwrap();
        assert_eq!(stage.take(4), [0, 0, 0, 1]);
        stage.viewer.write_all(&[1]).unwrap();
        let name = stage.take(24)[20..].try_into().map(u32::from_be_bytes).unwrap();
        stage.take(name.try_into().unwrap());
        stage.ask();
        assert_eq!(stage.take(16 + 64 * 64 * 4)[16..19], [1; 3]);
        assert_eq!(stage.server.viewers(), 1);
        stage
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.viewer.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Asks for what changes on all of the picture.
    fn ask(&mut self) {
        self.viewer.write_all(&[3, 1, 0, 0, 0, 0, 0, 64, 0, 64]).unwrap();
    }

    fn publish(&mut self, value: u8) {
        self.board.poke(BASE, &[value; 64 * 64 * 4]);
        self.screen.refresh().unwrap();
        self.server.update(self.screen.surface(), &self.screen.last().damage);
    }

    /// Waits until there is place again. Without being told to, TCP notices after more than
    /// two hours, or a quarter of one where something is on its way.
    fn wait_for_place(&self) {
        let begin = Instant::now();
        while self.server.viewers() > 0 {
            assert!(begin.elapsed() < scaled(10 * LIMIT), "the viewer is gone and keeps its place");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn idle() {
    let stage = Stage::new();
    // As long as the link is there, who has nothing to say stays.
    std::thread::sleep(3 * LIMIT);
    assert_eq!(stage.server.viewers(), 1);
    set_link("down");
    stage.wait_for_place();
}

fn sent_something() {
    let mut stage = Stage::new();
    stage.ask();
    set_link("down");
    stage.publish(2);
    stage.wait_for_place();
}

/// Both ends of a connection over the link.
fn connection() -> (Socket, Socket) {
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let source = Socket::connect(&listener.address().unwrap(), LIMIT).unwrap();
    (source, listener.accept(LIMIT).unwrap())
}

/// Without any deadline of the migration's own, as for a source that may be held for long.
fn source_is_gone() {
    let (mut source, mut destination) = connection();
    source.write_all(b"QEVM\0\0\0\x03").unwrap();
    set_link("down");
    let ram = [RamBlock::anonymous("ram", 1 << 20).unwrap()];
    let receiver = Receiver::new(&ram).deadlines(Deadlines::none());
    let error = receiver.run(&mut destination).unwrap_err();
    assert!(matches!(error, ReceiveError::Read { .. }), "{error}");
}

fn destination_is_gone() {
    let (mut source, _destination) = connection();
    let memory = MemoryMap::new();
    let ram = RamBlock::anonymous("ram", 64 << 20).unwrap();
    memory.transaction(|map| map.ram("ram", ram.clone())).unwrap();
    ram.write(0, &vec![7; 64 << 20]).unwrap();
    source.set_user_timeout(Some(LIMIT)).unwrap();
    set_link("down");
    let precopy = Precopy::new(memory).deadlines(Deadlines::none());
    let error = precopy.run(&mut source, || Ok(()), |_| ()).unwrap_err();
    assert!(matches!(error, SendError::Write { .. }), "{error}");
}
