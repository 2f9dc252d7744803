//! The map: one tree, its address spaces, and the commit that keeps all in step.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ram_block::{ClientSet, DirtyClient, DirtyError, RamBlock};

use crate::address_space::AddressSpace;
use crate::clients::Clients;
use crate::diff::diff;
use crate::edit::MapEdit;
use crate::error::MapError;
use crate::flat_view::FlatView;
use crate::follow::{Follower, tell};
use crate::listener::{GlobalLogChange, MemoryListener, ViewChange};
use crate::region::{RegionId, Topology};
use crate::render::{canonical, render};

/// The memory map of one machine: its regions, address spaces and listeners.
///
/// There is no process-wide state: two machines of one process have two maps.
/// All methods may be called from any thread, from within a device's handler too,
/// but not from within an update's closure or a listener.
pub struct MemoryMap {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    topology: Topology,
    /// Shared with the syncs that are under way, which must not allocate.
    spaces: Arc<Vec<Space>>,
    /// Who has claimed a log for itself.
    claims: Vec<Claim>,
    /// How many claims were taken so far.
    claimed: u64,
    clients: Clients,
}

/// A client's log of one block, or of all of them. What is claimed is the bits, and
/// they are the block's, whichever region shows it.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) block: Option<Arc<RamBlock>>,
    pub(crate) client: DirtyClient,
    /// Which one it is, once it is taken.
    pub(crate) number: u64,
}

impl Claim {
    /// Whether both want the same bits.
    fn meets(&self, other: &Self) -> bool {
        let same_block = |(a, b): (&Arc<RamBlock>, &Arc<RamBlock>)| Arc::ptr_eq(a, b);
        self.client == other.client
            && self.block.as_ref().zip(other.block.as_ref()).is_none_or(same_block)
    }
}

#[derive(Clone)]
pub(crate) struct Space {
    pub(crate) space: Arc<AddressSpace>,
    /// By their priorities, then in the order of their registration.
    pub(crate) listeners: Vec<Arc<dyn MemoryListener>>,
}

impl Space {
    /// Its listeners, with what they are to follow.
    fn followers(&self, change: ViewChange) -> Vec<Follower> {
        let change = Arc::new(change);
        let listeners = self.listeners.iter().filter(|_| !change.is_empty());
        let followers = listeners.map(|listener| Follower {
            listener: listener.clone(),
            space: self.space.shared_name(),
            change: change.clone(),
        });
        followers.collect()
    }
}

impl MemoryMap {
    /// An empty map.
    #[allow(clippy::new_ret_no_self)] // always shared
    pub fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state changes only after everything that can fail or panic has run.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn spaces(&self) -> Arc<Vec<Space>> {
        self.lock().spaces.clone()
    }

    /// The regions as they are now.
    pub(crate) fn topology(&self) -> Topology {
        self.lock().topology.clone()
    }

    /// Takes a claim; false if somebody else has it, or a part of it.
    pub(crate) fn take_claim(&self, claim: &mut Claim) -> bool {
        let mut state = self.lock();
        let free = !state.claims.iter().any(|other| other.meets(claim));
        if free {
            state.claimed += 1;
            claim.number = state.claimed;
            state.claims.push(claim.clone());
        }
        free
    }

    /// Whether the claim still stands: its client may be gone, and its number another's.
    pub(crate) fn has_claim(&self, claim: &Claim) -> bool {
        self.lock().claims.iter().any(|other| other.number == claim.number)
    }

    pub(crate) fn drop_claim(&self, claim: &Claim) {
        self.lock().claims.retain(|other| other.number != claim.number);
    }

    /// Gives a client's number out.
    pub(crate) fn take_name(&self, name: &str) -> Result<DirtyClient, MapError> {
        let state = &mut *self.lock();
        Ok(state.clients.register(name, state.topology.blocks())?)
    }

    pub(crate) fn drop_name(&self, client: DirtyClient) {
        let mut state = self.lock();
        state.claims.retain(|claim| claim.client != client);
        state.clients.forget(client);
    }

    /// A region's name and, if it is RAM, its block.
    pub(crate) fn ram_of(
        &self,
        region: RegionId,
    ) -> Result<(Arc<str>, Option<Arc<RamBlock>>), MapError> {
        let state = self.lock();
        let region = state.topology.get(region)?;
        Ok((region.name.clone(), region.block().cloned()))
    }

