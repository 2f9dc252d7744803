//! Zlib streams (RFC 1950) that last as long as the connection.

use flate2::{Compress, Compression, FlushCompress};

/// An empty stored block, at the beginning of a byte (RFC 1951, 3.2.4).
const EMPTY_BLOCK: [u8; 5] = [0, 0, 0, 0xff, 0xff];

/// A stream whose parts can be decompressed as soon as they are received.
#[derive(Debug)]
pub(super) struct Zlib {
    stream: Compress,
}

impl Zlib {
    pub(super) fn new(level: u8) -> Self {
        Self { stream: Compress::new(Compression::new(level.into()), true) }
    }

    /// Appends `plain`, compressed.
    ///
    /// Flushes until a flush produces no more output: if a block happens to end within `plain`,
    /// flate2's own compressor (miniz_oxide) holds back the bytes after it, though it was told to
    /// flush and there is room.
    pub(super) fn append(&mut self, mut plain: &[u8], out: &mut Vec<u8>) {
        loop {
            out.reserve(plain.len() + 1024);
            let (begin, before) = (out.len(), self.stream.total_in());
            let status = self.stream.compress_vec(plain, out, FlushCompress::Sync);
            let read = usize::try_from(self.stream.total_in() - before).unwrap_or(0);
            plain = plain.get(read..).unwrap_or_default();
            if let Err(error) = status {
                log::error!("vnc: {error}"); // only a finished stream fails
                return;
            }
            let new = &out[begin..];
            if plain.is_empty() && (new.is_empty() || new == EMPTY_BLOCK) {
                out.truncate(begin);
                return;
            }
        }
    }

    /// Appends `plain`, compressed, after its compressed length in 32 bits.
    pub(super) fn append_sized(&mut self, plain: &[u8], out: &mut Vec<u8>) {
        let at = out.len();
        out.extend_from_slice(&[0; 4]);
        self.append(plain, out);
        // A piece has less than a megabyte.
        let length = u32::try_from(out.len() - at - 4).unwrap_or(0);
        out[at..at + 4].copy_from_slice(&length.to_be_bytes());
    }
}
