//! A way back in time, at the cost of the pages that were written.
//!
//! Memory is `migration-ram`'s: a client of the dirty log, beside displays and migrations. Harts
//! and devices, which the machine owns without a lock, go along as bytes.

use migration_ram::{CheckpointError, Checkpoints};
use ram_block::PageSize;

use crate::machine::machine::Machine;

/// The checkpoints of one machine.
#[derive(Debug)]
pub struct Rewind {
    rewind: migration_ram::Rewind<Vec<u8>>,
}

impl Rewind {
    /// Begins with a checkpoint of `machine`, and keeps up to `limit` of them, at least one.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`]: a log, or memory for it, cannot be had.
    pub fn new(machine: &Machine, limit: usize) -> Result<Self, CheckpointError> {
        let checkpoints = Checkpoints::new(machine.memory(), Vec::new())?;
        let mut rewind = migration_ram::Rewind::new(checkpoints).limit_steps(limit);
        rewind.record(machine.save_processors())?;
        Ok(Self { rewind })
    }

    /// How many checkpoints there are, up to the one at which the machine was last.
    pub fn checkpoints(&self) -> usize {
        self.rewind.position() + 1
    }

    /// How many pages all checkpoints keep together, beside those of one.
    pub fn pages_kept(&self) -> u64 {
        self.rewind.checkpoints().bytes_of_steps() / PageSize::host().bytes()
    }

    /// Makes a checkpoint of the machine, which does not run meanwhile; the oldest is forgotten if
    /// there are too many, and those that it went back from. Returns how many pages were written
    /// since the last one.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`]. There is no further checkpoint then.
    pub fn checkpoint(&mut self, machine: &Machine) -> Result<u64, CheckpointError> {
        let written = self.rewind.count_dirty()?;
        self.rewind.record(machine.save_processors())?;
        Ok(written)
    }

    /// Makes `machine`, which is the one of all calls, what it was at the last checkpoint, or at
    /// the one `back` before that; as many as there are at most. Returns how many it went back.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`], which says what memory is then.
    pub fn rewind(&mut self, machine: &mut Machine, back: usize) -> Result<usize, CheckpointError> {
        let steps = back.min(self.rewind.position());
        let processors = self.rewind.seek(-isize::try_from(steps).unwrap_or(isize::MAX))?;
        let restored = machine.restore_processors(processors);
        debug_assert!(restored.is_some(), "the states are of this machine");
        Ok(steps)
    }
}
