//! The map: one tree, its address spaces and its listeners.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use ram_block::RamBlock;

use crate::device::reentrancy::ReentrancyGuard;
use crate::error::MapError;
use crate::listener::change::{MemoryListener, ViewChange};
use crate::listener::notify::{Notification, notify_all};
use crate::map::commit::{Garbage, MapState, SpaceEntry};
use crate::region_id::RegionId;
use crate::transaction::regions::Transaction;
use crate::tree::log::Log;
use crate::tree::render::{canonical, render};
use crate::view::address_space::AddressSpace;
use crate::view::generation::Extent;

/// The memory map of one machine: its regions, address spaces and listeners.
///
/// There is no process-wide state: two machines of one process have two maps.
///
/// All methods may be called from any thread, also from a device's handler. Those that only read,
/// syncs and harvests among them, take no lock that a commit holds: they see the map as the last
/// commit left it. Those that change it take the map's update lock, and hold it while listeners
/// are notified; called by a thread that holds it already, from within an update's closure or a
/// listener, they fail with [`MapError::Reentrant`]. So a listener must not wait for another thread
/// that may change the map, nor for a lock that such a thread may hold.
///
/// Commits that remove something use the `membarrier` system call. A sandbox that begins to forbid
/// it after the first access should allow it: what leaves the map is then kept as long as the
/// address space that has shown it.
pub struct MemoryMap {
    /// The map as the last commit left it.
    current: ArcSwap<MapState>,
    /// The update lock: whoever changes the map holds it from before the edit until after the
    /// listeners were notified.
    update: Mutex<()>,
    /// Logs whose claims were dropped by the thread that holds the update lock. Never locked while
    /// listeners or devices are called.
    deferred: Mutex<Vec<Arc<Log>>>,
    /// Logs whose claims were dropped, and that a listener would not stop. As `deferred`.
    refused: Mutex<Vec<Arc<Log>>>,
}

/// The right to change a map.
pub(super) struct UpdateLock<'a> {
    // In this order: first others may take the lock, then this thread, then what was deferred
    // takes it again.
    _lock: MutexGuard<'a, ()>,
    _inside: ReentrancyGuard,
    after: DeferredDrops<'a>,
}

impl Drop for UpdateLock<'_> {
    fn drop(&mut self) {
        self.after.gather();
    }
}

impl MemoryMap {
    /// An empty map.
    #[allow(clippy::new_ret_no_self)] // always shared
    pub fn new() -> Arc<Self> {
        let current = ArcSwap::from_pointee(MapState::default());
        Arc::new(Self {
            current,
            update: Mutex::default(),
            deferred: Mutex::default(),
            refused: Mutex::default(),
        })
    }

