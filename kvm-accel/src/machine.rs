//! A machine's parts that its vCPUs and its listeners share: the descriptor, the slots, the gate
//! and the gathered writes.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuFd, VmFd};
use memory_region::ViewChange;

use crate::bus::buses::Buses;
use crate::bus::coalesced_queue::CoalescedQueue;
use crate::bus::io_events::{self, Bus};
use crate::config::DirtyTracking;
use crate::dirty_ring::set::RingOfVcpu;
use crate::error::KvmError;
use crate::exclusion::gate::Gate;
use crate::exclusion::gated_vm::GatedVm;
use crate::exclusion::kick::VcpuShared;
use crate::slots::commit;
use crate::slots::table::{SlotInfo, Slots};
use crate::stats::DirtyLogStats;
use crate::sys::ioctl::MappedEntries;
use crate::tracking::DirtyTrackingMode;

/// What a [`KvmVm`](crate::KvmVm) and its vCPUs have in common.
///
/// Dropped with the last of them, it takes its slots away.
pub(crate) struct Machine {
    fd: VmFd,
    chosen: DirtyTrackingMode,
    pml_flush_interval: Duration,
    slots: Mutex<Slots>,
    gate: Arc<Gate>,
    gathered: CoalescedQueue,
    /// When guests were last interrupted for what their processors hold back.
    looked: Mutex<Option<Instant>>,
}

impl Machine {
    pub(crate) fn new(
        fd: VmFd,
        chosen: DirtyTrackingMode,
        ring_staleness: Duration,
        slots: Slots,
    ) -> Self {
        Self {
            fd,
            chosen,
            pml_flush_interval: ring_staleness,
            slots: Mutex::new(slots),
            gate: Arc::default(),
            gathered: CoalescedQueue::default(),
            looked: Mutex::new(None),
        }
    }

    pub(crate) fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// How written pages are tracked, and why so.
    pub(crate) fn chosen(&self) -> &DirtyTrackingMode {
        &self.chosen
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Gives a new vCPU what it shares with the machine; returns its ring.
    pub(crate) fn add(
        &self,
        vcpu: &VcpuFd,
        shared: &Arc<VcpuShared>,
        buses: &Buses,
    ) -> io::Result<RingOfVcpu> {
        self.gathered.attach(&self.fd, vcpu, buses)?;
        let mut ring = RingOfVcpu::default();
        if let DirtyTracking::Ring { entries } = self.chosen.tracking {
            let entries = MappedEntries::new(vcpu, entries)?;
            ring = self.lock().rings.add(entries);
        }
        self.gate.add(shared);
        Ok(ring)
    }

    /// Hands the writes that KVM has gathered over to their devices.
    pub(crate) fn flush_coalesced(&self) {
        self.gathered.hand_over();
    }

    /// Follows what a change does to eventfds and gathered writes, then does the rest;
    /// takes the first back if that fails.
    fn follow(
        &self,
        bus: Bus,
        change: &ViewChange,
        rest: impl FnOnce() -> Result<(), KvmError>,
    ) -> Result<(), KvmError> {
        let follow = || {
            self.gathered.prepare(change);
            io_events::follow(&self.fd, bus, change)?;
            rest().inspect_err(|_| {
                if let Err(error) = io_events::follow(&self.fd, bus, &change.inverse()) {
                    log::error!("Cannot go back: {error}");
                }
            })
        };
        if commit::needs_exclusion(change) || self.gathered.needs_exclusion(change) {
            self.gate.exclude(follow)
        } else {
            follow()
        }
    }

    /// KVM's calls about slots.
    fn calls(&self) -> GatedVm<'_> {
        GatedVm { fd: &self.fd, gate: &self.gate }
    }

    /// A guest stopped because its dirty ring is full; `moves` is what the ring's count said
    /// before it was let in.
    pub(crate) fn ring_full(&self, ring: &RingOfVcpu, moves: u64) -> Result<(), KvmError> {
        self.lock().ring_full(&self.calls(), ring, moves)
    }

    /// How many entries the ring of this number had so far.
    pub(crate) fn ring_seen(&self, ring: usize) -> u64 {
        self.lock().rings.seen(ring)
    }

    /// With rings, gets guests out of the processor, which may hold back entries until then,
    /// unless that was done a short time ago.
    fn flush_pml(&self) {
        if !matches!(self.chosen.tracking, DirtyTracking::Ring { .. }) {
            return;
        }
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.is_none_or(|looked| looked.elapsed() >= self.pml_flush_interval) {
            self.gate.exclude(|| ());
            *looked = Some(Instant::now());
        }
    }

    fn sync_section(&self, at: u64) -> Result<(), KvmError> {
        if matches!(self.chosen.tracking, DirtyTracking::Ring { .. }) {
            return self.lock().harvest(&self.calls(), at);
        }
        // Slot by slot, so that others get in between.
        let slots = self.lock().slots_of(at);
        (0..slots).try_for_each(|n| self.lock().harvest_slot(&self.calls(), at, n))
    }

    /// Makes KVM's slots, eventfds and gathered ranges those of the changed view of memory.
    pub(crate) fn commit(&self, change: &ViewChange) -> Result<(), KvmError> {
        let slots = || self.lock().commit(&self.calls(), change);
        self.follow(Bus::Memory, change, slots)
    }

    /// As [`commit`](Self::commit), of the ports, where RAM is not KVM's.
    pub(crate) fn commit_ports(&self, change: &ViewChange) -> Result<(), KvmError> {
        self.follow(Bus::Ports, change, || Ok(()))
    }

    /// Merges what KVM knows of the section at `at`.
    pub(crate) fn sync(&self, at: u64) -> Result<(), KvmError> {
        self.flush_pml();
        self.sync_section(at)
    }

    /// Merges what KVM knows of every slot. With rings without a bitmap, one walk brings all.
    pub(crate) fn sync_all(&self) -> Result<(), KvmError> {
        self.flush_pml();
        if matches!(self.chosen.tracking, DirtyTracking::Ring { .. }) && !self.chosen.with_bitmap {
            self.lock().take_rings(&self.calls())?;
            return Ok(());
        }
        let sections = self.lock().sections();
        sections.into_iter().try_for_each(|at| self.sync_section(at))
    }

    /// Has pages of the section at `at` watched again that were reported.
    pub(crate) fn clear(&self, at: u64, bytes: &Range<u64>) -> Result<(), KvmError> {
        self.lock().clear(&self.calls(), at, bytes)
    }

    /// What tracking has cost so far, but for limits.
    pub(crate) fn dirty_log_stats(&self) -> DirtyLogStats {
        let (kicks, stood_still) = self.gate.cost();
        DirtyLogStats { kicks, blocked: stood_still, ..self.lock().stats }
    }

    /// The memory slots, in the order of their addresses.
    pub(crate) fn slots(&self) -> Vec<SlotInfo> {
        self.lock().list()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let slots = self.slots.get_mut().unwrap_or_else(PoisonError::into_inner);
        slots.remove_all(&self.fd);
    }
}
