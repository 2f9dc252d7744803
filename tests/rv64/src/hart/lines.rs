//! What devices tell a hart at any time: interrupts, and the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bits of `mip` and `mie`, and the codes of their interrupts (privileged ISA manual, "Machine
/// Cause Register").
#[allow(missing_docs)] // the manual's names
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    Software = 3,
    Timer = 7,
    External = 11,
}

impl Interrupt {
    /// The bit in `mip` and `mie`.
    pub const fn bit(self) -> u64 {
        1 << self as u64
    }
}

/// The inputs of one hart, which devices of any thread set and the hart reads.
#[derive(Debug, Default)]
pub struct Lines {
    pending: AtomicU64,
    time: Arc<AtomicU64>,
}

impl Lines {
    /// Inputs with a clock that harts share: `mtime`, in ticks.
    pub fn new(time: &Arc<AtomicU64>) -> Self {
        Self { pending: AtomicU64::new(0), time: time.clone() }
    }

    /// Raises or lowers an interrupt; it stays until it is lowered.
    pub fn set(&self, interrupt: Interrupt, high: bool) {
        // What the device wrote before is there for the handler.
        match high {
            true => self.pending.fetch_or(interrupt.bit(), Ordering::Release),
            false => self.pending.fetch_and(!interrupt.bit(), Ordering::Release),
        };
    }

    /// The bits of `mip`.
    #[inline(always)]
    pub fn pending(&self) -> u64 {
        self.pending.load(Ordering::Acquire)
    }

    /// `mtime`, in ticks.
    pub fn time(&self) -> u64 {
        self.time.load(Ordering::Relaxed)
    }
}
