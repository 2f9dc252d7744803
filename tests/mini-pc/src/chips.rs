//! The chips that KVM plays in the kernel: interrupt controllers, timer, and its own clock.

use std::sync::Arc;

use kvm_accel::kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_accel::{Chips, ChipsState, KvmVm};

use super::wires::IrqLine;
use machines::demo::AnyError;
use migration_ram::ValueDevice;

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

/// The chips as a device: after all that may raise an interrupt as it is restored, and before the
/// vCPU.
pub fn device(chips: &Arc<Chips>) -> ValueDevice<ChipsState> {
    let (save, restore) = (chips.clone(), chips.clone());
    ValueDevice::new(
        "chips",
        move || Ok(save.save()?),
        move |state: &ChipsState| Ok(restore.restore(state)?),
    )
}
