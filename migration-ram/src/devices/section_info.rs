//! A device's section of a stream, with its bytes if no device took it.

/// A device's section of a stream.
///
/// One that no device took is kept as it came, if it can be told where it ends
/// ([`Receiver::keep_unknown_sections`](crate::Receiver::keep_unknown_sections)):
/// [`Precopy::section`](crate::Precopy::section) sends it on, and [`parts`](Self::parts) are its
/// bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SectionInfo {
    /// Its name.
    pub name: String,
    /// Which of several of this name.
    pub instance: u32,
    /// The version of the state.
    pub version: u32,
    /// Where the section begins in the stream, in bytes.
    pub at: u64,
    /// Bytes of the state, of all its parts together.
    pub len: u64,
    /// Whether a device took it.
    pub restored: bool,
    /// Whether it began before RAM had come.
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
    /// There were too many, or a part is missing.
    dropped: bool,
}

impl SectionInfo {
    /// The bytes that were kept: of a section that is whole one part; of an iterable one those of
    /// its start, of each of its parts, and of its end. `None` if nothing was kept, as a device
    /// took it, or as there were more than 256 MiB of unknown sections.
    pub fn parts(&self) -> Option<impl ExactSizeIterator<Item = &[u8]>> {
        let Parts { bytes, ends, dropped } = &self.kept;
        let start = |n: usize| n.checked_sub(1).map_or(0, |before| ends[before]);
        let parts = (0..ends.len()).map(move |n| &bytes[start(n)..ends[n]]);
        (!dropped && !ends.is_empty()).then_some(parts)
    }

    /// Adds a part of `len` bytes; `bytes` are `None` if they are too many to be kept.
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
