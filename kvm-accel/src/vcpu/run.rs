//! A virtual processor: runs guest code, and turns its exits into accesses of the buses.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use kvm_bindings::KVM_EXIT_DIRTY_RING_FULL;
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::bus::buses::{Buses, log_bus_error};
use crate::dirty_ring::set::RingOfVcpu;
use crate::error::KvmError;
use crate::exclusion::gate::Gate;
use crate::exclusion::kick::VcpuShared;
use crate::exclusion::run_state::VcpuMode;
use crate::machine::Machine;
use crate::sys::ioctl::{self, PortExit};
#[cfg(target_arch = "x86_64")]
use crate::vcpu::capabilities::Capabilities;
#[cfg(target_arch = "x86_64")]
use crate::vcpu::run_page::RunPage;

/// Why [`Vcpu::run`] returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VcpuEvent {
    /// [`VcpuKicker::kick`] was called.
    Kicked,
    /// The vCPUs have dirtied what they may:
    /// [`KvmVm::set_dirty_bound`](crate::KvmVm::set_dirty_bound).
    DirtyBound,
    /// The guest halted, and no interrupt controller in the kernel waits for it.
    Halted,
    /// The guest shut down: a triple fault, on x86.
    Shutdown,
    /// The guest asked for a reset or for power-off (KVM_SYSTEM_EVENT_*).
    SystemEvent(u32),
    /// KVM could not enter the guest; the hardware's reason.
    FailEntry(u64),
    /// KVM could not go on (KVM_INTERNAL_ERROR_*); 1 is an instruction that its
    /// emulator does not know.
    InternalError(u32),
    /// An exit that this loop does not handle.
    Unhandled(String),
}

/// A virtual processor, owned by the thread that runs it.
pub struct Vcpu {
    fd: VcpuFd,
    shared: Arc<VcpuShared>,
    machine: Arc<Machine>,
    buses: Buses,
    /// Its dirty ring, if there are rings.
    ring: RingOfVcpu,
    /// The last exit left an access that KVM completes at the next KVM_RUN.
    incomplete: bool,
    /// The event that the last run did not return because a device's handler panicked.
    pending_event: Option<VcpuEvent>,
    /// The next run takes registers from the page shared with KVM, which has them instead of KVM.
    #[cfg(target_arch = "x86_64")]
    registers_in_page: bool,
    #[cfg(target_arch = "x86_64")]
    capabilities: Capabilities,
}

impl Vcpu {
    pub(crate) fn new(
        fd: VcpuFd,
        shared: Arc<VcpuShared>,
        machine: Arc<Machine>,
        buses: Buses,
        ring: RingOfVcpu,
    ) -> Self {
        #[cfg(target_arch = "x86_64")]
        let capabilities = Capabilities::of(machine.fd());
        Self {
            fd,
            shared,
            machine,
            buses,
            ring,
            incomplete: false,
            pending_event: None,
            #[cfg(target_arch = "x86_64")]
            registers_in_page: false,
            #[cfg(target_arch = "x86_64")]
            capabilities,
        }
    }

