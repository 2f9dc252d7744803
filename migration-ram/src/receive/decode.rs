//! Decodes pages: XBZRLE deltas and compressed pages.

use std::ops::Range;

use flate2::{Decompress, FlushDecompress, Status};
use ram_block::PageSize;

use crate::error::ReceiveError;
use crate::receive::blocks::Block;
#[cfg(feature = "zstd")]
use crate::receive::zstd::Zstd;
use crate::wire::format::index;
use crate::wire::multifd::{CompressedPart, Compression};
use crate::wire::reader::StreamReader;

/// Decodes pages one by one, in a buffer of its own.
pub(super) struct Decoder {
    /// One byte longer than a page, to detect output of more than a page.
    page: Vec<u8>,
    inflate: Decompress,
    #[cfg(feature = "zstd")]
    zstd: Zstd,
}

/// A page of a block, and the offset of its encoded form in the stream (`at`).
#[derive(Clone, Copy)]
pub(super) struct EncodedPage<'a> {
    pub(super) at: u64,
    pub(super) block: &'a Block,
    pub(super) offset: u64,
}

impl EncodedPage<'_> {
    fn malformed(&self, what: &'static str) -> ReceiveError {
        let (at, id, offset) = (self.at, self.block.id.to_string(), self.offset);
        ReceiveError::Encoding { at, what, id, offset }
    }
}

impl Decoder {
    pub(super) fn new(page: PageSize) -> Self {
        Self {
            page: vec![0; index(page.bytes()) + 1],
            inflate: Decompress::new(true),
            #[cfg(feature = "zstd")]
            zstd: Zstd::default(),
        }
    }

    fn page(&self) -> Range<usize> {
        0..self.page.len() - 1
    }

    /// Applies an XBZRLE delta to a page.
    pub(super) fn delta(&mut self, to: EncodedPage<'_>, delta: &[u8]) -> Result<(), ReceiveError> {
        let page = self.page();
        let page = &mut self.page[page];
        to.block.get(to.offset, page)?;
        apply(page, delta).ok_or_else(|| to.malformed("XBZRLE delta"))?;
        to.block.put_delta(to.offset, page)
    }

    /// Decompresses a page that is a complete zlib stream.
    pub(super) fn zlib(&mut self, to: EncodedPage<'_>, data: &[u8]) -> Result<(), ReceiveError> {
        self.inflate.reset(true);
        let status = self.inflate.decompress(data, &mut self.page, FlushDecompress::Finish);
        let lengths = (self.inflate.total_in(), self.inflate.total_out());
        let page = self.page();
        if !matches!(status, Ok(Status::StreamEnd))
            || lengths != (data.len() as u64, page.len() as u64)
        {
            return Err(to.malformed("zlib data"));
        }
        to.block.put(to.offset, &self.page[page])
    }

    /// Decompresses the pages of a part; the compressed stream continues in the channel's next
    /// part.
    pub(super) fn part(
        &mut self,
        stream: &mut StreamReader<'_>,
        part: CompressedPart,
        block: &Block,
        offsets: &[u64],
    ) -> Result<(), ReceiveError> {
        let CompressedPart { compression, len } = part;
        let end = stream.at() + u64::from(len);
        let page = self.page();
        for offset in offsets.iter().copied() {
            let mut left = page.clone();
            while !left.is_empty() {
                let to = EncodedPage { at: stream.at(), block, offset };
                let came = self.some(stream, compression, end, left.clone(), to)?;
                left.start += came.ok_or_else(|| to.malformed(compression.data()))?;
            }
            block.put(offset, &self.page[page.clone()])?;
        }
        // The rest may hold markers of the compressed format, but not a byte of another page.
        loop {
            let to = EncodedPage {
                at: stream.at(),
                block,
                offset: offsets.last().copied().unwrap_or(0),
            };
            match self.some(stream, compression, end, 0..1, to)? {
                Some(0) => {}
                None if stream.at() == end => return Ok(()),
                _ => return Err(to.malformed(compression.data())),
            }
        }
    }

