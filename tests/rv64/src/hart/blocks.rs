//! Decoded blocks of one hart.
//!
//! A block is instructions that follow each other in one page, up to one that ends it
//! ([`Op::ends_block`]). It is found by the address of its first instruction, in a table that is
//! indexed by that: a block that another one displaces is decoded again when it is needed.
//!
//! An instruction that crosses pages, and code outside of watched memory, are decoded each time
//! that they are executed.

use std::ops::Range;

use crate::bus::bus::{Bus, CodePage};
use crate::hart::state::{Exception, Trap};
use crate::isa::decode::{decode, is_compressed};
use crate::isa::op::Op;

/// How many blocks there are at most.
const SLOTS: usize = 1 << 12;
/// How many instructions are kept before all are forgotten.
const MAX_OPS: usize = 1 << 17;
/// The most instructions of a block: interrupts are taken between blocks.
const MAX_BLOCK: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// Where the block begins; an odd number if there is none.
    pc: u64,
    /// The bus's epoch when the block was last known to be current.
    epoch: u64,
    page: CodePage,
    start: usize,
    end: usize,
}

const NO_PAGE: CodePage = CodePage { page: 0, offset: 0, generation: 0, len: 0 };
const EMPTY: Slot = Slot { pc: 1, epoch: 0, page: NO_PAGE, start: 0, end: 0 };

/// The blocks.
#[derive(Clone, Debug)]
pub(super) struct Blocks {
    slots: Box<[Slot; SLOTS]>,
    ops: Vec<Op>,
    decoded: u64,
}

impl Blocks {
    pub(super) fn new() -> Self {
        let slots: Box<[Slot]> = vec![EMPTY; SLOTS].into();
        let Ok(slots) = slots.try_into() else { unreachable!("there are as many") };
        Self { slots, ops: Vec::new(), decoded: 0 }
    }

    /// How many blocks were decoded to be kept.
    pub(super) fn decoded(&self) -> u64 {
        self.decoded
    }

    pub(super) fn forget_all(&mut self) {
        self.slots.fill(EMPTY);
        self.ops.clear();
    }

    #[inline(always)]
    #[allow(clippy::cast_possible_truncation)] // on 32-bit hosts of bits that are not needed
    fn index(pc: u64) -> usize {
        let parcel = pc >> 1;
        (parcel ^ parcel >> SLOTS.ilog2()) as usize & (SLOTS - 1)
    }

    /// The block at `pc`, if it is known to be current in this epoch of the bus.
    #[inline(always)]
    pub(super) fn known(&self, pc: u64, epoch: u64) -> Option<&[Op]> {
        let slot = &self.slots[Self::index(pc)];
        if slot.pc == pc && slot.epoch == epoch { self.ops.get(slot.start..slot.end) } else { None }
    }

    /// The instructions at `pc`, at least one: where they are. `epoch` is the bus's.
    ///
    /// # Errors
    ///
    /// An instruction access fault.
    #[inline(always)]
    pub(super) fn at<B: Bus>(
        &mut self,
        bus: &mut B,
        pc: u64,
        epoch: u64,
    ) -> Result<Range<usize>, Trap> {
        let slot = &self.slots[Self::index(pc)];
        if slot.pc == pc && slot.epoch == epoch {
            Ok(slot.start..slot.end)
        } else {
            self.find(bus, pc, epoch)
        }
    }

    /// Instructions that [`at`](Self::at) has found.
    #[inline(always)]
    pub(super) fn ops(&self, range: Range<usize>) -> &[Op] {
        &self.ops[range]
    }

    #[cold]
    #[inline(never)]
    fn find<B: Bus>(&mut self, bus: &mut B, pc: u64, epoch: u64) -> Result<Range<usize>, Trap> {
        let slot = &mut self.slots[Self::index(pc)];
        if slot.pc == pc && bus.is_current(pc, &slot.page) {
            slot.epoch = epoch;
            return Ok(slot.start..slot.end);
        }
        if self.ops.len() >= MAX_OPS {
            self.forget_all();
        }
        let start = self.ops.len();
        // Watched before it is read.
        let page = bus.watch_code(pc);
        let first = instruction(bus, pc)?;
        self.ops.push(first);
        let mut len = u64::from(first.len);
        let Some(page) = page.filter(|page| len <= page.len) else { return Ok(start..start + 1) };
        while self.ops.len() - start < MAX_BLOCK
            && !self.ops.last().is_some_and(|op| op.ends_block())
        {
            // What cannot be fetched is the next block's fault.
            let within = page.len - len;
            let Ok(mut op) = instruction(bus, pc.wrapping_add(len)) else { break };
            if u64::from(op.len) > within {
                break;
            }
            // Less than that of a few dozen instructions.
            op.at = u16::try_from(len).unwrap_or(0);
            len += u64::from(op.len);
            self.ops.push(op);
        }
        let end = self.ops.len();
        // If memory was moved meanwhile, the page may not be the one that was read.
        if bus.epoch() == epoch {
            self.slots[Self::index(pc)] = Slot { pc, epoch, page, start, end };
            self.decoded += 1;
        }
        Ok(start..end)
    }
}

/// Fetches and decodes one instruction. The fault of one whose second half cannot be fetched is at
/// the address of that half (privileged ISA manual, "Machine Trap Value Register").
fn instruction<B: Bus>(bus: &mut B, pc: u64) -> Result<Op, Trap> {
    let mut fetch = |address| {
        let trap = Trap { exception: Exception::InstructionAccessFault, value: address };
        bus.fetch(address).map_err(|_| trap)
    };
    let low = fetch(pc)?;
    let high = if is_compressed(low) { 0 } else { fetch(pc.wrapping_add(2))? };
    Ok(decode(u32::from(high) << 16 | u32::from(low)))
}
