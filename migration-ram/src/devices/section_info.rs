//! A device's section of a stream, with its bytes if no device restored it.

/// A device's section of a stream.
///
/// The receiver keeps the bytes of an unknown section, one that no device restored
/// ([`Receiver::keep_unknown_sections`](crate::Receiver::keep_unknown_sections)):
/// [`parts`](Self::parts) returns them, and [`Precopy::section`](crate::Precopy::section) sends
/// them on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SectionInfo {
    /// Its name.
    pub name: String,
    /// Its instance id.
    pub instance: u32,
    /// The version of the state.
    pub version: u32,
    /// Where the section begins in the stream, in bytes.
    pub at: u64,
    /// Bytes of the state, of all its parts together.
    pub len: u64,
    /// Whether a device restored it.
    pub restored: bool,
    /// Whether it began before the end of RAM's section.
    pub early: bool,
    /// Whether it may have several parts, as RAM's section has.
    pub iterable: bool,
    pub(crate) kept: Parts,
}

/// The bytes of a section, of which an iterable one has several parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// The limit of kept bytes was exceeded, or a part is missing.
    dropped: bool,
}

impl SectionInfo {
    /// The bytes that were kept: one part for a full section; for an iterable one the bytes of
    /// its start, of each of its parts, and of its end. `None` if nothing was kept, because a
    /// device restored it, or because the unknown sections exceeded 256 MiB.
    pub fn parts(&self) -> Option<impl ExactSizeIterator<Item = &[u8]>> {
        let Parts { bytes, ends, dropped } = &self.kept;
        let start = |n: usize| n.checked_sub(1).map_or(0, |before| ends[before]);
        let parts = (0..ends.len()).map(move |n| &bytes[start(n)..ends[n]]);
        (!dropped && !ends.is_empty()).then_some(parts)
    }

    /// Adds a part of `len` bytes; `bytes` is `None` if they exceed the limit of kept bytes.
    pub(crate) fn add_part(&mut self, len: u64, bytes: Option<Vec<u8>>) {
        self.len += len;
        match bytes {
            Some(bytes) if !self.kept.dropped => {
                self.kept.bytes.extend(bytes);
                self.kept.ends.push(self.kept.bytes.len());
            }
            _ => self.kept = Parts { dropped: true, ..Parts::default() },
        }
    }
}
