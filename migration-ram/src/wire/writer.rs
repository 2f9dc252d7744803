//! Encodes the stream: fields and guest memory, buffered until they are flushed.

use std::ops::Range;
use std::sync::Arc;

use ram_block::{PageSize, RamBlock, RamBlockError, SendList};

use crate::error::SendError;
use crate::wire::format::*;
use crate::wire::transport::WriteTransport;

/// Bytes of guest memory after which the stream is flushed: more at a time is slower, as the
/// pages leave the CPU's cache before the receiver reads them.
const FLUSH_MEMORY: u64 = 1 << 18;
/// Bytes of encoded fields after which the stream is flushed.
const FLUSH_OWN: u64 = 1 << 18;

/// A stream that is written to a transport; its last part is buffered.
pub(crate) struct SendStream<'a> {
    out: &'a mut dyn WriteTransport,
    list: SendList<'static>,
    /// Bytes of guest memory in `list`.
    memory: u64,
    /// Bytes written to `out`.
    sent: u64,
}

impl<'a> SendStream<'a> {
    pub(crate) fn new(out: &'a mut dyn WriteTransport) -> Self {
        Self { out, list: SendList::new(), memory: 0, sent: 0 }
    }

    /// Bytes of the stream so far, flushed or not.
    pub(crate) fn position(&self) -> u64 {
        self.sent + self.list.len()
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.list.push_copied(bytes);
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.bytes(&[value]);
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.bytes(&value.to_be_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_be_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_be_bytes());
    }

    /// A name, after its length in one byte; the caller has checked its length.
    pub(crate) fn name(&mut self, name: &str) {
        self.u8(u8::try_from(name.len()).unwrap_or(u8::MAX));
        self.bytes(&name.as_bytes()[..name.len().min(255)]);
    }

    /// Records of `count` zero pages of `page` bytes from `offset` on, of the same block as
    /// the record before.
    pub(crate) fn zero_records(&mut self, offset: u64, count: usize, page: u64) {
        let mut word = offset | RAM_SAVE_FLAG_ZERO | RAM_SAVE_FLAG_CONTINUE;
        for record in self.list.push_zeros(count * ZERO_RECORD).chunks_exact_mut(ZERO_RECORD) {
            record[..8].copy_from_slice(&word.to_be_bytes());
            word += page;
        }
    }

    /// Guest memory, read when it is flushed.
    pub(crate) fn guest_memory(
        &mut self,
        block: &Arc<RamBlock>,
        bytes: Range<u64>,
    ) -> Result<(), RamBlockError> {
        self.memory += bytes.end - bytes.start;
        self.list.push_memory(block, bytes)
    }

    /// Whether enough is buffered to be flushed.
    pub(crate) fn is_full(&self) -> bool {
        self.memory >= FLUSH_MEMORY || self.list.len().saturating_sub(self.memory) >= FLUSH_OWN
    }

    /// Writes the buffered part to the transport.
    pub(crate) fn flush(&mut self) -> Result<(), SendError> {
        let sent = self.list.len();
        self.out.send(&mut self.list).map_err(|error| SendError::Write {
            sent: self.sent + error.done(),
            source: error.into(),
        })?;
        self.sent += sent;
        self.memory = 0;
        self.list.clear(); // whatever the transport left in it
        Ok(())
    }

    /// The beginning, with pages of size `page`.
    pub(crate) fn begin(&mut self, machine: &str, page: PageSize) {
        self.u32(MAGIC);
        self.u32(VERSION);
        self.u8(CONFIGURATION);
        // `Precopy::machine` limits the name to 1,024 bytes, so the length fits.
        self.u32(u32::try_from(machine.len()).unwrap_or(0));
        self.bytes(machine.as_bytes());
        if page.shift() != DEFAULT_PAGE_SHIFT {
            self.u8(SUBSECTION);
            self.name(PAGE_BITS);
            self.u32(1);
            self.u32(page.shift());
        }
    }

    /// A command with its data.
    pub(crate) fn command(&mut self, command: u16, data: &[u8]) {
        self.u8(COMMAND);
        self.u16(command);
        self.u16(u16::try_from(data.len()).unwrap_or(0)); // 4 bytes at most
        self.bytes(data);
    }

    /// The head of a full section (`SECTION_FULL`), or of the start of one (`SECTION_START`).
    pub(crate) fn section_head(
        &mut self,
        kind: u8,
        id: u32,
        name: &str,
        instance: u32,
        version: u32,
    ) {
        self.u8(kind);
        self.u32(id);
        self.name(name);
        self.u32(instance);
        self.u32(version);
    }

    pub(crate) fn footer(&mut self, id: u32) {
        self.u8(FOOTER);
        self.u32(id);
    }

    /// The end, and the description of the device sections (vmdesc), for debugging tools.
    pub(crate) fn end(&mut self, description: &str) {
        self.u8(EOF);
        // Also if it is empty: a receiver waits for it if the socket stays open.
        self.u8(VMDESC);
        self.u32(u32::try_from(description.len()).unwrap_or(0));
        self.bytes(description.as_bytes());
    }
}
