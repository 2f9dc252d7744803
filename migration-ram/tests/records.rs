//! Any sequence of RAM records, in any pieces, into memory in any state: the blocks equal the
//! result by definition.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use migration_ram::{Buffered, ReadTransport, ReceiveError, Received, Receiver};
use proptest::prelude::*;
use ram_block::{DirtyClient, RamBlock, ReceiveList, TransferError};

/// Pages of the stream, and of the blocks: 64 KiB is a whole number of every host's pages.
const PAGE: usize = 4096;
const PAGES: usize = 160;
const IDS: [&str; 2] = ["pc.ram", "vram"];

#[derive(Clone, Copy, Debug)]
enum Record {
    /// A run of pages of one block, each filled with its own byte.
    Data {
        block: usize,
        page: usize,
        count: usize,
        seed: u8,
    },
    Zero {
        block: usize,
        page: usize,
        count: usize,
    },
    /// Each other page has contents.
    Mixed {
        block: usize,
        page: usize,
        count: usize,
        seed: u8,
    },
    /// A run of pages, compressed each.
    Compressed {
        block: usize,
        page: usize,
        count: usize,
        seed: u8,
    },
    /// The new bytes of a page that the stream has sent before.
    Delta {
        block: usize,
        page: usize,
        changes: [(usize, u8); 3],
    },
    Section,
}

fn record() -> impl Strategy<Value = Record> {
    let place = || (0..2usize, 0..PAGES, 1..70usize);
    prop_oneof![
        4 => (place(), any::<u8>())
            .prop_map(|((block, page, count), seed)| Record::Data { block, page, count, seed }),
        2 => place().prop_map(|(block, page, count)| Record::Zero { block, page, count }),
        2 => (place(), any::<u8>())
            .prop_map(|((block, page, count), seed)| Record::Mixed { block, page, count, seed }),
        1 => (place(), any::<u8>()).prop_map(|((block, page, count), seed)| {
            Record::Compressed { block, page, count, seed }
        }),
        3 => (place(), any::<[(prop::sample::Index, u8); 3]>()).prop_map(
            |((block, page, _), changes)| {
                let changes = changes.map(|(at, byte)| (at.index(PAGE), byte));
                Record::Delta { block, page, changes }
            }
        ),
        1 => Just(Record::Section),
    ]
}

/// A page that differs from all others, and nowhere looks like a record.
fn contents(page: usize, seed: u8) -> [u8; PAGE] {
    let first = seed.wrapping_add(page.to_le_bytes()[0]);
    std::array::from_fn(|at| first.wrapping_mul(7).wrapping_add((at / 7).to_le_bytes()[0]) | 0x80)
}

/// An XBZRLE delta: the number of unchanged bytes, the number of new ones, these, and so on.
fn delta(old: &[u8], new: &[u8]) -> Vec<u8> {
    let number = |n: usize| match n {
        0..0x80 => vec![n.to_le_bytes()[0]],
        _ => vec![n.to_le_bytes()[0] | 0x80, (n >> 7).to_le_bytes()[0]],
    };
    let (mut delta, mut at, mut stays) = (Vec::new(), 0, 0);
    let same: Vec<bool> = old.iter().zip(new).map(|(old, new)| old == new).collect();
    for run in same.chunk_by(|a, b| a == b) {
        if run[0] {
            stays = run.len();
        } else {
            let bytes = &new[at..at + run.len()];
            delta.extend([number(stays), number(run.len()), bytes.to_vec()].concat());
        }
        at += run.len();
    }
    delta
}

/// The expected state of each page of each block.
type Model = Vec<Vec<Option<[u8; PAGE]>>>;

