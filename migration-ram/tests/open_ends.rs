//! Connections that stay open, or are never read, do not block a receiver.

#[path = "common/deadline.rs"]
mod deadline;

use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use memory_region::MemoryMap;
use migration_ram::{
    Deadlines, IncomingChannels, OutgoingChannels, Precopy, ReadTransport, ReceiveError, Receiver,
    WriteTransport,
};
use ram_block::RamBlock;

const LEN: u64 = 1 << 20;

/// A source that sends pings without end, and never reads the answers.
#[test]
fn a_sender_that_never_reads_is_not_waited_for() {
    let (mut near, mut far) = UnixStream::pair().unwrap();
    let sender = std::thread::spawn(move || {
        near.write_all(b"QEVM\0\0\0\x03\x07\0\0\0\x04none\x08\0\x01\0\0").unwrap();
        let pings = b"\x08\0\x02\0\x04\0\0\0\0".repeat(1000);
        while near.write_all(&pings).is_ok() {}
    });
    let error = deadline::in_time(move || {
        let mut back = far.try_clone().unwrap();
        let deadlines = Deadlines::none().idle(Duration::from_millis(500));
        let from = IncomingChannels::new(&mut far).return_path(&mut back);
        Receiver::new(&[]).deadlines(deadlines).run(from).unwrap_err()
    });
    let ReceiveError::ReturnPath { source } = &error else { panic!("{error}") };
    assert_eq!(source.kind(), ErrorKind::TimedOut, "{source}");
    sender.join().unwrap();
}

/// A pipe cannot be shut down by its reader.
#[test]
fn a_channel_that_stays_open_holds_nobody() {
    let memory = MemoryMap::new();
    let ram = RamBlock::anonymous("ram", LEN).unwrap();
    memory.transaction(|map| map.ram("ram", ram.clone())).unwrap();
    ram.write(4096, &[7; 4096]).unwrap();
    let (mut stream, mut packets) = (Vec::new(), Vec::new());
    let channels: [&mut dyn WriteTransport; 1] = [&mut packets];
    let to = OutgoingChannels::new(&mut stream).channels(channels);
    let _ = Precopy::new(memory).run(to, || Ok(()), |_| ()).unwrap();

    let mut command = Command::new("cat");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(&packets).unwrap();
    let mut channel = child.stdout.take().unwrap();
    deadline::in_time(move || {
        let twin = [RamBlock::anonymous("ram", LEN).unwrap()];
        let mut stream = stream.as_slice();
        let inputs: [&mut dyn ReadTransport; 2] = [&mut stream, &mut channel];
        let receiver = Receiver::new(&twin).deadlines(Deadlines::none());
        receiver.run(IncomingChannels::several(inputs)).unwrap();
        let mut page = [0; 4096];
        twin[0].read(4096, &mut page).unwrap();
        assert_eq!(page, [7; 4096]);
    });
    child.kill().unwrap();
    child.wait().unwrap();
}
