//! The stream in both directions, damaged streams, and failing sides.

use std::io::{self, Write};
use std::sync::Arc;

use memory_region::MemoryMap;
use migration_ram::{
    Buffered, Migrated, Precopy, ReceiveError, SendError, WriteTransport, receive,
};
use proptest::prelude::*;
use ram_block::{DirtyClient, PageSize, RamBlock, SendList, TransferError};

fn blocks(sizes: &[(&str, u64)]) -> Vec<Arc<RamBlock>> {
    sizes.iter().map(|(id, size)| RamBlock::anonymous(id, *size).unwrap()).collect()
}

fn map_of(blocks: &[Arc<RamBlock>]) -> Arc<MemoryMap> {
    let memory = MemoryMap::new();
    memory
        .transaction(|map| {
            blocks.iter().try_for_each(|block| map.ram(block.id(), block.clone()).map(drop))
        })
        .unwrap();
    memory
}

fn still() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    Ok(())
}

fn contents(block: &RamBlock) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(block.len()).unwrap()];
    block.read(0, &mut bytes).unwrap();
    bytes
}

/// Pages from the host's size in whole pages, so that the tests fit every host.
fn pages(count: u64) -> u64 {
    count * PageSize::host().bytes()
}

#[test]
fn all_blocks_arrive_and_untouched_pages_come_as_zeros() {
    let source = blocks(&[("pc.ram", pages(64)), ("vga.vram", pages(16))]);
    source[0].write(pages(3) + 5, b"one page").unwrap();
    source[1].write(0, &[1; 100]).unwrap();
    let mut stream = Vec::new();
    let mut seen = Vec::new();
    let precopy = Precopy::new(map_of(&source)).machine("pc");
    let Migrated { stats, .. } =
        precopy.run(&mut stream, still, |now| seen.extend(now.round_ended)).unwrap();
    assert!(stats.converged);
    assert_eq!(seen, stats.rounds);
    assert_eq!(
        seen.iter().map(|round| (round.pages, round.zero_pages)).collect::<Vec<_>>(),
        [(80, 78), (0, 0)]
    );
    assert_eq!(stats.bytes, stream.len() as u64);

    let target = blocks(&[("vga.vram", pages(16)), ("pc.ram", pages(64))]);
    target[0].write(pages(2), &[9; 10]).unwrap(); // must become zero again
    let received = receive(&mut stream.as_slice(), &target).unwrap();
    let stream_pages = pages(1) / 4096;
    assert_eq!((received.pages, received.machine.as_str()), (2, "pc"));
    assert_eq!(received.pages + received.zero_pages, 80 * stream_pages);
    assert_eq!(received.bytes, stream.len() as u64);
    assert_eq!(contents(&target[1]), contents(&source[0]));
    assert_eq!(contents(&target[0]), contents(&source[1]));
}

/// QEMU 7.2 and 10.0 accept exactly these bytes for a machine "none" of 64 MiB.
fn minimal_stream(page: &[u8; 4096]) -> Vec<u8> {
    let mut stream = Vec::new();
    let mut put = |bytes: &[u8]| stream.extend(bytes);
    put(b"QEVM\0\0\0\x03\x07\0\0\0\x04none");
    put(b"\x01\0\0\0\x01\x03ram\0\0\0\0\0\0\0\x04");
    put(b"\0\0\0\0\x04\0\0\x04\x03ram\0\0\0\0\x04\0\0\0");
    put(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x01");
    put(b"\x03\0\0\0\x01\0\0\0\0\0\x20\0\x08\x03ram");
    put(page);
    put(b"\0\0\0\0\0\0\x30\x22\0\0\0\0\0\0\0\0\x10\x7e\0\0\0\x01");
    put(b"\0\x06\0\0\0\0");
    stream
}

#[test]
fn a_stream_that_qemu_accepts_is_accepted() {
    let target = blocks(&[("ram", 64 << 20)]);
    target[0].write(0x3000, &[1; 4096]).unwrap();
    let page = std::array::from_fn(|n| n.to_le_bytes()[0]);
    let stream = minimal_stream(&page);
    let received = receive(&mut stream.as_slice(), &target).unwrap();
    assert_eq!((received.pages, received.zero_pages), (1, 1));
    let mut bytes = [0; 4096];
    target[0].read(0x20_0000, &mut bytes).unwrap();
    assert_eq!(bytes, page);
    target[0].read(0x3000, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 4096]);
}

