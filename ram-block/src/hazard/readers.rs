//! All threads that read, and the values that wait for some of them.

use std::ops::Deref;

use crate::hazard::record::{Address, Record, Slot};

/// The records of all threads, and replaced values that some of them read.
pub(super) struct Readers<R, V> {
    records: Vec<R>,
    /// With their addresses. Each was replaced, and a barrier passed, before it came here, so that
    /// no thread begins to read it; but for one that is the value of another cell as well, which
    /// owns it too.
    left: Vec<(usize, V)>,
}

impl<R, V> Readers<R, V> {
    pub(super) const fn new() -> Self {
        Self { records: Vec::new(), left: Vec::new() }
    }
}

impl<A: Address, R: Deref<Target = Record<A>>, V> Readers<R, V> {
    pub(super) fn add(&mut self, record: R) {
        self.records.push(record);
    }

    /// Where the value at `address` is read.
    fn readers_of(&self, address: usize) -> impl Iterator<Item = &Slot<A>> {
        let slots = self.records.iter().flat_map(|record| record.slots());
        slots.filter(move |slot| slot.has(address))
    }

    fn is_read(&self, address: usize) -> bool {
        self.readers_of(address).next().is_some()
    }

    /// W3 to W6, of values that were replaced before a barrier was passed: returns those that are
    /// to be dropped now, without the lock. The others are left to their last readers.
    pub(super) fn retire(&mut self, values: Vec<(usize, V)>, barrier: impl Fn()) -> Vec<V> {
        let is_read = |(address, _): &(usize, V)| self.is_read(*address);
        let (read, unread): (Vec<_>, Vec<_>) = values.into_iter().partition(is_read); // W3
        let mut unread: Vec<_> = unread.into_iter().map(|(_, value)| value).collect();
        // Of all that are left: the reader of one may not have been told, if a barrier was refused.
        if !read.is_empty() || !self.left.is_empty() {
            self.left.extend(read);
            let addresses: Vec<_> = self.left.iter().map(|(address, _)| *address).collect();
            unread.extend(self.take_unread(&addresses, barrier));
        }
        unread
    }

    /// What a reader that is waited for has to do after it has left the value at `address` in
    /// `slot`: returns what is to be dropped then, without the lock.
    pub(super) fn left_by(&mut self, slot: &Slot<A>, address: usize, barrier: impl Fn()) -> Vec<V> {
        slot.set_waited_for(false);
        self.take_unread(&[address], barrier)
    }

    /// Takes the values at these addresses that no thread reads. Each of the others has a reader
    /// that was flagged before a barrier, and so will see that.
    fn take_unread(&mut self, addresses: &[usize], barrier: impl Fn()) -> Vec<V> {
        let mut unread = Vec::new();
        loop {
            unread.extend(self.take_unread_now(addresses)); // W3, W6
            let (mut is_left, mut is_new) = (false, false);
            for (address, _) in self.left.iter().filter(|(at, _)| addresses.contains(at)) {
                let mut is_read = false;
                for slot in self.readers_of(*address) {
                    is_read = true;
                    is_new |= slot.set_waited_for(true); // W4
                }
                // If not, it was read a moment ago.
                is_left |= !is_read;
            }
            if is_new {
                barrier(); // W5
            } else if !is_left {
                return unread;
            }
        }
    }

    fn take_unread_now(&mut self, addresses: &[usize]) -> Vec<V> {
        let left = std::mem::take(&mut self.left);
        let mut unread = Vec::new();
        for (address, value) in left {
            if addresses.contains(&address) && !self.is_read(address) {
                unread.push(value);
            } else {
                self.left.push((address, value));
            }
        }
        unread
    }
}

// They switch stacks.
#[cfg(test)]
#[cfg(not(any(target_family = "wasm", target_arch = "s390x")))]
mod model_tests;
