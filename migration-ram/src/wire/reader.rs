//! Reads a stream; every error has the offset in the stream.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use ram_block::{RamBlock, ReceiveList};

use crate::error::ReceiveError;
use crate::wire::deadline::{Clock, Wait};
use crate::wire::format::index;
use crate::wire::transport::{ReadTransport, ShutdownHandle};

/// The size of the read buffer, in bytes.
pub(crate) const BUFFER: usize = 1 << 18;

pub(crate) struct StreamReader<'a> {
    input: &'a mut dyn ReadTransport,
    clock: Arc<Clock>,
    buffer: Box<[u8]>,
    /// The part of the buffer that is not consumed.
    filled: Range<usize>,
    /// Bytes consumed.
    at: u64,
}

impl<'a> StreamReader<'a> {
    /// Reads `input`, by the deadlines of `clock`.
    pub(crate) fn new(input: &'a mut dyn ReadTransport, clock: Arc<Clock>) -> Self {
        Self { input, clock, buffer: vec![0; BUFFER].into(), filled: 0..0, at: 0 }
    }

    /// A reader without deadlines.
    #[cfg(test)]
    pub(crate) fn untimed(input: &'a mut dyn ReadTransport) -> Self {
        Self::new(input, Arc::default())
    }

    /// The clock of the deadlines.
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// A handle that ends a read under way.
    pub(crate) fn hang_up(&self) -> Option<ShutdownHandle> {
        self.input.hang_up()
    }

    /// Bytes consumed so far.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// The bytes that were read and not consumed.
    pub(crate) fn buffered(&self) -> &[u8] {
        &self.buffer[self.filled.clone()]
    }

    /// Consumes `len` buffered bytes.
    pub(crate) fn consume(&mut self, len: usize) {
        self.filled.start += len;
        self.at += len as u64;
    }

    /// Reads more of `what` into the buffer; returns how many bytes, 0 at the end.
    pub(crate) fn fill(&mut self, what: &'static str) -> Result<usize, ReceiveError> {
        if self.filled.start > 0 {
            self.buffer.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
        }
        let at = self.at + self.filled.len() as u64;
        let mut list = ReceiveList::new();
        list.push_bytes(&mut self.buffer[self.filled.end..]);
        let got = receive(self.input, &self.clock, &mut list, at, what)?;
        self.filled.end += got;
        Ok(got)
    }

    /// Waits for as long as the deadline for a description; returns whether a read would return
    /// bytes or the end now.
    pub(crate) fn description_comes(&mut self) -> Result<bool, ReceiveError> {
        let at = self.at;
        let wait = self.input.wait(self.clock.description());
        wait.map_err(|source| ReceiveError::Read { at, source })
    }

    /// Reads until `len` bytes of `what` are buffered, and returns them without consuming them; at
    /// most `BUFFER`.
    pub(crate) fn need(&mut self, len: usize, what: &'static str) -> Result<&[u8], ReceiveError> {
        while self.filled.len() < len {
            if self.fill(what)? == 0 {
                let at = self.at + self.filled.len() as u64;
                return Err(ReceiveError::Truncated { at, what });
            }
        }
        Ok(&self.buffer[self.filled.start..][..len])
    }

    /// Returns up to `most` bytes of `what` without consuming them; at least one, unless `most` is
    /// 0.
    pub(crate) fn some(&mut self, most: u64, what: &'static str) -> Result<&[u8], ReceiveError> {
        if most > 0 && self.is_at_end(what)? {
            return Err(ReceiveError::Truncated { at: self.at, what });
        }
        let len = index(most).min(self.filled.len());
        Ok(&self.buffered()[..len])
    }

    /// Whether the stream ends here, where `what` may follow.
    pub(crate) fn is_at_end(&mut self, what: &'static str) -> Result<bool, ReceiveError> {
        Ok(self.filled.is_empty() && self.fill(what)? == 0)
    }

    /// Fills `bytes` from the stream.
    pub(crate) fn bytes(
        &mut self,
        bytes: &mut [u8],
        what: &'static str,
    ) -> Result<(), ReceiveError> {
        for part in bytes.chunks_mut(BUFFER) {
            let len = part.len();
            part.copy_from_slice(self.need(len, what)?);
            self.consume(len);
        }
        Ok(())
    }