/// The stream of the records, encoded by definition, and the expected blocks: `None` for pages
/// that it does not send.
fn encode(records: &[Record], always_named: bool) -> (Vec<u8>, Model) {
    let mut model = vec![vec![None; PAGES]; IDS.len()];
    let mut out: Vec<u8> = Vec::new();
    out.extend(b"QEVM\0\0\0\x03\x07\0\0\0\x04none");
    out.extend(b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04");
    let len = (PAGES * PAGE) as u64;
    out.extend(((2 * len) | 4).to_be_bytes());
    for id in IDS {
        out.push(u8::try_from(id.len()).unwrap());
        out.extend(id.as_bytes());
        out.extend(len.to_be_bytes());
    }
    let end = b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02";
    out.extend(end);
    out.extend(b"\x02\0\0\0\x02");
    let mut last = None;
    // A record of a page, with `payload` in the stream.
    let mut put = |out: &mut Vec<u8>, block: usize, page: usize, flag: u64, payload: &[u8]| {
        let go_on = last == Some(block) && !always_named;
        last = Some(block);
        let flag = flag | if go_on { 0x20 } else { 0 };
        out.extend(((page * PAGE) as u64 | flag).to_be_bytes());
        if !go_on {
            out.push(u8::try_from(IDS[block].len()).unwrap());
            out.extend(IDS[block].as_bytes());
        }
        out.extend(payload);
    };
    let run = |page: usize, count: usize| page..(page + count).min(PAGES);
    for record in records {
        match *record {
            Record::Data { block, page, count, seed } => {
                for page in run(page, count) {
                    let data = contents(page, seed);
                    put(&mut out, block, page, 8, &data);
                    model[block][page] = Some(data);
                }
            }
            Record::Zero { block, page, count } => {
                for page in run(page, count) {
                    put(&mut out, block, page, 2, &[0]);
                    model[block][page] = Some([0; PAGE]);
                }
            }
            Record::Mixed { block, page, count, seed } => {
                for page in run(page, count) {
                    let data = if page % 2 == 0 { contents(page, seed) } else { [0; PAGE] };
                    let (flag, payload) =
                        if page % 2 == 0 { (8, &data[..]) } else { (2, &[0][..]) };
                    put(&mut out, block, page, flag, payload);
                    model[block][page] = Some(data);
                }
            }
            Record::Compressed { block, page, count, seed } => {
                for page in run(page, count) {
                    let data = contents(page, seed);
                    let level = Compression::new(u32::from(seed) % 10);
                    let mut zlib = ZlibEncoder::new(vec![0; 4], level);
                    zlib.write_all(&data).unwrap();
                    let mut zlib = zlib.finish().unwrap();
                    let len = u32::try_from(zlib.len() - 4).unwrap();
                    zlib[..4].copy_from_slice(&len.to_be_bytes());
                    put(&mut out, block, page, 0x100, &zlib);
                    model[block][page] = Some(data);
                }
            }
            Record::Delta { block, page, changes } => {
                let Some(old) = model[block][page] else { continue };
                let mut new = old;
                changes.iter().for_each(|(at, byte)| new[*at] = *byte);
                let delta = delta(&old, &new);
                let [.., high, low] = delta.len().to_be_bytes();
                put(&mut out, block, page, 0x40, &[&[1, high, low][..], &delta].concat());
                model[block][page] = Some(new);
            }
            Record::Section => {
                out.extend(end);
                out.extend(b"\x02\0\0\0\x02");
            }
        }
    }
    out.extend(end);
    out.extend(b"\x03\0\0\0\x02");
    out.extend(end);
    out.extend(b"\0\x06\0\0\0\0");
    (out, model)
}

/// A stream that is received in pieces of these sizes, cyclically.
struct Pieces<'a> {
    bytes: &'a [u8],
    sizes: &'a [usize],
    next: usize,
}

impl ReadTransport for Pieces<'_> {
    fn receive(&mut self, list: &mut ReceiveList<'_>) -> Result<usize, TransferError> {
        let size = self.sizes[self.next % self.sizes.len()];
        self.next += 1;
        let got = list.read_some_from(&mut (&mut self.bytes).take(size as u64))?;
        Ok(got)
    }
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Pieces,
    Socket,
    Copied,
}

