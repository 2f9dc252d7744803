//! The state of what KVM plays in the kernel beside the vCPUs: interrupt controllers, the interval
//! timer, and the clock that it shows to guests.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use kvm_ioctls::Error;
use serde::{Deserialize, Serialize};

use crate::error::KvmError;
use crate::sys::vm_ioctls::VmIoctls;
use crate::vm::KvmVm;

/// The state of a virtual machine's chips in the kernel, of those that it has: two PICs, the I/O
/// APIC, the PIT, and the clock (local APICs are in the states of the vCPUs).
///
/// [`KvmVm::save_chips`] returns it. It is serialized by serde, in any format.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChipsState {
    /// The PICs and the I/O APIC, or none.
    controllers: Vec<kvm_irqchip>,
    timer: Option<kvm_pit_state2>,
    /// Nanoseconds.
    clock: u64,
}

const CONTROLLERS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

fn failed<T>(part: &'static str, result: Result<T, Error>) -> Result<T, KvmError> {
    result.map_err(|error| KvmError::Chip { part, source: error.into() })
}

/// What KVM has of a part; nothing, if this virtual machine does not have it.
fn existing<T>(part: &'static str, result: Result<T, Error>) -> Result<Option<T>, KvmError> {
    match result {
        // KVM API, sections 4.26 and 4.71: no chip, or one that is not in the kernel.
        Err(error) if matches!(error.errno(), libc::ENXIO | libc::EINVAL) => Ok(None),
        result => failed(part, result).map(Some),
    }
}

fn controller(vm: VmIoctls<'_>, chip_id: u32) -> Result<kvm_irqchip, Error> {
    let mut chip = kvm_irqchip { chip_id, ..Default::default() };
    vm.get_irqchip(&mut chip).map(|()| chip)
}

impl KvmVm {
    /// The state of the chips that this virtual machine has in the kernel, while no vCPU runs.
    ///
    /// # Errors
    ///
    /// [`KvmError::Chip`] if KVM refuses one.
    pub fn save_chips(&self) -> Result<ChipsState, KvmError> {
        let vm = self.fd();
        let mut controllers = Vec::new();
        for chip_id in CONTROLLERS {
            controllers.extend(existing("interrupt controllers", controller(vm, chip_id))?);
        }
        let timer = existing("interval timer", vm.get_pit2())?;
        let clock = failed("clock", vm.get_clock())?.clock;
        Ok(ChipsState { controllers, timer, clock })
    }

    /// Makes the chips what they were when a state was saved, of this virtual machine or of another
    /// with the same chips, while no vCPU runs. The timer and the clock go on from there.
    ///
    /// Restore vCPUs after them: a controller that KVM is given may raise an interrupt in a local
    /// APIC, whose own state says what was raised.
    ///
    /// # Errors
    ///
    /// [`KvmError::Chip`] if KVM refuses one, which it does if this virtual machine has none.
    pub fn restore_chips(&self, state: &ChipsState) -> Result<(), KvmError> {
        let vm = self.fd();
        for chip in &state.controllers {
            failed("interrupt controllers", vm.set_irqchip(chip))?;
        }
        if let Some(timer) = &state.timer {
            failed("interval timer", vm.set_pit2(timer))?;
        }
        let clock = kvm_clock_data { clock: state.clock, ..Default::default() };
        failed("clock", vm.set_clock(&clock))
    }
}
