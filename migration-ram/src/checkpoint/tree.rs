//! Which checkpoints there are, and what differs between them.
//!
//! # One image, and what leads away from it
//!
//! All memory is kept once: as it was at the *current* checkpoint, from which the machine has run
//! on. Each other checkpoint has a neighbour that is one step nearer to the current one, and the
//! contents of the pages that differ from that neighbour's. To go one step, the contents of the
//! image and those of the step are exchanged, page by page: the step leads back then, and that is
//! all that changes, as for the others the way leads through the same neighbours. So a step costs
//! what differs on it, wherever the machine is and however many checkpoints there are, and a reset
//! to the current checkpoint finds each page in the image, without a search.
//!
//! This is how persistent arrays are kept with one flat array (H. G. Baker, "Shallow Binding Makes
//! Functional Arrays Fast", 1991).

use std::collections::BTreeMap;

use crate::checkpoint::store::Content;
use crate::devices::device::DeviceState;

/// A page, and what it holds at one end of a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    /// The number of the image.
    pub(super) image: usize,
    pub(super) page: u64,
    pub(super) content: Content,
}

impl Change {
    fn key(&self) -> (usize, u64) {
        (self.image, self.page)
    }
}

/// One checkpoint.
#[derive(Debug)]
pub(super) struct Node {
    /// The checkpoint from which the machine ran on to this one.
    parent: Option<u64>,
    /// The neighbour one step nearer to the current one, which has none.
    nearer: Option<u64>,
    /// What this one holds where that neighbour holds something else; by image and page.
    changes: Vec<Change>,
    pub(super) states: Vec<DeviceState>,
}

/// The checkpoints of a machine, by their numbers.
#[derive(Debug, Default)]
pub(super) struct Tree {
    nodes: BTreeMap<u64, Node>,
    /// The one whose memory the images hold.
    current: Option<u64>,
    next: u64,
}

/// What becomes of the steps that a removed checkpoint had.
#[derive(Debug, Default)]
pub(super) struct Removed {
    /// Contents to which one more refers.
    pub(super) shared: Vec<Change>,
    /// Contents to which one less refers.
    pub(super) released: Vec<Change>,
}

impl Tree {
    pub(super) fn current(&self) -> Option<u64> {
        self.current
    }

    pub(super) fn node(&self, number: u64) -> Option<&Node> {
        self.nodes.get(&number)
    }

    pub(super) fn numbers(&self) -> impl Iterator<Item = u64> {
        self.nodes.keys().copied()
    }

    pub(super) fn parent(&self, number: u64) -> Option<u64> {
        self.nodes.get(&number)?.parent
    }

    /// Adds a checkpoint, which is the current one from now on. `changes` are what the one before
    /// holds where this one holds something else, by image and page.
    pub(super) fn add(&mut self, changes: Vec<Change>, states: Vec<DeviceState>) -> u64 {
        let number = self.next;
        self.next += 1;
        if let Some(former) = self.current.and_then(|current| self.nodes.get_mut(&current)) {
            (former.nearer, former.changes) = (Some(number), changes);
        }
        let node = Node { parent: self.current, nearer: None, changes: Vec::new(), states };
        self.nodes.insert(number, node);
        self.current = Some(number);
        number
    }

    /// The checkpoints on the way from the current one to `number`, which is the last.
    pub(super) fn way_to(&self, number: u64) -> Vec<u64> {
        let nearer = |number: &u64| self.nodes.get(number)?.nearer;
        let mut way: Vec<u64> = std::iter::successors(Some(number), nearer).collect();
        way.pop(); // the current one
        way.reverse();
        way
    }

    /// Makes a neighbour of the current checkpoint the current one. `exchange` puts a change's
    /// content in its image, and the image's in the change.
    pub(super) fn step(&mut self, to: u64, exchange: impl FnMut(&mut Change)) {
        let Some(node) = self.nodes.get_mut(&to) else { return };
        let mut changes = std::mem::take(&mut node.changes);
        node.nearer = None;
        changes.iter_mut().for_each(exchange);
        if let Some(former) = self.current.and_then(|current| self.nodes.get_mut(&current)) {
            (former.nearer, former.changes) = (Some(to), changes);
        }
        self.current = Some(to);
    }

    /// A neighbour of the current checkpoint: its parent, if that is one.
    pub(super) fn neighbour(&self) -> Option<u64> {
        let current = self.current?;
        let is_near = |number: &u64| self.nodes[number].nearer == Some(current);
        let parent = self.parent(current).filter(|parent| self.nodes.contains_key(parent));
        parent.filter(is_near).or_else(|| self.numbers().find(is_near))
    }

    /// Removes a checkpoint: those that lead through it lead past it. The current one only if it is
    /// the last.
    pub(super) fn remove(&mut self, number: u64) -> Removed {
        let mut removed = Removed::default();
        let Some(node) = self.nodes.remove(&number) else { return removed };
        if self.current == Some(number) {
            self.current = None;
        }
        for other in self.nodes.values_mut() {
            if other.parent == Some(number) {
                other.parent = node.parent;
            }
            if other.nearer == Some(number) {
                other.nearer = node.nearer;
                other.changes = merged(&other.changes, &node.changes, &mut removed.shared);
            }
        }
        removed.released = node.changes;
        removed
    }
}

/// What `far` holds where the far end of `near`'s step holds something else, and on from there:
/// both by image and page. What is taken from `near` is pushed to `shared`.
fn merged(far: &[Change], near: &[Change], shared: &mut Vec<Change>) -> Vec<Change> {
    let mut all = Vec::with_capacity(far.len() + near.len());
    let mut near = near.iter().peekable();
    for change in far {
        while let Some(other) = near.next_if(|other| other.key() < change.key()) {
            all.push(*other);
            shared.push(*other);
        }
        near.next_if(|other| other.key() == change.key());
        all.push(*change);
    }
    all.extend(near.clone());
    shared.extend(near);
    all
}
