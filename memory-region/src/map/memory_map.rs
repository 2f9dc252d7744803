//! The map: one tree, its address spaces and its listeners.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use ram_block::{DirtyClient, RamBlock};

use crate::device::reentrancy::ReentrancyGuard;
use crate::error::MapError;
use crate::listener::change::{MemoryListener, ViewChange};
use crate::listener::notify::{Notification, notify_all};
use crate::map::commit::{Garbage, MapState, SpaceEntry};
use crate::region_id::RegionId;
use crate::transaction::claims::{Claim, Claims};
use crate::transaction::client_registry::Clients;
use crate::transaction::regions::MapEdit;
use crate::tree::render::{canonical, render};
use crate::view::address_space::AddressSpace;

/// The memory map of one machine: its regions, address spaces and listeners.
///
/// There is no process-wide state: two machines of one process have two maps.
///
/// All methods may be called from any thread, from within a device's handler too. Those
/// that only look, syncs and harvests among them, wait for nobody: they see the map as the
/// last commit left it. Those that change it wait for their turn, in which listeners are
/// told; called by the thread whose turn it is already, from within an update's closure or
/// a listener, they fail with [`MapError::Nested`]. So a listener must not wait for another
/// thread that may change the map, nor take a lock that somebody holds who does.
pub struct MemoryMap {
    /// The map as the last commit left it.
    current: ArcSwap<MapState>,
    /// Locked by who changes the map.
    clients: Mutex<Clients>,
    /// Locked for a moment only.
    claims: Mutex<Claims>,
    /// What was dropped in a turn. Locked for a moment only.
    leaving: Mutex<Vec<DeferredDrop>>,
}

