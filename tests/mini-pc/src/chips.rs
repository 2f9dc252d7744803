//! The chips that KVM plays in the kernel: interrupt controllers, timer, and its own clock.

use std::sync::Arc;

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
#[derive(Debug)]
pub struct Timer(pub Arc<KvmVm>);

impl Device for Timer {
    fn name(&self) -> &str {
        "timer"
    }

    fn version(&self) -> u32 {
        1
    }

    fn save(&self) -> Result<Vec<u8>, DeviceError> {
        Ok(serde_json::to_vec(&self.0.fd().get_pit2()?)?)
    }

    fn restore(&self, _: u32, state: &[u8]) -> Result<(), DeviceError> {
        let saved: kvm_pit_state2 = serde_json::from_slice(state)?;
        Ok(self.0.fd().set_pit2(&saved)?)
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