#[test]
fn damage_is_named_with_its_place() {
    let target = blocks(&[("ram", 64 << 20)]);
    let good = minimal_stream(&[7; 4096]);
    let damage = |at: usize, bytes: &[u8]| {
        let mut stream = good.clone();
        stream[at..at + bytes.len()].copy_from_slice(bytes);
        receive(&mut stream.as_slice(), &target).unwrap_err().to_string()
    };
    let find =
        |needle: &[u8]| good.windows(needle.len()).position(|bytes| bytes == needle).unwrap();
    assert_eq!(
        damage(0, b"X"),
        "At byte 0 of the stream: the magic number is 0x5845564d, expected 0x5145564d"
    );
    let list = find(b"\x04\0\0\x04\x03ram");
    assert_eq!(
        damage(list + 5, b"rom"),
        format!("At byte {} of the stream: there is no block \"rom\" here", list + 4)
    );
    assert_eq!(
        damage(list + 13, b"\x05"),
        format!(
            "At byte {} of the stream: block \"ram\" has 0x4050000 bytes there and 0x4000000 here",
            list + 4
        )
    );
    let zero = find(b"\0\0\0\0\0\0\x30\x22");
    assert_eq!(
        damage(zero, b"\0\0\0\0\x04\0\0\x22"),
        format!(
            "At byte {zero} of the stream: block \"ram\" of 0x4000000 bytes has no page at \
                0x4000000"
        )
    );
    assert_eq!(
        damage(zero, b"\xff\xff\xff\xff\xff\xff\xf0\x22"),
        format!(
            "At byte {zero} of the stream: block \"ram\" of 0x4000000 bytes has no page at \
                0xfffffffffffff000"
        )
    );
    assert_eq!(
        damage(zero + 7, b"\x62"),
        format!("At byte {zero} of the stream: RAM record 0x42 is not supported")
    );
    let page = find(b"\x20\0\x08\x03ram") - 5;
    assert_eq!(
        damage(page + 7, b"\x28"),
        format!("At byte {page} of the stream: a page without a block")
    );
}

#[test]
fn a_stream_cut_anywhere_is_told_from_a_whole_one() {
    let target = blocks(&[("ram", 64 << 20)]);
    let good = minimal_stream(&[7; 4096]);
    let end = good.len() - 5; // the description may be missing
    for len in 0..good.len() {
        let result = receive(&mut &good[..len], &target);
        match result {
            Ok(_) => assert_eq!(len, end, "a stream cut at {len} was taken"),
            Err(ReceiveError::Truncated { at, .. }) => assert!(at <= len as u64),
            Err(error) => panic!("cut at {len}: {error}"),
        }
    }
    // The end mark right after the block list: a part of RAM is not all of it.
    let list_end = good.windows(2).position(|bytes| bytes == b"\x7e\0").unwrap() + 5;
    let mut early = good[..list_end].to_vec();
    early.push(0);
    assert!(matches!(
        receive(&mut early.as_slice(), &target),
        Err(ReceiveError::Incomplete { .. })
    ));
}

proptest! {
    /// A hostile stream: no panic, no hang, no allocation by announced lengths.
    #[test]
    fn any_bytes_are_refused_or_taken(
        flips in prop::collection::vec((0..200usize, any::<u8>()), 0..6),
        tail in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let target = blocks(&[("ram", 64 << 20)]);
        let mut stream = minimal_stream(&[7; 4096]);
        stream.extend(&tail);
        for (at, byte) in flips {
            // Past the page's bytes, or before them.
            let at = if at < 100 { at } else { at + 4000 };
            if let Some(slot) = stream.get_mut(at) {
                *slot = byte;
            }
        }
        let _ = receive(&mut stream.as_slice(), &target);
        let _ = receive(&mut tail.as_slice(), &target);
    }
}

