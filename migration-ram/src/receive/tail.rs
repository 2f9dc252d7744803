//! The sections of devices that are not known here.
//!
//! The stream has no lengths for them: one ends where its footer is followed by the head of
//! another one, or by the end of the stream, at which QEMU describes its devices in JSON.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;

use crate::error::ReceiveError;
use crate::format::*;

use super::sections::MAX_DESCRIPTION;
use super::{SectionInfo, StreamReader};

/// The most bytes of devices that are kept.
const MOST: u64 = 256 << 20;
/// The most places that are taken for the end for as long as it has not come.
const MAX_ENDS: usize = 4096;

/// The most sections: each takes more memory here than it need have bytes in the stream.
const MAX_SECTIONS: usize = 65_536;

pub(super) struct Tail {
    pub(super) sections: Vec<SectionInfo>,
    pub(super) description: Vec<u8>,
}

impl Tail {
    /// Reads the rest of a stream, behind the head of its first unknown section, which has
    /// this number.
    pub(super) fn read(
        stream: &mut StreamReader<'_>,
        first: SectionInfo,
        number: u32,
    ) -> Result<Self, ReceiveError> {
        let start = stream.at();
        let mut end = End::default();
        let bytes = stream.rest(MOST, |bytes| end.find(bytes).is_some())?;
        let Some(sections) = end.find(&bytes) else {
            let at = start + bytes.len() as u64;
            return Err(ReceiveError::Truncated { at, what: "the devices" });
        };
        let description = bytes.get(sections + 6..).unwrap_or_default().to_vec();
        let sections = split(&bytes[..sections], start, first, number)?;
        Ok(Self { sections, description })
    }
}

/// Looks for the end of the sections in bytes that become more.
#[derive(Default)]
struct End {
    scanned: usize,
    /// What may be the end, by the length that the stream then has.
    ends: BTreeMap<usize, usize>,
}

impl End {
    /// Where the sections end, if the stream is whole.
    fn find(&mut self, bytes: &[u8]) -> Option<usize> {
        while let Some(head) = bytes.get(self.scanned..self.scanned + 6) {
            let len = u32::from_be_bytes([head[2], head[3], head[4], head[5]]);
            let text = bytes.get(self.scanned + 6);
            if head[..2] == [EOF, VMDESC] && u64::from(len) <= MAX_DESCRIPTION {
                match text {
                    None if len > 0 => break, // look again when it has come
                    Some(b'{') | None => {
                        let whole = self.scanned + 6 + len as usize;
                        if self.ends.len() < MAX_ENDS {
                            self.ends.entry(whole).or_insert(self.scanned);
                        }
                    }
                    Some(_) => {}
                }
            }
            self.scanned += 1;
        }
        let end = *self.ends.get(&bytes.len())?;
        let text = &bytes[end + 6..];
        (text.is_empty() || serde_json::from_slice::<IgnoredAny>(text).is_ok()).then_some(end)
    }
}

/// The sections up to the end, behind the head of the first.
fn split(
    bytes: &[u8],
    start: u64,
    first: SectionInfo,
    number: u32,
) -> Result<Vec<SectionInfo>, ReceiveError> {
    let mut sections = Vec::new();
    let (mut section, mut number, mut from) = (first, number, 0);
    loop {
        let mut footer = vec![FOOTER];
        footer.extend(number.to_be_bytes());
        let ends = bytes[from..].windows(5).enumerate().filter(|(_, five)| *five == footer);
        let mut ends = ends.map(|(at, _)| from + at).filter_map(|end| {
            let next = head_at(bytes, end + 5, start);
            (next.is_some() || end + 5 == bytes.len()).then_some((end, next))
        });
        let Some((end, next)) = ends.next() else {
            let at = start + bytes.len() as u64;
            return Err(ReceiveError::Truncated { at, what: "a device's section" });
        };
        if sections.len() >= MAX_SECTIONS {
            let (what, most) = ("the list of devices' sections", MAX_SECTIONS as u64);
            return Err(ReceiveError::TooLong { at: start, what, most });
        }
        section.len = (end - from) as u64;
        sections.push(section);
        match next {
            Some(next) => (section, number, from) = next,
            None => return Ok(sections),
        }
    }
}

/// A section's head and number, and where its data begin.
fn head_at(bytes: &[u8], at: usize, start: u64) -> Option<(SectionInfo, u32, usize)> {
    let word = |at: usize| {
        let bytes = bytes.get(at..at + 4)?;
        Some(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    };
    if *bytes.get(at)? != SECTION_FULL {
        return None;
    }
    let number = word(at + 1)?;
    let len = usize::from(*bytes.get(at + 5)?);
    let name = std::str::from_utf8(bytes.get(at + 6..at + 6 + len)?).ok()?;
    if name.is_empty() || name.contains(|c: char| c.is_control()) {
        return None;
    }
    let (instance, version) = (word(at + 6 + len)?, word(at + 10 + len)?);
    let (name, place) = (name.to_owned(), start + at as u64);
    let info = SectionInfo { name, instance, version, at: place, len: 0, restored: false };
    Some((info, number, at + 14 + len))
}
