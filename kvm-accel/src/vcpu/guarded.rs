//! A vCPU whose exits its owner handles, and what stands between his loop and KVM_RUN.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use kvm_bindings::KVM_EXIT_DIRTY_RING_FULL;
use kvm_ioctls::{VcpuExit, VcpuFd};
use memory_region::AddressSpace;

use crate::bus::buses::log_bus_error;
use crate::dirty_ring::set::RingOfVcpu;
use crate::error::KvmError;
use crate::exclusion::gate::Gate;
use crate::exclusion::kick::VcpuShared;
use crate::exclusion::run_state::VcpuMode;
use crate::machine::Machine;
use crate::sys::ioctl::{self, PortExit};
use crate::vcpu::VcpuArch;
#[cfg(target_arch = "x86_64")]
use crate::vcpu::x86_64::run_page::RunPage;

/// A vCPU that its owner made, and whose exits he handles, in a loop of his own.
///
/// It belongs to a machine as others do: it leaves the guest while slots change or the machine is
/// paused, can be kicked, and harvests its dirty ring when that is full. So it has the descriptor
/// for itself: nothing else can call KVM_RUN.
///
/// ```no_run
/// use std::sync::Arc;
///
/// use kvm_accel::kvm_ioctls::{Kvm, VcpuExit};
/// use kvm_accel::{KvmConfig, KvmVm, VcpuRun};
///
/// # fn example(
/// #     memory: &memory_region::MemoryMap,
/// #     system: &memory_region::AddressSpace,
/// # ) -> Result<(), Box<dyn std::error::Error>> {
/// let fd = Arc::new(Kvm::new()?.create_vm()?); // the caller's, who keeps it
/// let vm = KvmVm::over(fd.clone(), KvmConfig::default())?;
/// memory.add_listener(system, vm.clone())?;
/// let mut vcpu = vm.adopt_vcpu(0, fd.create_vcpu(0)?, None)?;
///
/// let mut runs = vcpu.run_loop()?; // on this thread, until it is dropped
/// loop {
///     match runs.run()? {
///         VcpuRun::Exit(VcpuExit::MmioWrite(address, data)) => {
///             println!("{data:?} to {address:#x}"); // the caller's bus
///         }
///         VcpuRun::Exit(VcpuExit::Hlt) | VcpuRun::Kicked => break,
///         VcpuRun::Exit(exit) => return Err(format!("{exit:?}").into()),
///         VcpuRun::Continue => {}
///         VcpuRun::DirtyBound => break,
///         other => return Err(format!("{other:?}").into()),
///     }
/// }
/// # Ok(())
/// # }
/// ```
pub struct GuardedVcpu {
    fd: VcpuFd,
    shared: Arc<VcpuShared>,
    machine: Arc<Machine>,
    /// Its dirty ring, if there are rings.
    ring: RingOfVcpu,
    /// The last exit left an access that KVM completes at the next KVM_RUN.
    incomplete: bool,
    arch: VcpuArch,
}

/// Why [`RunLoop::run`] returned.
#[derive(Debug)]
#[non_exhaustive]
pub enum VcpuRun<'a> {
    /// An exit that the caller handles before he calls again: what KVM asks for (a read from MMIO
    /// or a port, ...) is filled in then.
    Exit(VcpuExit<'a>),
    /// Nothing for the caller: he calls again. The vCPU was interrupted, has waited for the
    /// machine, or its ring was full.
    Continue,
    /// [`VcpuKicker::kick`] was called.
    Kicked,
    /// The vCPUs have dirtied what they may:
    /// [`KvmVm::set_dirty_bound`](crate::KvmVm::set_dirty_bound).
    DirtyBound,
}

impl GuardedVcpu {
    pub(crate) fn new(
        fd: VcpuFd,
        shared: Arc<VcpuShared>,
        machine: Arc<Machine>,
        ring: RingOfVcpu,
    ) -> Self {
        let arch = VcpuArch::new(machine.fd());
        Self { fd, shared, machine, ring, incomplete: false, arch }
    }

