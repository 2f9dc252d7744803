//! Sections of unknown devices, at any place: RAM is received, and their bytes are kept.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use memory_region::MemoryMap;
use migration_ram::{
    Deadlines, FnDevice, Precopy, ReadTransport, ReceiveError, Received, Receiver, SectionInfo,
    SendError,
};
use proptest::prelude::*;
use ram_block::{RamBlock, ReceiveList, TransferError};

const LEN: u64 = 64 << 20;

/// A part of a stream: its kind, its section's number, the head that follows that, and the data.
#[derive(Clone, Debug)]
struct Part(u8, u32, Option<&'static str>, Vec<u8>);

const START: u8 = 1;
const PART: u8 = 2;
const END: u8 = 3;
const FULL: u8 = 4;

impl Part {
    fn write(&self, out: &mut Vec<u8>) {
        let Part(kind, number, name, data) = self;
        out.push(*kind);
        out.extend(number.to_be_bytes());
        if let Some(name) = name {
            out.push(u8::try_from(name.len()).unwrap());
            out.extend(name.as_bytes());
            out.extend([0, 0, 0, 0, 0, 0, 0, if *name == "ram" { 4 } else { 7 }]);
        }
        out.extend(data);
        out.push(0x7e);
        out.extend(number.to_be_bytes());
    }
}

/// RAM's parts: its list of blocks, a page, and its end.
fn ram() -> [Part; 3] {
    let list = [&(LEN | 4).to_be_bytes()[..], b"\x03ram", &LEN.to_be_bytes(), EOS].concat();
    let page = [&0x20_0008_u64.to_be_bytes()[..], b"\x03ram", &[0x77; 4096], EOS].concat();
    [Part(START, 2, Some("ram"), list), Part(PART, 2, None, page), Part(END, 2, None, EOS.to_vec())]
}

const EOS: &[u8] = &0x10_u64.to_be_bytes();
const DESCRIPTION: &[u8] = b"\x06\0\0\0\x0e{\"devices\":[]}";

fn stream(parts: &[Part], described: bool) -> Vec<u8> {
    let mut stream = b"QEVM\0\0\0\x03\x07\0\0\0\x04none".to_vec();
    parts.iter().for_each(|part| part.write(&mut stream));
    stream.push(0);
    stream.extend(if described { DESCRIPTION } else { b"" });
    stream
}

/// Receives a stream whose RAM must be complete.
fn receive(
    input: &mut impl ReadTransport,
    set: impl FnOnce(Receiver<'_>) -> Receiver<'_>,
) -> Received {
    let target = RamBlock::anonymous("ram", LEN).unwrap();
    let deadlines = Deadlines::default().description(Duration::from_millis(50));
    let blocks = [target.clone()];
    let receiver = Receiver::new(&blocks).keep_unknown_sections(true).deadlines(deadlines);
    let received = set(receiver).run(input).unwrap();
    let mut page = [0; 4096];
    target.read(0x20_0000, &mut page).unwrap();
    assert_eq!(page, [0x77; 4096]);
    received
}

/// Receives the stream in all kinds of pieces and ends; returns the result, which is always the
/// same.
fn receive_each_way(parts: &[Part]) -> Vec<SectionInfo> {
    let mut all = Vec::new();
    for described in [false, true] {
        let stream = stream(parts, described);
        for follows in [true, false] {
            all.push(receive(&mut &stream[..], |r| r.expect_vmdesc(follows)));
            // A connection that stays open.
            let (mut near, mut far) = UnixStream::pair().unwrap();
            let writer = std::thread::spawn({
                let stream = stream.clone();
                move || {
                    near.write_all(&stream).unwrap();
                    near
                }
            });
            all.push(receive(&mut far, |r| r.expect_vmdesc(follows)));
            drop(writer.join().unwrap());
        }
        assert!(all.iter().all(|received| received.bytes <= stream.len() as u64));
    }
    for received in &all {
        assert_eq!(received.sections, all[0].sections);
    }
    all.swap_remove(0).sections
}

fn parts_of(section: &SectionInfo) -> Vec<&[u8]> {
    section.parts().unwrap().collect()
}

#[test]
fn what_is_not_known_may_stand_anywhere() {
    let [start, part, end] = ram();
    let early = Part(FULL, 9, Some("virtio-mem-early"), b"plugged".to_vec());
    let begins = Part(START, 3, Some("dirty-bitmap"), b"bits".to_vec());
    let goes_on = |data: &[u8]| Part(PART, 3, None, data.to_vec());
    let ends = Part(END, 3, None, Vec::new());
    let late = |number, data: &[u8]| Part(FULL, number, Some("0000:00:02.0/vga"), data.to_vec());
    let parts = [
        early,
        start,
        begins,
        part,
        goes_on(b"first"),
        goes_on(b""),
        end,
        ends,
        late(4, &[0; 300_000]),
        late(5, b"\0"),
    ];
    let sections = receive_each_way(&parts);
    let about: Vec<_> = sections
        .iter()
        .map(|section| (section.name.as_str(), section.len, section.early, section.iterable))
        .collect();
    assert_eq!(
        about,
        [
            ("virtio-mem-early", 7, true, false),
            ("dirty-bitmap", 9, true, true),
            ("0000:00:02.0/vga", 300_000, false, false),
            ("0000:00:02.0/vga", 1, false, false),
        ]
    );
    assert!(sections.iter().all(|section| section.version == 7 && !section.restored));
    assert_eq!(parts_of(&sections[0]), [b"plugged"]);
    assert_eq!(parts_of(&sections[1]), [&b"bits"[..], b"first", b"", b""]);
    assert_eq!(parts_of(&sections[2]), [[0; 300_000]]);
    assert_eq!(parts_of(&sections[3]), [b"\0"]);
}

/// An input that counts the waits for a description, and reports for each that there are no
/// bytes.
struct Waited<'a>(&'a [u8], u32);

const LONG: Duration = Duration::from_secs(3600);

impl ReadTransport for Waited<'_> {
    fn receive(&mut self, list: &mut ReceiveList<'_>) -> Result<usize, TransferError> {
        self.0.receive(list)
    }

    fn wait(&mut self, limit: Duration) -> std::io::Result<bool> {
        self.1 += u32::from(limit == LONG);
        Ok(limit != LONG)
    }
}

