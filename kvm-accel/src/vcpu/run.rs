//! The loop that turns a vCPU's exits into accesses of the buses.

use std::fmt;
use std::panic::resume_unwind;

use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::bus::buses::{Buses, log_bus_error};
use crate::error::KvmError;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::vcpu::VcpuState;
use crate::vcpu::guarded::{GuardedVcpu, VcpuKicker, VcpuRun};
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::vcpu::state::{RollBack, impossible};
#[cfg(target_arch = "x86_64")]
use crate::vcpu::x86_64::run_page::RunPage;

/// Why [`Vcpu::run`] returned.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
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
    guarded: GuardedVcpu,
    buses: Buses,
    /// The event that the last run did not return because a device's handler panicked.
    pending_event: Option<VcpuEvent>,
}

impl Vcpu {
    pub(crate) fn new(guarded: GuardedVcpu, buses: Buses) -> Self {
        Self { guarded, buses, pending_event: None }
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
    #[cfg_attr(
        target_arch = "x86_64",
        doc = "\n[`run_page`](Self::run_page) has the fields of the shared page that may be set."
    )]
    pub fn fd(&self) -> &VcpuFd {
        self.guarded.fd()
    }

    /// The fields of the page shared with KVM that the owner of a vCPU sets between two runs.
    #[cfg(target_arch = "x86_64")]
    pub fn run_page(&mut self) -> RunPage<'_> {
        self.guarded.run_page()
    }

    /// The number it was created with.
    pub fn id(&self) -> u64 {
        self.guarded.id()
    }

    /// A handle by which other threads make [`run`](Self::run) return.
    pub fn kicker(&self) -> VcpuKicker {
        self.guarded.kicker()
    }

    /// Takes back kicks that no run has returned for.
    pub(super) fn forget_kick(&self) {
        self.guarded.forget_kick();
    }

    /// Initializes the vCPU, or resets it: [`GuardedVcpu::init`].
    ///
    /// # Errors
    ///
    /// [`KvmError::State`].
    #[cfg(target_arch = "aarch64")]
    pub fn init(&mut self, init: &kvm_bindings::kvm_vcpu_init) -> Result<(), KvmError> {
        self.guarded.init(init)
    }

    /// Where the vCPU is among the others: [`GuardedVcpu::mpidr`].
    ///
    /// # Errors
    ///
    /// [`KvmError::State`].
    #[cfg(target_arch = "aarch64")]
    pub fn mpidr(&self) -> Result<u64, KvmError> {
        self.guarded.mpidr()
    }

    /// Saves the vCPU's state, while it does not run.
    ///
    /// # Errors
    ///
    /// [`KvmError::State`] if KVM does not return a part of it, if an access of the guest is not
    /// complete, or if the next run has an event to return first (a device's handler panicked).
    /// After [`VcpuEvent::Kicked`], and after a halt, the state is complete.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    pub fn save(&self) -> Result<VcpuState, KvmError> {
        self.check_event()?;
        self.guarded.save()
    }

    /// Makes this vCPU, which has not run yet, continue where the other one was saved:
    /// [`GuardedVcpu::restore`].
    ///
    /// # Errors
    ///
    /// [`KvmError::State`]. The vCPU is not fit to run then.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    pub fn restore(&mut self, state: &VcpuState) -> Result<(), KvmError> {
        self.check_event()?;
        self.guarded.restore(state)
    }

    /// Puts this vCPU, which may have run since, back to a state that was [saved](Self::save) of
    /// it: [`GuardedVcpu::roll_back`].
    ///
    /// # Errors
    ///
    /// [`KvmError::State`]. The vCPU is not fit to run then; another call may succeed.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    pub fn roll_back(&mut self, state: &VcpuState, when: RollBack) -> Result<(), KvmError> {
        self.check_event()?;
        self.guarded.roll_back(state, when)
    }

    /// An event which the next run would return belongs to the state that it began in.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fn check_event(&self) -> Result<(), KvmError> {
        match self.pending_event {
            None => Ok(()),
            Some(_) => Err(impossible(self.id(), "the last event", "no run has returned it")),
        }
    }

    /// Runs guest code, and turns its exits into accesses of the buses, until an event that this
    /// loop does not handle. Waits while the machine is paused.
    ///
    /// Unblocks the signal that interrupts KVM_RUN for the calling thread: system calls in a
    /// device's handler may fail with EINTR.
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
        if let Some(event) = self.pending_event.take() {
            return Ok(event);
        }
        let Self { guarded, buses, pending_event } = self;
        let id = guarded.id();
        let mut runs = guarded.run_loop()?;
        let event = loop {
            let exit = match runs.run()? {
                VcpuRun::Continue => continue,
                VcpuRun::Kicked => break VcpuEvent::Kicked,
                VcpuRun::DirtyBound => break VcpuEvent::DirtyBound,
                VcpuRun::Exit(exit) => exit,
            };
            match exit {
                // The guest does not see a bus error: a failed read returns all ones.
                VcpuExit::MmioRead(address, data) => {
                    log_bus_error(buses.memory.read(address, data));
                }
                VcpuExit::MmioWrite(address, data) => {
                    log_bus_error(buses.memory.write(address, data));
                }
                VcpuExit::IoIn(..) | VcpuExit::IoOut(..) => runs.access_ports(&buses.ports),
                VcpuExit::Hlt => break VcpuEvent::Halted,
                VcpuExit::Shutdown => break VcpuEvent::Shutdown,
                VcpuExit::SystemEvent(event, _) => break VcpuEvent::SystemEvent(event),
                VcpuExit::FailEntry(reason, _) => break VcpuEvent::FailEntry(reason),
                VcpuExit::InternalError => break VcpuEvent::InternalError(runs.internal_error()),
                exit => {
                    if let Some(event) = other(exit) {
                        break event;
                    }
                }
            }
        };
        // The handler of a coalesced write panicked. The exit is independent of it, and KVM reports
        // it only once: its event is kept for the next run.
        if let Some(panic) = runs.take_panic() {
            *pending_event = Some(event);
            drop(runs);
            resume_unwind(panic);
        }
        log::debug!("vCPU {id}: {event:?}");
        Ok(event)
    }
}

impl fmt::Debug for Vcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vcpu").field("id", &self.id()).finish_non_exhaustive()
    }
}
