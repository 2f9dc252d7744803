//! The way back and forth along a machine's last checkpoints.

use std::collections::VecDeque;

use crate::checkpoint::checkpoints::{CheckpointId, Checkpoints};
use crate::checkpoint::error::CheckpointError;

/// The last checkpoints of a machine, each with a state of the caller's: to step back and forth.
///
/// For a machine that owns its processors and devices, as an emulator of one thread does: their
/// states need be no [`Device`](crate::Device)s. Steps cost what was written in them, and the
/// oldest are dropped once there are too many of them, or they take too much memory.
///
/// ```
/// use memory_region::MemoryMap;
/// use migration_ram::{Checkpoints, Rewind};
/// use ram_block::RamBlock;
///
/// let memory = MemoryMap::new();
/// let ram = RamBlock::anonymous("ram", 16 << 20)?;
/// memory.transaction(|map| map.ram("ram", ram.clone()))?;
///
/// let mut processor = 0_u64;
/// let checkpoints = Checkpoints::new(&memory, Vec::new())?;
/// let mut rewind = Rewind::new(checkpoints).limit_steps(600).limit_bytes(64 << 20);
/// for frame in 0..10 {
///     ram.write(0x5000, &[frame])?; // the machine runs for a frame
///     processor += 1;
///     rewind.record(processor)?;
/// }
/// processor = *rewind.seek(-3)?; // three frames back
/// assert_eq!(processor, 7);
/// processor = *rewind.seek(1)?; // and one forth
/// assert_eq!(processor, 8);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Rewind<T = ()> {
    checkpoints: Checkpoints,
    recorded: VecDeque<(CheckpointId, T)>,
    /// The one at which the machine was last.
    at: usize,
    max_steps: usize,
    max_bytes: u64,
}

impl<T> Rewind<T> {
    /// Nothing is recorded yet. Checkpoints that there are already stay what they are.
    pub fn new(checkpoints: Checkpoints) -> Self {
        let (max_steps, max_bytes) = (usize::MAX, u64::MAX);
        Self { checkpoints, recorded: VecDeque::new(), at: 0, max_steps, max_bytes }
    }

    /// Keeps up to so many checkpoints; one at least.
    #[must_use]
    pub fn limit_steps(mut self, steps: usize) -> Self {
        self.max_steps = steps;
        self
    }

    /// Keeps checkpoints whose [steps](Checkpoints::bytes_of_steps) take up to so many bytes,
    /// beside one image of all memory.
    #[must_use]
    pub fn limit_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// The checkpoints, the recorded ones among them.
    pub fn checkpoints(&self) -> &Checkpoints {
        &self.checkpoints
    }

    /// How many checkpoints are recorded.
    pub fn len(&self) -> usize {
        self.recorded.len()
    }

    /// Whether nothing is recorded.
    pub fn is_empty(&self) -> bool {
        self.recorded.is_empty()
    }

    /// The number, from the oldest on, of the checkpoint at which the machine was last.
    pub fn position(&self) -> usize {
        self.at
    }

    /// How many pages were written since the last one, as [`Checkpoints::count_dirty`] says.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn count_dirty(&mut self) -> Result<u64, CheckpointError> {
        self.checkpoints.count_dirty()
    }

    /// Takes a checkpoint with `state`, after the one at which the machine was last: what was
    /// recorded after that is dropped. The machine is paused.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`]. Nothing is recorded then, and nothing is dropped.
    pub fn record(&mut self, state: T) -> Result<(), CheckpointError> {
        let checkpoint = self.checkpoints.take()?;
        while self.recorded.len() > self.at + 1 {
            self.drop_one(VecDeque::pop_back)?;
        }
        self.recorded.push_back((checkpoint, state));
        while self.recorded.len() > 1
            && (self.recorded.len() > self.max_steps
                || self.checkpoints.bytes_of_steps() > self.max_bytes)
        {
            self.drop_one(VecDeque::pop_front)?;
        }
        self.at = self.recorded.len() - 1;
        Ok(())
    }

    fn drop_one(
        &mut self,
        pop: impl Fn(&mut VecDeque<(CheckpointId, T)>) -> Option<(CheckpointId, T)>,
    ) -> Result<(), CheckpointError> {
        match pop(&mut self.recorded) {
            Some((checkpoint, _)) => self.checkpoints.remove(checkpoint),
            None => Ok(()),
        }
    }

    /// Puts the machine to the checkpoint that is `steps` after the one at which it was last, or
    /// before it if negative; to the newest or the oldest if there are not so many. With 0 it is
    /// reset to the last one. Returns that one's state, which is for the caller to put back. The
    /// machine is paused.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`]; [`CheckpointError::NoCheckpoint`] if nothing is recorded.
    pub fn seek(&mut self, steps: isize) -> Result<&T, CheckpointError> {
        let to = self.at.saturating_add_signed(steps).min(self.recorded.len().saturating_sub(1));
        let (checkpoint, state) = self.recorded.get(to).ok_or(CheckpointError::NoCheckpoint)?;
        let restored = self.checkpoints.restore(*checkpoint);
        // A device may have failed when the checkpoint was the current one already.
        if self.checkpoints.current() == Some(*checkpoint) {
            self.at = to;
        }
        restored.map(|_| state)
    }
}
