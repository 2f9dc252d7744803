//! The sections of devices that are not known here.
//!
//! The stream has no lengths for them. What ends one is its footer, if something follows that
//! can stand behind a footer: the head of another section, a part of one that has begun, a
//! command, or the end of the stream, which a description follows, or nothing. Footers of five
//! bytes within a state are told from real ones by that.

use crate::error::ReceiveError;
use crate::wire::format::*;
use crate::wire::reader::StreamReader;

/// The most bytes that are kept of all unknown sections.
const MOST: u64 = 256 << 20;
/// Bytes that a part takes beside its own.
const PART_COST: u64 = 16;
/// Bytes of a footer: its mark and the section's number.
const FOOTER_LEN: usize = 5;
const WHAT: &str = "the end of an unknown section";

/// What may follow a section.
pub(super) struct Follows<'a> {
    /// Whether a section of this number has begun and may have more parts.
    pub(super) has_parts: &'a dyn Fn(u32) -> bool,
    /// Whether the stream may end rightly: RAM has come.
    pub(super) may_end: bool,
    /// Whether a description is waited for behind the end.
    pub(super) is_described: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Verdict {
    /// A part of the stream, or its end.
    Part,
    /// Neither.
    No,
    /// Not to be told before more has come.
    More,
    /// The end, if nothing follows.
    End,
}

impl Follows<'_> {
    /// What stands behind something that looks like a footer.
    fn judge(&self, after: &[u8]) -> Verdict {
        let number = |at: usize| {
            let bytes = after.get(at..at + 4)?;
            Some(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        };
        let either = |is: Option<bool>| match is {
            None => Verdict::More,
            Some(true) => Verdict::Part,
            Some(false) => Verdict::No,
        };
        match after.first() {
            None => Verdict::More,
            Some(&SECTION_START | &SECTION_FULL) => either(is_head(&after[1..])),
            Some(&SECTION_PART | &SECTION_END) => either(number(1).map(self.has_parts)),
            Some(&COMMAND) => either(number(1).map(is_command)),
            Some(&EOF) => match (after.get(1), number(2), after.get(6)) {
                (None, ..) => Verdict::End,
                (Some(&VMDESC), None, _) => Verdict::More,
                (Some(&VMDESC), Some(0), _) => Verdict::Part,
                (Some(&VMDESC), Some(len), _) if u64::from(len) > MAX_DESCRIPTION => Verdict::No,
                (Some(&VMDESC), Some(_), text) => either(text.map(|byte| *byte == b'{')),
                // What else is on the connection is none of the stream's.
                _ if self.may_end && !self.is_described => Verdict::Part,
                _ => Verdict::No,
            },
            Some(_) => Verdict::No,
        }
    }
}

/// Whether a section's head begins with these bytes, behind its kind; `None` if it may.
fn is_head(bytes: &[u8]) -> Option<bool> {
    let len = usize::from(*bytes.get(4)?);
    let name = bytes.get(5..5 + len)?;
    let is_name = |name: &str| !name.is_empty() && !name.contains(|c: char| c.is_control());
    Some(std::str::from_utf8(name).is_ok_and(is_name))
}

/// Whether a command and its length are known.
fn is_command(word: u32) -> bool {
    let [high, low, len @ ..] = word.to_be_bytes();
    let (command, len) = (u16::from_be_bytes([high, low]), u16::from_be_bytes(len));
    matches!(
        (command, len),
        (MIG_CMD_OPEN_RETURN_PATH | MIG_CMD_SWITCHOVER_START | MIG_CMD_POSTCOPY_ADVISE, 0)
            | (MIG_CMD_PING, 4)
            | (MIG_CMD_POSTCOPY_ADVISE, 16)
    )
}

/// What was kept of all unknown sections so far.
#[derive(Default)]
pub(super) struct Kept(u64);

/// The bytes of a section, or of a part of one, without head and footer.
pub(super) struct Body {
    pub(super) len: u64,
    /// `None` if there would be too many kept.
    pub(super) bytes: Option<Vec<u8>>,
    /// The stream's end follows, and nothing behind that: it was waited for.
    pub(super) is_last: bool,
}

impl Body {
    /// Consumes the next `count` bytes of the stream.
    fn take(&mut self, stream: &mut StreamReader<'_>, count: usize, kept: &mut Kept) {
        if let Some(bytes) = &mut self.bytes {
            if kept.0 + bytes.len() as u64 + PART_COST + count as u64 <= MOST {
                bytes.extend_from_slice(&stream.buffered()[..count]);
            } else {
                self.bytes = None;
            }
        }
        self.len += count as u64;
        stream.consume(count);
    }
}

impl Kept {
    /// Reads what follows the head of a section, or of a part of one, up to its footer and that.
    pub(super) fn body(
        &mut self,
        stream: &mut StreamReader<'_>,
        number: u32,
        follows: &Follows<'_>,
    ) -> Result<Body, ReceiveError> {
        let mut footer = [FOOTER; FOOTER_LEN];
        footer[1..].copy_from_slice(&number.to_be_bytes());
        let mut body = Body { len: 0, bytes: Some(Vec::new()), is_last: false };
        let mut scanned = 0;
        loop {
            let rest = &stream.buffered()[scanned..];
            let Some(found) = rest.windows(FOOTER_LEN).position(|bytes| bytes == footer) else {
                // A footer may have begun.
                let count = stream.buffered().len().saturating_sub(FOOTER_LEN - 1);
                body.take(stream, count, self);
                scanned = 0;
                if stream.fill(WHAT)? == 0 {
                    let at = stream.at() + stream.buffered().len() as u64;
                    return Err(ReceiveError::Truncated { at, what: WHAT });
                }
                continue;
            };
            let mut at = scanned + found;
            let mut verdict = follows.judge(&stream.buffered()[at + FOOTER_LEN..]);
            if matches!(verdict, Verdict::More | Verdict::End) {
                // Room for what is to come.
                body.take(stream, at, self);
                (at, scanned) = (0, 0);
                let ends = verdict == Verdict::End;
                // Without all of RAM it is an end, and an error, only if the connection ends.
                let waits = !ends
                    || !follows.may_end
                    || follows.is_described && stream.description_comes()?;
                if waits && stream.fill(WHAT)? > 0 {
                    continue;
                }
                body.is_last = ends;
                verdict = if ends { Verdict::Part } else { Verdict::No };
            }
            if verdict == Verdict::Part {
                body.take(stream, at, self);
                stream.consume(FOOTER_LEN);
                // A part of no bytes is not free either.
                self.0 += body.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64 + PART_COST);
                return Ok(body);
            }
            scanned = at + 1;
        }
    }
}
