//! A virtual machine of KVM that follows an address space.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kvm_ioctls::{Cap, VmFd};
use memory_region::{ListenerError, MemoryListener, Section, ViewChange};

use crate::error::{KvmError, io_error};
use crate::gate::{Gate, PauseGuard};
use crate::io_events::{self, Bus, Gathered};
use crate::kick::VcpuShared;
use crate::slots::{DirtyLogStats, SlotInfo, Slots};
use crate::vcpu::{Buses, Vcpu};

/// A virtual machine of KVM: memory slots that follow a flat view, and vCPUs.
///
/// Register it with [`MemoryMap::add_listener`](memory_region::MemoryMap::add_listener)
/// on the address space that its vCPUs see as memory; on one only.
pub struct KvmVm {
    fd: VmFd,
    slots: Mutex<Slots>,
    gate: Arc<Gate>,
    gathered: Gathered,
}

impl KvmVm {
    /// Takes over a virtual machine that has no memory slots yet.
    ///
    /// What else it needs (an interrupt controller, a TSS address) is set through
    /// [`fd`](Self::fd), before or after.
    ///
    /// # Errors
    ///
    /// None at present.
    pub fn new(fd: VmFd) -> Result<Arc<Self>, KvmError> {
        Self::with_slot_limit(fd, usize::MAX)
    }

    /// As [`new`](Self::new), with at most `limit` memory slots, however many KVM has.
    ///
    /// # Errors
    ///
    /// None at present.
    pub fn with_slot_limit(fd: VmFd, limit: usize) -> Result<Arc<Self>, KvmError> {
        // KVM reports 0 if it does not say: then there are 32 (KVM API, section 4.35).
        let most = match usize::try_from(fd.check_extension_int(Cap::NrMemslots)) {
            Ok(0) | Err(_) => 32,
            Ok(most) => most,
        };
        log::debug!("KVM has {most} memory slots, of which up to {limit} are used");
        let slots = Mutex::new(Slots::new(most.min(limit)));
        Ok(Arc::new(Self { fd, slots, gate: Arc::default(), gathered: Gathered::default() }))
    }

    /// KVM's descriptor of the machine, for what this crate does not do: interrupt
    /// controllers, clocks, irqfds.
    ///
    /// Not to be used for memory slots; for `get_dirty_log`, which would take bits that
    /// no client then gets; or for `create_vcpu`, as such a vCPU would run on while
    /// slots change.
    pub fn fd(&self) -> &VmFd {
        &self.fd
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
        let ring = self.gathered.attach(&self.fd, &fd, &buses);
        ring.map_err(|source| KvmError::CreateVcpu { id, source })?;
        self.gate.add(&shared);
        Ok(Vcpu::new(fd, shared, self.clone(), buses))
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

    /// Hands the writes that KVM has gathered over to their devices. This happens after
    /// each exit; call it before looking at a device whose guest may not exit for long.
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
        if Slots::needs_exclusion(change) || self.gathered.needs_exclusion(change) {
            self.gate.exclude(follow)
        } else {
            follow()
        }
    }

    /// What the dirty log has cost so far.
    pub fn dirty_log_stats(&self) -> DirtyLogStats {
        self.lock().stats
    }

    /// The memory slots, in the order of their addresses.
    pub fn slots(&self) -> Vec<SlotInfo> {
        self.lock().list()
    }
}

impl MemoryListener for KvmVm {
    fn name(&self) -> &str {
        "kvm"
    }

    fn commit(&self, change: &ViewChange) -> Result<(), ListenerError> {
        let slots = || self.lock().commit(&self.fd, change);
        Ok(self.follow(Bus::Memory, change, slots)?)
    }

    fn sync(&self, section: &Section) -> Result<(), ListenerError> {
        self.lock().harvest(&self.fd, section.start())?;
        Ok(())
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