/// The turn to change a map.
struct UpdateLock<'a> {
    // Dropped in this order: the thread is in its turn until others can have theirs.
    clients: MutexGuard<'a, Clients>,
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
            clients: Mutex::default(),
            claims: Mutex::default(),
            leaving: Mutex::default(),
        })
    }

    fn lock_for_update(&self) -> Result<UpdateLock<'_>, MapError> {
        let inside =
            ReentrancyGuard::enter(std::ptr::from_ref(self).cast()).ok_or(MapError::Nested)?;
        // The map changes only after everything that can fail or panic has run.
        let clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(UpdateLock { clients, _inside: inside, after: DeferredDrops::new(self) })
    }

    /// The map as it is now. Others may change it, those with the turn excepted.
    pub(crate) fn current(&self) -> Arc<MapState> {
        self.current.load_full()
    }

    /// Lets everybody see `current`; returns the former map, to be dropped after the turn.
    #[must_use]
    fn publish(&self, _: &UpdateLock<'_>, current: impl Into<Arc<MapState>>) -> Arc<MapState> {
        self.current.swap(current.into())
    }

    pub(crate) fn claims(&self) -> MutexGuard<'_, Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn leaving(&self) -> MutexGuard<'_, Vec<DeferredDrop>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a client's number out.
    pub(crate) fn take_name(&self, name: &str) -> Result<DirtyClient, MapError> {
        let mut lock = self.lock_for_update()?;
        Ok(lock.clients.register(name, self.current().topology.blocks())?)
    }

    /// Switches a client off everywhere, and forgets it.
    pub(crate) fn drop_name(&self, client: DirtyClient) -> Result<(), MapError> {
        let (mut garbage, mut ended) = (Garbage::default(), Vec::new());
        let forget = |map: &mut MapEdit<'_>| {
            map.forget_log(client);
            Ok(())
        };
        let ((), committed) = self.transact(&mut garbage, forget, |clients| {
            ended = self.claims().end(|claim| claim.client == client);
            clients.forget(client);
        })?;
        committed
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
    /// [`MapError::Dirty`] if a block cannot log for a client, [`MapError::Refused`] if a
    /// listener cannot follow; the map, the views and the listeners are then as before.
    /// [`MapError::Nested`] from within another update's closure, or a listener.
    pub fn update<T>(
        &self,
        edit: impl FnOnce(&mut MapEdit<'_>) -> Result<T, MapError>,
    ) -> Result<T, MapError> {
        let mut garbage = Garbage::default();
        let (value, committed) = self.transact(&mut garbage, edit, |_| ())?;
        committed.map(|()| value)
    }

    /// Edits the tree and, if that succeeds, makes it the map, with `then` done in the same
    /// turn. Nothing is dropped in the turn that may use the map.
    fn transact<T>(
        &self,
        garbage: &mut Garbage,
        edit: impl FnOnce(&mut MapEdit<'_>) -> Result<T, MapError>,
        then: impl FnOnce(&mut Clients),
    ) -> Result<(T, Result<(), MapError>), MapError> {
        let mut lock = self.lock_for_update()?;
        let current = self.current();
        garbage.topology = current.topology.clone();
        let spaces = current.spaces.iter();
        let value = edit(&mut MapEdit {
            topology: &mut garbage.topology,
            new_objects: &mut garbage.new_objects,
            clients: &lock.clients,
            claims: &self.claims,
            ending: None,
            roots: spaces.map(|s| (s.space.root(), s.space.shared_name())).collect(),
        })?;
        let committed = current.commit(&mut lock.clients, &self.claims, garbage).map(|committed| {
            garbage.former = Some(self.publish(&lock, committed));
            then(&mut lock.clients);
        });
        Ok((value, committed))
    }

    /// An address space that shows `root` from address 0 on. Spaces whose roots show the
    /// same region share its view.
    ///
    /// # Errors
    ///
    /// [`MapError::UnknownRegion`], [`MapError::TooDeep`], [`MapError::TooComplex`] or
    /// [`MapError::Nested`].
    pub fn address_space(&self, name: &str, root: RegionId) -> Result<Arc<AddressSpace>, MapError> {
        self.change_spaces(|MapState { topology, logged, spaces }| {
            let shown = canonical(topology, root)?;
            let shows_it = |other: &&SpaceEntry| {
                canonical(topology, other.space.root()).is_ok_and(|other| other == shown)
            };
            let view = match spaces.iter().find(shows_it) {
                Some(other) => other.space.view(),
                None => Arc::new(render(topology, shown, logged)?),
            };
            let space = Arc::new(AddressSpace::new(name, root, view));
            spaces.push(SpaceEntry { space: space.clone(), listeners: Vec::new() });
            Ok(space)
        })
    }

    /// Forgets an address space that no listener follows. Its view stays as it is for
    /// those who have it.
    ///
    /// # Errors
    ///
    /// [`MapError::UnknownSpace`] if it is not of this map, [`MapError::InUse`],
    /// [`MapError::Nested`].
    pub fn remove_address_space(&self, space: &AddressSpace) -> Result<(), MapError> {
        self.change_spaces(|current| {
            let name = space.name().to_owned();
            let at = current.entry_of(space)?;
            if let Some(listener) = current.spaces[at].listeners.first() {
                return Err(MapError::InUse { name, user: listener.name().to_owned() });
            }
            current.spaces.remove(at);
            Ok(())
        })
    }

    /// Lets `listener` follow `space`, beginning with all that is there now.
    ///
    /// # Errors
    ///
    /// [`MapError::UnknownSpace`] if the space is not of this map,
    /// [`MapError::Refused`], [`MapError::Nested`]; the listener is not registered then.
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
        // It is asked from before it follows: guests may write through it at once.
        let mut garbage = vec![self.publish(&lock, current)];
        let told = notify_all(&[notification(space, &listener, all)]);
        if told.is_err() {
            garbage.push(self.publish(&lock, former));
        }
        drop(lock);
        drop(garbage); // with it, perhaps, spaces and their devices
        told
    }

    /// Takes a listener off `space`, telling it that everything is gone. Returns
    /// whether it was registered.
    ///
    /// # Errors
    ///
    /// [`MapError::Refused`] if it cannot let go, [`MapError::Nested`]; it stays
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

    /// Changes the list of spaces in a turn, or leaves it as it was.
    fn change_spaces<T>(
        &self,
        change: impl FnOnce(&mut MapState) -> Result<T, MapError>,
    ) -> Result<T, MapError> {
        let lock = self.lock_for_update()?;
        let mut current = MapState::clone(&self.current());
        let value = change(&mut current)?;
        let former = self.publish(&lock, current);
        // In this order: a space, and with it devices, may go with the former map.
        drop(lock);
        drop(former);
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

/// What was dropped, and is to be switched off.
pub(crate) enum DeferredDrop {
    /// A claim to a log.
    Log(Claim),
    /// A client that was registered with the map.
    Client(DirtyClient),
}

impl DeferredDrop {
    fn end(&self, map: &MemoryMap) -> Result<(), MapError> {
        match self {
            Self::Client(client) => map.drop_name(*client),
            Self::Log(claim) => {
                // In one turn: the client's number may be another's afterwards.
                let switched = map.update(|edit| {
                    edit.ending = Some(claim.number);
                    match &claim.region {
                        _ if !map.claims().has(claim) => Ok(()), // gone with its client
                        Some((region, _)) => edit.set_log(*region, claim.client, false),
                        None => edit.set_global_log(claim.client, false),
                    }
                });
                if !matches!(switched, Err(MapError::Nested)) {
                    map.drop_claim(claim);
                }
                switched
            }
        }
    }

    fn client(&self) -> DirtyClient {
        match self {
            Self::Client(client) | Self::Log(Claim { client, .. }) => *client,
        }
    }
}

impl MemoryMap {
    /// Ends what was dropped; after its turn, if this thread is in the middle of one.
    pub(crate) fn end(&self, leaving: DeferredDrop) {
        match leaving.end(self) {
            Ok(()) => {}
            Err(MapError::Nested) => self.leaving().push(leaving),
            // A client goes on to log, so nobody else gets its number.
            Err(error) => log::warn!("{} cannot be switched off: {error}", leaving.client()),
        }
    }
}

/// What could not end in a turn, and ends when this is dropped, after it.
pub(crate) struct DeferredDrops<'a> {
    map: &'a MemoryMap,
    left: Vec<DeferredDrop>,
}

impl<'a> DeferredDrops<'a> {
    pub(crate) fn new(map: &'a MemoryMap) -> Self {
        Self { map, left: Vec::new() }
    }

    /// Takes what was dropped in the turn, which is not over yet: others have theirs later.
    pub(crate) fn gather(&mut self) {
        self.left = std::mem::take(&mut *self.map.leaving());
    }
}

impl Drop for DeferredDrops<'_> {
    fn drop(&mut self) {
        for leaving in std::mem::take(&mut self.left) {
            self.map.end(leaving);
        }
    }
}
