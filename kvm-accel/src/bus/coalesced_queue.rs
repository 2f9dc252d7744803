//! Writes that KVM gathers in a ring, on their way to their devices.
//!
//! What is gathered has happened for the guest, but not yet for the device. It is handed
//! over, in its order, after every exit and before the exit itself is dealt with: so a
//! processor's own writes and exits keep their order, and whoever pauses the machine finds
//! the ring empty. When a device leaves the map, or its place, what is still in the ring was
//! meant for the map as it was: it is set aside with that map's view. A device that asks for
//! what was gathered from within its own handler cannot be given it there: that waits.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::ThreadId;

use kvm_ioctls::{Cap, VcpuFd, VmFd};
use memory_region::{AccessError, AddressSpace, FlatView, Section, ViewChange};

use crate::bus::buses::{Buses, log_bus_error};
use crate::bus::coalesced_ring::{CoalescedRing, CoalescedWrite};

/// The gathered writes of a machine, on their way to its devices.
#[derive(Debug, Default)]
pub(crate) struct CoalescedQueue {
    /// Whether KVM was ever asked to gather: an exit need not look before.
    on: AtomicBool,
    /// Who hands over. Held while devices are called: they get writes one by one.
    turn: Mutex<()>,
    /// The thread that has the turn.
    holder: Mutex<Option<ThreadId>>,
    /// Held for a moment only, also by commits.
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    ring: Option<CoalescedRing>,
    memory: Destination,
    ports: Destination,
    /// Older than what is in the ring, with the view that they were made in.
    set_aside: VecDeque<Pending>,
}

/// The bus that writes go to, as the vCPUs have it: each may have the only reference to it.
///
/// A device may have the machine, and an address space has its devices: so the machine has
/// no address space.
#[derive(Debug, Default)]
struct Destination(Vec<Weak<AddressSpace>>);

impl Destination {
    fn add(&mut self, bus: &Arc<AddressSpace>) {
        self.0.retain(|known| known.strong_count() > 0);
        let new = Arc::downgrade(bus);
        if !self.0.iter().any(|known| known.ptr_eq(&new)) {
            self.0.push(new);
        }
    }

    /// Its view; none if all vCPUs are gone, and the bus with them.
    fn view(&self) -> Option<Arc<FlatView>> {
        Some(self.0.iter().find_map(Weak::upgrade)?.view())
    }
}

/// A write and the view that it was made in.
type Pending = (CoalescedWrite, Arc<FlatView>);

impl Queue {
    /// The view that a write is for; none if the bus is gone, and all that was on it.
    fn view(&self, write: &CoalescedWrite) -> Option<Arc<FlatView>> {
        if write.is_port { self.ports.view() } else { self.memory.view() }
    }

    fn pop(&mut self) -> Option<Pending> {
        self.set_aside.pop_front().or_else(|| self.pop_ring())
    }

    fn pop_ring(&mut self) -> Option<Pending> {
        loop {
            let write = self.ring.as_mut()?.pop()?;
            if let Some(view) = self.view(&write) {
                return Some((write, view));
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl CoalescedQueue {
    /// Maps the ring when the first vCPU is made, if KVM has one. Its writes go to the
    /// buses of that vCPU, or of a later one when it has taken them with it.
    pub(crate) fn attach(&self, vm: &VmFd, vcpu: &VcpuFd, buses: &Buses) -> std::io::Result<()> {
        let mut queue = lock(&self.queue);
        let page = u32::try_from(vm.check_extension_int(Cap::CoalescedMmio)).unwrap_or(0);
        if queue.ring.is_none() && page != 0 {
            queue.ring = Some(CoalescedRing::map(vcpu, page)?);
        }
        queue.memory.add(&buses.memory);
        queue.ports.add(&buses.ports);
        Ok(())
    }

    /// Whether a change takes away what gathered writes may be for, so that guests must
    /// stand still. The range may stay, and be another device's.
    pub(crate) fn needs_exclusion(&self, change: &ViewChange) -> bool {
        let is_device = |section: &Section| section.device().is_some();
        self.on.load(Ordering::Acquire)
            && (change.removed.iter().any(is_device) || !change.coalesced.removed.is_empty())
    }

    /// Notes that a change is about to be followed.
    pub(crate) fn prepare(&self, change: &ViewChange) {
        if !change.coalesced.added.is_empty() {
            self.on.store(true, Ordering::Release);
        }
        if self.needs_exclusion(change) {
            let mut queue = lock(&self.queue);
            while let Some(pending) = queue.pop_ring() {
                queue.set_aside.push_back(pending);
            }
        }
    }

    /// Hands over what was gathered so far. Does nothing in a handler that is called for
    /// such a write; a write for a device whose handler this thread is in waits, and all
    /// later ones with it.
    pub(crate) fn hand_over(&self) {
        if !self.on.load(Ordering::Acquire) {
            return;
        }
        let me = std::thread::current().id();
        if *lock(&self.holder) == Some(me) {
            return;
        }
        // Dropped last: by then nobody else is noted as the one who has the turn.
        let _turn = lock(&self.turn);
        let _holder = Holder::new(&self.holder, me);
        loop {
            let next = lock(&self.queue).pop();
            let Some((write, view)) = next else { break };
            let done = view.bus_write(write.address, write.data());
            if matches!(done, Err(AccessError::Reentered { .. })) {
                lock(&self.queue).set_aside.push_front((write, view));
                break;
            }
            log_bus_error(done);
        }
    }
}

/// While it is kept, the thread is noted as the one that hands over.
struct Holder<'a>(&'a Mutex<Option<ThreadId>>);

impl<'a> Holder<'a> {
    fn new(holder: &'a Mutex<Option<ThreadId>>, thread: ThreadId) -> Self {
        *lock(holder) = Some(thread);
        Self(holder)
    }
}

impl Drop for Holder<'_> {
    fn drop(&mut self) {
        *lock(self.0) = None;
    }
}
