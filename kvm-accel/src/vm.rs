//! A virtual machine of KVM that follows an address space.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvm_ioctls::{Cap, VmFd};
use memory_region::{ListenerError, MemoryListener, Section, ViewChange};
use ram_block::PageSize;

use crate::dirty_limit::DirtyLimit;
use crate::error::{KvmError, io_error};
use crate::gate::{Gate, PauseGuard};
use crate::gated_vm::GatedVm;
use crate::io_events::{self, Bus, Gathered};
use crate::ioctl::MappedEntries;
use crate::kick::VcpuShared;
use crate::rings::RingOfVcpu;
use crate::slots::{self, Mode, SlotInfo, Slots};
use crate::stats::DirtyLogStats;
use crate::tracking::{Chosen, DirtyTracking, KvmConfig, choose};
use crate::vcpu::{Buses, Vcpu};
use crate::vm_ioctls::VmIoctls;

/// A virtual machine of KVM: memory slots that follow a flat view, and vCPUs.
///
/// Register it with [`MemoryMap::add_listener`](memory_region::MemoryMap::add_listener)
/// on the address space that its vCPUs see as memory; on one only.
///
/// Dropped, it takes its slots away: what KVM had logged is merged, and a vCPU that somebody
/// else has open finds no memory any more. A [`Vcpu`] keeps its machine.
pub struct KvmVm {
    fd: VmFd,
    chosen: Chosen,
    ring_staleness: Duration,
    slots: Mutex<Slots>,
    gate: Arc<Gate>,
    gathered: Gathered,
    limit: Arc<DirtyLimit>,
    /// When guests were last interrupted for what their processors hold back.
    looked: Mutex<Option<Instant>>,
}

impl KvmVm {
    /// Takes over a virtual machine that has no memory slots and no vCPUs yet.
    ///
    /// A vCPU that it has all the same is not stopped while slots change, so that stores of
    /// its guest may be missed; it reaches no memory that has been freed.
    ///
    /// What else the machine needs (an interrupt controller, a TSS address) is set through
    /// [`fd`](Self::fd), before or after.
    ///
    /// # Errors
    ///
    /// None at present.
    pub fn new(fd: VmFd) -> Result<Arc<Self>, KvmError> {
        Self::with_config(fd, KvmConfig::default())
    }

    /// As [`new`](Self::new), as `config` says.
    ///
    /// ```no_run
    /// use kvm_accel::{DirtyTracking, KvmConfig, KvmVm};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let tracking = DirtyTracking::Ring { entries: 65_536 };
    /// let config = KvmConfig { tracking, max_slot_bytes: 1 << 30, ..KvmConfig::default() };
    /// let vm = KvmVm::with_config(kvm_ioctls::Kvm::new()?.create_vm()?, config)?;
    /// println!("written pages are tracked by {}", vm.dirty_tracking());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`KvmError::Tracking`] if KVM does not track pages as asked, [`KvmError::Config`] if
    /// a size is not what it must be.
    pub fn with_config(fd: VmFd, config: KvmConfig) -> Result<Arc<Self>, KvmError> {
        let page = PageSize::host().bytes();
        let multiple = |what, found: u64, unit: u64| match found {
            0 => Err(KvmError::Config { what, unit, found }),
            _ if found % unit != 0 => Err(KvmError::Config { what, unit, found }),
            _ => Ok(found),
        };
        let most = match config.max_slot_bytes {
            u64::MAX => u64::MAX,
            most => multiple("The largest slot", most, page)?,
        };
        // KVM takes fewer than 2^31 pages (KVM_MEM_MAX_NR_PAGES).
        let most = most.min(((1 << 31) - 64) * page);
        let chunk = multiple("A chunk to clear", config.clear_chunk_bytes, 64 * page)? / page;
        // KVM_CLEAR_DIRTY_LOG takes 32 bits.
        let chunk = chunk.min(1 << 31);
        let chosen = choose(&fd, &config)?;
        let mode = match chosen.tracking {
            DirtyTracking::ManualProtect => Mode::ManualProtect { chunk },
            DirtyTracking::Ring { .. } => Mode::Rings { with_bitmap: chosen.with_bitmap },
            DirtyTracking::Bitmap | DirtyTracking::Auto => Mode::Bitmap,
        };
        // KVM reports 0 if it does not say: then there are 32 (KVM API, section 4.35).
        let slots = match usize::try_from(fd.check_extension_int(Cap::NrMemslots)) {
            Ok(0) | Err(_) => 32,
            Ok(slots) => slots,
        };
        let limit = slots.min(config.slot_limit);
        log::info!("written pages are tracked by {chosen}");
        log::debug!("KVM has {slots} memory slots, of which up to {limit} are used");
        #[cfg(target_arch = "x86_64")]
        if let Err(error) = crate::ioctl::listed_msrs() {
            log::debug!("states of vCPUs cannot be saved yet: {error}");
        }
        let slots = Slots::new(limit, most, mode);
        Ok(Arc::new(Self {
            fd,
            chosen,
            ring_staleness: config.ring_staleness,
            slots: Mutex::new(slots),
            gate: Arc::default(),
            gathered: Gathered::default(),
            limit: Arc::default(),
            looked: Mutex::new(None),
        }))
    }

