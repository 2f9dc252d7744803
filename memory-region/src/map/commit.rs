//! The commit: the edited tree becomes the map and all listeners follow, or everything stays as it
//! was.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use ram_block::{ClientSet, DirtyError};

use crate::error::MapError;
use crate::listener::change::{GlobalLogChange, MemoryListener, ViewChange};
use crate::listener::diff::diff;
use crate::listener::notify::{Notification, notify_all};
use crate::region_id::RegionId;
use crate::transaction::claims::{Claimed, Claims};
use crate::transaction::client_registry::Clients;
use crate::transaction::regions::NewObjects;
use crate::tree::render::{canonical, render};
use crate::tree::topology::{Logged, Topology};
use crate::view::address_space::AddressSpace;
use crate::view::flat_view::FlatView;

/// The map as a commit left it.
#[derive(Clone, Default)]
pub(crate) struct MapState {
    pub(crate) topology: Topology,
    /// The blocks of the regions, and the clients that log each.
    pub(crate) logged: Logged,
    pub(crate) spaces: Vec<SpaceEntry>,
}

#[derive(Clone)]
pub(crate) struct SpaceEntry {
    pub(crate) space: Arc<AddressSpace>,
    /// By their priorities, then in the order of their registration.
    pub(crate) listeners: Vec<Arc<dyn MemoryListener>>,
}

impl SpaceEntry {
    /// What its listeners are to be notified of; nothing if nothing changed.
    fn notifications(&self, change: ViewChange) -> Vec<Notification> {
        let change = Arc::new(change);
        let listeners = self.listeners.iter().filter(|_| !change.is_empty());
        let notifications = listeners.map(|listener| Notification {
            listener: listener.clone(),
            space: self.space.shared_name(),
            change: change.clone(),
        });
        notifications.collect()
    }
}

/// What a transaction leaves behind. It is dropped after the update lock is released: devices may
/// be dropped with it, whose `Drop` may use the map.
#[derive(Default)]
pub(crate) struct Garbage {
    /// The tree that is edited, until it is committed.
    pub(crate) topology: Topology,
    /// Blocks and devices that the transaction brought, whether they stay or not.
    pub(crate) new_objects: NewObjects,
    /// The views of the edited tree, by their roots.
    rendered: BTreeMap<RegionId, Arc<FlatView>>,
    /// The former views, or, if the commit failed, the rendered ones.
    views: Vec<Arc<FlatView>>,
    /// The former map.
    pub(crate) former: Option<Arc<MapState>>,
}

impl MapState {
    /// The index of a space.
    pub(crate) fn entry_of(&self, space: &AddressSpace) -> Result<usize, MapError> {
        let at = self.spaces.iter().position(|entry| entry.space.is_same(space));
        at.ok_or_else(|| MapError::UnknownSpace { name: space.name().to_owned() })
    }

    /// The change from an empty view to that of `space`.
    pub(crate) fn all_of(&self, space: &AddressSpace) -> ViewChange {
        let mut change = diff(&FlatView::default(), &space.view());
        change.global_log = global_change(ClientSet::EMPTY, self.topology.global_log);
        change
    }

    /// Commits `garbage.topology`: renders it, switches clients on, notifies listeners, publishes
    /// the views, switches clients off. Returns the new map; on an error everything is as before.
    pub(crate) fn commit(
        &self,
        clients: &mut Clients,
        claims: &Mutex<Claims>,
        garbage: &mut Garbage,
    ) -> Result<Self, MapError> {
        let claims = || claims.lock().unwrap_or_else(PoisonError::into_inner);
        let topology = &garbage.topology;
        let logged = topology.logged();
        let (before, after) = (&self.logged, &logged);
        let global_log = global_change(self.topology.global_log, topology.global_log);
        let mut views = Vec::with_capacity(self.spaces.len());
        let mut notifications = Vec::new();
        for entry in &self.spaces {
            let root = canonical(topology, entry.space.root())?;
            let view = match garbage.rendered.entry(root) {
                Entry::Occupied(view) => view.into_mut(),
                Entry::Vacant(view) => view.insert(Arc::new(render(topology, root, after)?)),
            };
            if !entry.listeners.is_empty() {
                let change = ViewChange { global_log, ..diff(&entry.space.view(), view) };
                notifications.extend(entry.notifications(change));
            }
            views.push(view.clone());
        }
        claims().check_blocks(after)?;
        // A client is on in the block before a listener starts to log for it, and
        // off only after: no page is logged that its bitmap would not take.
        let clients_before =
            |block| before.get(block).map_or(ClientSet::EMPTY, |(_, clients)| *clients);
        let mut switched_on = Vec::new();
        let mut switch_on = || {
            for (block, (ram, logging)) in after {
                let before = clients_before(block);
                for client in logging.iter().filter(|client| !before.contains(*client)) {
                    clients.switch_on(ram, client)?;
                    switched_on.push((ram, client));
                }
            }
            Ok(())
        };
        let result: Result<(), DirtyError> = switch_on();
        // After the client has its number in the block, and before any write is logged for it.
        let mut claimed = Claimed::default();
        let mut claim = || claims().claim_blocks(after).map(|new| claimed = new);
        let mut result = result.map_err(MapError::from).and_then(|()| claim());
        if result.is_ok() {
            // As soon as the first listener has followed, guests may write through the new
            // sections: syncs have to ask for them from before that on.
            for (entry, view) in self.spaces.iter().zip(&views) {
                garbage.views.extend(entry.space.set_pending(Some(view.clone())));
            }
            result = notify_all(&notifications);
        }
        if let Err(error) = result {
            self.clear_pending(garbage);
            for (ram, client) in switched_on {
                clients.switch_off(ram, client, claims().of_client(client, ram));
            }
            claims().give_up(&claimed);
            return Err(error);
        }

        // RAM that joins while all RAM is logged: its clients have seen none of it, so all of its
        // pages are dirty for them.
        let all_along = self.topology.global_log.intersection(topology.global_log);
        for (ram, _) in after.iter().filter(|(at, _)| !before.contains_key(*at)).map(|(_, b)| b) {
            if !all_along.is_empty() {
                ram.dirty().mark(0, ram.len());
            }
        }
        for (entry, view) in self.spaces.iter().zip(views) {
            garbage.views.push(entry.space.publish(view));
        }
        self.clear_pending(garbage);
        for (block, (ram, logging)) in before {
            let still = after.get(block).map_or(ClientSet::EMPTY, |(_, clients)| *clients);
            for client in logging.iter().filter(|client| !still.contains(*client)) {
                clients.switch_off(ram, client, claims().of_client(client, ram));
            }
        }
        if before.keys().any(|block| !after.contains_key(block)) {
            claims().leave_blocks(after);
        }
        let (topology, spaces) = (std::mem::take(&mut garbage.topology), self.spaces.clone());
        Ok(Self { topology, logged, spaces })
    }

    /// Ends the time in which syncs ask for the pending views as well: they are published by now,
    /// or will never be.
    fn clear_pending(&self, garbage: &mut Garbage) {
        let pending = self.spaces.iter().filter_map(|entry| entry.space.set_pending(None));
        garbage.views.extend(pending);
    }
}

fn global_change(old: ClientSet, new: ClientSet) -> Option<GlobalLogChange> {
    (old != new).then_some(GlobalLogChange { old, new })
}
