//! Finds the end of unknown sections: those of devices that are not registered here.
//!
//! The stream has no lengths for sections. A section ends at its footer, five bytes that a state
//! may contain by chance. So a footer counts only if it is followed by something that may follow
//! a section: the head of another section, a part of an iterable one, a command, or the end of
//! the stream, followed by a description or nothing.

use crate::error::ReceiveError;
use crate::wire::format::*;
use crate::wire::reader::StreamReader;

/// The most bytes that are kept, of all unknown sections together.
const MAX_KEPT: u64 = 256 << 20;
/// Bytes that a part costs in addition to its contents.
const PART_COST: u64 = 16;
/// Bytes of a footer: its mark and the section's number.
const FOOTER_LEN: usize = 5;
const WHAT: &str = "the end of an unknown section";

/// What may follow a section.
pub(super) struct Follows<'a> {
    /// Whether an iterable section of this number has begun and not ended.
    pub(super) has_parts: &'a dyn Fn(u32) -> bool,
    /// Whether the stream may end: RAM is complete.
    pub(super) may_end: bool,
    /// Whether to wait for a description after the end.
    pub(super) is_described: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Verdict {
    /// Another part of the stream, or its end: the footer is real.
    Part,
    /// Neither: the footer belongs to the state.
    No,
    /// Undecided: more bytes are needed.
    More,
    /// The end of the stream, if nothing follows.
    End,
}

impl Follows<'_> {
    /// Judges the bytes after something that looks like a footer.
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
                // The stream ends here; further bytes on the connection do not belong to it.
                _ if self.may_end && !self.is_described => Verdict::Part,
                _ => Verdict::No,
            },
            Some(_) => Verdict::No,
        }
    }
}

/// Whether these bytes, after the kind, begin a section's head; `None` if more are needed.
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

/// Bytes kept of all unknown sections so far.
#[derive(Default)]
pub(super) struct Kept(u64);

/// The bytes of a section, or of a part of one, without head and footer.
pub(super) struct Body {
    pub(super) len: u64,
    /// `None` if they would exceed `MAX_KEPT`.
    pub(super) bytes: Option<Vec<u8>>,
    /// Whether the stream's end follows, and nothing after it: the deadline for a description was
    /// waited for.
    pub(super) is_last: bool,
}

impl Body {
    /// Consumes the next `count` bytes of the stream.
    fn take(&mut self, stream: &mut StreamReader<'_>, count: usize, kept: &mut Kept) {
        if let Some(bytes) = &mut self.bytes {
            if kept.0 + bytes.len() as u64 + PART_COST + count as u64 <= MAX_KEPT {
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
    /// Reads a section, or a part of one, after its head, up to and including its footer.
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
                // The last bytes may be the first ones of a footer: keep them in the buffer.
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
                // Move the bytes before the footer out of the buffer, to make room for more.
                body.take(stream, at, self);
                (at, scanned) = (0, 0);
                let ends = verdict == Verdict::End;
                // At the stream's end wait only for a description. But if RAM is not complete, a
                // zero byte is the end, and an error, only if the connection ends.
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
                // Counts the cost of each part, so that empty ones are limited, too.
                self.0 += body.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64 + PART_COST);
                return Ok(body);
            }
            scanned = at + 1;
        }
    }
}
