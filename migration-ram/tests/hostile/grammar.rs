//! Generates nearly valid streams.

use std::io::Write;

use flate2::write::ZlibEncoder;
use flate2::{Compress, Compression, FlushCompress};
use proptest::prelude::*;

/// A piece of a stream.
#[derive(Clone, Debug)]
pub(crate) enum Part {
    Configuration { name: Vec<u8>, subsection: Option<(Vec<u8>, u32)> },
    Start { number: u32, name: &'static str, instance: u32, version: u32 },
    Full { number: u32, name: &'static str, version: u32, state: Vec<u8>, counted: bool },
    More { number: u32, last: bool },
    BlockList(Vec<(&'static str, u64)>),
    Zero { block: Option<&'static str>, offset: u64, count: u64 },
    Page { block: Option<&'static str>, offset: u64, count: u64 },
    Delta { block: Option<&'static str>, offset: u64, delta: Vec<u8>, odd: Option<(u8, u16)> },
    Compressed { block: Option<&'static str>, offset: u64, len: usize, odd: Option<u32> },
    Flush,
    EndOfSection { number: u32 },
    Command { command: u16, data: Vec<u8> },
    End { description: Vec<u8>, len: Option<u32> },
    Raw(Vec<u8>),
}

use Part::*;

impl Part {
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let name = |out: &mut Vec<u8>, name: &[u8]| {
            out.push(name.len().to_le_bytes()[0]);
            out.extend(name);
        };
        match self {
            Configuration { name: machine, subsection } => {
                out.push(7);
                out.extend(u32::try_from(machine.len()).unwrap().to_be_bytes());
                out.extend(machine);
                if let Some((subsection, value)) = subsection {
                    out.push(5);
                    name(out, subsection);
                    out.extend([0, 0, 0, 1]);
                    out.extend(value.to_be_bytes());
                }
            }
            Start { number, name: id, instance, version } => {
                out.push(1);
                out.extend(number.to_be_bytes());
                name(out, id.as_bytes());
                out.extend(instance.to_be_bytes());
                out.extend(version.to_be_bytes());
            }
            Full { number, name: id, version, state, counted } => {
                out.push(4);
                out.extend(number.to_be_bytes());
                name(out, id.as_bytes());
                out.extend([0; 4]);
                out.extend(version.to_be_bytes());
                if *counted {
                    out.extend(u32::try_from(state.len()).unwrap().to_be_bytes());
                }
                out.extend(state);
                out.push(0x7e);
                out.extend(number.to_be_bytes());
            }
            More { number, last } => {
                out.push(if *last { 3 } else { 2 });
                out.extend(number.to_be_bytes());
            }
            BlockList(blocks) => {
                let total = blocks.iter().fold(0u64, |sum, block| sum.wrapping_add(block.1));
                out.extend((total | 4).to_be_bytes());
                for (block, len) in blocks {
                    name(out, block.as_bytes());
                    out.extend(len.to_be_bytes());
                }
            }
            Zero { block, offset, count } => {
                pages(out, *block, *offset, *count, 2, &[0]);
            }
            Page { block, offset, count } => {
                pages(out, *block, *offset, *count, 8, &[0xa5; 4096]);
            }
            Delta { block, offset, delta, odd } => {
                let len = u16::try_from(delta.len()).unwrap();
                let (encoding, len) = odd.unwrap_or((1, len));
                let [high, low] = len.to_be_bytes();
                pages(
                    out,
                    *block,
                    *offset,
                    1,
                    0x40,
                    &[&[encoding, high, low], &delta[..]].concat(),
                );
            }
            Compressed { block, offset, len, odd } => {
                let mut data = zlib(&vec![0x5a; *len]);
                let counted = u32::try_from(data.len()).unwrap();
                data.splice(..0, odd.unwrap_or(counted).to_be_bytes());
                pages(out, *block, *offset, 1, 0x100, &data);
            }
            Flush => out.extend(0x200u64.to_be_bytes()),
            EndOfSection { number } => {
                out.extend(0x10u64.to_be_bytes());
                out.push(0x7e);
                out.extend(number.to_be_bytes());
            }
            Command { command, data } => {
                out.push(8);
                out.extend(command.to_be_bytes());
                out.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
                out.extend(data);
            }
            End { description, len } => {
                out.extend([0, 6]);
                let own = u32::try_from(description.len()).unwrap();
                out.extend(len.unwrap_or(own).to_be_bytes());
                out.extend(description);
            }
            Raw(bytes) => out.extend(bytes),
        }
    }
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Records of pages that follow each other.
fn pages(out: &mut Vec<u8>, block: Option<&str>, offset: u64, count: u64, flag: u64, data: &[u8]) {
    for n in 0..count {
        let offset = offset.wrapping_add(n * 4096);
        match block.filter(|_| n == 0) {
            Some(block) => {
                out.extend((offset | flag).to_be_bytes());
                out.push(block.len().to_le_bytes()[0]);
                out.extend(block.as_bytes());
            }
            None => out.extend((offset | flag | 0x20).to_be_bytes()),
        }
        out.extend(data);
    }
}

const NUMBERS: [u32; 5] = [2, 2, 2, 3, u32::MAX];
const NAMES: [&str; 5] = ["ram", "pc.ram", "rom", "", "ram2"];
const LENGTHS: [u64; 8] = [1 << 20, 1 << 20, 2 << 20, 0, 4096, 4095, 1 << 63, !0xfff];

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (0..512u64).prop_map(|page| page * 4096),
        1 => any::<u64>().prop_map(|offset| offset & !0xfff),
        1 => prop::sample::select(vec![1 << 20, (1 << 20) - 4096, 2 << 20, 1 << 63, !0xfff]),
    ]
}

fn block() -> impl Strategy<Value = Option<&'static str>> {
    prop::option::of(prop::sample::select(NAMES.to_vec()))
}

/// Values to replace valid ones with.
fn odd() -> impl Strategy<Value = Part> {
    let number = || prop::sample::select(NUMBERS.to_vec());
    let bytes = |most| prop::collection::vec(any::<u8>(), 0..most);
    prop_oneof![
        (bytes(40), prop::option::of((bytes(40), any::<u32>())))
            .prop_map(|(name, subsection)| Configuration { name, subsection }),
        Just(Configuration {
            name: b"none".to_vec(),
            subsection: Some((b"configuration/target-page-bits".to_vec(), 14)),
        }),
        (number(), prop::sample::select(NAMES.to_vec()), 0..3u32, 0..6u32).prop_map(
            |(number, name, instance, version)| Start { number, name, instance, version }
        ),
        (number(), prop::sample::select(vec!["timer", "counted", "ram", "x"]), 0..4u32, bytes(64))
            .prop_map(|(number, name, version, state)| Full {
                number,
                name,
                version,
                state,
                counted: version % 2 == 0
            }),
        (number(), any::<bool>()).prop_map(|(number, last)| More { number, last }),
        prop::collection::vec(
            (prop::sample::select(NAMES.to_vec()), prop::sample::select(LENGTHS.to_vec())),
            0..4
        )
        .prop_map(BlockList),
        Just(Flush),
        number().prop_map(|number| EndOfSection { number }),
        (0..14u16, bytes(12)).prop_map(|(command, data)| Command { command, data }),
        (bytes(40), prop::option::of(any::<u32>()))
            .prop_map(|(description, len)| End { description, len }),
        bytes(24).prop_map(Raw),
        Just(Raw((0x1122_3344u32).to_be_bytes().to_vec())),
    ]
}

/// An XBZRLE delta, or nearly one.
fn delta() -> impl Strategy<Value = Vec<u8>> {
    let run = (1..100u8, 1..100u8, any::<bool>());
    let runs = prop::collection::vec(run, 0..30).prop_map(|runs| {
        let mut delta = Vec::new();
        for (stays, comes, long) in runs {
            delta.extend(if long { vec![stays | 0x80, 1] } else { vec![stays] });
            delta.push(comes);
            delta.resize(delta.len() + usize::from(comes), 0x77);
        }
        delta
    });
    prop_oneof![3 => runs, 1 => prop::collection::vec(any::<u8>(), 0..40)]
}

fn records() -> impl Strategy<Value = Part> {
    prop_oneof![
        4 => (block(), offset(), 1..40u64)
            .prop_map(|(block, offset, count)| Zero { block, offset, count }),
        4 => (block(), offset(), 1..6u64)
            .prop_map(|(block, offset, count)| Page { block, offset, count }),
        2 => (block(), offset(), delta(), prop::option::weighted(0.2, any::<(u8, u16)>()))
            .prop_map(|(block, offset, delta, odd)| Delta { block, offset, delta, odd }),
        2 => (
            block(),
            offset(),
            prop_oneof![4 => Just(4096usize), 1 => 0..10_000usize],
            prop::option::weighted(0.1, any::<u32>()),
        )
            .prop_map(|(block, offset, len, odd)| Compressed { block, offset, len, odd }),
        1 => Just(Flush),
        1 => odd(),
    ]
}

/// A stream that is valid except for what `odd` inserts or overwrites.
pub(crate) fn stream() -> impl Strategy<Value = Vec<u8>> {
    let sections = prop::collection::vec(prop::collection::vec(records(), 0..6), 0..3);
    let odd = prop::collection::vec((any::<prop::sample::Index>(), odd(), any::<bool>()), 0..3);
    let flips = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    let cut = prop::option::weighted(0.2, any::<prop::sample::Index>());
    (sections, odd, flips, cut).prop_map(|(sections, odd, flips, cut)| {
        let mut parts = vec![
            Raw(b"QEVM\0\0\0\x03".to_vec()),
            Configuration { name: b"none".to_vec(), subsection: None },
            Command { command: 1, data: Vec::new() },
            Command { command: 2, data: vec![0, 0, 0, 1] },
            Command { command: 3, data: [4096_u64.to_be_bytes(); 2].concat() },
            Start { number: 2, name: "ram", instance: 0, version: 4 },
            BlockList(vec![("ram", 1 << 20), ("pc.ram", 2 << 20)]),
            EndOfSection { number: 2 },
        ];
        for section in sections {
            parts.push(More { number: 2, last: false });
            parts.extend(section);
            parts.push(EndOfSection { number: 2 });
        }
        parts.extend([
            More { number: 2, last: true },
            EndOfSection { number: 2 },
            Full { number: 3, name: "timer", version: 2, state: vec![9; 24], counted: false },
            Full { number: 4, name: "counted", version: 1, state: vec![9; 99], counted: true },
            End { description: b"{\"devices\":[]}".to_vec(), len: None },
        ]);
        for (index, odd, replaces) in odd {
            let at = index.index(parts.len());
            if replaces {
                parts[at] = odd;
            } else {
                parts.insert(at, odd);
            }
        }
        let mut stream = Vec::new();
        parts.iter().for_each(|part| part.write(&mut stream));
        damage(&mut stream, flips, cut);
        stream
    })
}

/// A channel of packets, valid except for a few words.
pub(crate) fn channel() -> impl Strategy<Value = Vec<u8>> {
    let packet = (
        prop_oneof![4 => Just(0u32), 2 => Just(1u32), 4 => Just(2u32), 1 => any::<u32>()],
        prop::collection::vec(offset(), 0..6),
        prop::collection::vec(offset(), 0..6),
        prop::sample::select(NAMES.to_vec()),
        prop::option::weighted(0.1, (0..336usize, any::<u32>())),
    );
    let flips = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..2);
    let cut = prop::option::weighted(0.2, any::<prop::sample::Index>());
    (prop::collection::vec(packet, 0..6), flips, cut).prop_map(|(packets, flips, cut)| {
        let mut out = vec![0x11, 0x22, 0x33, 0x44, 0, 0, 0, 1];
        out.resize(64, 0);
        let mut compress = Compress::new(Compression::fast(), true);
        for (flags, pages, zeros, name, odd) in packets {
            let mut head = vec![0; 1344];
            let mut word = |at: usize, value: u32| {
                head[at * 4..at * 4 + 4].copy_from_slice(&value.to_be_bytes());
            };
            word(0, 0x1122_3344);
            word(1, 1);
            word(2, flags);
            word(3, 128);
            word(4, u32::try_from(pages.len()).unwrap());
            let mut contents = vec![0x5a; pages.len() * 4096];
            if flags & 2 != 0 {
                let mut compressed = Vec::with_capacity(2 * contents.len() + 64);
                compress.compress_vec(&contents, &mut compressed, FlushCompress::Sync).unwrap();
                word(5, u32::try_from(compressed.len()).unwrap());
                contents = compressed;
            }
            word(8, u32::try_from(zeros.len()).unwrap());
            if let Some((at, value)) = odd {
                word(at, value);
            }
            head[64..64 + name.len()].copy_from_slice(name.as_bytes());
            for (n, offset) in pages.iter().chain(&zeros).enumerate() {
                head[320 + n * 8..][..8].copy_from_slice(&offset.to_be_bytes());
            }
            out.extend(head);
            out.extend(contents);
        }
        damage(&mut out, flips, cut);
        out
    })
}

/// Replaces some bytes, and truncates the stream.
pub(crate) fn damage(
    bytes: &mut Vec<u8>,
    flips: Vec<(prop::sample::Index, u8)>,
    cut: Option<prop::sample::Index>,
) {
    for (index, byte) in flips {
        let at = index.index(bytes.len());
        bytes[at] = byte;
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(bytes.len()));
    }
}
