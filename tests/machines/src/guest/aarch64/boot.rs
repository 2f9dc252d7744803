//! From a fresh vCPU to the first instruction of a program.

use kvm_accel::KvmVm;
use kvm_accel::kvm_bindings::{
    KVM_ARM_VCPU_PSCI_0_2, KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_ARM64_SYSREG, KVM_REG_SIZE_U64,
    kvm_vcpu_init,
};
use kvm_accel::kvm_ioctls::VcpuFd;
use ram_block::RamBlock;

use super::asm::System;

/// One page of 512 entries of 1 GiB each: the first 512 GiB.
const PAGE_MAP: u64 = 0x8000;
const STACK_TOP: u64 = 0xf000;
/// Pages of the guest's page tables that its processor may write while it walks them: none, as the
/// access flag is set beforehand.
pub const TABLE_PAGES: u64 = 0;

/// How a vCPU of `vm` is initialized that may call the firmware, to end.
///
/// # Panics
///
/// If KVM does not say which processor it has.
pub fn initialize(vm: &KvmVm) -> kvm_vcpu_init {
    let mut init = kvm_vcpu_init::default();
    vm.fd().get_preferred_target(&mut init).unwrap();
    init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
    init
}

/// Puts `code` into `ram` (at guest address 0), at `address`, and makes `vcpu`, which is
/// initialized, begin it at exception level 1, all of the first 512 GiB mapped one to one, with
/// `arguments` in x0 to x5.
///
/// # Panics
///
/// If KVM refuses the registers, or RAM is smaller than 1 MiB.
pub fn boot_descriptor(
    vcpu: &VcpuFd,
    ram: &RamBlock,
    address: u64,
    code: &[u8],
    arguments: &[u64],
) {
    for gib in 0..512_u64 {
        // A block of normal memory (attribute 0), inner shareable, accessed.
        let entry = gib << 30 | 1 << 10 | 3 << 8 | 1;
        ram.write(PAGE_MAP + gib * 8, &entry.to_le_bytes()).unwrap();
    }
    ram.write(address, code).unwrap();

    let set = |number: u64, value: u64| {
        vcpu.set_one_reg(number, &value.to_le_bytes()).unwrap();
    };
    // Write-back memory, with a table of 4 KiB pages for 39 bits of address, whose lower half is
    // walked in write-back memory as well; physical addresses of 40 bits.
    set(system(System(3, 0, 10, 2, 0)), 0xff); // MAIR_EL1
    let walks = 1 << 8 | 1 << 10 | 3 << 12;
    set(system(System(3, 0, 2, 0, 2)), 25 | walks | 1 << 23 | 2 << 32); // TCR_EL1
    set(system(System(3, 0, 2, 0, 0)), PAGE_MAP); // TTBR0_EL1
    // With the bits that are one: the MMU, the data cache and the instruction cache are on.
    set(system(System(3, 0, 1, 0, 0)), 0x30d0_0800 | 1 | 1 << 2 | 1 << 12); // SCTLR_EL1
    for (n, argument) in (0..6).zip(arguments.iter().copied().chain(std::iter::repeat(0))) {
        set(core(8 * n), argument);
    }
    // After x0 to x30 come sp, pc and pstate; after these, SP_EL1.
    set(core(8 * 32), address);
    set(core(8 * 33), 0x3c5); // exception level 1 with its own stack, no interrupts
    set(core(8 * 34), STACK_TOP);
}

/// The number by which KVM knows a system register.
fn system(System(op0, op1, crn, crm, op2): System) -> u64 {
    let encoded = op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2;
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | u64::from(KVM_REG_ARM64_SYSREG | encoded)
}

/// The number of the core register at an offset, in bytes, of `struct kvm_regs`.
pub(super) fn core(offset: u64) -> u64 {
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | u64::from(KVM_REG_ARM_CORE) | (offset / 4)
}