/// The source's guest is paused meanwhile.
#[test]
fn a_description_is_waited_for_once() {
    let [start, part, end] = ram();
    let foreign = Part(FULL, 3, Some("other"), b"state".to_vec());
    for parts in [vec![start.clone(), part.clone(), end.clone()], vec![start, part, end, foreign]] {
        let stream = stream(&parts, false);
        let mut input = Waited(&stream, 0);
        let deadlines = Deadlines::default().description(LONG);
        receive(&mut input, |receiver| receiver.deadlines(deadlines));
        assert_eq!(input.1, 1, "{} parts", parts.len());
    }
}

/// Without `keep_unknown_sections` the first unknown section is an error.
#[test]
fn what_is_not_known_is_refused_unless_it_is_to_be_kept() {
    let [start, part, end] = ram();
    let whole = Part(FULL, 9, Some("x"), Vec::new());
    let begins = Part(START, 9, Some("x"), Vec::new());
    for foreign in [whole, begins] {
        let parts = [start.clone(), foreign, part.clone(), end.clone()];
        let target = [RamBlock::anonymous("ram", LEN).unwrap()];
        let result = Receiver::new(&target).run(&mut &stream(&parts, true)[..]);
        assert!(
            matches!(&result, Err(ReceiveError::UnknownSection { name, .. }) if name == "x"),
            "{result:?}"
        );
    }
}

/// A registered device is restored also if its section follows an unknown one.
#[test]
fn a_known_device_is_found_among_others() {
    let [start, part, end] = ram();
    let other = Part(FULL, 3, Some("other"), b"anything".to_vec());
    let known = Part(FULL, 4, Some("known"), b"\0\0\0\x04mine".to_vec());
    let parts = [start, part, end, other.clone(), known, other];
    let restored = Arc::new(Mutex::new(Vec::<u8>::new()));
    let device = FnDevice::new("known", || Ok(Vec::new()), {
        let restored = restored.clone();
        move |_, state| {
            restored.lock().unwrap().extend(state);
            Ok(())
        }
    })
    .version(7);
    let stream = stream(&parts, false);
    let received = receive(&mut &stream[..], |r| r.device(Arc::new(device)));
    assert_eq!(restored.lock().unwrap().as_slice(), b"mine");
    let restored: Vec<_> = received.sections.iter().map(|section| section.restored).collect();
    assert_eq!(restored, [false, true, false]);
    assert!(received.sections[1].parts().is_none());
}

/// RAM that is not complete is an error, whatever follows it.
#[test]
fn a_stream_that_ends_early_is_told_from_a_whole_one() {
    let [start, part, end] = ram();
    let foreign = Part(FULL, 3, Some("other"), b"state".to_vec());
    let parts = [start.clone(), part.clone(), end, foreign.clone()];
    let whole = stream(&parts, false);
    for len in (0..200).chain(whole.len() - 100..whole.len()) {
        let target = [RamBlock::anonymous("ram", LEN).unwrap()];
        let receiver = Receiver::new(&target).keep_unknown_sections(true);
        let result = receiver.run(&mut &whole[..len]);
        assert!(matches!(result, Err(ReceiveError::Truncated { .. })), "{len}: {result:?}");
    }
    let target = [RamBlock::anonymous("ram", LEN).unwrap()];
    let receiver = Receiver::new(&target).keep_unknown_sections(true);
    let result = receiver.run(&mut &stream(&[start, part, foreign], true)[..]);
    assert!(matches!(result, Err(ReceiveError::Incomplete { .. })), "{result:?}");
}

