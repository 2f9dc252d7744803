//! From a fresh vCPU to the first instruction of a program.

use kvm_accel::kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment};
use kvm_accel::kvm_ioctls::VcpuFd;
use ram_block::RamBlock;

const PAGE_MAP: u64 = 0x1000;
const DIRECTORY_POINTERS: u64 = 0x2000;
/// Four pages, of 512 entries of 2 MiB each: the first 4 GiB.
const DIRECTORIES: u64 = 0x3000;
const STACK_TOP: u64 = 0xf000;
/// Pages of the guest's page tables. With nested paging the processor may mark them as written
/// whenever it walks them.
pub const TABLE_PAGES: u64 = 6;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;

/// Puts `code` into `ram` (at guest address 0), at `address`, and makes `vcpu` begin it in ring 3
/// of long mode, all of the first 4 GiB mapped one to one, with `arguments` in rdi, rsi, rdx, rcx,
/// r8 and r9.
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
    let table = PRESENT | WRITABLE | USER | ACCESSED;
    let entry = |address: u64, value: u64| ram.write(address, &value.to_le_bytes()).unwrap();
    entry(PAGE_MAP, DIRECTORY_POINTERS | table);
    for gib in 0..4 {
        let directory = DIRECTORIES + gib * 0x1000;
        entry(DIRECTORY_POINTERS + gib * 8, directory | table);
        for n in 0..512 {
            let address = gib << 30 | n << 21;
            entry(directory + n * 8, address | table | DIRTY | LARGE);
        }
    }
    ram.write(address, code).unwrap();

    let mut sregs = vcpu.get_sregs().unwrap();
    let code_segment = kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: 8 | 3,
        type_: 0b1011, // execute, read, accessed
        present: 1,
        dpl: 3,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data_segment = kvm_segment { selector: 16 | 3, type_: 0b0011, l: 0, db: 1, ..code_segment };
    sregs.cs = code_segment;
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = data_segment;
    }
    sregs.idt = kvm_dtable::default();
    sregs.cr3 = PAGE_MAP;
    sregs.cr4 = 1 << 5; // physical address extension
    sregs.cr0 = 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31; // PE, ET, NE, WP, PG
    sregs.efer = 1 << 8 | 1 << 10; // long mode enabled and active
    vcpu.set_sregs(&sregs).unwrap();

    let mut arguments = arguments.iter().copied().chain(std::iter::repeat(0));
    let mut next = || arguments.next().unwrap_or(0);
    let regs = kvm_regs {
        rip: address,
        rsp: STACK_TOP,
        rflags: 0x3002, // I/O privilege level 3
        rdi: next(),
        rsi: next(),
        rdx: next(),
        rcx: next(),
        r8: next(),
        r9: next(),
        ..Default::default()
    };
    vcpu.set_regs(&regs).unwrap();
}
