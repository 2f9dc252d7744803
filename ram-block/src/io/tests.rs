//! Lists against plain vectors of bytes, over everything that bytes go through.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write, pipe};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use proptest::prelude::*;

use crate::block::builder::tests::{LEN, Temporary, each_kind};
use crate::block::error::RamBlockError;
use crate::block::ram_block::RamBlock;
use crate::dirty::client::DirtyClient;
use crate::io::error::TransferError;
use crate::io::receive::ReceiveList;
use crate::io::send::SendList;
use crate::page::PageSize;

const CLIENT: DirtyClient = DirtyClient::MIGRATION;

/// A piece: bytes of the caller, copied bytes, or bytes of the block of this number.
#[derive(Clone, Debug)]
enum Want {
    Bytes(usize),
    Copied(usize),
    Memory(usize, u64, usize),
}

impl Want {
    fn len(&self) -> usize {
        match self {
            Want::Bytes(len) | Want::Copied(len) | Want::Memory(_, _, len) => *len,
        }
    }
}

fn want(blocks: usize) -> impl Strategy<Value = Want> {
    let len = || prop_oneof![4 => 0..20usize, 2 => Just(4096usize), 1 => 0..30_000usize];
    let memory = (0..blocks, 0..LEN - 30_000, len());
    prop_oneof![
        len().prop_map(Want::Bytes),
        (0..20usize).prop_map(Want::Copied),
        memory.prop_map(|(block, at, len)| Want::Memory(block, at, len)),
    ]
}

/// The transport between both ends.
#[derive(Clone, Copy, Debug)]
enum Way {
    Socket,
    Pipe,
    File,
    Stream,
}

fn way() -> impl Strategy<Value = Way> {
    prop_oneof![Just(Way::Socket), Just(Way::Pipe), Just(Way::File), Just(Way::Stream)]
}

/// Bytes that differ from place to place.
fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|n| ((n + seed).wrapping_mul(0x9e37_79b9) >> 7).to_le_bytes()[0] | 1).collect()
}

fn page() -> u64 {
    PageSize::host().bytes()
}

fn file_for(name: &str) -> Temporary {
    Temporary::new(name, &pattern(usize::try_from(2 * LEN + page()).unwrap(), 1))
}

fn content(ram: &RamBlock) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(ram.len()).unwrap()];
    ram.read(0, &mut bytes).unwrap();
    bytes
}

fn dirty(ram: &RamBlock) -> BTreeSet<u64> {
    (0..ram.pages()).filter(|page| ram.dirty().is_dirty(CLIENT, *page)).collect()
}

/// Makes the socket take little at a time, and not wait.
fn make_narrow(socket: &UnixStream) {
    socket.set_nonblocking(true).unwrap();
    let bytes: libc::c_int = 1;
    // SAFETY: the option is an int that lives during the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUF,
            (&raw const bytes).cast(),
            4,
        )
    };
    assert_eq!(result, 0);
}

/// A `Read` and `Write` that takes and gives so many bytes at a time, and is interrupted.
struct Slow<T> {
    inner: T,
    most: usize,
    calls: usize,
}

impl<T> Slow<T> {
    fn turn(&mut self) -> io::Result<usize> {
        self.calls += 1;
        if self.calls % 3 == 0 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        Ok(1 + (self.calls * 7919) % self.most)
    }
}

impl<T: Read> Read for Slow<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let some = self.turn()?.min(buffer.len());
        self.inner.read(&mut buffer[..some])
    }
}

impl<T: Write> Write for Slow<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let some = self.turn()?.min(bytes.len());
        self.inner.write(&bytes[..some])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The bytes that arrive at the other end when a list is sent.
