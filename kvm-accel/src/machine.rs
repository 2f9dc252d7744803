//! The parts of a machine that its vCPUs and its listeners share: the descriptor, the slots, the
//! gate and the queue of coalesced writes.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuFd, VmFd};
use memory_region::ViewChange;
#[cfg(target_arch = "x86_64")]
use ram_block::RamBlock;

use crate::bus::buses::Buses;
use crate::bus::coalesced_queue::CoalescedQueue;
use crate::bus::io_events::{self, Bus};
use crate::config::DirtyTracking;
use crate::dirty_ring::set::RingOfVcpu;
use crate::error::KvmError;
use crate::exclusion::gate::Gate;
use crate::exclusion::gated_vm::GatedVm;
use crate::exclusion::kick::VcpuShared;
use crate::locks::{lock, unpoisoned};
use crate::slots::commit;
use crate::slots::owned::OwnedSlots;
use crate::slots::table::{SlotInfo, Slots};
use crate::stats::DirtyLogStats;
use crate::sys::ioctl::MappedEntries;
use crate::tracking::DirtyTrackingMode;

/// What a [`KvmVm`](crate::KvmVm) and its vCPUs share. Dropping the last of them deletes the slots.
pub(crate) struct Machine {
    fd: Arc<VmFd>,
    _owned: OwnedSlots,
    chosen: DirtyTrackingMode,
    pml_flush_interval: Duration,
    slots: Mutex<Slots>,
    /// Whether guests may not run, as the dirty bound is reached.
    bound_reached: Arc<AtomicBool>,
    gate: Arc<Gate>,
    coalesced: CoalescedQueue,
    /// When guests were last forced to exit to flush PML buffers.
    last_flush: Mutex<Option<Instant>>,
}

impl Machine {
    pub(crate) fn new(
        fd: Arc<VmFd>,
        owned: OwnedSlots,
        chosen: DirtyTrackingMode,
        pml_flush_interval: Duration,
        slots: Slots,
    ) -> Self {
        Self {
            fd,
            _owned: owned,
            chosen,
            pml_flush_interval,
            bound_reached: slots.bound_reached().clone(),
            slots: Mutex::new(slots),
            gate: Arc::default(),
            coalesced: CoalescedQueue::default(),
            last_flush: Mutex::new(None),
        }
    }

    pub(crate) fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// How written pages are tracked, and why so.
    pub(crate) fn chosen(&self) -> &DirtyTrackingMode {
        &self.chosen
    }

    pub(crate) fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Gives a new vCPU what it shares with the machine; returns its ring.
    pub(crate) fn add(
        &self,
        vcpu: &VcpuFd,
        shared: &Arc<VcpuShared>,
        buses: Option<&Buses>,
    ) -> Result<RingOfVcpu, KvmError> {
        let id = shared.id;
        let failed = |source| KvmError::CreateVcpu { id, source };
        match buses {
            Some(buses) => self.coalesced.attach(&self.fd, vcpu, buses).map_err(failed)?,
            None => self.coalesced.attach_without_bus()?,
        }
        let mut ring = RingOfVcpu::default();
        if let DirtyTracking::Ring { entries } = self.chosen.tracking {
            let entries = MappedEntries::new(vcpu, entries).map_err(failed)?;
            ring = lock(&self.slots).add_ring(entries);
        }
        self.gate.add(shared);
        Ok(ring)
    }

    /// Passes the writes that KVM has coalesced to their devices.
    pub(crate) fn flush_coalesced(&self) {
        self.coalesced.flush();
    }

    /// Makes KVM's ioeventfds and coalesced zones those of the changed view, then calls `rest`;
    /// undoes the former if `rest` fails.
    fn follow(
        &self,
        bus: Bus,
        change: &ViewChange,
        rest: impl FnOnce() -> Result<(), KvmError>,
    ) -> Result<(), KvmError> {
        let follow = || {
            self.coalesced.prepare(change)?;
            io_events::follow(&self.fd, bus, change)?;
            rest().inspect_err(|_| {
                if let Err(error) = io_events::follow(&self.fd, bus, &change.inverse()) {
                    log::error!("An ioeventfd or coalesced zone cannot be restored: {error}");
                }
            })
        };
        if commit::needs_exclusion(change) || self.coalesced.needs_exclusion(change) {
            self.gate.exclude(follow)
        } else {
            follow()
        }
    }