    /// KVM's descriptor of the vCPU, for its registers. Shared only, as
    /// [`Vcpu::fd`](crate::Vcpu::fd) is.
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// The fields of the page shared with KVM that the owner of a vCPU sets between two runs.
    #[cfg(target_arch = "x86_64")]
    pub fn run_page(&mut self) -> RunPage<'_> {
        RunPage::new(&mut self.fd)
    }

    /// The number it was made with.
    pub fn id(&self) -> u64 {
        self.shared.id
    }

    /// A handle by which other threads make [`RunLoop::run`] return.
    pub fn kicker(&self) -> VcpuKicker {
        VcpuKicker { shared: self.shared.clone(), gate: self.machine.gate().clone() }
    }

    /// Takes back kicks that no run has returned for.
    pub(super) fn forget_kick(&self) {
        self.shared.take_kick();
    }

    /// Begins to run the vCPU on the calling thread.
    ///
    /// Unblocks the signal that interrupts KVM_RUN for this thread: system calls of the caller may
    /// fail with EINTR.
    ///
    /// # Errors
    ///
    /// [`KvmError::Signal`].
    pub fn run_loop(&mut self) -> Result<RunLoop<'_>, KvmError> {
        self.shared.attach_thread()?;
        Ok(RunLoop {
            vcpu: self,
            has_run: false,
            accesses_ports: false,
            panic: None,
            on_this_thread: PhantomData,
        })
    }

    /// Whether KVM has an access of the guest to complete.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    pub(super) fn is_incomplete(&self) -> bool {
        self.incomplete
    }

    #[cfg(target_arch = "x86_64")]
    pub(super) fn machine(&self) -> &Machine {
        &self.machine
    }

    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    pub(super) fn arch(&self) -> &VcpuArch {
        &self.arch
    }

    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    pub(super) fn arch_mut(&mut self) -> &mut VcpuArch {
        &mut self.arch
    }
}

/// A vCPU that runs on the thread that has this, and stays there: between two calls of
/// [`run`](Self::run), the thread acts for the guest, and a pause waits for it. When this is
/// dropped, a pause does not.
///
/// ```compile_fail,E0277
/// fn elsewhere(mut runs: kvm_accel::RunLoop<'static>) {
///     std::thread::spawn(move || runs.run().map(drop));
/// }
/// ```
#[must_use = "the vCPU runs by this"]
pub struct RunLoop<'v> {
    vcpu: &'v mut GuardedVcpu,
    has_run: bool,
    /// KVM has just reported port accesses. What the shared page says of them is KVM's then: the
    /// caller had the descriptor to himself before.
    accesses_ports: bool,
    /// The handler of a coalesced write panicked with this, after the last KVM_RUN. The exit is
    /// independent of it, and KVM reports it only once: so the caller handles it first.
    panic: Option<Box<dyn Any + Send>>,
    /// The signal that interrupts the vCPU goes to the thread that made this.
    on_this_thread: PhantomData<*const ()>,
}