/// Accepts so many bytes, then fails.
struct Breaks(usize);

impl Write for Breaks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0 == 0 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let taken = bytes.len().min(self.0);
        self.0 -= taken;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_broken_stream_ends_logging_and_a_second_try_works() {
    let source = blocks(&[("ram", pages(256))]);
    let noise: Vec<u8> =
        (0..pages(256)).map(|n| (n.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0]).collect();
    source[0].write(0, &noise).unwrap();
    let memory = map_of(&source);
    let whole = {
        let mut stream = Vec::new();
        let _ = Precopy::new(memory.clone()).run(&mut stream, still, |_| ()).unwrap();
        stream.len()
    };
    for cut in [0, 1, 40, whole / 2, whole - 1] {
        let error = Precopy::new(memory.clone())
            .run(&mut Buffered(Breaks(cut)), still, |_| ())
            .unwrap_err();
        assert!(matches!(error, SendError::Write { .. }), "{error}");
        assert!(!source[0].dirty().enabled().contains(DirtyClient::MIGRATION));
    }
    let refused = Precopy::new(memory.clone())
        .run(&mut Vec::new(), || Err::<(), _>("the vCPU is stuck".into()), |_| ())
        .unwrap_err();
    assert!(matches!(refused, SendError::Pause(_)));

    let mut stream = Vec::new();
    let _ = Precopy::new(memory).run(&mut stream, still, |_| ()).unwrap();
    let target = blocks(&[("ram", pages(256))]);
    receive(&mut stream.as_slice(), &target).unwrap();
    assert_eq!(contents(&target[0]), noise);
}

#[test]
fn a_page_size_that_does_not_divide_the_hosts_is_refused() {
    let larger = PageSize::new(2 << 20).unwrap();
    let precopy = Precopy::new(MemoryMap::new()).page_size(larger);
    assert!(matches!(precopy.run(&mut Vec::new(), still, |_| ()), Err(SendError::PageSize { .. })));
}

#[test]
fn a_block_is_sent_in_pages_that_it_has() {
    let block = |len: u64, page: u64| {
        let size = PageSize::new(page).unwrap();
        RamBlock::builder("ram", len).page_size(size).anonymous().unwrap()
    };
    // Larger ones than the stream's can be.
    for (len, page, is_sent) in [
        (pages(64), 64, false),
        (2048, 64, false),
        (pages(64), 512, false),
        (pages(64), 4 * pages(1), true),
    ] {
        let source = block(len, page);
        source.write(len / 2 + 100, b"here").unwrap();
        let map = map_of(std::slice::from_ref(&source));
        let mut stream = Vec::new();
        let sent = Precopy::new(map).run(&mut stream, still, |_| ());
        match sent {
            Err(SendError::BlockPages { len: sent, found, .. }) => {
                assert_eq!((sent, found, is_sent), (len, page, false));
            }
            other => assert!(other.is_ok() && is_sent, "{other:?}"),
        }
        if is_sent {
            // Into smaller ones, too.
            let target = [block(len, 64)];
            receive(&mut stream.as_slice(), &target).unwrap();
            assert_eq!(contents(&target[0]), contents(&source));
        }
        assert!(!source.dirty().enabled().contains(DirtyClient::MIGRATION));
    }
}

