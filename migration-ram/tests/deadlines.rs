//! Peers that send nothing or next to nothing, or do not read: both sides fail in time, with an
//! error that names what they waited for.

#[path = "common/deadline.rs"]
mod deadline;

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use memory_region::MemoryMap;
use migration_ram::{
    Deadlines, IncomingChannels, OutgoingChannels, Precopy, ReadTransport, ReceiveError, Receiver,
    SendError, WriteTransport,
};
use ram_block::{DirtyClient, RamBlock};

const LEN: u64 = 16 << 20;
/// The deadline of the tests.
const LIMIT: Duration = Duration::from_millis(500);

fn deadlines() -> Deadlines {
    Deadlines::none().handshake(LIMIT).idle(LIMIT).answer(LIMIT)
}

fn machine() -> (Arc<MemoryMap>, Arc<RamBlock>) {
    let memory = MemoryMap::new();
    let ram = RamBlock::anonymous("ram", LEN).unwrap();
    memory.transaction(|map| map.ram("ram", ram.clone())).unwrap();
    ram.write(0, &vec![7; usize::try_from(LEN).unwrap()]).unwrap();
    (memory, ram)
}

/// The result of receiving from inputs that stay open.
fn received<I: ReadTransport + 'static>(mut inputs: Vec<I>) -> ReceiveError {
    deadline::in_time(move || {
        let ram = [RamBlock::anonymous("ram", LEN).unwrap()];
        let inputs = inputs.iter_mut().map(|input| input as &mut dyn ReadTransport);
        let receiver = Receiver::new(&ram).deadlines(deadlines());
        receiver.run(IncomingChannels::several(inputs)).unwrap_err()
    })
}

#[track_caller]
fn assert_waited(error: &ReceiveError, expected: &str, place: u64) {
    match error {
        ReceiveError::TimedOut { at, what, waited } => {
            assert_eq!((*what, *at), (expected, place));
            assert!(*waited >= LIMIT, "{waited:?}");
            assert!(error.to_string().contains(expected), "{error}");
        }
        other => panic!("{other}"),
    }
}

const HEAD: &[u8] = b"QEVM\0\0\0\x03\x07\0\0\0\x04none";
const HELLO: &[u8] = b"\x11\x22\x33\x44\0\0\0\x01";

