//! A vCPU's complete state, to be migrated, and back to an earlier one of its own.

use std::{fmt, io};

use kvm_bindings::{
    KVM_ARM_VCPU_SVE, kvm_mp_state, kvm_vcpu_events, kvm_vcpu_events__bindgen_ty_1, kvm_vcpu_init,
};
#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

use crate::error::KvmError;
use crate::sys::ioctl;
use crate::vcpu::aarch64::registers::{MPIDR, PC, Registers, SVE_VLS};
use crate::vcpu::guarded::GuardedVcpu;
use crate::vcpu::state::{RollBack, failed, impossible};

/// The state of a vCPU: how it was initialized, all registers that KVM lists for it (core, system,
/// vector and timer registers, those of KVM's firmware), an SError that is pending, and the
/// scheduling state (`mp_state`).
///
/// [`Vcpu::save`](crate::Vcpu::save) returns it, and [`Vcpu::restore`](crate::Vcpu::restore) gives
/// it to another vCPU. With the feature `serde` it is serialized by serde, in any format. A state
/// that was received may hold anything: KVM refuses values that it cannot take.
#[derive(Clone)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct VcpuState {
    init: kvm_vcpu_init,
    registers: Registers,
    /// An SError that is pending, if KVM tells.
    serror: Option<Serror>,
    mp_state: kvm_mp_state,
}

/// A pending SError, perhaps with its syndrome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
struct Serror {
    pending: bool,
    syndrome: Option<u64>,
}

impl VcpuState {
    /// The address of the next instruction.
    pub fn instruction_pointer(&self) -> u64 {
        self.registers.get(PC).unwrap_or(0)
    }
}

impl fmt::Debug for VcpuState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuState")
            .field("init", &self.init)
            .field("instruction_pointer", &format_args!("{:#x}", self.instruction_pointer()))
            .finish_non_exhaustive()
    }
}

impl GuardedVcpu {
    /// Initializes the vCPU as a processor with these features (KVM_ARM_VCPU_INIT), or resets it.
    /// The state needs them, and KVM does not tell them: so do it by this and not by
    /// [`fd`](Self::fd), before all else.
    ///
    /// ```no_run
    /// use kvm_accel::kvm_bindings::{KVM_ARM_VCPU_PSCI_0_2, kvm_vcpu_init};
    ///
    /// # fn example(
    /// #     vm: &kvm_accel::KvmVm,
    /// #     vcpu: &mut kvm_accel::GuardedVcpu,
    /// # ) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut init = kvm_vcpu_init::default();
    /// vm.fd().get_preferred_target(&mut init)?;
    /// init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
    /// vcpu.init(&init)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`KvmError::State`] if KVM refuses, which it does for other features than those of the
    /// first time.
    pub fn init(&mut self, init: &kvm_vcpu_init) -> Result<(), KvmError> {
        self.fd().vcpu_init(init).map_err(|error| {
            let kvm_vcpu_init { target, features } = init;
            let features = features[0];
            let why = format!("KVM refuses target {target} with features {features:#x}: {error}");
            impossible(self.id(), INIT, &why)
        })?;
        self.arch_mut().init = Some(*init);
        Ok(())
    }

    /// MPIDR_EL1: where the vCPU is among the others, by which an interrupt controller names it.
    ///
    /// # Errors
    ///
    /// [`KvmError::State`] if the vCPU is not initialized.
    pub fn mpidr(&self) -> Result<u64, KvmError> {
        let mut value = [0; 8];
        failed(self.id(), REGISTERS, self.fd().get_one_reg(MPIDR, &mut value))?;
        Ok(u64::from_ne_bytes(value))
    }

    /// Saves the vCPU's state, while it does not run.
    ///
    /// # Errors
    ///
    /// [`KvmError::State`] if KVM does not return a part of it, if the vCPU was not initialized by
    /// [`init`](Self::init), or if an access of the guest is not complete. After
    /// [`VcpuRun::Kicked`](crate::VcpuRun::Kicked), and when the guest has stopped itself, the
    /// state is complete.
    pub fn save(&self) -> Result<VcpuState, KvmError> {
        self.check_complete()?;
        let (id, fd) = (self.id(), self.fd());
        let init = self.arch().init.ok_or_else(|| impossible(id, INIT, NOT_INITIALIZED))?;
        Ok(VcpuState {
            init,
            registers: self.named(Registers::read(fd))?,
            serror: self.serror()?,
            mp_state: failed(id, MP_STATE, fd.get_mp_state())?,
        })
    }

