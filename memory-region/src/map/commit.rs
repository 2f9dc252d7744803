//! The commit: the edited tree becomes the map and all listeners follow, or everything stays as it
//! was.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use ram_block::{ClientSet, Reclaimed};

use crate::error::MapError;
use crate::listener::change::{GlobalLogChange, MemoryListener, ViewChange};
use crate::listener::diff::diff;
use crate::listener::notify::{Notification, notify_all};
use crate::region_id::RegionId;
use crate::transaction::regions::NewObjects;
use crate::tree::log::{Log, Logged};
use crate::tree::render::{canonical, render};
use crate::tree::topology::Topology;
use crate::view::address_space::AddressSpace;
use crate::view::flat_view::FlatView;
use crate::view::generation::Extent;

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
    /// Views that were pending.
    views: Vec<Arc<FlatView>>,
    /// Former views, if they have what the new ones do not have, or are many.
    former_views: Reclaimed,
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
        change.global_log = global_change(ClientSet::EMPTY, self.topology.global_clients());
        change
    }

    /// Commits `garbage.topology`: renders it, starts logs, notifies listeners, publishes the
    /// views, stops logs. Returns the new map; on an error everything is as before.
    pub(crate) fn commit(&self, garbage: &mut Garbage) -> Result<Self, MapError> {
        let topology = &garbage.topology;
        let logged = topology.logged();
        let (before, after) = (&self.logged, &logged);
        let global = (self.topology.global_clients(), topology.global_clients());
        let global_log = global_change(global.0, global.1);
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
        // A client is on in the block before a listener starts to log for it, and
        // off only after: no page is logged that its bitmap would not take.
        let mut started: Vec<(Arc<Log>, usize)> = Vec::new();
        let all_along = global.0.intersection(global.1);
        let mut start_logs = || {
            let blocks = after.iter().filter(|(_, (_, clients))| !clients.is_empty());
            for (at, (block, _)) in blocks {
                // RAM that joins while all RAM is logged: its clients have seen none of it. All of
                // its pages are dirty for them before the first harvest, which may come while the
                // listeners are notified.
                let joins = !before.contains_key(at);
                let before = clients_of(before, *at);
                let new = topology.logs_of(*at).filter(|log| !before.contains(log.client));
                for log in new {
                    log.start(block, joins && all_along.contains(log.client))?;
                    started.push((log.clone(), *at));
                }
            }
            Ok(())
        };
        let mut result: Result<(), MapError> = start_logs();
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
            started.into_iter().for_each(|(log, block)| log.stop(block));
            return Err(error);
        }

        let (mut reclaims, mut compared) = (false, None);
        for (entry, view) in self.spaces.iter().zip(views) {
            let former = entry.space.view();
            // Spaces that share a view follow each other.
            let pair = (Arc::as_ptr(&former), Arc::as_ptr(&view));
            if !reclaims && compared != Some(pair) {
                compared = Some(pair);
                reclaims = !view.has_all_of(&former);
            }
            reclaims |= entry.space.publish(view, Extent::All);
        }
        self.clear_pending(garbage);
        for (at, (_, clients)) in before.iter().filter(|(_, (_, clients))| !clients.is_empty()) {
            let gone = clients.iter().filter(|client| !clients_of(after, *at).contains(*client));
            let gone: ClientSet = gone.collect();
            let logs = self.topology.logs_of(*at).filter(|log| gone.contains(log.client));
            logs.for_each(|log| log.stop(*at));
        }
        if reclaims {
            garbage.former_views = AddressSpace::reclaim(self.spaces.iter().map(|e| &*e.space));
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

fn clients_of(logged: &Logged, block: usize) -> ClientSet {
    logged.get(&block).map_or(ClientSet::EMPTY, |(_, clients)| *clients)
}

fn global_change(old: ClientSet, new: ClientSet) -> Option<GlobalLogChange> {
    (old != new).then_some(GlobalLogChange { old, new })
}