    /// Fills `bytes` of a block: from the buffer, then straight from the input.
    pub(crate) fn guest_memory(
        &mut self,
        block: &Arc<RamBlock>,
        bytes: Range<u64>,
        what: &'static str,
    ) -> Result<(), ReceiveError> {
        let buffered = self.filled.len().min(index(bytes.end - bytes.start));
        block.write(bytes.start, &self.buffered()[..buffered])?;
        self.consume(buffered);
        let mut left = bytes.start + buffered as u64..bytes.end;
        while !left.is_empty() {
            // The buffer is empty now: bytes that follow the page are read into it.
            self.filled = 0..0;
            let mut list = ReceiveList::new();
            list.push_memory(block, left.clone())?;
            list.push_bytes(&mut self.buffer);
            let got = receive(self.input, &self.clock, &mut list, self.at, what)? as u64;
            if got == 0 {
                return Err(ReceiveError::Truncated { at: self.at, what });
            }
            let direct = got.min(left.end - left.start);
            left.start += direct;
            self.at += direct;
            self.filled.end = index(got - direct);
        }
        Ok(())
    }

    /// Writes all buffered bytes, less than a page, to `offset` of a block; returns how many.
    pub(crate) fn take_buffered(
        &mut self,
        block: &Arc<RamBlock>,
        offset: u64,
    ) -> Result<u64, ReceiveError> {
        block.write(offset, self.buffered())?;
        let taken = self.filled.len() as u64;
        self.filled = 0..0;
        Ok(taken)
    }

    /// Reads once into `list`, while the buffer is empty; returns how many bytes.
    pub(crate) fn receive_list(
        &mut self,
        list: &mut ReceiveList<'_>,
        what: &'static str,
    ) -> Result<u64, ReceiveError> {
        match receive(self.input, &self.clock, list, self.at, what)? {
            0 => Err(ReceiveError::Truncated { at: self.at, what }),
            got => Ok(got as u64),
        }
    }

    /// Fills `bytes`, and reads nothing beyond them; returns false if the stream ends here.
    pub(crate) fn exactly(
        &mut self,
        bytes: &mut [u8],
        what: &'static str,
    ) -> Result<bool, ReceiveError> {
        let buffered = self.filled.len().min(bytes.len());
        bytes[..buffered].copy_from_slice(&self.buffered()[..buffered]);
        self.consume(buffered);
        let mut list = ReceiveList::new();
        list.push_bytes(&mut bytes[buffered..]);
        let mut came = buffered > 0;
        while !list.is_empty() {
            match receive(self.input, &self.clock, &mut list, self.at, what)? {
                0 if came => return Err(ReceiveError::Truncated { at: self.at, what }),
                0 => return Ok(false),
                got => self.at += got as u64,
            }
            came = true;
        }
        Ok(true)
    }

    /// Fills pages of a block, in the order of `offsets`, and reads nothing beyond them: the next
    /// packet's pages are read straight into guest memory, too.
    pub(crate) fn guest_pages(
        &mut self,
        block: &Arc<RamBlock>,
        offsets: &[u64],
        page: u64,
        what: &'static str,
    ) -> Result<(), ReceiveError> {
        let mut list = ReceiveList::new();
        for offset in offsets {
            let buffered = self.filled.len().min(index(page));
            block.write(*offset, &self.buffered()[..buffered])?;
            self.consume(buffered);
            list.push_memory(block, offset + buffered as u64..offset + page)?;
        }
        while !list.is_empty() {
            self.at += self.receive_list(&mut list, what)?;
        }
        Ok(())
    }

    /// Counts bytes that were read by `receive_list` as consumed.
    pub(crate) fn advance(&mut self, bytes: u64) {
        self.at += bytes;
    }

    /// Appends bytes that were read by `receive_list` to the buffer.
    pub(crate) fn put_back(&mut self, bytes: &[u8]) {
        self.buffer[self.filled.end..][..bytes.len()].copy_from_slice(bytes);
        self.filled.end += bytes.len();
    }