    /// Makes this vCPU, which has not run yet, continue where the other one was saved. It is
    /// initialized with the features of that one, if it is not yet; its number among the others
    /// ([`mpidr`](Self::mpidr)) is a register like others.
    ///
    /// The virtual counter continues from its saved value, for all vCPUs of the machine.
    ///
    /// # Errors
    ///
    /// [`KvmError::State`] if KVM refuses a part of it (from another model of processor, of other
    /// features than this one was initialized with, or no state of a vCPU at all), or if this vCPU
    /// has run and an access of its guest is not complete. The vCPU is not fit to run then.
    pub fn restore(&mut self, state: &VcpuState) -> Result<(), KvmError> {
        self.check_complete()?;
        if !state.registers.is_whole() {
            return Err(impossible(self.id(), REGISTERS, "there are not as many values"));
        }
        self.init(&state.init)?;
        self.finalize(state)?;
        self.set(state, false)
    }

    /// Puts this vCPU, which may have run since, back to a state that was [saved](Self::save) of
    /// it. The virtual counter goes on from its saved value, too. KVM takes no registers with the
    /// next run here: all are set at once. ID registers, which KVM settles when a vCPU runs for the
    /// first time, stay what they are then.
    ///
    /// # Errors
    ///
    /// [`KvmError::State`] if KVM refuses a part of it, or if an access of the guest is not
    /// complete. The vCPU is not fit to run then; another call may succeed.
    pub fn roll_back(&mut self, state: &VcpuState, _: RollBack) -> Result<(), KvmError> {
        self.check_complete()?;
        let pending = |serror: Option<Serror>| serror.is_some_and(|serror| serror.pending);
        // KVM takes an SError back by a reset only.
        if pending(self.serror()?) && !pending(state.serror) {
            self.init(&state.init)?;
        }
        self.set(state, true)
    }

    /// Lets a vCPU with SVE have vectors of the same lengths: from then on it has its registers.
    fn finalize(&self, state: &VcpuState) -> Result<(), KvmError> {
        let (id, fd) = (self.id(), self.fd());
        if state.init.features[0] & 1 << KVM_ARM_VCPU_SVE == 0 || self.is_finalized() {
            return Ok(());
        }
        if let Some(lengths) = state.registers.bytes(SVE_VLS) {
            failed(id, VECTORS, fd.set_one_reg(SVE_VLS, lengths))?;
        }
        // 4.
        #[allow(clippy::cast_possible_wrap)]
        let sve = KVM_ARM_VCPU_SVE as i32;
        failed(id, VECTORS, fd.vcpu_finalize(&sve))
    }

    /// Before, a vCPU with SVE has no list of registers.
    fn is_finalized(&self) -> bool {
        ioctl::register_list(self.fd()).is_ok()
    }

    fn set(&self, state: &VcpuState, has_run: bool) -> Result<(), KvmError> {
        let (id, fd) = (self.id(), self.fd());
        self.named(state.registers.write(fd, has_run))?;
        if let Some(serror) = state.serror.filter(|serror| serror.pending) {
            failed(id, EVENTS, fd.set_vcpu_events(&serror.into()))?;
        }
        failed(id, MP_STATE, fd.set_mp_state(state.mp_state))
    }

    fn serror(&self) -> Result<Option<Serror>, KvmError> {
        if !self.arch().has_events {
            return Ok(None);
        }
        let events = failed(self.id(), EVENTS, self.fd().get_vcpu_events())?.exception;
        let syndrome = Some(events.serror_esr).filter(|_| events.serror_has_esr != 0);
        Ok(Some(Serror { pending: events.serror_pending != 0, syndrome }))
    }

    fn named<T>(&self, result: io::Result<T>) -> Result<T, KvmError> {
        result.map_err(|source| KvmError::State { id: self.id(), part: REGISTERS, source })
    }
}

impl From<Serror> for kvm_vcpu_events {
    fn from(Serror { pending, syndrome }: Serror) -> Self {
        let exception = kvm_vcpu_events__bindgen_ty_1 {
            serror_pending: pending.into(),
            serror_has_esr: syndrome.is_some().into(),
            serror_esr: syndrome.unwrap_or(0),
            ..Default::default()
        };
        Self { exception, ..Self::default() }
    }
}

const INIT: &str = "initialization";
const NOT_INITIALIZED: &str = "it was not initialized by `init`";
const VECTORS: &str = "lengths of SVE's vectors";
const REGISTERS: &str = "registers";
const EVENTS: &str = "pending SError";
const MP_STATE: &str = "scheduling state";
