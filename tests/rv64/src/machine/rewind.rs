//! A way back in time, at the cost of the pages that were written.
//!
//! # Why memory is exactly as it was
//!
//! A log is claimed for each block, and then the blocks are copied. At a checkpoint the log says
//! which pages were written since the one before; the copy still has their former contents, which
//! are kept as the step back, and then is given the new ones. So the copy is always the memory of
//! the last checkpoint, and a page that is in no log is the same in both. To go back, first what
//! was written since the last checkpoint is taken from the copy, then each step is taken backwards.
//! A page that was written and is the same costs a page, and no harm.

use std::collections::VecDeque;

use memory_region::LogClaim;

use crate::machine::machine::{Machine, MachineError};

/// A page as it was: which block's, its number there, and its bytes.
type Former = (usize, u64, Box<[u8]>);

#[derive(Debug)]
struct Checkpoint {
    /// What leads back to the checkpoint before this one.
    back: Vec<Former>,
    /// Harts and devices at this one.
    processors: Vec<u8>,
}

/// The checkpoints of one machine.
#[derive(Debug)]
pub struct Rewind {
    logs: [LogClaim; 2],
    /// Memory at the last checkpoint.
    copies: [Vec<u8>; 2],
    checkpoints: VecDeque<Checkpoint>,
    limit: usize,
}

impl Rewind {
    /// Begins with a checkpoint of `machine`, and keeps up to `limit` of them, at least one.
    ///
    /// # Errors
    ///
    /// [`MachineError`]: a log, or memory for it, cannot be had.
    pub fn new(machine: &Machine, limit: usize) -> Result<Self, MachineError> {
        let [ram, frame_buffer] = machine.regions();
        let claim = |region| machine.memory().claim_log(region, "rewind");
        let logs = [claim(ram)?, claim(frame_buffer)?];
        let mut copies = [Vec::new(), Vec::new()];
        // After the logs have begun: what is written from now on is in them.
        for (log, copy) in logs.iter().zip(&mut copies) {
            copy.resize(usize::try_from(log.block().len()).unwrap_or(0), 0);
            log.block().read(0, copy)?;
        }
        let first = Checkpoint { back: Vec::new(), processors: machine.save_processors() };
        Ok(Self { logs, copies, checkpoints: [first].into(), limit: limit.max(1) })
    }

    /// How many checkpoints there are.
    pub fn checkpoints(&self) -> usize {
        self.checkpoints.len()
    }

    /// How many pages all checkpoints keep together.
    pub fn pages_kept(&self) -> usize {
        self.checkpoints.iter().map(|checkpoint| checkpoint.back.len()).sum()
    }

    /// Makes a checkpoint of the machine, which does not run meanwhile; the oldest is forgotten if
    /// there are too many. Returns how many pages were written since the last one.
    ///
    /// # Errors
    ///
    /// [`MachineError`] if a log cannot be harvested. The rewind is of no use then.
    pub fn checkpoint(&mut self, machine: &Machine) -> Result<usize, MachineError> {
        let mut back = Vec::new();
        for (number, (log, copy)) in self.logs.iter_mut().zip(&mut self.copies).enumerate() {
            let block = log.block().clone();
            let size = block.page_size().bytes();
            let harvest = log.snapshot_and_clear(0..block.len())?;
            for page in harvest.pages() {
                let bytes = bytes_of(copy, page, size);
                back.push((number, page, Box::from(&*bytes)));
                block.read(page * size, bytes)?;
            }
            harvest.commit();
        }
        let count = back.len();
        self.checkpoints.push_back(Checkpoint { back, processors: machine.save_processors() });
        if self.checkpoints.len() > self.limit {
            self.checkpoints.pop_front();
            // Nothing is before the first.
            self.checkpoints.iter_mut().take(1).for_each(|first| first.back = Vec::new());
        }
        Ok(count)
    }

    /// Makes `machine`, which is the one of all calls, what it was at the last checkpoint, or at
    /// the one `back` before that; as many as there are at most. Later ones are forgotten. Returns
    /// how many it went back.
    ///
    /// # Errors
    ///
    /// [`MachineError`] if memory or a log fails. The machine is of no use then.
    pub fn rewind(&mut self, machine: &mut Machine, back: usize) -> Result<usize, MachineError> {
        for (log, copy) in self.logs.iter_mut().zip(&mut self.copies) {
            let block = log.block().clone();
            let size = block.page_size().bytes();
            let harvest = log.snapshot_and_clear(0..block.len())?;
            for page in harvest.pages() {
                block.write(page * size, bytes_of(copy, page, size))?;
            }
            harvest.commit();
        }
        let steps = back.min(self.checkpoints.len() - 1);
        for checkpoint in self.checkpoints.split_off(self.checkpoints.len() - steps).iter().rev() {
            for (number, page, former) in &checkpoint.back {
                let block = self.logs[*number].block();
                let size = block.page_size().bytes();
                block.write(page * size, former)?;
                bytes_of(&mut self.copies[*number], *page, size).copy_from_slice(former);
            }
        }
        // These writes are in the logs, too; copies and memory are the same now.
        for log in &mut self.logs {
            let len = log.block().len();
            log.snapshot_and_clear(0..len)?.commit();
        }
        if let Some(last) = self.checkpoints.back() {
            let restored = machine.restore_processors(&last.processors);
            debug_assert!(restored.is_some(), "the states are of this machine");
        }
        Ok(steps)
    }
}

/// The bytes of a page, whose size is in bytes, too.
fn bytes_of(copy: &mut [u8], page: u64, size: u64) -> &mut [u8] {
    let index = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    &mut copy[index(page * size)..index((page + 1) * size)]
}