#[test]
fn what_is_written_meanwhile_is_sent_again() {
    // Writers that never stop, until the pause; each page holds its own counters.
    let source = blocks(&[("ram", pages(512))]);
    let memory = map_of(&source);
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut writers: Vec<_> = (0..2)
        .map(|writer: u64| {
            let (ram, stop) = (source[0].clone(), stop.clone());
            std::thread::spawn(move || {
                let mut count = 0u64;
                while !stop.load(std::sync::atomic::Ordering::Acquire) {
                    count += 1;
                    let page = count.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 55;
                    ram.write(pages(page) + writer * 8, &count.to_le_bytes()).unwrap();
                }
            })
        })
        .collect();
    // And one that writes whenever something is sent, so that each round finds new pages.
    struct Writing(Vec<u8>, Arc<RamBlock>);
    impl WriteTransport for Writing {
        fn send(&mut self, list: &mut SendList<'_>) -> Result<(), TransferError> {
            self.0.send(list)?;
            self.1.write(pages(511) + 64, &self.0.len().to_le_bytes()).unwrap();
            Ok(())
        }
    }
    let mut stream = Writing(Vec::new(), source[0].clone());
    let pause = || {
        stop.store(true, std::sync::atomic::Ordering::Release);
        writers.drain(..).for_each(|writer| writer.join().unwrap());
        Ok(())
    };
    let precopy = Precopy::new(memory).downtime(std::time::Duration::ZERO).max_rounds(6);
    let Migrated { stats, .. } = precopy.run(&mut stream, pause, |_| ()).unwrap();
    assert_eq!(stats.rounds.len(), 7);
    assert!(!stats.converged);
    assert!(stats.rounds[1..].iter().any(|round| round.pages > 0));
    let target = blocks(&[("ram", pages(512))]);
    receive(&mut stream.0.as_slice(), &target).unwrap();
    let all_but_the_last = 0..usize::try_from(pages(511)).unwrap();
    let [there, here] = [&target, &source].map(|blocks| contents(&blocks[0]));
    assert!(there[all_but_the_last.clone()] == here[all_but_the_last]);
}