    /// Appends `len` bytes of a block, which were read into it, to the buffer.
    pub(crate) fn put_back_memory(
        &mut self,
        block: &Arc<RamBlock>,
        offset: u64,
        len: usize,
    ) -> Result<(), ReceiveError> {
        block.read(offset, &mut self.buffer[self.filled.end..][..len])?;
        self.filled.end += len;
        Ok(())
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, ReceiveError> {
        let mut bytes = [0; 1];
        self.bytes(&mut bytes, what)?;
        Ok(bytes[0])
    }

    pub(crate) fn u16(&mut self, what: &'static str) -> Result<u16, ReceiveError> {
        let mut bytes = [0; 2];
        self.bytes(&mut bytes, what)?;
        Ok(u16::from_be_bytes(bytes))
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, ReceiveError> {
        let mut bytes = [0; 4];
        self.bytes(&mut bytes, what)?;
        Ok(u32::from_be_bytes(bytes))
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, ReceiveError> {
        let mut bytes = [0; 8];
        self.bytes(&mut bytes, what)?;
        Ok(u64::from_be_bytes(bytes))
    }

    /// An error unless `found` is `expected`.
    #[allow(clippy::unused_self)] // reads like the others
    pub(crate) fn expect(
        &self,
        what: &'static str,
        found: u64,
        expected: u64,
        at: u64,
    ) -> Result<(), ReceiveError> {
        if found == expected {
            Ok(())
        } else {
            Err(ReceiveError::Unexpected { at, what, found, expected })
        }
    }

    /// Text of `len` bytes, at most `most`.
    pub(crate) fn text(
        &mut self,
        len: u32,
        most: u32,
        what: &'static str,
    ) -> Result<String, ReceiveError> {
        let at = self.at;
        let refused = ReceiveError::Name { at, len: u64::from(len) };
        if len > most {
            return Err(refused);
        }
        let mut bytes = vec![0; len as usize];
        self.bytes(&mut bytes, what)?;
        String::from_utf8(bytes).map_err(|_| refused)
    }

    /// A name, after its length in one byte.
    pub(crate) fn name(&mut self, what: &'static str) -> Result<String, ReceiveError> {
        let len = self.u8(what)?;
        self.text(u32::from(len), u32::from(u8::MAX), what)
    }

    /// Reads `len` bytes; allocates memory only as they are received.
    pub(crate) fn counted(
        &mut self,
        len: u64,
        what: &'static str,
    ) -> Result<Vec<u8>, ReceiveError> {
        let mut bytes = Vec::new();
        let mut left = len;
        while left > 0 {
            let part = self.some(left, what)?;
            bytes.extend_from_slice(part);
            let part = part.len();
            self.consume(part);
            left -= part as u64;
        }
        Ok(bytes)
    }

    /// Skips `len` bytes.
    pub(crate) fn skip(&mut self, len: u64, what: &'static str) -> Result<(), ReceiveError> {
        let mut left = len;
        while left > 0 {
            let part = self.some(left, what)?.len();
            self.consume(part);
            left -= part as u64;
        }
        Ok(())
    }
}

/// Reads once, as soon as there is input; an error if a deadline expires before.
fn receive(
    input: &mut dyn ReadTransport,
    clock: &Clock,
    list: &mut ReceiveList<'_>,
    at: u64,
    what: &'static str,
) -> Result<usize, ReceiveError> {
    loop {
        let (limit, waited) = match clock.next() {
            Wait::Within(limit) => (limit, None),
            // Poll once more: the input may have arrived while this thread was busy.
            Wait::Last(waited) => (Duration::ZERO, Some(waited)),
            Wait::Over => return Ok(0),
        };
        if input.wait(limit).map_err(|source| ReceiveError::Read { at, source })? {
            break;
        }
        if let Some(waited) = waited {
            return Err(ReceiveError::TimedOut { at, what, waited });
        }
    }
    let got = input.receive(list);
    let got = got.map_err(|error| ReceiveError::Read { at, source: error.into() })?;
    clock.received(got);
    Ok(got)
}

#[cfg(test)]
mod tests {
    use std::io;

    use ram_block::TransferError;

    use super::*;
    use crate::wire::deadline::Deadlines;

    /// An input that has bytes only after other connections have received `pages` pages.
    struct Late {
        clock: Arc<Clock>,
        pages: usize,
    }

    impl ReadTransport for Late {
        fn receive(&mut self, list: &mut ReceiveList<'_>) -> Result<usize, TransferError> {
            list.read_some_from(&mut &[7; 16][..])
        }

        fn wait(&mut self, _: Duration) -> io::Result<bool> {
            let Some(left) = self.pages.checked_sub(1) else { return Ok(true) };
            self.pages = left;
            self.clock.received(4096);
            Ok(false)
        }
    }

    #[test]
    fn what_comes_on_another_connection_is_no_silence() {
        let deadlines = Deadlines::none().idle(Duration::from_secs(3600));
        let clock = Arc::new(Clock::new(deadlines));
        clock.begun();
        let mut input = Late { clock: clock.clone(), pages: 5 };
        let mut stream = StreamReader::new(&mut input, clock.clone());
        assert_eq!(stream.u8("a byte").unwrap(), 7);
        // With a deadline of zero only bytes that are there already are read.
        let clock = Arc::new(Clock::new(Deadlines::none().idle(Duration::ZERO)));
        clock.begun();
        let mut input = Late { clock: clock.clone(), pages: 0 };
        let mut stream = StreamReader::new(&mut input, clock.clone());
        assert_eq!(stream.u8("a byte").unwrap(), 7);
        let mut input = Late { clock: clock.clone(), pages: 1 };
        let mut stream = StreamReader::new(&mut input, clock);
        let error = stream.u8("a byte").unwrap_err();
        assert!(matches!(error, ReceiveError::TimedOut { at: 0, what: "a byte", .. }), "{error}");
    }
}
