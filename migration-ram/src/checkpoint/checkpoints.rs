//! The checkpoints of one machine: taken, gone back to, removed.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memory_region::MemoryMap;

use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::memory::{Copied, KeptMemory};
use crate::checkpoint::stats::{LiveStats, ResetStats};
use crate::checkpoint::tree::Tree;
use crate::devices::device::{Device, DeviceError, DeviceState, Devices};
use crate::host::Instant;

/// The name of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckpointId {
    machine: u64,
    number: u64,
}

impl fmt::Display for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number)
    }
}

/// Checkpoints of a machine in memory: all RAM, and the states of its devices.
///
/// They are a client of the dirty log of all RAM, beside a migration, a display and others, none of
/// which lose a page to them. To go back puts back **what was written since and nothing else**, in
/// place; the others hear of it, and this log does not. What differs between two checkpoints is
/// kept, pages that are equal once, and zeros not at all. The first takes what memory holds.
///
/// Checkpoints form a tree: one that is taken after another was [restored](Self::restore) is
/// another branch. To go to any of them costs what differs on the way.
///
/// The machine is paused in every call that does not say otherwise: no vCPU runs, and no device
/// writes. What is written meanwhile all the same is known to be dirty, but may be part of a
/// checkpoint or not. The machine has the blocks that it had at the first checkpoint, at their
/// lengths.
///
/// ```
/// use memory_region::MemoryMap;
/// use migration_ram::Checkpoints;
/// use ram_block::RamBlock;
///
/// let memory = MemoryMap::new();
/// let ram = RamBlock::anonymous("pc.ram", 16 << 20)?;
/// memory.transaction(|map| map.ram("ram", ram.clone()))?;
///
/// let mut checkpoints = Checkpoints::new(&memory, Vec::new())?; // and its devices
/// let start = checkpoints.take()?;
/// for input in 1..=3 {
///     ram.write(0x5000, &[input])?; // the machine runs
///     assert_eq!(checkpoints.reset()?.pages, 1);
/// }
/// ram.write(0x5000, &[4])?;
/// let later = checkpoints.take()?;
/// checkpoints.restore(start)?;
/// let mut byte = [1];
/// ram.read(0x5000, &mut byte)?;
/// assert_eq!(byte, [0]);
/// checkpoints.restore(later)?;
/// ram.read(0x5000, &mut byte)?;
/// assert_eq!(byte, [4]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Checkpoints {
    /// Tells its checkpoints from those of another.
    machine: u64,
    devices: Devices,
    memory: KeptMemory,
    tree: Tree,
}

/// When copying while the machine runs comes to an end: a round is worth it if it leaves fewer
/// than three quarters of the pages of the one before.
const WORTH: (u64, u64) = (3, 4);
/// The most rounds while the machine runs.
const MAX_ROUNDS: u32 = 16;
/// With no more pages than these, another round costs more than they do.
const FEW_PAGES: u64 = 64;

impl Checkpoints {
    /// Starts a log of all RAM of `memory`; there are no checkpoints yet.
    ///
    /// `devices` are saved and put back in this order. They are those of a migration, as a rule.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Map`].
    pub fn new(
        memory: &Arc<MemoryMap>,
        devices: Vec<Arc<dyn Device>>,
    ) -> Result<Self, CheckpointError> {
        static MACHINES: AtomicU64 = AtomicU64::new(0);
        let machine = MACHINES.fetch_add(1, Ordering::Relaxed);
        let (devices, memory) = (Devices(devices), KeptMemory::new(memory)?);
        Ok(Self { machine, devices, memory, tree: Tree::default() })
    }

    /// Refuses checkpoints for which the pages that are kept would take more than `limit` bytes,
    /// before equal ones are found.
    #[must_use]
    pub fn limit_bytes(mut self, limit: u64) -> Self {
        self.memory.limit = limit;
        self
    }

    /// The checkpoint that the machine was at last, and has run on from.
    pub fn current(&self) -> Option<CheckpointId> {
        self.tree.current().map(|number| self.id(number))
    }

    /// All checkpoints, in the order in which they were taken.
    pub fn all(&self) -> impl Iterator<Item = CheckpointId> {
        self.tree.numbers().map(|number| self.id(number))
    }