/// A stream up to the middle of a page.
fn beginning() -> Vec<u8> {
    let mut stream = HEAD.to_vec();
    stream.extend(b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04");
    stream.extend((LEN | 4).to_be_bytes());
    stream.extend(b"\x03ram");
    stream.extend(LEN.to_be_bytes());
    stream.extend(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02");
    stream.extend(b"\x02\0\0\0\x02\0\0\0\0\0\0\x20\x08\x03ram");
    stream
}

#[test]
fn a_sender_that_says_nothing_is_not_waited_for() {
    let whole = beginning();
    let cases = [
        (&b""[..], "the magic number"),
        (b"QEVM", "the version"),
        (&HEAD[..HEAD.len() - 2], "the machine's name"),
        (HEAD, "the part after the configuration"),
        (&whole, "a page"),
    ];
    for (said, what) in cases {
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(said).unwrap();
        let error = received(vec![far]);
        let at = match error {
            ReceiveError::TimedOut { at, .. } => at,
            _ => 0,
        };
        assert_waited(&error, what, at);
        assert!(at <= said.len() as u64, "{at}");
        // Over TCP, too.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        near.write_all(said).unwrap();
        assert_waited(&received(vec![listener.accept().unwrap().0]), what, at);
    }
}

/// A pipe is no socket, and cannot be shut down.
#[test]
fn a_pipe_that_stays_silent_is_not_waited_for() {
    let mut command = Command::new("cat");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(HEAD).unwrap();
    let error = received(vec![child.stdout.take().unwrap()]);
    assert_waited(&error, "the part after the configuration", HEAD.len() as u64);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Sends single bytes without end, but never a page of them within the deadline.
#[test]
fn a_sender_of_single_bytes_is_not_waited_for() {
    let whole = beginning();
    for said in [0, 4, whole.len()] {
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(&whole[..said]).unwrap();
        let rest = whole[said..].to_vec();
        let writer = std::thread::spawn(move || {
            let mut bytes = rest.into_iter().chain(std::iter::repeat(0));
            while near.write_all(&[bytes.next().unwrap()]).is_ok() {
                std::thread::sleep(LIMIT / 10);
            }
        });
        let error = received(vec![far]);
        assert!(matches!(error, ReceiveError::TimedOut { .. }), "{error}");
        writer.join().unwrap();
    }
}

#[test]
fn a_channel_that_says_nothing_is_not_waited_for() {
    // The channel sends no hello; or the stream waits for it in a sync that it never reaches.
    for (said, what) in [(&b""[..], "the magic number"), (HELLO, "a channel's beginning")] {
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(&beginning()).unwrap();
        let (mut near_channel, channel) = UnixStream::pair().unwrap();
        near_channel.write_all(said).unwrap();
        assert_waited(&received(vec![far, channel]), what, said.len() as u64);
    }
    let (mut near, far) = UnixStream::pair().unwrap();
    let begun = beginning();
    near.write_all(&begun[..begun.len() - 17]).unwrap();
    let (mut near_channel, channel) = UnixStream::pair().unwrap();
    near_channel.write_all(&[HELLO, &[0; 56]].concat()).unwrap();
    assert_waited(&received(vec![far, channel]), "a packet's head", 64);
}

/// Reads so many bytes, then one now and then, or none, until the other side hangs up.
fn take_few(mut from: UnixStream, count: usize, then: Option<Duration>) {
    let mut bytes = vec![0; count];
    let _ = from.read_exact(&mut bytes);
    match then {
        Some(pause) => {
            while from.read(&mut [0]).is_ok_and(|count| count > 0) {
                std::thread::sleep(pause);
            }
        }
        // Writes succeed as long as the other side has not closed the connection.
        None => {
            while from.write(&[0]).is_ok() {
                std::thread::sleep(LIMIT / 10);
            }
        }
    }
}

#[test]
fn a_receiver_that_takes_nothing_is_not_waited_for() {
    for (channels, stuck) in [(0, 0), (2, 0), (2, 1), (2, 2)] {
        for then in [None, Some(LIMIT / 10)] {
            let (memory, ram) = machine();
            let (mut near, far): (Vec<_>, Vec<_>) =
                (0..=channels).map(|_| UnixStream::pair().unwrap()).unzip();
            let takers: Vec<_> = far
                .into_iter()
                .enumerate()
                .map(|(n, mut far)| {
                    std::thread::spawn(move || match n == stuck {
                        true => take_few(far, 100, then),
                        false => drop(std::io::copy(&mut far, &mut std::io::sink())),
                    })
                })
                .collect();
            let error = deadline::in_time(move || {
                let (main, channels) = near.split_first_mut().unwrap();
                let channels = channels.iter_mut().map(|end| end as &mut dyn WriteTransport);
                // Zeros, with which the stream is filled, too.
                let zeros = RamBlock::anonymous("zeros", 1 << 30).unwrap();
                memory.transaction(|map| map.ram("zeros", zeros)).unwrap();
                let precopy = Precopy::new(memory).deadlines(deadlines());
                let to = OutgoingChannels::new(main).channels(channels);
                precopy.run(to, || Ok(()), |_| ()).unwrap_err()
            });
            let SendError::TimedOut { channel, waited, .. } = &error else { panic!("{error}") };
            assert_eq!(*channel, stuck.checked_sub(1), "{error}");
            assert!(*waited >= LIMIT, "{error}");
            assert!(error.to_string().starts_with("Waited "), "{error}");
            drop(takers); // one reads the rest, a byte at a time
            assert!(!ram.dirty().enabled().contains(DirtyClient::MIGRATION));
        }
    }
}

/// The destination may have everything: the error is `NoAck`.
#[test]
fn an_answer_that_does_not_come_is_not_waited_for() {
    for answers in [&b""[..], b"\0\x02\0\x04\0\0\0\0\0\x01"] {
        let (memory, ram) = machine();
        let (mut near, mut far) = UnixStream::pair().unwrap();
        far.write_all(answers).unwrap();
        let taker = std::thread::spawn(move || std::io::copy(&mut far, &mut std::io::sink()));
        let error = deadline::in_time(move || {
            let mut back = near.try_clone().unwrap();
            let precopy = Precopy::new(memory).deadlines(Deadlines::none().answer(LIMIT));
            let to = OutgoingChannels::new(&mut near).return_path(&mut back);
            precopy.run(to, || Ok(()), |_| ()).unwrap_err()
        });
        let SendError::NoAck { source } = &error else { panic!("{error}") };
        assert_eq!(source.kind(), ErrorKind::TimedOut);
        assert!(source.to_string().contains("500.0ms"), "{source}");
        assert!(!ram.dirty().enabled().contains(DirtyClient::MIGRATION));
        taker.join().unwrap().unwrap();
    }
}