    pub(super) fn lock_for_update(&self) -> Result<UpdateLock<'_>, MapError> {
        let inside =
            ReentrancyGuard::enter(std::ptr::from_ref(self).cast()).ok_or(MapError::Reentrant)?;
        // The map changes only after everything that can fail or panic has run.
        let lock = self.update.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(UpdateLock { _lock: lock, _inside: inside, after: DeferredDrops::new(self) })
    }

    /// The map as the last commit left it.
    pub(crate) fn current(&self) -> Arc<MapState> {
        self.current.load_full()
    }

    /// Makes `current` the map; returns the former one. Drop it after the lock: devices may go
    /// with it, whose `Drop` may use the map.
    #[must_use]
    fn publish(&self, _: &UpdateLock<'_>, current: impl Into<Arc<MapState>>) -> Arc<MapState> {
        self.current.swap(current.into())
    }

    fn deferred(&self) -> MutexGuard<'_, Vec<Arc<Log>>> {
        self.deferred.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refused(&self) -> MutexGuard<'_, Vec<Arc<Log>>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A region's name and, if it is RAM, its block.
    pub(crate) fn ram_of(
        &self,
        region: RegionId,
    ) -> Result<(Arc<str>, Option<Arc<RamBlock>>), MapError> {
        let current = self.current();
        let region = current.topology.get(region)?;
        Ok((region.name.clone(), region.block().cloned()))
    }

    /// Changes the map in one transaction: one render, and one change that listeners
    /// are told, however much `edit` does.
    ///
    /// Devices that leave the map, or that the transaction brings and that do not stay,
    /// are dropped after the transaction, so that their `Drop` may use the map. What
    /// `edit` captures and does not hand over is dropped with it, within the transaction.
    ///
    /// # Errors
    ///
    /// What `edit` returns, [`MapError::TooDeep`], [`MapError::TooComplex`],
    /// [`MapError::Claimed`] if a block joins that somebody else, at the block or at another map,
    /// logs for the client of a log of all RAM, [`MapError::Dirty`] if a block cannot log for a
    /// client, [`MapError::Refused`] if a listener cannot follow; the map, the views and the
    /// listeners are then as before.
    /// [`MapError::Reentrant`] from within another update's closure, or a listener.
    pub fn transaction<T>(
        &self,
        edit: impl FnOnce(&mut Transaction<'_>) -> Result<T, MapError>,
    ) -> Result<T, MapError> {
        let mut garbage = Garbage::default();
        let (value, committed) = self.transact(&mut garbage, edit)?;
        committed?;
        self.stop_refused_logs();
        Ok(value)
    }

    /// Edits the tree and, if that succeeds, commits it, under one update lock. What may use the
    /// map in its `Drop` stays in `garbage` until after that.
    fn transact<T>(
        &self,
        garbage: &mut Garbage,
        edit: impl FnOnce(&mut Transaction<'_>) -> Result<T, MapError>,
    ) -> Result<(T, Result<(), MapError>), MapError> {
        let lock = self.lock_for_update()?;
        let current = self.current();
        garbage.topology = current.topology.clone();
        let spaces = current.spaces.iter();
        let value = edit(&mut Transaction {
            topology: &mut garbage.topology,
            new_objects: &mut garbage.new_objects,
            roots: spaces.map(|s| (s.space.root(), s.space.shared_name())).collect(),
        })?;
        let committed = current.commit(garbage).map(|committed| {
            garbage.former = Some(self.publish(&lock, committed));
        });
        Ok((value, committed))
    }

    /// An address space that shows `root` from address 0 on. Spaces whose roots show the
    /// same region share its view.
    ///
    /// # Errors
    ///
    /// [`MapError::UnknownRegion`], [`MapError::TooDeep`], [`MapError::TooComplex`] or
    /// [`MapError::Reentrant`].
    pub fn address_space(&self, name: &str, root: RegionId) -> Result<Arc<AddressSpace>, MapError> {
        self.wrapping_address_space(name, root, 64)
    }

    /// An address space of `address_bits` address lines: it has 2 to the power of that many bytes,
    /// upper bits of addresses do not count, and an access past its end goes on at address 0, as on
    /// the buses of a 6502 (16) or a 68000 (24). By vm-memory, and in its view, it has the
    /// addresses that `root` has.
    ///
    /// # Errors
    ///
    /// As [`address_space`](Self::address_space), and [`MapError::AddressBits`].
    pub fn wrapping_address_space(
        &self,
        name: &str,
        root: RegionId,
        address_bits: u32,
    ) -> Result<Arc<AddressSpace>, MapError> {
        if !(1..=64).contains(&address_bits) {
            return Err(MapError::AddressBits { name: name.to_owned(), bits: address_bits });
        }
        let mask = u64::MAX >> (64 - address_bits);
        self.change_spaces(|MapState { topology, logged, spaces }| {
            let shown = canonical(topology, root)?;
            let shows_it = |other: &&SpaceEntry| {
                canonical(topology, other.space.root()).is_ok_and(|other| other == shown)
            };
            let view = match spaces.iter().find(shows_it) {
                Some(other) => other.space.view(),
                None => Arc::new(render(topology, shown, logged)?),
            };
            let space = Arc::new(AddressSpace::new(name, root, mask, view));
            spaces.push(SpaceEntry { space: space.clone(), listeners: Vec::new() });
            Ok(space)
        })
    }

    /// Removes an address space without listeners. Whoever has its view keeps that as it is; by the
    /// space, and by a [`Tlb`](crate::Tlb) of it, nothing answers any more.
    ///
    /// # Errors
    ///
    /// [`MapError::UnknownSpace`] if it is not of this map, [`MapError::InUse`],
    /// [`MapError::Reentrant`].
    pub fn remove_address_space(&self, space: &AddressSpace) -> Result<(), MapError> {
        let shown = self.change_spaces(|current| {
            let name = space.name().to_owned();
            let at = current.entry_of(space)?;
            if let Some(listener) = current.spaces[at].listeners.first() {
                return Err(MapError::InUse { name, user: listener.name().to_owned() });
            }
            let removed = current.spaces.remove(at);
            removed.space.publish(Arc::default(), Extent::All);
            Ok(AddressSpace::reclaim([&*removed.space].into_iter()))
        })?;
        // After the lock: perhaps the last to hold devices.
        drop(shown);
        Ok(())
    }

    /// Registers a listener of `space`, and notifies it of all that is there.
    ///
    /// # Errors
    ///
    /// [`MapError::UnknownSpace`] if the space is not of this map,
    /// [`MapError::Refused`], [`MapError::Reentrant`]; the listener is not registered then.
    pub fn add_listener(
        &self,
        space: &AddressSpace,
        listener: Arc<dyn MemoryListener>,
    ) -> Result<(), MapError> {
        let lock = self.lock_for_update()?;
        let former = self.current();
        let mut current = MapState::clone(&former);
        let entry = current.entry_of(space)?;
        let all = current.all_of(space);
        let listeners = &mut current.spaces[entry].listeners;
        let priority = listener.priority();
        let at = listeners.partition_point(|other| other.priority() <= priority);
        listeners.insert(at, listener.clone());
        // Published before the listener is notified: once it is, guests may write through it at
        // once, and a sync has to ask it.
        let mut garbage = vec![self.publish(&lock, current)];
        let told = notify_all(&[notification(space, &listener, all)]);
        if told.is_err() {
            garbage.push(self.publish(&lock, former));
        }
        drop(lock);
        drop(garbage); // perhaps the last to hold spaces and their devices
        self.stop_refused_logs();
        told
    }

    /// Removes a listener of `space`, and notifies it of a change that removes everything. Returns
    /// whether it was registered.
    ///
    /// # Errors
    ///
    /// [`MapError::Refused`] if it cannot follow, [`MapError::Reentrant`]; it stays
    /// registered then.
    pub fn remove_listener(
        &self,
        space: &AddressSpace,
        listener: &Arc<dyn MemoryListener>,
    ) -> Result<bool, MapError> {
        self.change_spaces(|current| {
            let Ok(entry) = current.entry_of(space) else { return Ok(false) };
            let mut listeners = current.spaces[entry].listeners.iter();
            let Some(at) = listeners.position(|other| Arc::ptr_eq(other, listener)) else {
                return Ok(false);
            };
            notify_all(&[notification(space, listener, current.all_of(space).inverse())])?;
            current.spaces[entry].listeners.remove(at);
            Ok(true)
        })
    }

    /// Changes the list of spaces under the update lock, or leaves it as it was.
    fn change_spaces<T>(
        &self,
        change: impl FnOnce(&mut MapState) -> Result<T, MapError>,
    ) -> Result<T, MapError> {
        let lock = self.lock_for_update()?;
        let mut current = MapState::clone(&self.current());
        let value = change(&mut current)?;
        let former = self.publish(&lock, current);
        // In this order: the former map may be the last to hold a space and its devices.
        drop(lock);
        drop(former);
        self.stop_refused_logs();
        Ok(value)
    }

    /// The block of a RAM region.
    ///
    /// # Errors
    ///
    /// [`MapError::NoBlock`] if it has none, [`MapError::UnknownRegion`].
    pub fn ram_block(&self, region: RegionId) -> Result<Arc<RamBlock>, MapError> {
        let (name, block) = self.ram_of(region)?;
        block.ok_or_else(|| MapError::NoBlock { name: name.to_string() })
    }

    /// Every block of the map once, placed or not, in the order of their ids.
    pub fn ram_blocks(&self) -> Vec<Arc<RamBlock>> {
        self.current().topology.blocks().cloned().collect()
    }
}

fn notification(
    space: &AddressSpace,
    listener: &Arc<dyn MemoryListener>,
    change: ViewChange,
) -> Notification {
    let (listener, change) = (listener.clone(), Arc::new(change));
    Notification { listener, space: space.shared_name(), change }
}

impl fmt::Debug for MemoryMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let current = self.current();
        let spaces: Vec<_> = current.spaces.iter().map(|entry| &entry.space).collect();
        f.debug_struct("MemoryMap").field("spaces", &spaces).finish()
    }
}

