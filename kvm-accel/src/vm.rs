//! A virtual machine of KVM that follows an address space.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use kvm_ioctls::{Cap, VcpuFd, VmFd};
use memory_region::{ListenerError, MemoryListener, Section, ViewChange};
use ram_block::PageSize;

use crate::bus::buses::Buses;
use crate::config::{DirtyTracking, KickSignal, KvmConfig};
use crate::dirty_limit::DirtyLimit;
use crate::error::KvmError;
use crate::exclusion::gate::PauseGuard;
use crate::exclusion::kick::{VcpuShared, prepare_signal};
use crate::machine::Machine;
use crate::slots::owned::OwnedSlots;
use crate::slots::table::{Mode, SlotInfo, Slots};
use crate::stats::DirtyLogStats;
use crate::sys::vm_ioctls::VmIoctls;
use crate::tracking::{DirtyTrackingMode, choose};
use crate::vcpu::guarded::GuardedVcpu;
use crate::vcpu::run::Vcpu;

/// A virtual machine of KVM: memory slots that follow a flat view, and vCPUs.
///
/// Register it with [`MemoryMap::add_listener`](memory_region::MemoryMap::add_listener)
/// on the address space that its vCPUs see as memory; on one only.
///
/// When it and all its [`Vcpu`]s are dropped, KVM's log is merged and the slots are deleted: a vCPU
/// that was created in another way, and is still open, has no memory from then on. A [`Vcpu`] keeps
/// its machine alive.
pub struct KvmVm {
    machine: Arc<Machine>,
    limit: Arc<DirtyLimit>,
    kick_signal: KickSignal,
}

impl KvmVm {
    /// Takes over a virtual machine that has no memory slots and no vCPUs yet.
    ///
    /// A vCPU that was created before is not stopped while slots change, so that stores of its
    /// guest may be missed; it cannot reach memory that has been freed.
    ///
    /// Set up the rest of the machine (an interrupt controller, a TSS address) through
    /// [`fd`](Self::fd), before or after.
    ///
    /// # Errors
    ///
    /// None at present.
    pub fn new(fd: VmFd) -> Result<Arc<Self>, KvmError> {
        Self::with_config(fd, KvmConfig::default())
    }

    /// As [`with_config`](Self::with_config), over a virtual machine that the caller keeps.
    ///
    /// The caller may have made it as he likes, and goes on to use it: for interrupt controllers,
    /// for vCPUs ([`adopt_vcpu`](Self::adopt_vcpu)), also for memory slots below
    /// [`KvmConfig::first_slot`] at addresses where the map has no RAM. He leaves the others alone,
    /// and their logs, and KVM_RESET_DIRTY_RINGS: whoever takes a log takes it from its clients.
    /// The capabilities by which KVM tracks written pages are switched on here, before there is a
    /// vCPU. They may have been on: manual protection is switched as configured, but rings stay, so
    /// that a virtual machine that had some is refused ([`KvmError::Tracking`]).
    ///
    /// # Errors
    ///
    /// As [`with_config`](Self::with_config); [`KvmError::SlotsTaken`] if another `KvmVm` has slots
    /// of this virtual machine with the same numbers.
    pub fn over(fd: Arc<VmFd>, config: KvmConfig) -> Result<Arc<Self>, KvmError> {
        Self::build(fd, &config)
    }

    /// As [`new`](Self::new), with a configuration.
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
    /// [`KvmError::Tracking`] if KVM cannot track pages as configured, [`KvmError::Config`] if a
    /// size is zero or no multiple of its unit; [`KvmError::Signal`], [`KvmError::SignalTaken`] and
    /// [`KvmError::SignalUnhandled`] if the signal for vCPUs cannot be used;
    /// [`KvmError::SlotLimit`] if there is no slot from the first one on.
    pub fn with_config(fd: VmFd, config: KvmConfig) -> Result<Arc<Self>, KvmError> {
        Self::build(Arc::new(fd), &config)
    }

    fn build(fd: Arc<VmFd>, config: &KvmConfig) -> Result<Arc<Self>, KvmError> {
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
        let owned = OwnedSlots::claim(&fd, config.first_slot)?;
        prepare_signal(config.kick_signal)?;
        let chosen = choose(&fd, config)?;
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
        let first = config.first_slot;
        let left = slots.saturating_sub(usize::try_from(first).unwrap_or(usize::MAX));
        if left == 0 {
            return Err(KvmError::SlotLimit { needed: first as usize + 1, limit: slots });
        }
        let limit = left.min(config.slot_limit);
        log::info!("written pages are tracked by {chosen}");
        log::debug!("KVM has {slots} memory slots, of which up to {limit} are used");
        #[cfg(target_arch = "x86_64")]
        if let Err(error) = crate::sys::ioctl::listed_msrs() {
            log::debug!("states of vCPUs cannot be saved yet: {error}");
        }
        let slots = Slots::new(limit, most, mode).first_slot(first);
        let machine = Machine::new(fd, owned, chosen, config.pml_flush_interval, slots);
        let (machine, limit) = (Arc::new(machine), Arc::default());
        Ok(Arc::new(Self { machine, limit, kick_signal: config.kick_signal }))
    }