impl RunLoop<'_> {
    /// Calls KVM_RUN once: waits before while slots change or the machine is paused, and passes
    /// coalesced writes to their devices after it.
    ///
    /// # Errors
    ///
    /// [`KvmError::Run`] if KVM refuses; with dirty rings, the errors of harvesting a full one.
    ///
    /// # Panics
    ///
    /// With the panic of a device's handler to which it passed a coalesced write, at the next call.
    pub fn run(&mut self) -> Result<VcpuRun<'_>, KvmError> {
        self.accesses_ports = false;
        if let Some(panic) = self.panic.take() {
            resume_unwind(panic);
        }
        if !self.has_run && self.vcpu.incomplete && !self.wait_for_a_pause() {
            return Ok(VcpuRun::Kicked);
        }
        self.has_run = true;
        let GuardedVcpu { fd, shared, machine, ring, incomplete, .. } = &mut *self.vcpu;
        let (shared, gate) = (&**shared, machine.gate());
        let waits = || gate.is_pause_wanted() || shared.is_throttled();
        let is_bound = machine.is_dirty_bound_reached();
        if shared.is_kicked() || is_bound || waits() {
            if !*incomplete {
                if shared.take_kick() {
                    return Ok(VcpuRun::Kicked);
                }
                // A pause first: whoever calls again at his bound is to be paused all the same.
                if waits() {
                    gate.wait_while(shared, VcpuMode::Parked, || waits() && !shared.is_kicked());
                    return Ok(VcpuRun::Continue);
                }
                return Ok(if is_bound { VcpuRun::DirtyBound } else { VcpuRun::Continue });
            }
            // A paused or returned vCPU has no access under way: KVM completes it first, without
            // running the guest, as the immediate exit is set. That may store to guest memory (a
            // string instruction that reads a port), so it counts as being in the guest, and waits
            // while slots change. A string instruction may exit with its next access.
            if !shared.state.enter(|| shared.set_immediate_exit(), || gate.is_exclusive()) {
                gate.wait_while(shared, VcpuMode::Host, || gate.is_exclusive());
                return Ok(VcpuRun::Continue);
            }
        } else {
            // As `Host`, not `Parked`: a pause has to wait for an access that is incomplete.
            if gate.is_exclusive() {
                gate.wait_while(shared, VcpuMode::Host, || gate.is_exclusive());
                return Ok(VcpuRun::Continue);
            }
            // A request may have come since the checks above: `enter` checks behind its fence.
            let wanted_out = || {
                // The bound last: it is reached while the gate is closed.
                shared.is_kicked()
                    || shared.is_throttled()
                    || gate.is_closed()
                    || machine.is_dirty_bound_reached()
            };
            if !shared.state.enter(|| shared.clear_immediate_exit(), wanted_out) {
                gate.announce(shared, VcpuMode::Host);
                return Ok(VcpuRun::Continue);
            }
        }
        let moves = ring.moves();
        let exit = fd.run();
        // Out of the guest: a change of slots need not wait for the handlers below.
        gate.announce(shared, VcpuMode::Host);
        self.panic = catch_unwind(AssertUnwindSafe(|| machine.flush_coalesced())).err();
        // KVM_RUN has completed the access of the exit before.
        *incomplete = false;
        match exit {
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                Ok(VcpuRun::Continue)
            }
            Err(error) => Err(KvmError::Run { id: shared.id, source: error.into() }),
            Ok(VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL)) => {
                gate.count_blocked(|| machine.ring_full(ring, moves))?;
                Ok(VcpuRun::Continue)
            }
            Ok(VcpuExit::Intr) => Ok(VcpuRun::Continue),
            Ok(exit) => {
                *incomplete = leaves_access(&exit);
                self.accesses_ports = matches!(exit, VcpuExit::IoIn(..) | VcpuExit::IoOut(..));
                Ok(VcpuRun::Exit(exit))
            }
        }
    }

    /// Passes the port accesses of the last exit, if it is one of `VcpuExit::IoIn` or
    /// `VcpuExit::IoOut`, to a bus: several of the same port when a string instruction made them,
    /// which the exit itself does not tell.
    pub fn access_ports(&mut self, ports: &AddressSpace) {
        if !self.accesses_ports {
            return;
        }
        let Some(PortExit { port, size, is_read, data }) = ioctl::port_exit(&mut self.vcpu.fd)
        else {
            return;
        };
        for data in data.chunks_mut(size.max(1)) {
            log_bus_error(if is_read { ports.read(port, data) } else { ports.write(port, data) });
        }
    }

    /// The descriptor, for registers.
    pub fn fd(&self) -> &VcpuFd {
        &self.vcpu.fd
    }

    /// The fields of the page shared with KVM that the owner of a vCPU sets between two runs.
    #[cfg(target_arch = "x86_64")]
    pub fn run_page(&mut self) -> RunPage<'_> {
        self.vcpu.run_page()
    }

    /// The suberror of the last exit, if that is an internal error.
    pub(super) fn internal_error(&mut self) -> u32 {
        ioctl::internal_error(&mut self.vcpu.fd)
    }

    /// The panic that the next [`run`](Self::run) would go on with.
    pub(super) fn take_panic(&mut self) -> Option<Box<dyn Any + Send>> {
        self.panic.take()
    }

    /// Waits while the machine is paused, if an earlier loop left an access incomplete: a device's
    /// handler panicked, or the caller left while he handled an exit. The pause did not wait for
    /// this access, so KVM must not complete it meanwhile. Returns false if the vCPU was kicked;
    /// the access stays incomplete then.
    fn wait_for_a_pause(&self) -> bool {
        let (shared, gate) = (&self.vcpu.shared, self.vcpu.machine.gate());
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
}

/// Whether KVM completes an access of the guest after this exit.
fn leaves_access(exit: &VcpuExit<'_>) -> bool {
    !matches!(
        exit,
        VcpuExit::Hlt
            | VcpuExit::Shutdown
            | VcpuExit::SystemEvent(..)
            | VcpuExit::FailEntry(..)
            | VcpuExit::InternalError
            | VcpuExit::IrqWindowOpen
            | VcpuExit::Debug(_)
    )
}

/// Parks the vCPU however the loop ends, also by a panic: a pause must not wait for a thread that
/// is gone.
impl Drop for RunLoop<'_> {
    fn drop(&mut self) {
        let GuardedVcpu { arch, fd, .. } = &mut *self.vcpu;
        arch.loop_ended(fd);
        self.vcpu.machine.gate().announce(&self.vcpu.shared, VcpuMode::Parked);
        self.vcpu.shared.detach_thread();
        if self.panic.is_some() {
            log::error!("vCPU {}: a device's handler has panicked", self.vcpu.id());
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
    /// Makes the run that is under way, or the next one if there is none, return
    /// ([`VcpuEvent::Kicked`](crate::VcpuEvent::Kicked), [`VcpuRun::Kicked`]). Several kicks before
    /// that count as one. A vCPU that waits because the machine is paused returns too.
    pub fn kick(&self) {
        self.shared.kick();
        self.gate.wake();
    }
}

impl fmt::Debug for GuardedVcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardedVcpu").field("id", &self.shared.id).finish_non_exhaustive()
    }
}

impl fmt::Debug for RunLoop<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunLoop").field("vcpu", &self.vcpu).finish_non_exhaustive()
    }
}
