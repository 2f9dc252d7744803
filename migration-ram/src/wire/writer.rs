//! Encoding: our own bytes and guest memory, gathered until they are sent.

use std::ops::Range;
use std::sync::Arc;

use ram_block::{PageSize, RamBlock, SendList};

use crate::error::SendError;
use crate::wire::format::*;
use crate::wire::transport::WriteTransport;

/// Guest memory that is gathered before it is sent, in bytes: more at a time is slower, as
/// it leaves the cache before the receiver takes it.
const MEMORY: u64 = 1 << 18;
/// Bytes of our own that are gathered before they are sent.
const OWN: usize = 1 << 18;

/// Guest memory that follows our own bytes up to `after`.
struct Piece {
    after: usize,
    block: Arc<RamBlock>,
    bytes: Range<u64>,
}

/// A stream on its way out, of which the last part is still gathered.
pub(crate) struct SendStream<'a> {
    out: &'a mut dyn WriteTransport,
    own: Vec<u8>,
    pieces: Vec<Piece>,
    /// Bytes of all pieces.
    memory: u64,
    /// Bytes that `out` has taken.
    sent: u64,
}

impl<'a> SendStream<'a> {
    pub(crate) fn new(out: &'a mut dyn WriteTransport) -> Self {
        let own = Vec::with_capacity(OWN + (1 << 16));
        Self { out, own, pieces: Vec::new(), memory: 0, sent: 0 }
    }

    /// Bytes of the stream so far, sent or not.
    pub(crate) fn position(&self) -> u64 {
        self.sent + self.memory + self.own.len() as u64
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.own.extend_from_slice(bytes);
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.own.push(value);
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

    /// A name with its length in one byte: names are checked where they are given.
    pub(crate) fn name(&mut self, name: &str) {
        self.u8(u8::try_from(name.len()).unwrap_or(u8::MAX));
        self.bytes(&name.as_bytes()[..name.len().min(255)]);
    }

    /// Records of `count` zero pages of `page` bytes from `offset` on, of the same block as
    /// the record before.
    pub(crate) fn zero_records(&mut self, offset: u64, count: usize, page: u64) {
        let start = self.own.len();
        self.own.resize(start + count * ZERO_RECORD, 0);
        let mut word = offset | RAM_SAVE_FLAG_ZERO | RAM_SAVE_FLAG_CONTINUE;
        for record in self.own[start..].chunks_exact_mut(ZERO_RECORD) {
            record[..8].copy_from_slice(&word.to_be_bytes());
            word += page;
        }
    }

    /// Guest memory, read when it is sent. The range was checked to lie in the block.
    pub(crate) fn guest_memory(&mut self, block: &Arc<RamBlock>, bytes: Range<u64>) {
        self.memory += bytes.end - bytes.start;
        self.pieces.push(Piece { after: self.own.len(), block: block.clone(), bytes });
    }

    /// Whether enough is gathered to be worth sending.
    pub(crate) fn is_full(&self) -> bool {
        self.memory >= MEMORY || self.own.len() >= OWN
    }

    /// Sends what is gathered.
    pub(crate) fn flush(&mut self) -> Result<(), SendError> {
        let mut list = SendList::new();
        let mut from = 0;
        for piece in &self.pieces {
            list.push_bytes(&self.own[from..piece.after]);
            list.push_memory(&piece.block, piece.bytes.clone())?;
            from = piece.after;
        }
        list.push_bytes(&self.own[from..]);
        self.out.send(&mut list).map_err(|error| SendError::Write {
            sent: self.sent + error.done(),
            source: error.into(),
        })?;
        self.sent = self.position();
        self.memory = 0;
        self.own.clear();
        self.pieces.clear();
        Ok(())
    }

    /// The beginning, with pages of size `page`.
    pub(crate) fn begin(&mut self, machine: &str, page: PageSize) {
        self.u32(MAGIC);
        self.u32(VERSION);
        self.u8(CONFIGURATION);
        // Names are checked where they are set; this cannot cut one.
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
        self.u16(u16::try_from(data.len()).unwrap_or(0)); // ours have 4 bytes at most
        self.bytes(data);
    }

    /// The head of a section that is whole (`FULL`) or begins (`START`).
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

    /// The end, and a description of the device sections for those who know none of them.
    pub(crate) fn end(&mut self, description: &str) {
        self.u8(EOF);
        // Sent if empty, too: a receiver on an open socket waits for it.
        self.u8(VMDESC);
        self.u32(u32::try_from(description.len()).unwrap_or(0));
        self.bytes(description.as_bytes());
    }
}