fn section(number: u32) -> impl Strategy<Value = Vec<u8>> {
    let footer = [&[0x7e][..], &number.to_be_bytes()].concat();
    // Bytes that may follow a footer by chance would be taken for the next section: a known hole.
    let no_part = |bytes: &Vec<u8>| bytes.first().is_none_or(|kind| *kind > 8);
    let piece = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..40).prop_filter("begins a part", no_part),
        2 => Just(footer.clone()),
        // Bytes that almost may follow a footer.
        1 => Just([&footer[..], b"\x00\x07"].concat()),
        1 => Just([&footer[..], b"\x00\x06\0\0\0\x05x"].concat()),
        1 => Just([&footer[..], b"\x02\0\0\0\x63"].concat()),
        1 => Just([&footer[..], b"\x04\0\0\0\x09\x03a\0b"].concat()),
        1 => Just([&footer[..], b"\x08\0\x05\0\0"].concat()),
    ];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    /// States with footers in them.
    #[test]
    fn a_footer_within_a_state_ends_nothing(
        (first, begin, more, last, end) in
            (section(9), section(3), section(3), section(4), section(5)),
    ) {
        let [start, part, ram_end] = ram();
        let parts = [
            Part(FULL, 9, Some("first"), first.clone()),
            start,
            Part(START, 3, Some("begins"), begin.clone()),
            part,
            Part(END, 3, None, more.clone()),
            ram_end,
            Part(FULL, 4, Some("last"), last.clone()),
            Part(FULL, 5, Some("end"), end.clone()),
        ];
        for described in [false, true] {
            let stream = stream(&parts, described);
            let received = receive(&mut &stream[..], |r| r);
            let found: Vec<_> = received.sections.iter().map(parts_of).collect();
            prop_assert_eq!(
                found,
                vec![vec![&first[..]], vec![&begin[..], &more[..]], vec![&last[..]], vec![&end[..]]]
            );
        }
    }
}

/// Sections beyond the limit are received, too, and take no more memory.
#[test]
fn more_than_is_kept_is_passed_over() {
    let [start, part, end] = ram();
    let begins = Part(START, 3, Some("block"), vec![1; 100]);
    let many = Part(PART, 3, None, vec![2; 33 << 20]);
    let ends = Part(END, 3, None, vec![3; 100]);
    let small = Part(FULL, 4, Some("small"), vec![4; 100]);
    let mut parts = vec![start, part, begins];
    parts.extend(std::iter::repeat_n(many, 8));
    parts.extend([end, ends, small]);
    let received = receive(&mut &stream(&parts, false)[..], |r| r);
    assert_eq!(received.sections[0].len, 8 * (33 << 20) + 200);
    assert!(received.sections[0].parts().is_none());
    let memory = MemoryMap::new();
    let precopy = Precopy::new(memory).section(received.sections[0].clone());
    let refused = precopy.run(&mut Vec::new(), || Ok(()), |_| ());
    assert!(matches!(refused, Err(SendError::SectionNotKept { .. })), "{refused:?}");
}

/// Kept sections can be sent on, and are received unchanged.
#[test]
fn what_is_kept_can_be_sent_on() {
    let [start, part, end] = ram();
    let parts = [
        Part(FULL, 9, Some("early"), b"first of all".to_vec()),
        start,
        Part(START, 3, Some("iterable"), b"begins".to_vec()),
        Part(PART, 3, None, b"goes on".to_vec()),
        part,
        end,
        Part(END, 3, None, b"ends".to_vec()),
        Part(FULL, 4, Some("late"), b"after all".to_vec()),
    ];
    let first = receive(&mut &stream(&parts, false)[..], |r| r);
    let memory = MemoryMap::new();
    let ram = RamBlock::anonymous("ram", LEN).unwrap();
    memory.transaction(|map| map.ram("ram", ram.clone())).unwrap();
    ram.write(0x20_0000, &[0x77; 4096]).unwrap();
    let mut precopy = Precopy::new(memory);
    for section in &first.sections {
        precopy = precopy.section(section.clone());
    }
    let mut again = Vec::new();
    let _ = precopy.run(&mut again, || Ok(()), |_| ()).unwrap();
    let second = receive(&mut again.as_slice(), |r| r);
    assert_eq!(second.sections.len(), 3);
    for (first, second) in first.sections.iter().zip(&second.sections) {
        assert_eq!((&first.name, first.version), (&second.name, second.version));
        assert_eq!(parts_of(first), parts_of(second), "{}", first.name);
    }
    assert!(second.sections[0].early && second.sections[0].at < 100);
    let refused = precopy.section(first.sections[0].clone()).run(&mut again, || Ok(()), |_| ());
    assert!(matches!(refused, Err(SendError::DeviceName { .. })), "{refused:?}");
}