impl MemoryMap {
    /// Stops the log of a claim that was dropped; if this thread holds the update lock, once it has
    /// released it.
    pub(crate) fn stop_log(&self, log: Arc<Log>) {
        match self.stop_logs(std::slice::from_ref(&log)) {
            Ok(()) => self.stop_refused_logs(),
            Err(MapError::Reentrant) => self.deferred().push(log),
            // It goes on until it can be stopped.
            Err(error) => {
                log::warn!("the log of {} cannot be stopped yet: {error}", log.client);
                self.refused().push(log);
            }
        }
    }

    /// Tries again to stop the logs that listeners would not stop before: after each change of the
    /// map, and before a log starts. All at once, or else each once.
    pub(crate) fn stop_refused_logs(&self) {
        let mut logs = std::mem::take(&mut *self.refused());
        if !logs.is_empty() && self.stop_logs(&logs).is_err() {
            if logs.len() > 1 {
                logs.retain(|log| self.stop_logs(std::slice::from_ref(log)).is_err());
            }
            self.refused().extend(logs);
        }
    }

    fn stop_logs(&self, logs: &[Arc<Log>]) -> Result<(), MapError> {
        let mut garbage = Garbage::default();
        let stop = |map: &mut Transaction<'_>| {
            logs.iter().for_each(|log| map.stop_log(log));
            Ok(())
        };
        self.transact(&mut garbage, stop)?.1
    }
}

/// Drops that had to wait for the update lock: they are dealt with when this is dropped, after the
/// lock.
pub(crate) struct DeferredDrops<'a> {
    map: &'a MemoryMap,
    left: Vec<Arc<Log>>,
}

impl<'a> DeferredDrops<'a> {
    pub(crate) fn new(map: &'a MemoryMap) -> Self {
        Self { map, left: Vec::new() }
    }

    /// Collects what this thread dropped while it held the lock, which it still holds: what other
    /// holders drop is theirs to deal with.
    pub(crate) fn gather(&mut self) {
        self.left = std::mem::take(&mut *self.map.deferred());
    }
}

impl Drop for DeferredDrops<'_> {
    fn drop(&mut self) {
        std::mem::take(&mut self.left).into_iter().for_each(|log| self.map.stop_log(log));
    }
}