    /// The checkpoint from which the machine ran on to this one; if that was removed, the one
    /// before it.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::OtherMachine`], [`CheckpointError::Removed`].
    pub fn parent(&self, of: CheckpointId) -> Result<Option<CheckpointId>, CheckpointError> {
        let number = self.number(of)?;
        Ok(self.tree.parent(number).map(|parent| self.id(parent)))
    }

    /// Bytes of all pages that are kept.
    pub fn bytes_kept(&self) -> u64 {
        self.memory.bytes_used()
    }

    /// Bytes of the pages that differ between neighbouring checkpoints: what there is beside one
    /// image of all memory. Pages that are equal count each.
    pub fn bytes_of_steps(&self) -> u64 {
        self.memory.step_bytes()
    }

    fn id(&self, number: u64) -> CheckpointId {
        CheckpointId { machine: self.machine, number }
    }

    fn number(&self, id: CheckpointId) -> Result<u64, CheckpointError> {
        let CheckpointId { machine, number } = id;
        if machine != self.machine {
            return Err(CheckpointError::OtherMachine { number });
        }
        self.tree.node(number).map(|_| number).ok_or(CheckpointError::Removed { number })
    }

    /// How many pages were written since the current checkpoint. Syncs the log. The machine may
    /// run; what it writes after this call has begun is counted or not.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::NoCheckpoint`], [`CheckpointError::Map`].
    pub fn count_dirty(&mut self) -> Result<u64, CheckpointError> {
        self.tree.current().ok_or(CheckpointError::NoCheckpoint)?;
        self.memory.look()?;
        Ok(self.memory.dirty_pages())
    }

    /// Looks whether `limit` or more pages were written since the current checkpoint, for a machine
    /// that is stopped then: returns by how many pages it has overshot, or nothing as long as it
    /// may go on. As [`count_dirty`](Self::count_dirty).
    ///
    /// KVM's dirty rings can stop the machine before it passes the limit: `KvmVm::set_dirty_bound`
    /// of `kvm-accel`.
    ///
    /// # Errors
    ///
    /// As [`count_dirty`](Self::count_dirty).
    pub fn overshoot(&mut self, limit: u64) -> Result<Option<u64>, CheckpointError> {
        Ok(self.count_dirty()?.checked_sub(limit))
    }

    /// Takes a checkpoint, which is the current one from now on. Costs what was written since the
    /// last one, and for the first what memory holds.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`]. No checkpoint is taken then.
    pub fn take(&mut self) -> Result<CheckpointId, CheckpointError> {
        let (checkpoint, _) = self.take_in_rounds(0, || Ok(()))?;
        Ok(checkpoint)
    }

    /// Takes a checkpoint of a machine that runs: copies what is dirty in rounds, as a migration
    /// does, until that leaves hardly less to be copied. Then calls `pause`, which stops the
    /// machine until its result is dropped, saves the devices, and copies the rest. Equal pages are
    /// searched for when it runs again.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`]. No checkpoint is taken then, and the machine goes on.
    pub fn take_live<G>(
        &mut self,
        pause: impl FnOnce() -> Result<G, DeviceError>,
    ) -> Result<(CheckpointId, LiveStats), CheckpointError> {
        self.take_in_rounds(MAX_ROUNDS, pause)
    }

    fn take_in_rounds<G>(
        &mut self,
        rounds: u32,
        pause: impl FnOnce() -> Result<G, DeviceError>,
    ) -> Result<(CheckpointId, LiveStats), CheckpointError> {
        match self.tree.current() {
            Some(_) => self.memory.check()?,
            None => self.memory.begin()?,
        }
        let (mut copied, mut stats) = (Copied::default(), LiveStats::default());
        let copy = AssertUnwindSafe(|| self.copy_in_rounds(rounds, pause, &mut copied, &mut stats));
        // The caller's code and devices may panic: what was copied is dirty again then, too.
        match catch_unwind(copy).unwrap_or_else(|panic| {
            self.memory.drop_copies(std::mem::take(&mut copied));
            resume_unwind(panic)
        }) {
            Ok(states) => {
                let changes = self.memory.adopt(copied, self.tree.current().is_none());
                let number = self.tree.add(changes, states);
                Ok((self.id(number), stats))
            }
            Err(error) => {
                self.memory.drop_copies(copied);
                Err(error)
            }
        }
    }