    /// Changes the map in one transaction: one render, and one change that listeners
    /// are told, however much `edit` does.
    ///
    /// Devices that leave the map are dropped after the transaction, so that their
    /// `Drop` may use the map.
    ///
    /// # Errors
    ///
    /// What `edit` returns, [`MapError::TooDeep`], or [`MapError::Refused`] if a
    /// listener cannot follow. The map, the views and the listeners are then as before.
    pub fn update<T>(
        &self,
        edit: impl FnOnce(&mut MapEdit<'_>) -> Result<T, MapError>,
    ) -> Result<T, MapError> {
        // Declared before the lock, to be dropped after it.
        let mut retired = Retired::default();
        let mut state = self.lock();
        let topology = retired.topology.insert(state.topology.clone());
        let roots = state.spaces.iter().map(|s| (s.space.root(), s.space.shared_name())).collect();
        let result = edit(&mut MapEdit { topology, roots })?;
        state.commit(&mut retired)?;
        Ok(result)
    }

    /// An address space that shows `root` from address 0 on. Spaces whose roots show the
    /// same region share its view.
    ///
    /// # Errors
    ///
    /// [`MapError::UnknownRegion`] or [`MapError::TooDeep`].
    pub fn address_space(&self, name: &str, root: RegionId) -> Result<Arc<AddressSpace>, MapError> {
        let mut state = self.lock();
        let shown = canonical(&state.topology, root)?;
        let shows_it = |other: &&Space| {
            canonical(&state.topology, other.space.root()).is_ok_and(|other| other == shown)
        };
        let view = match state.spaces.iter().find(shows_it) {
            Some(other) => other.space.view(),
            None => Arc::new(render(&state.topology, shown, &state.topology.logged())?),
        };
        let space = Arc::new(AddressSpace::new(name, root, view));
        Arc::make_mut(&mut state.spaces)
            .push(Space { space: space.clone(), listeners: Vec::new() });
        Ok(space)
    }

    /// Forgets an address space that no listener follows. Its view stays as it is for
    /// those who have it.
    ///
    /// # Errors
    ///
    /// [`MapError::UnknownSpace`] if it is not of this map, [`MapError::InUse`].
    pub fn remove_address_space(&self, space: &AddressSpace) -> Result<(), MapError> {
        let mut state = self.lock();
        let name = space.name().to_owned();
        let at = state.spaces.iter().position(|entry| entry.space.is_same(space));
        let at = at.ok_or(MapError::UnknownSpace { name: name.clone() })?;
        if let Some(listener) = state.spaces[at].listeners.first() {
            return Err(MapError::InUse { name, user: listener.name().to_owned() });
        }
        Arc::make_mut(&mut state.spaces).remove(at);
        Ok(())
    }

    /// Lets `listener` follow `space`, beginning with all that is there now.
    ///
    /// # Errors
    ///
    /// [`MapError::UnknownSpace`] if the space is not of this map, or
    /// [`MapError::Refused`]; the listener is not registered then.
    pub fn add_listener(
        &self,
        space: &AddressSpace,
        listener: Arc<dyn MemoryListener>,
    ) -> Result<(), MapError> {
        let mut state = self.lock();
        let change = state.all_of(space);
        let spaces = Arc::make_mut(&mut state.spaces);
        let Some(entry) = spaces.iter_mut().find(|entry| entry.space.is_same(space)) else {
            return Err(MapError::UnknownSpace { name: space.name().to_owned() });
        };
        let (name, change) = (space.shared_name(), Arc::new(change));
        tell(&[Follower { listener: listener.clone(), space: name, change }])?;
        let priority = listener.priority();
        let at = entry.listeners.partition_point(|other| other.priority() <= priority);
        entry.listeners.insert(at, listener);
        Ok(())
    }

    /// Takes a listener off `space`, telling it that everything is gone. Returns
    /// whether it was registered.
    ///
    /// # Errors
    ///
    /// [`MapError::Refused`] if it cannot let go; it stays registered then.
    pub fn remove_listener(
        &self,
        space: &AddressSpace,
        listener: &Arc<dyn MemoryListener>,
    ) -> Result<bool, MapError> {
        let mut state = self.lock();
        let change = state.all_of(space).inverse();
        let spaces = Arc::make_mut(&mut state.spaces);
        let Some(entry) = spaces.iter_mut().find(|entry| entry.space.is_same(space)) else {
            return Ok(false);
        };
        let Some(at) = entry.listeners.iter().position(|other| Arc::ptr_eq(other, listener)) else {
            return Ok(false);
        };
        let (name, change) = (space.shared_name(), Arc::new(change));
        tell(&[Follower { listener: listener.clone(), space: name, change }])?;
        entry.listeners.remove(at);
        Ok(true)
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
        let state = self.lock();
        let blocks: BTreeMap<_, _> =
            state.topology.blocks().map(|block| (block.id(), block)).collect();
        blocks.into_values().cloned().collect()
    }
}

/// What a commit leaves behind. Devices may be dropped with it, whose `Drop` may use
/// the map: it outlives the lock.
#[derive(Default)]
struct Retired {
    /// Before the commit the edited tree, after it the former one.
    topology: Option<Topology>,
    /// The views of the edited tree, by their roots.
    rendered: BTreeMap<RegionId, Arc<FlatView>>,
    /// The former views.
    views: Vec<Arc<FlatView>>,
}

impl State {
    /// All that is there, as a change of the view of `space`.
    fn all_of(&self, space: &AddressSpace) -> ViewChange {
        let mut change = diff(&FlatView::default(), &space.view());
        change.global_log = global_change(ClientSet::EMPTY, self.topology.global_log);
        change
    }