fn receive(
    way: Way,
    stream: &[u8],
    sizes: &[usize],
    receiver: Receiver<'_>,
) -> Result<Received, ReceiveError> {
    match way {
        Way::Pieces => receiver.run(&mut Pieces { bytes: stream, sizes, next: 0 }),
        Way::Copied => receiver.run(&mut Buffered(stream)),
        Way::Socket => std::thread::scope(|scope| {
            let (mut out, mut input) = UnixStream::pair().unwrap();
            scope.spawn(move || -> io::Result<()> {
                let mut left = stream;
                for size in sizes.iter().cycle() {
                    let (piece, rest) = left.split_at(left.len().min(*size));
                    out.write_all(piece)?;
                    left = rest;
                    if left.is_empty() {
                        break;
                    }
                }
                Ok(())
            });
            receiver.run(&mut input)
        }),
    }
}

fn block(kind: usize, id: &str) -> Arc<RamBlock> {
    let len = (PAGES * PAGE) as u64;
    match kind {
        0 => RamBlock::anonymous(id, len).unwrap(),
        _ => RamBlock::memfd(id, len).unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 96 } else { 2000 }))]

    #[test]
    fn the_blocks_are_what_the_records_say(
        records in prop::collection::vec(record(), 0..12),
        always_named in prop::bool::weighted(0.2),
        before in prop::collection::vec((0..2usize, 0..PAGES, any::<u8>()), 0..40),
        kind in 0..2usize,
        fresh: bool,
        way in prop_oneof![Just(Way::Pieces), Just(Way::Socket), Just(Way::Copied)],
        sizes in prop::collection::vec(
            prop_oneof![1..20usize, 4000..4300usize, 1..300_000usize], 1..20,
        ),
    ) {
        let (stream, model) = encode(&records, always_named);
        let blocks = IDS.map(|id| block(kind, id));
        let mut old = vec![vec![[0; PAGE]; PAGES]; IDS.len()];
        for (block, page, seed) in before {
            old[block][page] = contents(page, seed);
            blocks[block].write((page * PAGE) as u64, &old[block][page]).unwrap();
        }
        let _logs = blocks.each_ref().map(|block| block.dirty().claim(DirtyClient::VGA).unwrap());
        let received = {
            let receiver = Receiver::new(&blocks).discard_contents(fresh);
            receive(way, &stream, &sizes, receiver).unwrap()
        };
        prop_assert_eq!(received.bytes, stream.len() as u64);
        for ((block, model), old) in blocks.iter().zip(&model).zip(&old) {
            let mut page = [0; PAGE];
            for (n, (expected, old)) in model.iter().zip(old).enumerate() {
                block.read((n * PAGE) as u64, &mut page).unwrap();
                let right = match expected {
                    Some(expected) => page == *expected,
                    None => page == *old || fresh && page == [0; PAGE],
                };
                prop_assert!(right, "page {} of {}: {:?}", n, block.id(), &page[..4]);
                let host = (n * PAGE) as u64 / block.page_size().bytes();
                let dirty = block.dirty().is_dirty(DirtyClient::VGA, host);
                prop_assert!(page == *old || dirty, "page {} changed unseen", n);
            }
        }
    }

    /// A stream that is truncated anywhere is a `Truncated` error, and does not hang.
    #[test]
    fn a_stream_that_ends_early_says_so(
        records in prop::collection::vec(record(), 1..6),
        cut in any::<prop::sample::Index>(),
        sizes in prop::collection::vec(1..9000usize, 1..5),
    ) {
        let (stream, _) = encode(&records, false);
        let cut = cut.index(stream.len() - 5);
        let blocks = IDS.map(|id| block(0, id));
        let result = receive(Way::Pieces, &stream[..cut], &sizes, Receiver::new(&blocks));
        match result {
            Err(ReceiveError::Truncated { at, .. }) => prop_assert!(at <= cut as u64),
            other => prop_assert!(false, "cut at {}: {:?}", cut, other),
        }
    }
}
