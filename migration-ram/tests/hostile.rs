//! Hostile streams: no panic, no hang, and no more memory than in proportion to the input.

use std::sync::mpsc;
use std::sync::{Mutex, MutexGuard, PoisonError};

use peak_alloc::PeakAlloc;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

#[path = "hostile/body.rs"]
mod body;
#[path = "common/deadline.rs"]
mod deadline;
#[path = "hostile/grammar.rs"]
mod grammar;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// Bytes that a receiver may allocate for any input: buffers, bitmaps, threads.
const CONSTANT: usize = 4 << 20;
/// Bytes that it may allocate for each byte of input.
const FACTOR: usize = 8;
/// What was written of QEMU 7.2 for a machine "isapc" of 2 MiB, with other contents.
const QEMU: &[u8] = include_bytes!("data/qemu-7.2-isapc.stream");

/// What is allocated is counted for all threads: nothing else runs meanwhile, the making of
/// other tests' inputs included.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Receives the inputs, for no longer than a minute, and within bounds.
fn survives(_: &MutexGuard<'static, ()>, choice: u8, inputs: Vec<Vec<u8>>) {
    let total: usize = inputs.iter().map(Vec::len).sum();
    let (done, is_done) = mpsc::channel();
    let before = ALLOCATED.current_usage();
    ALLOCATED.reset_peak_usage();
    let thread = std::thread::spawn(move || {
        let slices: Vec<_> = inputs.iter().map(Vec::as_slice).collect();
        body::receive_any(choice, &slices);
        done.send(()).unwrap();
    });
    if let Err(mpsc::RecvTimeoutError::Timeout) = is_done.recv_timeout(deadline::seconds(60)) {
        panic!("it hangs");
    }
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let used = ALLOCATED.peak_usage().saturating_sub(before);
    assert!(used <= CONSTANT + FACTOR * total, "{used} bytes for {total}");
}

