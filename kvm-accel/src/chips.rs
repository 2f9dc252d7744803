//! What KVM plays in the kernel beside the vCPUs: interrupt controllers, the interval timer, and
//! the clock that it shows to guests.

use std::sync::{Arc, Mutex};

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use kvm_ioctls::Error;
#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

use crate::error::KvmError;
use crate::locks::lock;
use crate::sys::vm_ioctls::VmIoctls;
use crate::vm::KvmVm;

/// The state of a virtual machine's chips in the kernel, of those that it has: two PICs, the I/O
/// APIC, the interval timer, and the clock (local APICs are in the states of the vCPUs).
///
/// [`Chips::save`] returns it. With the feature `serde` it is
/// serialized by serde, in any format.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct ChipsState {
    timer: Option<kvm_pit_state2>,
    /// The PICs and the I/O APIC, or none.
    controllers: Vec<kvm_irqchip>,
    /// Nanoseconds.
    clock: u64,
}

impl ChipsState {
    /// What KVM's clock showed, in nanoseconds.
    pub fn clock(&self) -> u64 {
        self.clock
    }
}

const CONTROLLERS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];
/// A mode of the timer (Intel 8254): a strobe that waits for the gate, which on channel 0 is always
/// open. KVM has no timer for it.
const HARDWARE_STROBE: u8 = 5;

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

/// The chips that KVM plays for a virtual machine, to be stopped with it, saved and restored.
///
/// KVM's timer counts whether a vCPU runs or not, and raises an interrupt in a controller that has
/// been saved already, or was just restored: [`stop`](Self::stop) it while the machine is paused.
/// KVM has no way to go on with a count: channel 0 begins a new one when it is started, and so do
/// the others, whose load times are no part of the state.
#[derive(Debug)]
pub struct Chips {
    vm: Arc<KvmVm>,
    /// The timer's state while it is stopped, if there is one.
    stopped: Mutex<Option<Option<kvm_pit_state2>>>,
}

const TIMER: &str = "interval timer";

impl Chips {
    /// The chips of a virtual machine, whose timer counts. Make one of these for each.
    pub fn new(vm: Arc<KvmVm>) -> Self {
        Self { vm, stopped: Mutex::default() }
    }

    /// Stops the timer, if it is not stopped yet. Call it when the vCPUs are.
    ///
    /// # Errors
    ///
    /// [`KvmError::Chip`] if KVM refuses.
    pub fn stop(&self) -> Result<(), KvmError> {
        let mut stopped = lock(&self.stopped);
        if stopped.is_none() {
            let vm = self.vm.fd();
            let timer = existing(TIMER, vm.get_pit2())?;
            if let Some(mut silent) = timer {
                silent.channels[0].mode = HARDWARE_STROBE;
                failed(TIMER, vm.set_pit2(&silent))?;
            }
            *stopped = Some(timer);
        }
        Ok(())
    }

    /// Lets the timer count again, if it is stopped. Call it before the vCPUs go on.
    ///
    /// # Errors
    ///
    /// [`KvmError::Chip`] if KVM refuses: it is stopped still.
    pub fn start(&self) -> Result<(), KvmError> {
        let mut stopped = lock(&self.stopped);
        if let Some(Some(timer)) = &*stopped {
            failed(TIMER, self.vm.fd().set_pit2(timer))?;
        }
        *stopped = None;
        Ok(())
    }

    /// The state of the chips, while no vCPU runs.
    ///
    /// # Errors
    ///
    /// [`KvmError::Chip`] if KVM refuses one.
    pub fn save(&self) -> Result<ChipsState, KvmError> {
        let vm = self.vm.fd();
        let timer = match *lock(&self.stopped) {
            Some(timer) => timer,
            None => existing(TIMER, vm.get_pit2())?,
        };
        let mut controllers = Vec::new();
        for chip_id in CONTROLLERS {
            controllers.extend(existing("interrupt controllers", controller(vm, chip_id))?);
        }
        let clock = failed("clock", vm.get_clock())?.clock;
        Ok(ChipsState { timer, controllers, clock })
    }

    /// Makes the chips what they were when a state was saved, of this virtual machine or of another
    /// with the same chips, while no vCPU runs. A timer that is stopped stays so.
    ///
    /// Restore what raises interrupts before this, and vCPUs after it: the I/O APIC may raise an
    /// interrupt in a local APIC, whose own state says what was raised.
    ///
    /// # Errors
    ///
    /// [`KvmError::Chip`] if KVM refuses one, which it does if this virtual machine has none.
    pub fn restore(&self, state: &ChipsState) -> Result<(), KvmError> {
        let vm = self.vm.fd();
        // The timer first: it raises interrupts.
        if let Some(timer) = &state.timer {
            match &mut *lock(&self.stopped) {
                Some(stopped @ Some(_)) => *stopped = Some(*timer),
                _ => failed(TIMER, vm.set_pit2(timer))?,
            }
        }
        for chip in &state.controllers {
            failed("interrupt controllers", vm.set_irqchip(chip))?;
        }
        let clock = kvm_clock_data { clock: state.clock, ..Default::default() };
        failed("clock", vm.set_clock(&clock))
    }
}