    /// Decompresses some of the bytes up to `end` into a part of the page; returns how many bytes
    /// it produced, or `None` if it neither produced nor consumed any.
    fn some(
        &mut self,
        stream: &mut StreamReader<'_>,
        compression: Compression,
        end: u64,
        part: Range<usize>,
        to: EncodedPage<'_>,
    ) -> Result<Option<usize>, ReceiveError> {
        let input = stream.some(end - stream.at(), "a compressed page")?;
        let out = &mut self.page[part];
        let step = match compression {
            Compression::Zlib => inflate(&mut self.inflate, input, out),
            #[cfg(feature = "zstd")]
            Compression::Zstd => self.zstd.step(input, out),
        };
        let (consumed, produced) = step.ok_or_else(|| to.malformed(compression.data()))?;
        stream.consume(consumed);
        Ok((consumed > 0 || produced > 0).then_some(produced))
    }
}

impl Compression {
    /// The name of compressed data, in errors.
    fn data(self) -> &'static str {
        match self {
            Self::Zlib => "zlib data",
            #[cfg(feature = "zstd")]
            Self::Zstd => "zstd data",
        }
    }
}

/// Decompresses as much as fits; returns how many bytes it consumed and produced. `None` if the
/// input is malformed.
fn inflate(stream: &mut Decompress, input: &[u8], out: &mut [u8]) -> Option<(usize, usize)> {
    let before = (stream.total_in(), stream.total_out());
    stream.decompress(input, out, FlushDecompress::Sync).ok()?;
    let consumed = usize::try_from(stream.total_in() - before.0).ok()?;
    let produced = usize::try_from(stream.total_out() - before.1).ok()?;
    Some((consumed, produced))
}

/// Applies a delta to `page`: alternating runs of unchanged bytes, of which only the first may be
/// empty, and of new bytes. `None` if a run exceeds the page, or is truncated.
fn apply(page: &mut [u8], mut delta: &[u8]) -> Option<()> {
    let mut at = 0;
    let mut first = true;
    while !delta.is_empty() {
        let unchanged = run_length(&mut delta).filter(|len| first || *len > 0)?;
        let new = run_length(&mut delta).filter(|len| *len > 0)?;
        let bytes;
        (bytes, delta) = delta.split_at_checked(new)?;
        page.get_mut(at + unchanged..at + unchanged + new)?.copy_from_slice(bytes);
        at += unchanged + new;
        first = false;
    }
    Some(())
}