    /// How written pages are tracked, and why so.
    pub fn dirty_tracking(&self) -> &Chosen {
        &self.chosen
    }

    /// The ioctls of the machine for what this crate does not do: interrupt controllers,
    /// clocks, irqfds.
    pub fn fd(&self) -> VmIoctls<'_> {
        VmIoctls::new(&self.fd)
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// A vCPU that sees `buses`.
    ///
    /// # Errors
    ///
    /// [`KvmError::CreateVcpu`], [`KvmError::Signal`].
    pub fn create_vcpu(self: &Arc<Self>, id: u64, buses: Buses) -> Result<Vcpu, KvmError> {
        let fd = self
            .fd
            .create_vcpu(id)
            .map_err(|error| KvmError::CreateVcpu { id, source: io_error(error) })?;
        let shared = VcpuShared::new(id, &fd)?;
        let failed = |source| KvmError::CreateVcpu { id, source };
        self.gathered.attach(&self.fd, &fd, &buses).map_err(failed)?;
        let mut ring = RingOfVcpu::default();
        if let DirtyTracking::Ring { entries } = self.chosen.tracking {
            let entries = MappedEntries::new(&fd, entries).map_err(failed)?;
            ring = self.lock().rings.add(entries);
        }
        self.gate.add(&shared);
        self.limit.add(&shared, ring.number);
        Ok(Vcpu::new(fd, shared, self.clone(), buses, ring))
    }

    /// Stops all vCPUs: when this returns, none executes guest code, and none handles
    /// an exit. Accesses that guests had begun are complete. They go on when the guard
    /// is dropped; several guards may exist.
    ///
    /// # Errors
    ///
    /// [`KvmError::PauseTimeout`] if one does not stop within `timeout` (a device's
    /// handler takes its time), and [`KvmError::PauseFromVcpu`].
    pub fn pause(&self, timeout: Duration) -> Result<PauseGuard, KvmError> {
        self.gate.pause(timeout)
    }