#[test]
fn the_sender_writes_the_bytes_that_qemu_reads() {
    let source = blocks(&[("ram", pages(2))]);
    source[0].write(pages(1), &[0xab; 16]).unwrap();
    let mut stream = Vec::new();
    let _ = Precopy::new(map_of(&source)).run(&mut stream, still, |_| ()).unwrap();

    let mut expected: Vec<u8> = Vec::new();
    let mut put = |bytes: &[u8]| expected.extend(bytes);
    put(b"QEVM\0\0\0\x03\x07\0\0\0\x04none");
    put(b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04");
    put(&(pages(2) | 4).to_be_bytes());
    put(b"\x03ram");
    put(&pages(2).to_be_bytes());
    put(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02");
    put(b"\x02\0\0\0\x02");
    for offset in (0..pages(2)).step_by(4096) {
        let named: &[u8] = if offset == 0 { b"\x03ram" } else { b"" };
        let flags = if offset == 0 { 0 } else { 0x20 };
        if offset == pages(1) {
            put(&(offset | flags | 8).to_be_bytes());
            put(named);
            put(&[[0xab; 16].as_slice(), &[0; 4080]].concat());
        } else {
            put(&(offset | flags | 2).to_be_bytes());
            put(named);
            put(b"\0");
        }
    }
    put(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02");
    put(b"\x03\0\0\0\x02\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02");
    put(b"\0\x06\0\0\0\0");
    assert!(stream == expected, "the stream is not as specified");
}

/// A stream of 16 KiB pages, as a target of such pages sends it.
#[test]
fn the_streams_page_size_is_its_own() {
    let target = blocks(&[("ram", 1 << 20)]);
    let with_bits = |bits: u8| {
        let mut stream = Vec::new();
        let mut put = |bytes: &[u8]| stream.extend(bytes);
        put(b"QEVM\0\0\0\x03\x07\0\0\0\x04none");
        put(b"\x05\x1econfiguration/target-page-bits\0\0\0\x01\0\0\0");
        put(&[bits]);
        put(b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04");
        put(b"\0\0\0\0\0\x10\0\x04\x03ram\0\0\0\0\0\x10\0\0");
        put(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02");
        put(b"\x03\0\0\0\x02\0\0\0\0\0\x01\0\x08\x03ram");
        put(&[0x77; 16384]);
        put(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02\0\x06\0\0\0\0");
        stream
    };
    receive(&mut with_bits(14).as_slice(), &target).unwrap();
    assert_eq!(contents(&target[0])[0x10000..0x14000], [0x77; 16384]);
    // No target has larger pages: a record of nine bytes would cost as much work.
    for bits in [11, 17, 30, 64] {
        let refused = receive(&mut with_bits(bits).as_slice(), &target).unwrap_err();
        assert!(
            matches!(refused, ReceiveError::Unsupported { what: "page shift", .. }),
            "{refused}"
        );
    }
}

/// A source that may switch to postcopy announces it; until it does, pages are sent as in precopy.
#[test]
fn advice_of_postcopy_changes_nothing_and_postcopy_is_refused() {
    let source = blocks(&[("ram", pages(4))]);
    source[0].write(pages(1), b"something").unwrap();
    let mut stream = Vec::new();
    let _ = Precopy::new(map_of(&source)).run(&mut stream, still, |_| ()).unwrap();
    let list = stream.windows(2).position(|bytes| bytes == [1, 0]).unwrap(); // RAM's section
    let with = |command: u16, payload: &[u64]| {
        let mut stream = stream.clone();
        let payload: Vec<u8> = payload.iter().copied().flat_map(u64::to_be_bytes).collect();
        let mut part = vec![8];
        part.extend(command.to_be_bytes());
        part.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
        part.extend(payload);
        stream.splice(list..list, part);
        let target = blocks(&[("ram", pages(4))]);
        receive(&mut stream.as_slice(), &target).map(|_| target)
    };
    for payload in [&[][..], &[4096, 4096]] {
        let target = with(3, payload).unwrap();
        assert!(contents(&source[0]) == contents(&target[0]));
    }
    // Huge pages, another page, half of it; then postcopy itself.
    for payload in [&[4096 | 2 << 20, 4096][..], &[4096, 16384], &[4096]] {
        let refused = with(3, payload).unwrap_err();
        assert!(matches!(refused, ReceiveError::Unexpected { .. }), "{refused}");
    }
    for command in [4, 5] {
        let refused = with(command, &[]).unwrap_err();
        assert!(matches!(refused, ReceiveError::Unsupported { what: "command", .. }), "{refused}");
    }
}

#[test]
fn a_stream_has_exactly_the_blocks_of_the_machine() {
    let source = blocks(&[("ram", pages(4))]);
    let mut stream = Vec::new();
    let _ = Precopy::new(map_of(&source)).run(&mut stream, still, |_| ()).unwrap();
    let more = blocks(&[("ram", pages(4)), ("rom", pages(1)), ("vram", pages(1))]);
    let refused = receive(&mut stream.as_slice(), &more).unwrap_err();
    assert!(
        matches!(&refused, ReceiveError::MissingBlocks { ids, .. } if ids == "rom, vram"),
        "{refused}"
    );

    let list = stream.windows(4).position(|bytes| bytes == b"\x03ram").unwrap() + 1;
    let list = list + stream[list..].windows(4).position(|bytes| bytes == b"\x03ram").unwrap();
    let entry = stream[list..list + 12].to_vec();
    stream.splice(list + 12..list + 12, entry);
    stream[list - 8..list].copy_from_slice(&(pages(8) | 4).to_be_bytes());
    let refused = receive(&mut stream.as_slice(), &source).unwrap_err();
    assert!(matches!(refused, ReceiveError::DuplicateBlock { .. }), "{refused}");
}

#[test]
fn a_block_that_leaves_the_map_meanwhile_fails_the_migration() {
    let source = blocks(&[("ram", pages(64))]);
    let memory = MemoryMap::new();
    let region =
        std::cell::Cell::new(memory.transaction(|map| map.ram("ram", source[0].clone())).unwrap());
    let result = Precopy::new(memory.clone())
        .downtime(std::time::Duration::ZERO)
        .max_rounds(3)
        .run(&mut Vec::new(), still, |now| {
            if now.rounds == 1 {
                source[0].write(0, &[1]).unwrap();
                memory.transaction(|map| map.remove(region.get())).unwrap();
                region.set(memory.transaction(|map| map.ram("ram", source[0].clone())).unwrap());
            }
            source[0].write(pages(9), &[1]).unwrap();
        });
    let error = result.unwrap_err();
    assert!(matches!(&error, SendError::LogInterrupted { block } if block == "ram"), "{error}");
}

#[test]
fn a_machine_has_one_migration_at_a_time() {
    let source = blocks(&[("ram", pages(4))]);
    let memory = map_of(&source);
    let mut second = None;
    let first = Precopy::new(memory.clone()).run(&mut Vec::new(), still, |_| {
        let other = Precopy::new(memory.clone()).run(&mut Vec::new(), still, |_| ());
        second.get_or_insert(other.map(drop));
    });
    let refused = second.unwrap().unwrap_err();
    assert_eq!(
        refused.to_string(),
        "The migration log of all RAM is claimed by \"migration\" already"
    );
    drop(first.unwrap());
}

#[test]
fn holes_of_memory_files_stay_holes_on_both_sides() {
    use std::os::unix::fs::MetadataExt;
    let [source, target] = [(); 2].map(|()| RamBlock::memfd("ram", pages(4096)).unwrap());
    source.write(pages(1000), &[1; 100]).unwrap();
    let allocated = |block: &RamBlock| block.file().unwrap().metadata().unwrap().blocks() * 512;
    let before = allocated(&source);
    let mut stream = Vec::new();
    let memory = map_of(std::slice::from_ref(&source));
    let _ = Precopy::new(memory).run(&mut stream, still, |_| ()).unwrap();
    receive(&mut stream.as_slice(), std::slice::from_ref(&target)).unwrap();
    assert_eq!([allocated(&source), allocated(&target)], [before; 2]);
    assert!(contents(&source) == contents(&target)); // this does fill them
}

/// The cache of holes is dropped after a sync.
#[test]
fn what_fills_a_hole_between_rounds_is_sent() {
    let source = blocks(&[("ram", 1 << 20)]);
    let mut stream = Vec::new();
    let pause = || Ok(source[0].write(pages(5), b"late")?);
    let _ = Precopy::new(map_of(&source)).run(&mut stream, pause, |_| ()).unwrap();
    let target = blocks(&[("ram", 1 << 20)]);
    receive(&mut stream.as_slice(), &target).unwrap();
    let mut found = [0; 4];
    target[0].read(pages(5), &mut found).unwrap();
    assert_eq!(&found, b"late");
}

/// A round that takes so long that the log is synced within it: holes that were found before may
/// be filled then.
#[test]
fn what_fills_a_hole_within_a_round_is_sent() {
    let len = 2u64 << 30;
    let source = blocks(&[("ram", len)]);
    let memory = map_of(&source);
    let mut stream = Vec::new();
    // Two seconds and a half for records of nine bytes.
    let precopy = Precopy::new(memory).bandwidth(len / 4096 * 9 * 2 / 5);
    let mut filled = 0;
    let mut syncs = 0;
    let Migrated { stats, .. } = precopy
        .run(&mut stream, still, |now| {
            // Before the sync within the round, and ahead of what was sent.
            if now.syncs == 1 && now.rounds == 0 {
                filled += 1;
                source[0].write(len / 10 * 9 + pages(filled), b"late").unwrap();
            }
            syncs = now.syncs;
        })
        .unwrap();
    assert!(filled > 0 && syncs > 3, "{filled} pages, {syncs} syncs: {stats:?}");
    let target = blocks(&[("ram", len)]);
    receive(&mut stream.as_slice(), &target).unwrap();
    for n in 1..=filled {
        let mut found = [0; 4];
        target[0].read(len / 10 * 9 + pages(n), &mut found).unwrap();
        assert_eq!(&found, b"late", "page {n} of {filled}");
    }
}