/// A ULEB128 number of at most 14 bits.
fn run_length(delta: &mut &[u8]) -> Option<usize> {
    let (low, rest) = delta.split_first()?;
    *delta = rest;
    if low & 0x80 == 0 {
        return Some(usize::from(*low));
    }
    let (high, rest) = delta.split_first().filter(|(high, _)| *high & 0x80 == 0)?;
    *delta = rest;
    Some(usize::from(low & 0x7f) | usize::from(*high) << 7)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flate2::{Compress, FlushCompress};
    use proptest::prelude::*;
    use ram_block::{RamBlock, ReceiveList, TransferError};

    use crate::wire::transport::ReadTransport;

    use super::*;
    use crate::receive::blocks::Blocks;

    const PAGE: usize = 4096;
    const PAGES: usize = 64;

    /// A stream that is received in pieces of a size.
    struct Pieces<'a>(&'a [u8], usize);

    impl ReadTransport for Pieces<'_> {
        fn receive(&mut self, list: &mut ReceiveList<'_>) -> Result<usize, TransferError> {
            let (piece, _) = self.0.split_at(self.0.len().min(self.1));
            let got = list.read_some_from(&mut { piece })?;
            self.0 = &self.0[got..];
            Ok(got)
        }
    }

    fn block() -> (Arc<RamBlock>, Arc<Block>) {
        let memory = RamBlock::anonymous("ram", (PAGES * PAGE) as u64).unwrap();
        let block = Blocks::new(std::slice::from_ref(&memory), None).get(0, "ram").unwrap();
        (memory, block)
    }

    fn decoder() -> Decoder {
        Decoder::new(PageSize::new(PAGE as u64).unwrap())
    }

    /// The other side of a stream in parts.
    enum Source {
        Zlib(Compress),
        #[cfg(feature = "zstd")]
        Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
    }

    impl Source {
        fn new(compression: Compression, level: u32) -> Self {
            match compression {
                Compression::Zlib => {
                    Self::Zlib(Compress::new(flate2::Compression::new(level), true))
                }
                #[cfg(feature = "zstd")]
                Compression::Zstd => {
                    let level = i32::try_from(2 * level + 1).unwrap();
                    Self::Zstd(zstd::stream::write::Encoder::new(Vec::new(), level).unwrap())
                }
            }
        }

        /// A part, of which nothing is held back.
        fn part(&mut self, plain: &[u8]) -> Vec<u8> {
            match self {
                Self::Zlib(compress) => {
                    let mut bytes = Vec::with_capacity(2 * plain.len() + 64);
                    compress.compress_vec(plain, &mut bytes, FlushCompress::Sync).unwrap();
                    bytes
                }
                #[cfg(feature = "zstd")]
                Self::Zstd(encoder) => {
                    use std::io::Write;
                    encoder.write_all(plain).unwrap();
                    encoder.flush().unwrap();
                    std::mem::take(encoder.get_mut())
                }
            }
        }
    }

    const COMPRESSIONS: &[Compression] = &[
        Compression::Zlib,
        #[cfg(feature = "zstd")]
        Compression::Zstd,
    ];

    proptest! {
        /// Packets that are parts of one compressed stream, received in any pieces, of pages that
        /// can be compressed or not.
        #[test]
        fn a_stream_in_parts_is_the_pages_that_it_was_made_of(
            packets in prop::collection::vec(
                prop::collection::vec((0..PAGES, any::<u64>(), any::<bool>()), 1..20), 1..8),
            compression in prop::sample::select(COMPRESSIONS),
            level in 0..10u32,
            piece in prop_oneof![1..50usize, 1..70_000usize],
        ) {
            let (memory, block) = block();
            let mut expected = vec![0; PAGES * PAGE];
            let mut source = Source::new(compression, level);
            let (mut bytes, mut parts) = (Vec::new(), Vec::new());
            for packet in &packets {
                let mut plain = Vec::new();
                for (page, seed, noisy) in packet {
                    let word = |n: u64| match noisy {
                        true => (n ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29),
                        false => *seed,
                    };
                    let contents: Vec<u8> =
                        (0..PAGE as u64 / 8).flat_map(|n| word(n).to_le_bytes()).collect();
                    expected[page * PAGE..(page + 1) * PAGE].copy_from_slice(&contents);
                    plain.extend(contents);
                }
                let part = source.part(&plain);
                let offsets: Vec<_> = packet.iter().map(|(page, ..)| (page * PAGE) as u64)
                    .collect();
                let len = u32::try_from(part.len()).unwrap();
                parts.push((CompressedPart { compression, len }, offsets));
                bytes.extend(part);
            }
            let mut input = Pieces(&bytes, piece);
            let mut stream = StreamReader::untimed(&mut input);
            let mut decoder = decoder();
            for (part, offsets) in &parts {
                decoder.part(&mut stream, *part, &block, offsets).unwrap();
            }
            prop_assert_eq!(stream.at(), bytes.len() as u64);
            let mut found = vec![0; PAGES * PAGE];
            memory.read(0, &mut found).unwrap();
            prop_assert!(found == expected);
        }
    }

    #[test]
    fn parts_of_more_or_less_than_their_pages_are_refused() {
        let (_, block) = block();
        for compression in COMPRESSIONS.iter().copied() {
            let bytes = Source::new(compression, 1).part(&[7; 2 * PAGE]);
            for (what, len, offsets) in [
                ("a page less", bytes.len(), &[0][..]),
                ("a page more", bytes.len(), &[0, 4096, 8192]),
                ("cut off", bytes.len() - 10, &[0, 4096]),
            ] {
                let mut input = &bytes[..];
                let mut stream = StreamReader::untimed(&mut input);
                let part = CompressedPart { compression, len: u32::try_from(len).unwrap() };
                let result = decoder().part(&mut stream, part, &block, offsets);
                assert!(matches!(result, Err(ReceiveError::Encoding { .. })), "{what}: {result:?}");
            }
            let mut input = &bytes[..9];
            let mut stream = StreamReader::untimed(&mut input);
            let part = CompressedPart { compression, len: 20 };
            let result = decoder().part(&mut stream, part, &block, &[0, 4096]);
            assert!(matches!(result, Err(ReceiveError::Truncated { at: 9, .. })), "{result:?}");
            // Bytes that are not compressed data.
            for bytes in [[0x55; 64], [0; 64]] {
                let mut input = &bytes[..];
                let mut stream = StreamReader::untimed(&mut input);
                let part = CompressedPart { compression, len: 64 };
                let result = decoder().part(&mut stream, part, &block, &[0]);
                assert!(matches!(result, Err(ReceiveError::Encoding { .. })), "{result:?}");
            }
        }
    }

    /// A stream that ends within a part, and something behind it that is of no page.
    #[test]
    fn what_follows_the_end_of_a_stream_is_refused() {
        let (_, block) = block();
        let mut compress = Compress::new(flate2::Compression::fast(), true);
        let mut bytes = Vec::with_capacity(2 * PAGE);
        compress.compress_vec(&[7; PAGE], &mut bytes, FlushCompress::Finish).unwrap();
        for (rest, fits) in [(&b""[..], true), (b"rest", false)] {
            let bytes = [&bytes[..], rest].concat();
            let mut input = &bytes[..];
            let mut stream = StreamReader::untimed(&mut input);
            let len = u32::try_from(bytes.len()).unwrap();
            let part = CompressedPart { compression: Compression::Zlib, len };
            let result = decoder().part(&mut stream, part, &block, &[0]);
            assert_eq!(result.is_ok(), fits, "{result:?}");
        }
    }

    /// A frame that asks for 64 MiB of history.
    #[cfg(feature = "zstd")]
    #[test]
    fn a_window_of_more_than_qemus_levels_have_is_refused() {
        use std::io::Write;
        let (_, block) = block();
        for (log, fits) in [(25, true), (26, false)] {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(log).unwrap();
            encoder.write_all(&[7; PAGE]).unwrap();
            encoder.flush().unwrap();
            let bytes = std::mem::take(encoder.get_mut());
            let mut input = &bytes[..];
            let mut stream = StreamReader::untimed(&mut input);
            let part = CompressedPart {
                compression: Compression::Zstd,
                len: u32::try_from(bytes.len()).unwrap(),
            };
            let result = decoder().part(&mut stream, part, &block, &[0]);
            assert_eq!(result.is_ok(), fits, "{log}: {result:?}");
        }
    }

    #[test]
    fn a_compressed_page_is_one_page_and_no_more() {
        let (memory, block) = block();
        let place = EncodedPage { at: 0, block: &block, offset: 4096 };
        let zlib = |len: usize| {
            let mut bytes = Vec::with_capacity(3 * PAGE);
            let mut compress = Compress::new(flate2::Compression::fast(), true);
            compress.compress_vec(&vec![7; len], &mut bytes, FlushCompress::Finish).unwrap();
            bytes
        };
        let whole = zlib(PAGE);
        for data in [&zlib(PAGE - 1)[..], &zlib(PAGE + 1), &zlib(2 * PAGE), &[], &whole[1..]] {
            let result = decoder().zlib(place, data);
            assert!(matches!(result, Err(ReceiveError::Encoding { .. })), "{result:?}");
        }
        let cut = decoder().zlib(place, &whole[..whole.len() - 1]);
        assert!(matches!(cut, Err(ReceiveError::Encoding { .. })), "{cut:?}");
        let longer = decoder().zlib(place, &[&whole[..], &[0]].concat());
        assert!(matches!(longer, Err(ReceiveError::Encoding { .. })), "{longer:?}");
        let mut decoder = decoder();
        decoder.zlib(place, &[]).unwrap_err();
        decoder.zlib(place, &whole).unwrap();
        let mut page = [0; PAGE];
        memory.read(4096, &mut page).unwrap();
        assert_eq!(page, [7; PAGE]);
    }

    #[test]
    fn a_delta_changes_what_it_says() {
        let mut page = [7; 300];
        let long = [&[0xc8, 0x01, 2][..], b"cd"].concat(); // 200 stay
        assert_eq!(apply(&mut page, &[&[0, 1][..], b"a", &long].concat()), Some(()));
        let mut expected = [7; 300];
        expected[0] = b'a';
        expected[201..203].copy_from_slice(b"cd");
        assert_eq!(page, expected);
        assert_eq!(apply(&mut page, &[]), Some(()));
        assert_eq!(page, expected);
    }

    #[test]
    fn a_delta_that_makes_no_sense_is_refused() {
        for (what, delta) in [
            ("nothing stays between two runs", &[0, 1, 9, 0, 1, 9][..]),
            ("nothing comes", &[5, 0]),
            ("it ends with what stays", &[0, 1, 9, 5]),
            ("its bytes are cut off", &[0, 3, 9, 9]),
            ("a length is cut off", &[0x80]),
            ("a length of three bytes", &[0x80, 0x80, 0, 1, 9]),
            ("a byte too far", &[99, 2, 9, 9]),
            ("far too far", &[0xff, 0x7f, 1, 9]),
        ] {
            assert_eq!(apply(&mut [0; 100], delta), None, "{what}");
        }
        assert_eq!(apply(&mut [0; 100], &[98, 2, 9, 9]), Some(()));
    }
}