    /// KVM's descriptor of the vCPU, for its registers.
    ///
    /// Shared only: with the descriptor itself, or exclusive access to it, safe code could run the
    /// guest while the machine changes its slots, or swap in another vCPU's descriptor:
    ///
    /// ```compile_fail,E0596
    /// fn swap(vcpu: &mut kvm_accel::Vcpu, other: &mut kvm_accel::kvm_ioctls::VcpuFd) {
    ///     std::mem::swap(vcpu.fd(), other);
    /// }
    /// ```
    /// ```compile_fail,E0596
    /// fn run(vcpu: &mut kvm_accel::Vcpu) {
    ///     let _ = vcpu.fd().run();
    /// }
    /// ```
    ///
    /// [`run_page`](Self::run_page) has the fields of the page shared with KVM that may be set.
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// The fields of the page shared with KVM that the owner of a vCPU sets between two runs.
    #[cfg(target_arch = "x86_64")]
    pub fn run_page(&mut self) -> RunPage<'_> {
        RunPage::new(&mut self.fd)
    }

    /// Whether KVM has an access of the guest to complete.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn is_incomplete(&self) -> bool {
        self.incomplete
    }

    /// Whether the next run returns the event of the last one.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn owes_event(&self) -> bool {
        self.pending_event.is_some()
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn machine(&self) -> &Machine {
        &self.machine
    }

    #[cfg(target_arch = "x86_64")]
    pub(super) fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// Whether the next run takes registers from the page shared with KVM.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_registers_in_page(&self) -> bool {
        self.registers_in_page
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn set_registers_in_page(&mut self, are_there: bool) {
        self.registers_in_page = are_there;
    }

    /// The number it was created with.
    pub fn id(&self) -> u64 {
        self.shared.id
    }

    /// A handle by which other threads make [`run`](Self::run) return.
    pub fn kicker(&self) -> VcpuKicker {
        VcpuKicker { shared: self.shared.clone(), gate: self.machine.gate().clone() }
    }

    /// Runs guest code, and turns its exits into accesses of the buses, until an event that this
    /// loop does not handle. Waits while the machine is paused.
    ///
    /// Unblocks the first real-time signal, which interrupts KVM_RUN, for the calling thread:
    /// system calls in a device's handler may fail with EINTR.
    ///
    /// # Errors
    ///
    /// [`KvmError::Run`] if KVM refuses, [`KvmError::Signal`]; with dirty rings, the errors of
    /// harvesting a full one.
    pub fn run(&mut self) -> Result<VcpuEvent, KvmError> {
        self.run_with(|exit| Some(VcpuEvent::Unhandled(format!("{exit:?}"))))
    }

    /// As [`run`](Self::run), with `other` called for the exits that this crate does not handle
    /// (hypercalls, MSRs, debug exits, an interrupt window that was requested, ...).
    ///
    /// `other` fills in what KVM expects and returns `None` to go on, or the event that this call
    /// returns.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn run_with(
        &mut self,
        mut other: impl FnMut(VcpuExit<'_>) -> Option<VcpuEvent>,
    ) -> Result<VcpuEvent, KvmError> {
        /// Parks the vCPU however the run ends, also by a device's panic: a pause must not wait for
        /// a thread that is gone.
        struct Rest<'a>(&'a Gate, &'a VcpuShared);
        impl Drop for Rest<'_> {
            fn drop(&mut self) {
                self.0.announce(self.1, VcpuMode::Parked);
                self.1.detach_thread();
            }
        }
        let (shared, gate) = (self.shared.clone(), self.machine.gate().clone());
        shared.attach_thread()?;
        let _rest = Rest(&gate, &shared);
        if self.incomplete && !self.wait_for_a_pause() {
            return Ok(VcpuEvent::Kicked);
        }
        if let Some(event) = self.pending_event.take() {
            return Ok(event);
        }
        loop {
            let waits = || gate.is_pause_wanted() || shared.is_throttled();
            let is_bound = self.machine.is_dirty_bound_reached();
            // Complete the guest's access first: a paused or returned vCPU has no access under way.
            if shared.is_kicked() || is_bound || waits() {
                if let Some(event) = self.complete(&mut other)? {
                    return Ok(event);
                }
                if shared.take_kick() {
                    return Ok(VcpuEvent::Kicked);
                }
                if is_bound {
                    return Ok(VcpuEvent::DirtyBound);
                }
                gate.wait_while(&shared, VcpuMode::Parked, || waits() && !shared.is_kicked());
                continue;
            }
            // As `Host`, not `Parked`: a pause has to wait for an access that is still incomplete.
            if gate.is_exclusive() {
                gate.wait_while(&shared, VcpuMode::Host, || gate.is_exclusive());
                continue;
            }
            // A request may have come since the checks above: `enter` checks behind its fence.
            let machine = &self.machine;
            let wanted_out = || {
                // The bound last: it is reached while the gate is closed.
                shared.is_kicked()
                    || shared.is_throttled()
                    || gate.is_closed()
                    || machine.is_dirty_bound_reached()
            };
            if shared.state.enter(|| shared.clear_immediate_exit(), wanted_out) {
                if let Some(event) = self.enter_guest(&mut other)? {
                    return Ok(event);
                }
            } else {
                gate.announce(&shared, VcpuMode::Host);
            }
        }
    }

    /// Waits while the machine is paused, if an earlier run left an access incomplete: a device's
    /// handler panicked, or the caller was to handle the exit. The pause did not wait for this
    /// access, so KVM must not complete it meanwhile. Returns false if the vCPU was kicked; the
    /// access stays incomplete then.
    fn wait_for_a_pause(&self) -> bool {
        let (shared, gate) = (&self.shared, self.machine.gate());
        loop {
            // From here on a pause waits for this vCPU, or the check below sees the pause.
            gate.announce(shared, VcpuMode::Host);
            if !gate.is_pause_wanted() {
                return true;
            }
            gate.wait_while(shared, VcpuMode::Parked, || {
                gate.is_pause_wanted() && !shared.is_kicked()
            });
            if gate.is_pause_wanted() && shared.take_kick() {
                return false;
            }
        }
    }

    /// Lets KVM complete the access of the last exit without running the guest, so
    /// that the vCPU's state is whole.
    ///
    /// Completing may store to guest memory (a string instruction that reads a port),
    /// so it counts as being in the guest, and waits while slots change. With the
    /// immediate exit set it ends at once.
    fn complete(
        &mut self,
        other: &mut impl FnMut(VcpuExit<'_>) -> Option<VcpuEvent>,
    ) -> Result<Option<VcpuEvent>, KvmError> {
        let (shared, gate) = (self.shared.clone(), self.machine.gate().clone());
        // A string instruction may exit with its next access: then complete that one too.
        while self.incomplete {
            if !shared.state.enter(|| shared.set_immediate_exit(), || gate.is_exclusive()) {
                gate.wait_while(&shared, VcpuMode::Host, || gate.is_exclusive());
                continue;
            }
            if let Some(event) = self.enter_guest(other)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// Calls KVM_RUN and handles its exit. The state is `Guest` before, and `Host` after.
    fn enter_guest(
        &mut self,
        other: &mut impl FnMut(VcpuExit<'_>) -> Option<VcpuEvent>,
    ) -> Result<Option<VcpuEvent>, KvmError> {
        let mut flushed = Ok(());
        let event = self.run_once(other, &mut flushed);
        #[cfg(target_arch = "x86_64")]
        if self.registers_in_page {
            // A vCPU that waits to be started has not taken them.
            self.registers_in_page = self.fd.get_kvm_run().kvm_dirty_regs != 0;
        }
        // The handler of a coalesced write panicked. The exit is independent of it, and KVM reports
        // it only once: its event is kept for the next run.
        if let Err(panic) = flushed {
            self.pending_event = event.unwrap_or(None);
            resume_unwind(panic);
        }
        event
    }

    /// Calls KVM_RUN, flushes the writes coalesced until then, and handles the exit.
    fn run_once(
        &mut self,
        other: &mut impl FnMut(VcpuExit<'_>) -> Option<VcpuEvent>,
        flushed: &mut std::thread::Result<()>,
    ) -> Result<Option<VcpuEvent>, KvmError> {
        let moves = self.ring.moves();
        let exit = self.fd.run();
        // Out of the guest: a change of slots need not wait for the handlers below.
        self.machine.gate().announce(&self.shared, VcpuMode::Host);
        *flushed = catch_unwind(AssertUnwindSafe(|| self.machine.flush_coalesced()));
        // KVM_RUN has completed the access of the exit before.
        self.incomplete = false;
        let event = match exit {
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => return Ok(None),
            Err(error) => {
                return Err(KvmError::Run { id: self.shared.id, source: error.into() });
            }
            // The guest does not see a bus error: a failed read returns all ones.
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.incomplete = true;
                log_bus_error(self.buses.memory.read(address, data));
                return Ok(None);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.incomplete = true;
                log_bus_error(self.buses.memory.write(address, data));
                return Ok(None);
            }
            Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => {
                self.incomplete = true;
                self.access_ports();
                return Ok(None);
            }
            Ok(VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL)) => {
                self.machine.gate().count_blocked(|| self.machine.ring_full(&self.ring, moves))?;
                return Ok(None);
            }
            Ok(VcpuExit::Intr) => return Ok(None),
            Ok(VcpuExit::Hlt) => VcpuEvent::Halted,
            Ok(VcpuExit::Shutdown) => VcpuEvent::Shutdown,
            Ok(VcpuExit::SystemEvent(event, _)) => VcpuEvent::SystemEvent(event),
            Ok(VcpuExit::FailEntry(reason, _)) => VcpuEvent::FailEntry(reason),
            Ok(VcpuExit::InternalError) => {
                VcpuEvent::InternalError(ioctl::internal_error(&mut self.fd))
            }
            Ok(exit) => {
                let whole = matches!(exit, VcpuExit::IrqWindowOpen | VcpuExit::Debug(_));
                self.incomplete = !whole;
                match other(exit) {
                    Some(event) => event,
                    None => return Ok(None),
                }
            }
        };
        log::debug!("vCPU {}: {event:?}", self.shared.id);
        Ok(Some(event))
    }

    /// The port accesses of the last exit: several of the same port when a string
    /// instruction made them.
    fn access_ports(&mut self) {
        let Some(PortExit { port, size, is_read, data }) = ioctl::port_exit(&mut self.fd) else {
            return;
        };
        for data in data.chunks_mut(size.max(1)) {
            let ports = &self.buses.ports;
            log_bus_error(if is_read { ports.read(port, data) } else { ports.write(port, data) });
        }
    }
}

/// Makes a vCPU's `run` return, from any thread.
#[derive(Clone, Debug)]
pub struct VcpuKicker {
    shared: Arc<VcpuShared>,
    gate: Arc<Gate>,
}

impl VcpuKicker {
    /// Makes the [`run`](Vcpu::run) that is under way, or the next one if there is none, return
    /// [`VcpuEvent::Kicked`]. Several kicks before that count as one. A vCPU that waits because the
    /// machine is paused returns too.
    pub fn kick(&self) {
        self.shared.kick();
        self.gate.wake();
    }
}

impl fmt::Debug for Vcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vcpu").field("id", &self.shared.id).finish_non_exhaustive()
    }
}