fn send(list: &mut SendList<'_>, way: Way, most: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let drain = move |input: &mut dyn Read| {
        let mut bytes = Vec::new();
        Slow { inner: input, most, calls: 0 }.read_to_end(&mut bytes).unwrap();
        bytes
    };
    match way {
        Way::Socket => {
            let (near, mut far) = UnixStream::pair().unwrap();
            make_narrow(&near);
            let far = thread::spawn(move || drain(&mut far));
            list.write_to_fd(near.as_fd()).unwrap();
            drop(near);
            bytes = far.join().unwrap();
        }
        Way::Pipe => {
            let (mut far, near) = pipe().unwrap();
            let far = thread::spawn(move || drain(&mut far));
            list.write_to_fd(near.as_fd()).unwrap();
            drop(near);
            bytes = far.join().unwrap();
        }
        Way::File => {
            let file = Temporary::new(&format!("sent-{:?}", thread::current().id()), &[]);
            list.write_to_fd(file.open(true).as_fd()).unwrap();
            file.open(false).read_to_end(&mut bytes).unwrap();
        }
        Way::Stream => list.write_to(&mut Slow { inner: &mut bytes, most, calls: 0 }).unwrap(),
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// What is sent is what the pieces held, whatever the way; the list is empty then, and of
    /// use again.
    #[test]
    fn a_list_is_sent_as_it_is(
        wants in prop::collection::vec(want(7), 0..60),
        way in way(),
        most in prop_oneof![1..10usize, 1..100_000usize],
        twice in any::<bool>(),
    ) {
        let file = file_for(&format!("send-{:?}", thread::current().id()));
        let blocks = each_kind(&file);
        let mut logs = Vec::new();
        for (n, (_, ram)) in blocks.iter().enumerate() {
            ram.write(0, &pattern(usize::try_from(LEN).unwrap(), 1000 * n)).unwrap();
            logs.push(ram.dirty().claim(CLIENT).unwrap());
        }
        // Sending bytes one by one takes its time.
        let wants = if most < 10 { &wants[..wants.len().min(6)] } else { &wants[..] };
        let own: Vec<_> = wants.iter().enumerate().map(|(n, want)| pattern(want.len(), n))
            .collect();
        let mut expected = Vec::new();
        let mut list = SendList::new();
        for _ in 0..=usize::from(twice) {
            expected.clear();
            for (want, own) in wants.iter().zip(&own) {
                match want {
                    Want::Bytes(_) => list.push_bytes(own),
                    Want::Copied(_) => list.push_copied(own),
                    Want::Memory(block, at, len) => {
                        let ram = &blocks[*block].1;
                        list.push_memory(ram, *at..*at + *len as u64).unwrap();
                        let mut bytes = vec![0; *len];
                        ram.read(*at, &mut bytes).unwrap();
                        expected.extend(bytes);
                        continue;
                    }
                }
                expected.extend(own);
            }
            prop_assert_eq!(list.len(), expected.len() as u64);
            prop_assert!(send(&mut list, way, most) == expected, "other bytes");
            prop_assert!(list.is_empty() && list.segments() == 0);
        }
        for (kind, ram) in &blocks {
            prop_assert!(dirty(ram).is_empty(), "{} was only read", kind);
        }
    }

    /// Received bytes are where they should be, up to the end of the stream; just the pages that
    /// were written are marked.
    #[test]
    fn a_list_is_filled_in_order_and_marked(
        wants in prop::collection::vec(want(7), 0..60),
        way in way(),
        most in prop_oneof![1..10usize, 1..100_000usize],
        cut in prop::option::of(any::<prop::sample::Index>()),
        one_by_one in any::<bool>(),
    ) {
        let file = file_for(&format!("receive-{:?}", thread::current().id()));
        let blocks = each_kind(&file);
        let wants = if most < 10 { &wants[..wants.len().min(6)] } else { &wants[..] };
        let mut own: Vec<_> = wants.iter().map(|want| vec![0; want.len()]).collect();
        let all: usize = wants.iter().map(Want::len).sum();
        let sent = cut.map_or(all, |cut| cut.index(all + 1));
        let stream = pattern(all, 77);

        // The copy's own pages: what comes into the file would show through.
        blocks.iter().for_each(|(_, ram)| ram.write(0, &content(ram)).unwrap());
        let mut memories: Vec<_> = blocks.iter().map(|(_, ram)| content(ram)).collect();
        let mut expected_dirty = vec![BTreeSet::new(); blocks.len()];
        let mut expected_own = own.clone();
        let mut at = 0;
        for (want, own) in wants.iter().zip(&mut expected_own) {
            let some = want.len().min(sent - at);
            let bytes = &stream[at..at + some];
            match want {
                Want::Bytes(_) | Want::Copied(_) => own[..some].copy_from_slice(bytes),
                Want::Memory(block, place, _) => {
                    let start = usize::try_from(*place).unwrap();
                    memories[*block][start..start + some].copy_from_slice(bytes);
                    let pages = PageSize::host().pages_spanned(*place, some as u64);
                    expected_dirty[*block].extend(pages);
                }
            }
            at += some;
        }

        let claim = |(_, ram): &(_, Arc<RamBlock>)| ram.dirty().claim(CLIENT).unwrap();
        let _logs: Vec<_> = blocks.iter().map(claim).collect();
        let mut list = ReceiveList::new();
        for (want, own) in wants.iter().zip(&mut own) {
            match want {
                Want::Bytes(_) | Want::Copied(_) => list.push_bytes(own),
                Want::Memory(block, at, len) => {
                    list.push_memory(&blocks[*block].1, *at..*at + *len as u64).unwrap();
                }
            }
        }
        prop_assert_eq!(list.len(), all as u64);
        let result = receive(&mut list, way, &stream[..sent], most, one_by_one);
        match result {
            Ok(()) => prop_assert_eq!(sent, all),
            Err(TransferError::UnexpectedEof { done, missing }) => {
                prop_assert_eq!((done, missing), (sent as u64, (all - sent) as u64));
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
        prop_assert_eq!(list.len(), (all - sent) as u64);
        drop(list);
        prop_assert!(own == expected_own, "other bytes");
        for (n, (kind, ram)) in blocks.iter().enumerate() {
            prop_assert!(content(ram) == memories[n], "other bytes in {}", kind);
            // Memory that may vanish is marked as far as the call may have come.
            if kind.starts_with("file") && sent < all {
                prop_assert!(dirty(ram).is_superset(&expected_dirty[n]), "{}", kind);
            } else if !kind.starts_with("file") || matches!(way, Way::File | Way::Stream) {
                prop_assert_eq!(&dirty(ram), &expected_dirty[n], "{}", kind);
            }
        }
    }
}

fn receive(
    list: &mut ReceiveList<'_>,
    way: Way,
    bytes: &[u8],
    most: usize,
    one_by_one: bool,
) -> Result<(), TransferError> {
    let feed = |output: &mut dyn Write| {
        Slow { inner: output, most, calls: 0 }.write_all(bytes).unwrap();
    };
    let get = |fd: BorrowedFd<'_>, list: &mut ReceiveList<'_>| {
        if !one_by_one {
            return list.read_exact_from_fd(fd);
        }
        let mut done = 0;
        while !list.is_empty() {
            match list.read_from_fd(fd) {
                Ok(0) => return Err(TransferError::UnexpectedEof { done, missing: list.len() }),
                Ok(count) => done += count as u64,
                Err(TransferError::Io { source, .. })
                    if source.kind() == io::ErrorKind::WouldBlock =>
                {
                    thread::yield_now();
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    };
    thread::scope(|scope| match way {
        Way::Socket => {
            let (near, mut far) = UnixStream::pair().unwrap();
            near.set_nonblocking(true).unwrap();
            scope.spawn(move || feed(&mut far));
            get(near.as_fd(), list)
        }
        Way::Pipe => {
            let (near, mut far) = pipe().unwrap();
            scope.spawn(move || feed(&mut far));
            get(near.as_fd(), list)
        }
        Way::File => {
            let name = format!("received-{:?}", thread::current().id());
            get(Temporary::new(&name, bytes).open(false).as_fd(), list)
        }
        Way::Stream => list.read_from(&mut Slow { inner: bytes, most, calls: 0 }),
    })
}

/// Pieces of a few bytes on both sides of pages' ends, and a stream that ends at each of them.
#[test]
fn a_stream_that_ends_at_any_byte_marks_the_pages_that_it_reached() {
    let bytes = pattern(24, 3);
    for end in 0..=bytes.len() {
        for way in [Way::Socket, Way::Pipe, Way::File, Way::Stream] {
            let ram = RamBlock::anonymous("ram", 8 * page()).unwrap();
            let _log = ram.dirty().claim(CLIENT).unwrap();
            let mut head = [0; 4];
            let mut list = ReceiveList::new();
            list.push_memory(&ram, page() - 4..page() + 4).unwrap();
            list.push_bytes(&mut head);
            list.push_memory(&ram, 6 * page() - 1..6 * page() + 1).unwrap();
            list.push_memory(&ram, 3 * page() - 5..3 * page() + 5).unwrap();
            let result = receive(&mut list, way, &bytes[..end], 100, false);
            assert_eq!(result.is_ok(), end == 24, "{way:?}");
            let mut expected = BTreeSet::new();
            for (reached, number) in [(1, 0), (5, 1), (13, 5), (14, 6), (15, 2), (20, 3)] {
                if end >= reached {
                    expected.insert(number);
                }
            }
            assert_eq!(dirty(&ram), expected, "{way:?}, {end} bytes");
            let mut seen = [0; 10];
            ram.read(3 * page() - 5, &mut seen).unwrap();
            let came = end.saturating_sub(14);
            assert_eq!((&seen[..came], &seen[came..]), (&bytes[14..14 + came], &[0; 10][came..]));
        }
    }
}

#[test]
fn thousands_of_pieces_go_in_few_calls_and_join_where_they_can() {
    const PAGES: u64 = 5000;
    let from = RamBlock::anonymous("from", PAGES * page()).unwrap();
    let to = RamBlock::anonymous("to", PAGES * page()).unwrap();
    let bytes = pattern(usize::try_from(from.len()).unwrap(), 3);
    from.write(0, &bytes).unwrap();
    let (near, far) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut list = SendList::new();
            for n in (0..PAGES).rev() {
                list.push_copied(&n.to_be_bytes());
                list.push_memory(&from, n * page()..(n + 1) * page()).unwrap();
            }
            assert_eq!(list.segments(), 10_000);
            list.write_to_fd(near.as_fd()).unwrap();
        });
        let mut heads = vec![[0; 8]; usize::try_from(PAGES).unwrap()];
        let mut list = ReceiveList::new();
        for (head, n) in heads.iter_mut().zip((0..PAGES).rev()) {
            list.push_bytes(head);
            list.push_memory(&to, n * page()..(n + 1) * page()).unwrap();
        }
        list.read_exact_from_fd(far.as_fd()).unwrap();
        drop(list);
        let numbers: Vec<_> = heads.into_iter().map(u64::from_be_bytes).collect();
        assert_eq!(numbers, (0..PAGES).rev().collect::<Vec<_>>());
    });
    assert!(content(&to) == bytes, "other bytes");

    let mut list = SendList::new();
    (0..PAGES).for_each(|n| list.push_memory(&from, n * page()..(n + 1) * page()).unwrap());
    list.push_memory(&to, 0..page()).unwrap();
    list.push_copied(b"one");
    list.push_copied(b" piece");
    assert_eq!((list.segments(), list.len()), (3, (PAGES + 1) * page() + 9));
    list.push_memory(&from, 0..5).unwrap();
    list.push_memory(&to, 5..9).unwrap();
    assert_eq!(list.segments(), 5);
    let mut list = ReceiveList::new();
    (0..PAGES).for_each(|n| list.push_memory(&from, n * page()..(n + 1) * page()).unwrap());
    assert_eq!(list.segments(), 1);
}

#[test]
fn what_lies_outside_a_block_is_refused_and_not_added() {
    let ram = RamBlock::anonymous("ram", page()).unwrap();
    #[allow(clippy::reversed_empty_ranges)] // refused
    for range in [0..page() + 1, page()..page() + 1, 5..4, u64::MAX..u64::MAX] {
        let refused = SendList::new().push_memory(&ram, range.clone()).unwrap_err();
        assert!(matches!(refused, RamBlockError::OutOfBounds { .. }), "{refused}");
        let refused = ReceiveList::new().push_memory(&ram, range).unwrap_err();
        assert!(matches!(refused, RamBlockError::OutOfBounds { .. }), "{refused}");
    }
    let mut list = SendList::new();
    list.push_memory(&ram, page()..page()).unwrap();
    list.push_bytes(&[]);
    list.push_copied(&[]);
    assert_eq!((list.segments(), list.is_empty()), (0, true));
}

#[test]
fn a_closed_peer_is_an_error_that_says_how_far_it_came_and_no_signal() {
    let ram = RamBlock::anonymous("ram", 1 << 20).unwrap();
    let (near, mut far) = UnixStream::pair().unwrap();
    let mut list = SendList::new();
    list.push_memory(&ram, 0..1 << 20).unwrap();
    let error = thread::scope(|scope| {
        scope.spawn(move || far.read_exact(&mut [0; 5000]).unwrap());
        list.write_to_fd(near.as_fd()).unwrap_err()
    });
    assert!(error.done() >= 5000 && error.done() + list.len() == 1 << 20, "{error}");
    let source = io::Error::from(error);
    let kinds = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
    assert!(kinds.contains(&source.kind()), "{source}");
}

#[test]
fn a_socket_with_a_timeout_of_its_own_does_not_wait_for_ever() {
    let ram = RamBlock::anonymous("ram", 1 << 20).unwrap();
    let (near, _far) = UnixStream::pair().unwrap();
    let soon = Some(std::time::Duration::from_millis(20));
    near.set_write_timeout(soon).unwrap();
    near.set_read_timeout(soon).unwrap();
    let mut list = SendList::new();
    list.push_memory(&ram, 0..1 << 20).unwrap();
    let error = io::Error::from(list.write_to_fd(near.as_fd()).unwrap_err());
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    let mut list = ReceiveList::new();
    list.push_memory(&ram, 0..1 << 20).unwrap();
    let error = io::Error::from(list.read_exact_from_fd(near.as_fd()).unwrap_err());
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert_eq!(list.len(), 1 << 20);
}

/// A block on a file of which two of eight pages are left.
fn shortened(name: &str) -> (Arc<RamBlock>, Temporary) {
    let length = usize::try_from(8 * page()).unwrap();
    let file = Temporary::new(name, &pattern(length, 5));
    let ram = RamBlock::builder(name, 8 * page()).file(file.open(true), 0).unwrap();
    file.open(true).set_len(2 * page()).unwrap();
    (ram, file)
}

fn is_gone(error: &TransferError, name: &str, at: u64) {
    match error {
        TransferError::MemoryGone { id, offset, .. } => assert_eq!((&id[..], *offset), (name, at)),
        other => panic!("{other}"),
    }
}

#[test]
fn memory_that_vanished_is_an_error_with_its_place_and_no_bus_error() {
    let (ram, _file) = shortened("gone");
    let bytes = pattern(usize::try_from(8 * page()).unwrap(), 9);
    let gone = 2 * page();
    let (near, far) = UnixStream::pair().unwrap();
    let mut list = SendList::new();
    list.push_copied(b"head");
    list.push_memory(&ram, 5..8 * page()).unwrap();
    let error = list.write_to_fd(near.as_fd()).unwrap_err();
    is_gone(&error, "gone", gone);
    assert_eq!(error.done() + list.len(), 8 * page() - 1);
    drop(far);

    let mut out = Vec::new();
    list.clear();
    list.push_copied(b"head");
    list.push_memory(&ram, 5..8 * page()).unwrap();
    let error = list.write_to(&mut out).unwrap_err();
    is_gone(&error, "gone", gone);
    assert_eq!((error.done(), out.len() as u64), (gone - 1, gone - 1));

    let _log = ram.dirty().claim(CLIENT).unwrap();
    let (near, mut far) = UnixStream::pair().unwrap();
    let mut list = ReceiveList::new();
    list.push_memory(&ram, 5..8 * page()).unwrap();
    let error = thread::scope(|scope| {
        scope.spawn(|| far.write_all(&bytes));
        let error = list.read_exact_from_fd(near.as_fd()).unwrap_err();
        drop(near);
        error
    });
    is_gone(&error, "gone", gone);
    assert!(dirty(&ram).is_superset(&BTreeSet::from([0, 1])));

    let mut list = ReceiveList::new();
    list.push_memory(&ram, 5..8 * page()).unwrap();
    let error = list.read_from(&mut &bytes[..]).unwrap_err();
    is_gone(&error, "gone", gone);
    assert_eq!((error.done(), list.len()), (gone - 5, 6 * page()));
    let mut seen = vec![0; usize::try_from(gone - 5).unwrap()];
    ram.read(5, &mut seen).unwrap();
    assert!(seen == bytes[..seen.len()], "other bytes");
}

#[test]
fn a_hook_that_panics_leaves_no_page_unmarked() {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    let ram = RamBlock::anonymous("ram", 8 * page()).unwrap();
    let _log = ram.dirty().claim(CLIENT).unwrap();
    let watching = ram.dirty().watch_code(|_| panic!("a hook that fails")).unwrap();
    watching.watch(0..1).unwrap();
    let (near, mut far) = UnixStream::pair().unwrap();
    far.write_all(&pattern(usize::try_from(3 * page()).unwrap(), 1)).unwrap();
    let mut list = ReceiveList::new();
    for n in [0, 3, 5] {
        list.push_memory(&ram, n * page()..(n + 1) * page()).unwrap();
    }
    let read = || list.read_exact_from_fd(near.as_fd());
    assert!(catch_unwind(AssertUnwindSafe(read)).is_err());
    assert_eq!(dirty(&ram), BTreeSet::from([0, 3, 5]));
}

/// A directly read file ends within a page.
#[test]
fn a_file_is_read_past_the_caches_too() {
    use std::os::unix::fs::OpenOptionsExt;
    let bytes = pattern(10_000, 4);
    let file = Temporary::new("direct", &bytes);
    let source = file.open(true);
    source.sync_all().unwrap();
    let direct = File::options().read(true).custom_flags(libc::O_DIRECT).open(file.path());
    let Ok(direct) = direct else { return }; // the file system has no such thing
    let ram = RamBlock::anonymous("ram", 1 << 16).unwrap();
    let _log = ram.dirty().claim(CLIENT).unwrap();
    let mut list = ReceiveList::new();
    list.push_memory(&ram, 0..1 << 16).unwrap();
    let error = list.read_exact_from_fd(direct.as_fd()).unwrap_err();
    assert!(matches!(error, TransferError::UnexpectedEof { done: 10_000, .. }), "{error}");
    assert!(content(&ram)[..10_000] == bytes[..], "other bytes");
    assert!((0..10_000u64.div_ceil(page())).all(|n| ram.dirty().is_dirty(CLIENT, n)));
}