/// Does `body` with so many inputs of a kind, alone.
fn with_all<S: Strategy>(cases: u32, inputs: S, body: impl Fn(&MutexGuard<'static, ()>, S::Value)) {
    let alone = alone();
    let mut runner = TestRunner::new(ProptestConfig::with_cases(cases));
    let result = runner.run(&inputs, |input| {
        body(&alone, input);
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
}

/// So many inputs of a kind, which survive.
fn all_survive<S: Strategy<Value = (u8, Vec<Vec<u8>>)>>(cases: u32, inputs: S) {
    with_all(cases, inputs, |alone, (choice, inputs)| survives(alone, choice, inputs));
}

#[test]
fn streams_that_are_nearly_right() {
    let inputs = (any::<u8>(), grammar::stream());
    all_survive(1500, inputs.prop_map(|(choice, stream)| (choice, vec![stream])));
}

#[test]
fn channels_that_are_nearly_right() {
    let channels = prop::collection::vec(grammar::channel(), 1..4);
    let inputs = (any::<u8>(), grammar::stream(), channels, any::<prop::sample::Index>());
    let inputs = inputs.prop_map(|(choice, stream, mut inputs, main)| {
        inputs.insert(main.index(inputs.len() + 1), stream);
        (choice, inputs)
    });
    all_survive(1500, inputs);
}

#[test]
fn bytes_that_a_fuzzer_would_give() {
    let data = prop::collection::vec(any::<u8>(), 0..256);
    with_all(1500, data, |_, data| body::receive_slice(&data));
}

#[test]
fn a_stream_of_qemu_that_was_damaged() {
    let flips = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8);
    let tail = prop::collection::vec((0..31_000usize, any::<u8>()), 0..8);
    let cut = prop::option::weighted(0.3, any::<prop::sample::Index>());
    let inputs = (any::<u8>(), flips, tail, cut).prop_map(|(choice, flips, tail, cut)| {
        let mut stream = QEMU.to_vec();
        for (from_end, byte) in tail {
            let at = stream.len() - 1 - from_end;
            stream[at] = byte;
        }
        grammar::damage(&mut stream, flips, cut);
        (choice, vec![stream])
    });
    all_survive(300, inputs);
}

#[test]
fn a_stream_of_qemu_is_taken() {
    use migration_ram::{BlockTarget, Receiver};
    let _alone = alone();
    let received = Receiver::new(&[])
        .on_unknown_block(|_, _| BlockTarget::Drop)
        .keep_unknown_sections(true)
        .run(&mut { QEMU })
        .unwrap();
    assert_eq!((received.machine.as_str(), received.bytes), ("isapc", QEMU.len() as u64));
    let blocks: Vec<_> = received.blocks.iter().map(|block| block.id.as_str()).collect();
    assert_eq!(blocks, ["pc.ram", "pc.bios", "pc.rom"]);
    assert_eq!((received.pages, received.zero_pages), (38, 538));
    assert_eq!((received.sections.len(), received.description.len()), (20, 22_275));
    let lengths = |name: &str| {
        let sections = received.sections.iter().filter(move |section| section.name == name);
        sections.map(|section| section.len).collect::<Vec<_>>()
    };
    assert_eq!(lengths("timer"), [24]);
    assert_eq!(lengths("cpu"), [1851]);
    assert_eq!(lengths("isa-ide"), [58, 58]);
    assert_eq!(lengths("globalstate"), [104]);
}

/// A short announcement of much.
#[test]
fn announced_lengths_are_not_believed() {
    let alone = alone();
    let mut announced = b"QEVM\0\0\0\x03\x07\0\0\0\x04none".to_vec();
    announced.extend(b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04");
    announced.extend(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02");
    announced.extend(b"\x03\0\0\0\x02\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02");
    let state = [&announced[..], b"\x04\0\0\0\x03\x07counted\0\0\0\0\0\0\0\x01\x0f\xff\xff\xff"];
    survives(&alone, 0b1000, vec![state.concat()]);
    let description = [&announced[..], b"\x00\x06\x03\xff\xff\xff{"];
    survives(&alone, 0, vec![description.concat()]);
    // Numbers make a parsed JSON much larger than its text.
    let numbers = "[0,0,0,0".to_owned() + &",0".repeat(1 << 20) + "]";
    let mut opaque =
        [&announced[..], b"\x04\0\0\0\x03\x01x\0\0\0\0\0\0\0\x01\x7e\0\0\0\x03\0\x06"].concat();
    opaque.extend(u32::try_from(numbers.len() + 6).unwrap().to_be_bytes());
    opaque.extend(b"{\"a\":");
    opaque.extend(numbers.as_bytes());
    opaque.push(b'}');
    survives(&alone, 1, vec![opaque]);
}

/// A device's section costs more memory than its bytes, as does a block, and finding it among
/// others costs time.
#[test]
fn many_things_of_next_to_nothing_are_bounded() {
    let alone = alone();
    let begin = b"QEVM\0\0\0\x03\x07\0\0\0\x04none\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04";
    let end = b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02\x03\0\0\0\x02\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02";
    let section = b"\x04\0\0\0\x03\x01x\0\0\0\0\0\0\0\x01\x7e\0\0\0\x03";
    let over = b"\0\x06\0\0\0\0";
    for sections in [1000, 100_000, (1 << 20) + 2] {
        survives(&alone, 1, vec![[&begin[..], end, &section.repeat(sections), over].concat()]);
    }
    for count in [1000_u64, 16_384, 1 << 20] {
        let blocks = (0..count).flat_map(|n| {
            let id = format!("{n:06x}");
            [&b"\x06"[..], id.as_bytes(), &4096u64.to_be_bytes()].concat()
        });
        let blocks: Vec<u8> = blocks.collect();
        let total = ((count * 4096) | 4).to_be_bytes();
        // Named once more, by its zeros.
        let zeros = (0..count).flat_map(|n| {
            let id = format!("{n:06x}");
            [&2u64.to_be_bytes()[..], b"\x06", id.as_bytes(), b"\0"].concat()
        });
        let zeros: Vec<u8> = zeros.collect();
        let (first, part) = end.split_at(13);
        let (part, last) = part.split_at(5);
        let stream = [&begin[..], &total, &blocks, first, part, &zeros, last, over].concat();
        survives(&alone, 16, vec![stream]);
    }
}

/// A block that is not announced has no length: no page is beyond its end.
#[test]
fn the_last_page_of_all_is_followed_by_none() {
    let alone = alone();
    for first in [0xffff_ffff_ffff_e000_u64, 0xffff_ffff_ffff_f000, 0x7fff_ffff_ffff_f000] {
        let mut stream = b"QEVM\0\0\0\x03\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04".to_vec();
        stream.extend(4u64.to_be_bytes());
        stream.extend((first | 2).to_be_bytes());
        stream.extend(b"\x01x\0");
        stream.extend((first.wrapping_add(4096) | 0x22).to_be_bytes());
        stream.push(0);
        survives(&alone, 16, vec![stream]);
    }
}