    fn copy_in_rounds<G>(
        &mut self,
        rounds: u32,
        pause: impl FnOnce() -> Result<G, DeviceError>,
        copied: &mut Copied,
        stats: &mut LiveStats,
    ) -> Result<Vec<DeviceState>, CheckpointError> {
        let (mut before, mut unused) = (u64::MAX, ResetStats::default());
        let mut is_worth_it = true;
        while is_worth_it && stats.rounds < rounds {
            self.memory.take_log(&mut unused)?;
            let (pages, (part, of)) = (self.memory.dirty_pages(), WORTH);
            is_worth_it = pages > FEW_PAGES && pages < before / of * part;
            before = pages;
            // For this round and for the pause, which finds about as many: it need not wait for
            // memory then.
            if !is_worth_it {
                self.memory.reserve_twice(copied)?;
            }
            self.memory.copy(copied)?;
            stats.pages_live += pages;
            stats.rounds += 1;
        }
        let guard = pause().map_err(CheckpointError::Pause)?;
        let start = Instant::now();
        // Before memory: a device may store to it as it is saved.
        let states = self.save_devices()?;
        self.memory.take_log(&mut unused)?;
        stats.pages_paused = self.memory.dirty_pages();
        self.memory.copy(copied)?;
        // A machine that has run may have resized a block.
        self.memory.check()?;
        stats.paused = start.elapsed();
        stats.rounds += 1;
        drop(guard);
        Ok(states)
    }

    fn save_devices(&self) -> Result<Vec<DeviceState>, CheckpointError> {
        let save = |device: &Arc<dyn Device>| {
            device.checkpoint().map_err(|source| {
                let (device, instance) = (device.name().to_owned(), device.instance());
                CheckpointError::Save { device, instance, source }
            })
        };
        self.devices.0.iter().map(save).collect()
    }

    /// Puts the machine back to the current checkpoint.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`].
    pub fn reset(&mut self) -> Result<ResetStats, CheckpointError> {
        let current = self.tree.current().ok_or(CheckpointError::NoCheckpoint)?;
        self.go_to(current)
    }

    /// Puts the machine to any checkpoint, which is the current one from now on. Costs what was
    /// written since the current one, and what differs on the way from that.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`].
    pub fn restore(&mut self, to: CheckpointId) -> Result<ResetStats, CheckpointError> {
        let number = self.number(to)?;
        self.go_to(number)
    }

    fn go_to(&mut self, number: u64) -> Result<ResetStats, CheckpointError> {
        self.memory.check()?;
        let mut stats = ResetStats::default();
        self.memory.take_log(&mut stats)?;
        let start = Instant::now();
        for step in self.tree.way_to(number) {
            self.tree.step(step, |change| self.memory.exchange(change));
        }
        stats.pages = self.memory.put_back()?;
        let copied = Instant::now();
        stats.copy = copied.saturating_duration_since(start);
        self.roll_back_devices(number)?;
        stats.state = copied.elapsed();
        Ok(stats)
    }

    fn roll_back_devices(&self, number: u64) -> Result<(), CheckpointError> {
        let states = self.tree.node(number).map_or(&[][..], |node| &node.states);
        for (device, state) in self.devices.0.iter().zip(states) {
            device.roll_back(state).map_err(|source| {
                let (device, instance) = (device.name().to_owned(), device.instance());
                CheckpointError::RollBack { device, instance, source }
            })?;
        }
        Ok(())
    }

    /// Removes a checkpoint; those beyond it stay what they are. If it is the current one, a
    /// neighbour is current then, its parent where it has one: the machine stays as it is.
    ///
    /// The machine may run.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::OtherMachine`], [`CheckpointError::Removed`].
    pub fn remove(&mut self, checkpoint: CheckpointId) -> Result<(), CheckpointError> {
        let number = self.number(checkpoint)?;
        if self.tree.current() == Some(number) {
            if let Some(neighbour) = self.tree.neighbour() {
                self.tree.step(neighbour, |change| self.memory.exchange(change));
            }
        }
        let removed = self.tree.remove(number);
        self.memory.release(removed);
        if self.tree.current().is_none() {
            self.memory.forget();
        }
        Ok(())
    }
}
