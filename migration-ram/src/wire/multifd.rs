//! Packets of QEMU's multifd channels.
//!
//! A channel begins with 64 bytes: magic, version 1, 16 bytes of the machine's UUID, the
//! channel's number in one byte, 39 bytes unused. Then packets follow, each with a head of
//! 1,344 bytes whatever it holds: magic, version, flags, offsets allocated (128), offsets
//! used by pages with contents, bytes of the next packet's contents (u32 each); the packet's
//! number (u64); zero pages (u32); 28 bytes unused; the block's id in 256 bytes, padded with
//! zeros; 128 offsets (u64). The contents of the pages come right after it, in the order of
//! their offsets; the offsets of zero pages are behind those of the others. All big-endian.

use crate::error::ReceiveError;
use crate::wire::reader::StreamReader;

pub(crate) const MULTIFD_MAGIC: u32 = 0x1122_3344;
const VERSION: u32 = 1;
/// Orders pages of all channels: those before this packet precede those after it.
pub(crate) const SYNC: u32 = 1;
/// The bits of a compression (QEMU's multifd-compression).
const COMPRESSION: u32 = 0xf << 1;
const ZLIB: u32 = 1 << 1;
#[cfg(feature = "zstd")]
const ZSTD: u32 = 2 << 1;
/// Pages of a packet.
pub(crate) const PACKET_PAGES: usize = 128;
/// Bytes of a packet's head.
pub(crate) const HEAD: usize = 1344;
const OFFSETS: usize = HEAD - 8 * PACKET_PAGES;
const NAME: usize = OFFSETS - 256;

/// The channels that a migration can have.
pub(crate) const MAX_CHANNELS: usize = 16;

/// The first bytes of a channel.
pub(crate) fn hello(channel: u8) -> [u8; 64] {
    let mut hello = [0; 64];
    hello[..4].copy_from_slice(&MULTIFD_MAGIC.to_be_bytes());
    hello[4..8].copy_from_slice(&VERSION.to_be_bytes());
    hello[24] = channel;
    hello
}

/// Reads the rest of a channel's first bytes, after the magic number; returns its number.
pub(crate) fn read_hello(stream: &mut StreamReader<'_>) -> Result<u8, ReceiveError> {
    let at = stream.at();
    let version = stream.u32("a channel's version")?;
    stream.expect("a channel's version", version.into(), VERSION.into(), at)?;
    let mut rest = [0; 56];
    stream.bytes(&mut rest, "a channel's beginning")?;
    Ok(rest[16])
}

/// How the contents of packets are compressed: all packets of a channel are parts of one
/// compressed stream. The head's field of the contents' bytes is the length of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    Zlib,
    #[cfg(feature = "zstd")]
    Zstd,
}

impl Compression {
    /// The compression by a packet's flags; `None` if it is unknown.
    fn of(flags: u32) -> Option<Option<Self>> {
        match flags & COMPRESSION {
            0 => Some(None),
            ZLIB => Some(Some(Self::Zlib)),
            #[cfg(feature = "zstd")]
            ZSTD => Some(Some(Self::Zstd)),
            _ => None,
        }
    }
}

/// A packet's part of its channel's compressed stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CompressedPart {
    pub(crate) compression: Compression,
    /// In bytes.
    pub(crate) len: u32,
}

/// The head of a packet.
pub(crate) struct Packet {
    pub(crate) flags: u32,
    pub(crate) number: u64,
    pub(crate) block: String,
    /// Offsets in the block, in bytes, of the pages whose contents follow.
    pub(crate) pages: Vec<u64>,
    /// Offsets of zero pages.
    pub(crate) zero_pages: Vec<u64>,
    /// The compressed part that holds the contents, if they are compressed.
    pub(crate) compressed: Option<CompressedPart>,
}

impl Packet {
    /// The head's bytes. There are 128 pages at most, and ids have 255 bytes at most.
    pub(crate) fn head(&self, page: u64) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        let count = |pages: &[u64]| u32::try_from(pages.len()).unwrap_or(0);
        let next = u32::try_from(page * self.pages.len() as u64).unwrap_or(0);
        let words = [MULTIFD_MAGIC, VERSION, self.flags, 128, count(&self.pages), next];
        for (at, word) in head.chunks_exact_mut(4).zip(words) {
            at.copy_from_slice(&word.to_be_bytes());
        }
        head[24..32].copy_from_slice(&self.number.to_be_bytes());
        head[32..36].copy_from_slice(&count(&self.zero_pages).to_be_bytes());
        head[NAME..][..self.block.len()].copy_from_slice(self.block.as_bytes());
        let offsets = self.pages.iter().chain(&self.zero_pages);
        for (at, offset) in head[OFFSETS..].chunks_exact_mut(8).zip(offsets) {
            at.copy_from_slice(&offset.to_be_bytes());
        }
        head
    }

    /// Reads a head; `None` at the end of the channel. The caller must check the offsets against
    /// the block.
    pub(crate) fn read(stream: &mut StreamReader<'_>) -> Result<Option<Self>, ReceiveError> {
        let start = stream.at();
        let mut head = [0; HEAD];
        if !stream.exactly(&mut head, "a packet's head")? {
            return Ok(None);
        }
        let word =
            |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        for (at, what, expected) in
            [(0, "a packet's magic number", MULTIFD_MAGIC), (4, "a packet's version", VERSION)]
        {
            stream.expect(what, word(at).into(), expected.into(), start + at as u64)?;
        }
        let flags = word(8);
        let compression = Compression::of(flags).filter(|_| flags & !(SYNC | COMPRESSION) == 0);
        let Some(compression) = compression else {
            let found = flags.into();
            return Err(ReceiveError::Unsupported { at: start + 8, what: "packet flags", found });
        };
        let (pages, zero_pages) = (word(16) as usize, word(32) as usize);
        if pages.saturating_add(zero_pages) > PACKET_PAGES {
            let found = word(16).into();
            return Err(ReceiveError::Unsupported {
                at: start + 16,
                what: "pages of a packet",
                found,
            });
        }
        let name = &head[NAME..OFFSETS];
        let len = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        let block = String::from_utf8(name[..len].to_vec())
            .map_err(|_| ReceiveError::Name { at: start + NAME as u64, len: len as u64 })?;
        let offset = |n: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&head[OFFSETS + 8 * n..][..8]);
            u64::from_be_bytes(bytes)
        };
        let mut number = [0; 8];
        number.copy_from_slice(&head[24..32]);
        Ok(Some(Self {
            flags,
            compressed: compression
                .map(|compression| CompressedPart { compression, len: word(20) }),
            number: u64::from_be_bytes(number),
            block,
            pages: (0..pages).map(offset).collect(),
            zero_pages: (pages..pages + zero_pages).map(offset).collect(),
        }))
    }
}