    /// KVM's calls about slots.
    fn calls(&self) -> GatedVm<'_> {
        GatedVm { fd: &self.fd, gate: &self.gate }
    }

    /// Handles the exit of a vCPU whose dirty ring is full; `moves` is the ring's count of moves
    /// from before the guest was entered.
    pub(crate) fn ring_full(&self, ring: &RingOfVcpu, moves: u64) -> Result<(), KvmError> {
        lock(&self.slots).ring_full(&self.calls(), ring, moves)
    }

    /// Removes the bound on what vCPUs dirty, or sets it anew, from now on.
    pub(crate) fn set_dirty_bound(&self, pages: Option<u64>) -> Result<(), KvmError> {
        lock(&self.slots).set_dirty_bound(&self.calls(), pages)
    }

    /// Whether no guest may run until the dirty bound is set anew.
    pub(crate) fn is_dirty_bound_reached(&self) -> bool {
        self.bound_reached.load(Ordering::Acquire)
    }

    /// How many entries KVM has pushed to the ring of this number so far.
    pub(crate) fn ring_seen(&self, ring: usize) -> u64 {
        lock(&self.slots).rings.seen(ring)
    }

    /// With rings, forces an exit on each vCPU so that the CPU flushes its PML buffer into the
    /// ring, unless that was done less than `pml_flush_interval` ago.
    fn flush_pml(&self) {
        if !matches!(self.chosen.tracking, DirtyTracking::Ring { .. }) {
            return;
        }
        let mut last_flush = lock(&self.last_flush);
        if last_flush.is_none_or(|last_flush| last_flush.elapsed() >= self.pml_flush_interval) {
            self.gate.exclude(|| ());
            *last_flush = Some(Instant::now());
        }
    }

    fn sync_section(&self, at: u64) -> Result<(), KvmError> {
        if matches!(self.chosen.tracking, DirtyTracking::Ring { .. }) {
            return lock(&self.slots).harvest(&self.calls(), at);
        }
        // One lock for each slot, so that other threads can take it in between.
        let slots = lock(&self.slots).slots_of(at);
        (0..slots).try_for_each(|n| lock(&self.slots).harvest_slot(&self.calls(), at, n))
    }

    /// Makes KVM's slots, ioeventfds and coalesced zones those of the changed view of memory.
    pub(crate) fn commit(&self, change: &ViewChange) -> Result<(), KvmError> {
        let slots = || lock(&self.slots).commit(&self.calls(), change);
        self.follow(Bus::Memory, change, slots)
    }

    /// As [`commit`](Self::commit), for the ports: KVM has no slots for RAM there.
    pub(crate) fn commit_ports(&self, change: &ViewChange) -> Result<(), KvmError> {
        self.follow(Bus::Ports, change, || Ok(()))
    }

    /// Merges KVM's log of the section at `at` into its block.
    pub(crate) fn sync(&self, at: u64) -> Result<(), KvmError> {
        self.flush_pml();
        self.sync_section(at)
    }

    /// Merges KVM's log of every slot. With rings without a bitmap, one walk over the rings is
    /// enough.
    pub(crate) fn sync_all(&self) -> Result<(), KvmError> {
        self.flush_pml();
        if matches!(self.chosen.tracking, DirtyTracking::Ring { .. }) && !self.chosen.with_bitmap {
            lock(&self.slots).take_rings(&self.calls())?;
            return Ok(());
        }
        let sections = lock(&self.slots).sections();
        sections.into_iter().try_for_each(|at| self.sync_section(at))
    }

    /// Re-arms the pages of the section at `at` that were reported (KVM_CLEAR_DIRTY_LOG).
    pub(crate) fn clear(&self, at: u64, bytes: &Range<u64>) -> Result<(), KvmError> {
        lock(&self.slots).clear(&self.calls(), at, bytes)
    }

    /// What tracking has cost so far, without the time of the dirty limit.
    pub(crate) fn dirty_log_stats(&self) -> DirtyLogStats {
        let (kicks, blocked) = self.gate.cost();
        DirtyLogStats { kicks, blocked, ..lock(&self.slots).stats }
    }

    /// The block that guests see at an address, the offset in it, and how many bytes there are of
    /// it from there on, if there is a slot.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn block_at(&self, address: u64) -> Option<(Arc<RamBlock>, u64, u64)> {
        lock(&self.slots).block_at(address)
    }

    /// The memory slots, in the order of their addresses.
    pub(crate) fn slots(&self) -> Vec<SlotInfo> {
        lock(&self.slots).list()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        unpoisoned(self.slots.get_mut()).remove_all(&*self.fd);
    }
}