    /// Lets each vCPU dirty at most so many bytes of pages per second, as its ring counts
    /// them: a page counts when it is written for the first time since it was last harvested.
    /// Who dirties more waits in between, for which [`DirtyLogStats::limited`] has the time;
    /// a kick or a pause does not wait for it. `None`, as at first, is no limit. While nothing
    /// is logged, nothing is dirtied in this sense.
    ///
    /// The limit holds over a second or more: rings are looked into every millisecond, and
    /// what a vCPU dirtied too much until then it pays for. Up to 20 ms are saved up by who
    /// dirties less. A processor that gathers written pages for itself shows them when it
    /// leaves the guest, 512 of them at the latest.
    ///
    /// ```no_run
    /// # fn example(vm: std::sync::Arc<kvm_accel::KvmVm>) -> Result<(), kvm_accel::KvmError> {
    /// vm.set_dirty_limit(Some(100 << 20))?; // 100 MiB/s by each vCPU
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`KvmError::NoRings`] if written pages are tracked in another way,
    /// [`KvmError::Config`] for a limit of 0, [`KvmError::LimitThread`]. The limit is as it
    /// was then.
    pub fn set_dirty_limit(self: &Arc<Self>, bytes: Option<u64>) -> Result<(), KvmError> {
        let tracking = self.chosen.tracking;
        if !matches!(tracking, DirtyTracking::Ring { .. }) {
            return Err(KvmError::NoRings { tracking });
        }
        if bytes == Some(0) {
            return Err(KvmError::Config { what: "A dirty limit", unit: 1, found: 0 });
        }
        self.limit.set(self, bytes).map_err(|source| KvmError::LimitThread { source })
    }

    /// How many bytes per second each vCPU may dirty, if that is limited.
    pub fn dirty_limit(&self) -> Option<u64> {
        self.limit.get()
    }

    /// Hands the writes that KVM has gathered over to their devices. This happens after
    /// each exit; call it before looking at a device whose guest may not exit for long.
    ///
    /// Calls the handlers of devices, one thread at a time: do not hold a lock that one of
    /// them takes. From within a handler it hands over what is not for that device; from
    /// within one that is called for such a write it does nothing. From within a handler
    /// that holds a lock of its device, be sure that no device uses that one in its turn.
    pub fn flush_coalesced(&self) {
        self.gathered.hand_over();
    }

    /// What follows the space of the I/O ports: their eventfds and gathered writes. The
    /// ports are served without it too. Keep it to take it off again.
    ///
    /// ```no_run
    /// # fn example(
    /// #     memory: &memory_region::MemoryMap,
    /// #     ports: &memory_region::AddressSpace,
    /// #     vm: std::sync::Arc<kvm_accel::KvmVm>,
    /// # ) -> Result<(), memory_region::MapError> {
    /// memory.add_listener(ports, vm.ports())?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn ports(self: &Arc<Self>) -> Arc<dyn MemoryListener> {
        Arc::new(Ports(self.clone()))
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
        if slots::needs_exclusion(change) || self.gathered.needs_exclusion(change) {
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
    fn look_into_processors(&self) {
        if !matches!(self.chosen.tracking, DirtyTracking::Ring { .. }) {
            return;
        }
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.is_none_or(|looked| looked.elapsed() >= self.ring_staleness) {
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

    /// What tracking has cost so far.
    pub fn dirty_log_stats(&self) -> DirtyLogStats {
        let (kicks, stood_still) = self.gate.cost();
        let limited = self.limit.waited();
        DirtyLogStats { kicks, stood_still, limited, ..self.lock().stats }
    }

    /// The memory slots, in the order of their addresses.
    pub fn slots(&self) -> Vec<SlotInfo> {
        self.lock().list()
    }
}

impl Drop for KvmVm {
    fn drop(&mut self) {
        let slots = self.slots.get_mut().unwrap_or_else(PoisonError::into_inner);
        slots.remove_all(&self.fd);
    }
}

impl MemoryListener for KvmVm {
    fn name(&self) -> &str {
        "kvm"
    }

    fn commit(&self, change: &ViewChange) -> Result<(), ListenerError> {
        let slots = || self.lock().commit(&self.calls(), change);
        Ok(self.follow(Bus::Memory, change, slots)?)
    }

    fn sync(&self, section: &Section) -> Result<(), ListenerError> {
        self.look_into_processors();
        Ok(self.sync_section(section.start())?)
    }

    /// Every slot that KVM has, whatever view is published at this moment. With rings without
    /// a bitmap, one walk brings all.
    fn sync_all(&self, _: bool) -> Result<bool, ListenerError> {
        self.look_into_processors();
        if matches!(self.chosen.tracking, DirtyTracking::Ring { .. }) && !self.chosen.with_bitmap {
            self.lock().take_rings(&self.calls())?;
        } else {
            let sections = self.lock().sections();
            sections.into_iter().try_for_each(|at| self.sync_section(at))?;
        }
        Ok(true)
    }

    fn log_clear(&self, section: &Section, bytes: Range<u64>) -> Result<(), ListenerError> {
        Ok(self.lock().clear(&self.calls(), section.start(), &bytes)?)
    }
}

/// A machine as the listener of its ports.
struct Ports(Arc<KvmVm>);

impl MemoryListener for Ports {
    fn name(&self) -> &str {
        "kvm ports"
    }

    fn commit(&self, change: &ViewChange) -> Result<(), ListenerError> {
        Ok(self.0.follow(Bus::Ports, change, || Ok(()))?)
    }

    fn sync(&self, _: &Section) -> Result<(), ListenerError> {
        Ok(()) // RAM on ports is not KVM's
    }
}

impl fmt::Debug for KvmVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvmVm").field("slots", &self.slots()).finish()
    }
}
