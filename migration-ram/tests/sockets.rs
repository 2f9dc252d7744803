//! Connections are made before the deadline or fail, and have the socket options that a migration
//! needs.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use migration_ram::{Address, AddressError, Listener, Socket, SocketError};
use rustix::net::sockopt;

const LIMIT: Duration = Duration::from_millis(100);
/// Long enough for a busy machine: only a hang exceeds it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A unique path; its file is removed when it is dropped.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sockets-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        Self(path)
    }

    fn address(&self) -> Address {
        Address::Unix(self.0.clone())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn an_address_is_what_is_written() {
    for (text, address) in [
        ("unix:/tmp/a b", Address::Unix("/tmp/a b".into())),
        ("unix:relative:1", Address::Unix("relative:1".into())),
        ("localhost:0", Address::Tcp("localhost:0".to_owned())),
        ("[::1]:65535", Address::Tcp("[::1]:65535".to_owned())),
    ] {
        assert_eq!(text.parse(), Ok(address.clone()));
        assert_eq!(address.to_string(), text);
    }
    for text in ["", "unix:", "host", ":5900", "host:", "host:65536", "host:-1", "/tmp/a"] {
        let refused = Err(AddressError::Form { text: text.to_owned() });
        assert_eq!(text.parse::<Address>(), refused);
    }
}

/// A reader of lines would take the first part for an address, and wait there.
#[test]
fn an_address_is_one_line() {
    for text in ["unix:/tmp/a\nb", "host:1\n", "\nhost:1", "unix:/tmp/\u{1b}[2J", "unix:\0"] {
        let refused = text.parse::<Address>().unwrap_err();
        assert_eq!(refused, AddressError::ControlCharacter { text: text.to_owned() });
        assert!(!refused.to_string().contains(|c: char| c.is_control()), "{refused}");
    }
    // One that was not parsed is named in one line all the same.
    for path in [&b"/tmp/a\nb"[..], b"/tmp/\xff"] {
        let address = Address::Unix(Path::new(std::ffi::OsStr::from_bytes(path)).into());
        let text = address.to_string();
        assert!(text.starts_with("unix:\"/tmp/") && !text.contains('\n'), "{text}");
    }
}

/// Both ends of a connection whose listener starts late.
fn connected(address: Address) -> (Socket, Socket, Address) {
    let listener = Listener::bind(&address).unwrap();
    let address = listener.address().unwrap();
    drop(listener);
    let late = address.clone();
    let (source, destination) = std::thread::scope(|scope| {
        let source = scope.spawn(|| Socket::connect(&address, PATIENCE).unwrap());
        std::thread::sleep(LIMIT / 2);
        let destination = Listener::bind(&late).unwrap().accept(PATIENCE).unwrap();
        (source.join().unwrap(), destination)
    });
    (source, destination, address)
}

#[test]
fn a_listener_may_come_late() {
    let path = Temporary::new("late");
    for address in [path.address(), "127.0.0.1:0".parse().unwrap()] {
        let (mut source, mut destination, _) = connected(address);
        source.write_all(b"hello").unwrap();
        let mut hello = [0; 5];
        destination.read_exact(&mut hello).unwrap();
        assert_eq!(&hello, b"hello");
        destination.try_clone().unwrap().write_all(b"world").unwrap();
        source.read_exact(&mut hello).unwrap();
        assert_eq!(&hello, b"world");
    }
    assert!(!path.0.exists(), "the listener's file is still there");
}

#[test]
fn tcp_is_without_delay_and_asks_whether_the_peer_is_there() {
    let (source, destination, _) = connected("127.0.0.1:0".parse().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    for socket in [source, destination, Socket::tcp(own).unwrap()] {
        let Socket::Tcp(socket) = socket else { panic!("{socket:?}") };
        assert!(sockopt::tcp_nodelay(&socket).unwrap());
        assert!(sockopt::socket_keepalive(&socket).unwrap());
        let idle = sockopt::tcp_keepidle(&socket).unwrap();
        let interval = sockopt::tcp_keepintvl(&socket).unwrap();
        let all = idle + interval * sockopt::tcp_keepcnt(&socket).unwrap();
        assert!(all <= Duration::from_secs(30), "{all:?}");
        // Longer than the migration's own idle deadline, whose error says more.
        assert_eq!(sockopt::tcp_user_timeout(&socket).unwrap(), 90_000);
        assert_eq!(socket.read_timeout().unwrap(), None);
        let socket = Socket::Tcp(socket);
        for (limit, set) in [(Some(Duration::from_secs(5)), 5000), (None, 0)] {
            socket.set_user_timeout(limit).unwrap();
            let Socket::Tcp(socket) = &socket else { panic!("{socket:?}") };
            assert_eq!(sockopt::tcp_user_timeout(socket).unwrap(), set);
        }
    }
}

#[test]
fn nobody_is_waited_for_without_an_end() {
    let path = Temporary::new("nobody");
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for address in [path.address(), Address::Tcp(unused)] {
        match Socket::connect(&address, LIMIT) {
            Err(SocketError::Connect { address: at, waited, .. }) => {
                assert!(at == address && waited >= LIMIT, "{at}, {waited:?}");
            }
            other => panic!("{other:?}"),
        }
        match Listener::bind(&address).unwrap().accept(LIMIT) {
            Err(SocketError::NobodyCame { address: at, waited }) => {
                assert!(at == address && waited >= LIMIT, "{at}, {waited:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    // A permanent error is not retried.
    let path = PathBuf::from("/tmp").join("x".repeat(200));
    let error = Socket::connect(&Address::Unix(path.clone()), PATIENCE * 60).unwrap_err();
    assert!(matches!(error, SocketError::Connect { .. }), "{error}");
    let error = Listener::bind(&Address::Unix(path)).unwrap_err();
    assert!(matches!(error, SocketError::Listen { .. }), "{error}");
}

/// A listener that accepts no connection, with a full backlog.
#[test]
fn a_listener_that_takes_nobody_is_not_waited_for() {
    let path = Temporary::new("full");
    let listener = UnixListener::bind(&path.0).unwrap();
    rustix::net::listen(&listener, 1).unwrap();
    let mut waiting = Vec::new();
    let error = loop {
        match Socket::connect(&path.address(), LIMIT) {
            Ok(socket) => waiting.push(socket),
            Err(error) => break error,
        }
        assert!(waiting.len() < 100, "nobody is ever refused");
    };
    assert!(matches!(error, SocketError::Connect { .. }), "{error}");
    // The connection succeeds as soon as the backlog has room.
    drop(listener.accept().unwrap());
    waiting.push(Socket::connect(&path.address(), PATIENCE).unwrap());
}