    /// How written pages are tracked, and why so.
    pub fn dirty_tracking(&self) -> &DirtyTrackingMode {
        self.machine.chosen()
    }

    /// The ioctls of the machine for what this crate does not do: interrupt controllers,
    /// clocks, irqfds.
    pub fn fd(&self) -> VmIoctls<'_> {
        VmIoctls::new(self.machine.fd())
    }

    /// A vCPU that sees `buses`.
    ///
    /// # Errors
    ///
    /// [`KvmError::CreateVcpu`], [`KvmError::Signal`].
    pub fn create_vcpu(self: &Arc<Self>, id: u64, buses: Buses) -> Result<Vcpu, KvmError> {
        let fd = self.machine.fd().create_vcpu(id);
        let fd = fd.map_err(|error| KvmError::CreateVcpu { id, source: error.into() })?;
        Ok(Vcpu::new(self.adopt_vcpu(id, fd, Some(&buses))?, buses))
    }

    /// Takes a vCPU of this virtual machine that the caller has made, and whose exits he handles.
    ///
    /// `id` names it in errors. `buses` are where coalesced writes go to; without any, the map must
    /// coalesce none. Let a vCPU not run before it is taken: what its guest stores may be missed.
    ///
    /// # Errors
    ///
    /// [`KvmError::CreateVcpu`] if what KVM shares with it cannot be mapped, [`KvmError::NoBus`],
    /// [`KvmError::Signal`], [`KvmError::SignalTaken`], [`KvmError::SignalUnhandled`].
    pub fn adopt_vcpu(
        &self,
        id: u64,
        fd: VcpuFd,
        buses: Option<&Buses>,
    ) -> Result<GuardedVcpu, KvmError> {
        let shared = VcpuShared::new(id, &fd, self.kick_signal)?;
        let ring = self.machine.add(&fd, &shared, buses)?;
        self.limit.add(&shared, ring.number);
        Ok(GuardedVcpu::new(fd, shared, self.machine.clone(), ring))
    }

    /// Stops all vCPUs: when this returns, none executes guest code, and none handles an exit.
    /// Accesses that guests had begun are complete. The vCPUs run again when the guard is dropped;
    /// if several guards exist, the last one.
    ///
    /// # Errors
    ///
    /// [`KvmError::PauseTimeout`] if one does not stop within `timeout` (a device's
    /// handler takes its time), and [`KvmError::PauseFromVcpu`].
    pub fn pause(&self, timeout: Duration) -> Result<PauseGuard, KvmError> {
        self.machine.gate().pause(timeout)
    }

    /// Limits how many bytes of pages each vCPU may dirty per second, as its ring counts them: a
    /// page counts when it is written for the first time since it was last harvested. A vCPU that
    /// dirties more is blocked in between ([`DirtyLogStats::throttled`] has the time); a kick or a
    /// pause does not wait for that. `None`, the default, is no limit. While nothing is logged, no
    /// page counts.
    ///
    /// The limit holds over a second or more: a thread polls the rings every millisecond, and a
    /// vCPU is blocked afterwards for what it dirtied too much until then. A vCPU that dirties less
    /// saves up 20 ms of the limit at most. With PML the CPU buffers up to 512 written pages, which
    /// are counted when they are flushed: when the buffer is full, or the guest exits.
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
    /// [`KvmError::NoRings`] if written pages are not tracked by dirty rings, [`KvmError::Config`]
    /// for a limit of 0, [`KvmError::LimitThread`]. The limit is unchanged then.
    pub fn set_dirty_limit(self: &Arc<Self>, bytes: Option<u64>) -> Result<(), KvmError> {
        self.check_rings("A dirty limit")?;
        if bytes == Some(0) {
            return Err(KvmError::Config { what: "A dirty limit", unit: 1, found: 0 });
        }
        self.limit.set(&self.machine, bytes).map_err(|source| KvmError::LimitThread { source })
    }

    fn check_rings(&self, what: &'static str) -> Result<(), KvmError> {
        match self.machine.chosen().tracking {
            DirtyTracking::Ring { .. } => Ok(()),
            tracking => Err(KvmError::NoRings { what, tracking }),
        }
    }

    /// Stops all vCPUs before they have dirtied more than `pages` pages together, counted from
    /// now: [`Vcpu::run`] returns [`VcpuEvent::DirtyBound`](crate::VcpuEvent::DirtyBound), and
    /// does so again until the bound is set anew. `None`, the default, is no bound.
    ///
    /// A vCPU dirties no more pages than its ring has entries before the rings are looked at: they
    /// stop when every ring, filled once more, could bring the sum past the bound. So `pages` is at
    /// least the entries of all rings, and with one vCPU and as many pages as entries, it stops
    /// when its ring is full. They may stop with as many pages fewer: KVM calls a ring full with 64
    /// entries left, or with 576 where there is PML; and a page counts again when it is written
    /// after a sync, and with each store that KVM emulates.
    ///
    /// What devices write does not count, nor does anything while nothing is logged. If KVM loses
    /// entries ([`DirtyLogStats::ring_overruns`]), all pages count as written, and the vCPUs stop.
    /// With another way of tracking, look at a log from time to time.
    ///
    /// ```no_run
    /// # use kvm_accel::{KvmError, KvmVm, Vcpu, VcpuEvent};
    /// # fn example(vm: &std::sync::Arc<KvmVm>, vcpu: &mut Vcpu) -> Result<(), KvmError> {
    /// vm.set_dirty_bound(Some(4096))?; // 16 MiB since the checkpoint
    /// if vcpu.run()? == VcpuEvent::DirtyBound {
    ///     // Take a checkpoint or go back to one; then set the bound again.
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`KvmError::NoRings`], [`KvmError::DirtyBound`], and those of taking the rings. The bound is
    /// unchanged then.
    pub fn set_dirty_bound(&self, pages: Option<u64>) -> Result<(), KvmError> {
        self.check_rings("A dirty bound")?;
        self.machine.set_dirty_bound(pages)
    }

    /// How many bytes per second each vCPU may dirty, if that is limited.
    pub fn dirty_limit(&self) -> Option<u64> {
        self.limit.get()
    }

    /// Passes the writes that KVM has coalesced to their devices. vCPUs do this after each exit;
    /// call it before reading the state of a device whose guest may not exit for long.
    ///
    /// Calls the handlers of devices, one thread at a time: do not hold a lock that one of them
    /// takes. Within a device's handler, it stops at the first write to that same device, which
    /// stays queued with all later ones; within a handler that is called for a coalesced write it
    /// does nothing. A handler may hold its own device's lock meanwhile only if the device has no
    /// coalesced ranges and no other device uses it.
    pub fn flush_coalesced(&self) {
        self.machine.flush_coalesced();
    }

    /// The listener of the I/O ports' address space: it registers ioeventfds and coalesced ranges
    /// of ports with KVM. Exits for ports are handled without it too. Keep the `Arc` to remove the
    /// listener again.
    ///
    /// ```no_run
    /// # fn example(
    /// #     memory: &memory_region::MemoryMap,
    /// #     ports: &memory_region::AddressSpace,
    /// #     vm: std::sync::Arc<kvm_accel::KvmVm>,
    /// # ) -> Result<(), memory_region::MapError> {
    /// memory.add_listener(ports, vm.pio_listener())?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn pio_listener(self: &Arc<Self>) -> Arc<dyn MemoryListener> {
        Arc::new(Ports(self.machine.clone()))
    }

    /// What tracking has cost so far.
    pub fn dirty_log_stats(&self) -> DirtyLogStats {
        DirtyLogStats { throttled: self.limit.waited(), ..self.machine.dirty_log_stats() }
    }

    /// The memory slots, in the order of their addresses.
    pub fn slots(&self) -> Vec<SlotInfo> {
        self.machine.slots()
    }
}

impl MemoryListener for KvmVm {
    fn name(&self) -> &str {
        "kvm"
    }

    fn commit(&self, change: &ViewChange) -> Result<(), ListenerError> {
        Ok(self.machine.commit(change)?)
    }

    fn sync(&self, section: &Section) -> Result<(), ListenerError> {
        Ok(self.machine.sync(section.start())?)
    }

    /// Syncs every slot that KVM has, whichever view is published at this moment.
    fn sync_all(&self) -> Result<bool, ListenerError> {
        self.machine.sync_all()?;
        Ok(true)
    }

    fn log_clear(&self, section: &Section, bytes: Range<u64>) -> Result<(), ListenerError> {
        Ok(self.machine.clear(section.start(), &bytes)?)
    }
}

/// A machine as the listener of its ports.
struct Ports(Arc<Machine>);

impl MemoryListener for Ports {
    fn name(&self) -> &str {
        "kvm ports"
    }

    fn commit(&self, change: &ViewChange) -> Result<(), ListenerError> {
        Ok(self.0.commit_ports(change)?)
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