    /// Makes the edited tree the map, or fails and leaves everything as it was.
    fn commit(&mut self, retired: &mut Retired) -> Result<(), MapError> {
        let Some(topology) = &retired.topology else { return Ok(()) };
        let (before, after) = (self.topology.logged(), topology.logged());
        let global_log = global_change(self.topology.global_log, topology.global_log);
        let mut views = Vec::new();
        let mut followers = Vec::new();
        for entry in self.spaces.iter() {
            let root = canonical(topology, entry.space.root())?;
            let view = match retired.rendered.entry(root) {
                Entry::Occupied(view) => view.into_mut(),
                Entry::Vacant(view) => view.insert(Arc::new(render(topology, root, &after)?)),
            };
            let change = ViewChange { global_log, ..diff(&entry.space.view(), view) };
            followers.extend(entry.followers(change));
            views.push(view.clone());
        }
        // A client is on in the block before a listener starts to log for it, and
        // off only after: no page is logged that its bitmap would not take.
        let clients_before =
            |block| before.get(block).map_or(ClientSet::EMPTY, |(_, clients)| *clients);
        let mut switched_on = Vec::new();
        let mut switch_on = || {
            for (block, (ram, clients)) in &after {
                let before = clients_before(block);
                for client in clients.iter().filter(|client| !before.contains(*client)) {
                    self.clients.switch_on(ram, client)?;
                    switched_on.push((ram.clone(), client));
                }
            }
            Ok(())
        };
        let result: Result<(), DirtyError> = switch_on();
        let result = result.map_err(MapError::from);
        if let Err(error) = result.and_then(|()| tell(&followers)) {
            for (ram, client) in switched_on {
                self.clients.switch_off(&ram, client);
            }
            return Err(error);
        }

        // RAM that joins while all of it is logged is new to those who log: all of it.
        let all_along = self.topology.global_log.intersection(topology.global_log);
        for (ram, _) in after.iter().filter(|(at, _)| !before.contains_key(*at)).map(|(_, b)| b) {
            if !all_along.is_empty() {
                ram.dirty().mark(0, ram.len());
            }
        }
        for (entry, view) in self.spaces.iter().zip(views) {
            retired.views.push(entry.space.publish(view));
        }
        if let Some(topology) = &mut retired.topology {
            std::mem::swap(&mut self.topology, topology);
        }
        for (block, (ram, clients)) in before {
            let still = after.get(&block).map_or(ClientSet::EMPTY, |(_, clients)| *clients);
            for client in clients.iter().filter(|client| !still.contains(*client)) {
                self.clients.switch_off(&ram, client);
            }
        }
        Ok(())
    }
}

fn global_change(old: ClientSet, new: ClientSet) -> Option<GlobalLogChange> {
    (old != new).then_some(GlobalLogChange { old, new })
}

impl fmt::Debug for MemoryMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spaces: Vec<_> = self.spaces().iter().map(|entry| entry.space.clone()).collect();
        f.debug_struct("MemoryMap").field("spaces", &spaces).finish()
    }
}
