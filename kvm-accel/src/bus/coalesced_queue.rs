//! The queue of coalesced writes, between KVM's ring and the devices.
//!
//! Coalesced writes have happened for the guest, but not yet for the device. They are flushed, in
//! their order, after every exit and before the exit itself is handled: so a vCPU's own writes and
//! exits keep their order, and the ring is empty once the machine is paused. When a device is
//! removed from the map, or moved, the writes that are still in the ring were made in the map as it
//! was: they are parked with that map's view. A device's handler that flushes cannot be called for
//! its own device's writes: these stay parked until a later flush.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::ThreadId;

use kvm_ioctls::{Cap, VcpuFd, VmFd};
use memory_region::{AccessError, AddressSpace, FlatView, Section, ViewChange};

use crate::bus::buses::{Buses, log_bus_error};
use crate::bus::coalesced_ring::{CoalescedRing, CoalescedWrite};
use crate::error::KvmError;
use crate::locks::lock;

/// The coalesced writes of a machine that its devices have not seen yet.
#[derive(Debug, Default)]
pub(crate) struct CoalescedQueue {
    /// Whether KVM was ever asked to coalesce writes; if not, an exit need not flush.
    on: AtomicBool,
    /// Held by the thread that flushes, while it calls devices: they get writes one by one.
    flush_lock: Mutex<()>,
    /// The thread that holds `flush_lock`.
    flusher: Mutex<Option<ThreadId>>,
    /// Locked briefly only, also by commits.
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    ring: Option<CoalescedRing>,
    memory: Destination,
    ports: Destination,
    /// There are vCPUs, and none has buses.
    has_no_bus: bool,
    /// Older than the writes in the ring, with the view that they were made in.
    parked: VecDeque<Pending>,
}

/// The bus that writes go to, as the vCPUs have it: any of them may have the only reference to it.
///
/// Weak references: a device may own the machine, and an address space owns its devices, so the
/// machine must not own an address space.
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

    /// The bus's view; `None` if all vCPUs were dropped, and the bus with them.
    fn view(&self) -> Option<Arc<FlatView>> {
        Some(self.0.iter().find_map(Weak::upgrade)?.view())
    }
}

/// A write and the view that it was made in.
type Pending = (CoalescedWrite, Arc<FlatView>);

impl Queue {
    /// The view that a write is for; `None` if the bus, and all that was on it, was dropped.
    fn view(&self, write: &CoalescedWrite) -> Option<Arc<FlatView>> {
        if write.is_port { self.ports.view() } else { self.memory.view() }
    }

    fn pop(&mut self) -> Option<Pending> {
        self.parked.pop_front().or_else(|| self.pop_ring())
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

impl CoalescedQueue {
    /// Maps the ring when the first vCPU is created, if KVM has one. Its writes go to the buses of
    /// that vCPU or, once that one has dropped them, to those of a later vCPU.
    pub(crate) fn attach(&self, vm: &VmFd, vcpu: &VcpuFd, buses: &Buses) -> std::io::Result<()> {
        let mut queue = lock(&self.queue);
        let page = u32::try_from(vm.check_extension_int(Cap::CoalescedMmio)).unwrap_or(0);
        if queue.ring.is_none() && page != 0 {
            queue.ring = Some(CoalescedRing::map(vcpu, page)?);
        }
        queue.has_no_bus = false;
        queue.memory.add(&buses.memory);
        queue.ports.add(&buses.ports);
        Ok(())
    }

    /// A vCPU that has no buses: if none has any, there must be no coalesced writes.
    pub(crate) fn attach_without_bus(&self) -> Result<(), KvmError> {
        let mut queue = lock(&self.queue);
        if queue.ring.is_some() {
            return Ok(()); // of a vCPU with buses
        }
        if self.on.load(Ordering::Acquire) {
            return Err(KvmError::NoBus);
        }
        queue.has_no_bus = true;
        Ok(())
    }

    /// Whether a change removes a device or a range that coalesced writes may be for, so that
    /// guests must be kept out. The range may stay, and belong to another device.
    pub(crate) fn needs_exclusion(&self, change: &ViewChange) -> bool {
        let is_device = |section: &Section| section.device().is_some();
        self.on.load(Ordering::Acquire)
            && (change.removed.iter().any(is_device) || !change.coalesced.removed.is_empty())
    }

    /// Parks the writes in the ring with their view, if the change needs that. Refuses a change
    /// that coalesces writes which would have no bus to go to.
    pub(crate) fn prepare(&self, change: &ViewChange) -> Result<(), KvmError> {
        if !change.coalesced.added.is_empty() {
            let queue = lock(&self.queue);
            if queue.has_no_bus {
                return Err(KvmError::NoBus);
            }
            self.on.store(true, Ordering::Release);
        }
        if self.needs_exclusion(change) {
            let mut queue = lock(&self.queue);
            while let Some(pending) = queue.pop_ring() {
                queue.parked.push_back(pending);
            }
        }
        Ok(())
    }

    /// Passes the writes that were coalesced so far to their devices. Does nothing in a handler
    /// that is called for such a write. Stops at a write to a device whose handler this thread is
    /// inside of: it stays parked, and all later ones stay queued.
    pub(crate) fn flush(&self) {
        if !self.on.load(Ordering::Acquire) {
            return;
        }
        let me = std::thread::current().id();
        if *lock(&self.flusher) == Some(me) {
            return;
        }
        // Dropped last: by then no thread is recorded as the one that flushes.
        let _lock = lock(&self.flush_lock);
        let _flusher = Flusher::new(&self.flusher, me);
        loop {
            let next = lock(&self.queue).pop();
            let Some((write, view)) = next else { break };
            let done = view.bus_write(write.address, write.data());
            if matches!(done, Err(AccessError::Reentered { .. })) {
                lock(&self.queue).parked.push_front((write, view));
                break;
            }
            log_bus_error(done);
        }
    }
}

/// Records this thread as the one that flushes, until it is dropped.
struct Flusher<'a>(&'a Mutex<Option<ThreadId>>);

impl<'a> Flusher<'a> {
    fn new(flusher: &'a Mutex<Option<ThreadId>>, thread: ThreadId) -> Self {
        *lock(flusher) = Some(thread);
        Self(flusher)
    }
}

impl Drop for Flusher<'_> {
    fn drop(&mut self) {
        *lock(self.0) = None;
    }
}
