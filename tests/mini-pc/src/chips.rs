//! The chips that KVM plays in the kernel: interrupt controllers, timer, and its own clock.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_accel::KvmVm;
use kvm_accel::kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY,
    kvm_clock_data, kvm_irqchip, kvm_pit_config, kvm_pit_state2,
};

use super::wires::IrqLine;
use machines::demo::AnyError;
use migration_ram::{Device, DeviceError};

/// Three pages for KVM's own use on processors that cannot run real mode, and the page
/// before them; below the firmware, where no guest looks.
const TSS: usize = 0xfeff_d000;
const IDENTITY_MAP: u64 = 0xfeff_c000;

/// Makes the chips of `vm`, which has no vCPU yet: two PICs, an I/O APIC and a local APIC for
/// each vCPU, and the timer with the port of its speaker (0x61).
///
/// # Errors
///
/// If KVM has none of them.
pub fn create(vm: &KvmVm) -> Result<(), AnyError> {
    vm.fd().set_identity_map_address(IDENTITY_MAP)?;
    vm.fd().set_tss_address(TSS)?;
    vm.fd().create_irq_chip()?;
    vm.fd().create_pit2(kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() })?;
    Ok(())
}

/// The interrupt line of this number.
pub fn irq_line(vm: &Arc<KvmVm>, number: u32) -> IrqLine {
    let vm = vm.clone();
    IrqLine::new(move |raised| {
        if let Err(error) = vm.fd().set_irq_line(number, raised) {
            log::error!("Interrupt {number}: {error}");
        }
    })
}

/// The interrupt controllers, but for the local APIC, which is the vCPU's.
#[derive(Debug)]
pub struct InterruptControllers(pub Arc<KvmVm>);

impl Device for InterruptControllers {
    fn name(&self) -> &str {
        "interrupt controllers"
    }

    fn version(&self) -> u32 {
        1
    }

    fn save(&self) -> Result<Vec<u8>, DeviceError> {
        let chips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];
        let mut saved = Vec::new();
        for chip_id in chips {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            self.0.fd().get_irqchip(&mut chip)?;
            saved.push(chip);
        }
        Ok(serde_json::to_vec(&saved)?)
    }

    fn restore(&self, _: u32, state: &[u8]) -> Result<(), DeviceError> {
        let chips: [kvm_irqchip; 3] = serde_json::from_slice(state)?;
        chips.iter().try_for_each(|chip| Ok(self.0.fd().set_irqchip(chip)?))
    }
}

/// The timer (Intel 8254).
///
/// KVM counts whether the vCPU runs or not. While the machine is paused the timer is
/// [stopped](Self::stop), and its state is here, so that it raises no interrupt in a controller
/// that is being saved, or was restored. KVM has no way to go on with a count: channel 0 begins a
/// new one when it is started, and so do the others, whose load times are no part of the state.
pub struct Timer {
    vm: Arc<KvmVm>,
    stopped: Mutex<Option<kvm_pit_state2>>,
}

impl Timer {
    /// The timer of `vm`, which counts.
    pub fn new(vm: Arc<KvmVm>) -> Self {
        Self { vm, stopped: Mutex::default() }
    }

    fn stopped(&self) -> MutexGuard<'_, Option<kvm_pit_state2>> {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops it, if it is not stopped yet.
    pub(crate) fn stop(&self) -> Result<(), AnyError> {
        /// A strobe that waits for the gate, which on channel 0 is always open: KVM has no timer
        /// for this mode.
        const HARDWARE_STROBE: u8 = 5;
        let mut stopped = self.stopped();
        if stopped.is_none() {
            let state = self.vm.fd().get_pit2()?;
            let mut silent = state;
            silent.channels[0].mode = HARDWARE_STROBE;
            self.vm.fd().set_pit2(&silent)?;
            *stopped = Some(state);
        }
        Ok(())
    }

    /// Lets it count again, if it is stopped.
    pub(crate) fn start(&self) -> Result<(), AnyError> {
        let mut stopped = self.stopped();
        stopped.take().map_or(Ok(()), |state| Ok(self.vm.fd().set_pit2(&state)?))
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timer").field("is_stopped", &self.stopped().is_some()).finish()
    }
}

impl Device for Timer {
    fn name(&self) -> &str {
        "timer"
    }

    fn version(&self) -> u32 {
        1
    }

    fn save(&self) -> Result<Vec<u8>, DeviceError> {
        let state = self.stopped().map_or_else(|| self.vm.fd().get_pit2(), Ok)?;
        Ok(serde_json::to_vec(&state)?)
    }

    fn restore(&self, _: u32, state: &[u8]) -> Result<(), DeviceError> {
        let saved: kvm_pit_state2 = serde_json::from_slice(state)?;
        match &mut *self.stopped() {
            Some(stopped) => *stopped = saved,
            None => self.vm.fd().set_pit2(&saved)?,
        }
        Ok(())
    }
}

/// The clock that KVM shows to guests that know it.
#[derive(Debug)]
pub struct Clock(pub Arc<KvmVm>);

impl Device for Clock {
    fn name(&self) -> &str {
        "kvm clock"
    }

    fn version(&self) -> u32 {
        1
    }

    fn save(&self) -> Result<Vec<u8>, DeviceError> {
        Ok(serde_json::to_vec(&self.0.fd().get_clock()?.clock)?)
    }

    fn restore(&self, _: u32, state: &[u8]) -> Result<(), DeviceError> {
        let clock: u64 = serde_json::from_slice(state)?;
        let clock = kvm_clock_data { clock, ..Default::default() };
        Ok(self.0.fd().set_clock(&clock)?)
    }
}
