//! The state of a vCPU whose guest runs a guest of its own (SVM): L1 is the guest of these tests,
//! L2 is its guest, and L0 is KVM.
//!
//! Layouts and codes are those of AMD's manual, volume 2, appendices B and C.

use std::sync::Arc;

use integration_tests::harness::Test;
use kvm_accel::kvm_bindings::{KVM_MAX_CPUID_ENTRIES, KVM_STATE_NESTED_GUEST_MODE};
use kvm_accel::kvm_ioctls::Kvm;
use kvm_accel::{RollBack, Vcpu, VcpuEvent, VcpuState};
use machines::guest::{DATA, programs};
use machines::kick_port::KickPort;

use super::own_machine::Mirror;
use crate::on_kvm::machine::Machine;

pub const TESTS: &[Test] = &[
    ("a_nested_guest_goes_on_in_another_machine", a_nested_guest_goes_on_in_another_machine),
    ("a_nested_guest_is_rolled_back", a_nested_guest_is_rolled_back),
];

const RAM: u64 = 2 << 20;
/// The guest page tables of `boot`, which serve L1, and as nested page tables of L2.
const TABLES: u64 = 0x1000;
/// Pages that lead to the same lower tables: of L2, and of L1 after L2 has ended.
const L2_TABLES: u64 = DATA + 0x1000;
const L1_LAST_TABLES: u64 = DATA + 0x6000;
const VMCB: u64 = DATA + 0x2000;
const HOST_SAVE: u64 = DATA + 0x3000;
const L2_STACK: u64 = DATA + 0x5000;
const L2_CODE: u64 = 0x2_0000;
/// What L2 and L1 have done: see [`Done`].
const DONE: u64 = DATA;
/// A write to this port, which L1 does not intercept, ends a run.
const PORT: u64 = 0x510;
/// The passes of L2.
const PASSES: u64 = 6;
const EXIT_VMMCALL: u64 = 0x81;

/// Words that the guests keep at `DONE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Done {
    l2_passes: u64,
    l2_page_table: u64,
    /// Set by L1, after L2 has ended.
    l1_page_table: u64,
    exit_code: u64,
    l1_exits: u64,
}

impl Done {
    fn of(machine: &Machine) -> Self {
        let [l2_passes, l2_page_table, l1_page_table, exit_code, l1_exits] = machine.words(DONE);
        Self { l2_passes, l2_page_table, l1_page_table, exit_code, l1_exits }
    }

    fn in_l2(l2_passes: u64) -> Self {
        let l2_page_table = if l2_passes == 0 { 0 } else { L2_TABLES };
        Self { l2_passes, l2_page_table, l1_page_table: 0, exit_code: 0, l1_exits: 0 }
    }

    fn in_l1() -> Self {
        let l2 = Self::in_l2(PASSES);
        Self { l1_page_table: TABLES, exit_code: EXIT_VMMCALL, l1_exits: 1, ..l2 }
    }
}

/// Enables SVM, writes to the port, runs the guest of the VMCB at `rdi`, notes that it ended,
/// changes special registers, so that they are no longer those that KVM keeps for L1 while L2 runs,
/// and writes to the port.
fn l1() -> Vec<u8> {
    use iced_x86::code_asm::*;
    programs::assemble(|a| {
        let done = i32::try_from(DONE).unwrap();
        a.mov(ecx, 0xc000_0080u32)?; // EFER
        a.rdmsr()?;
        a.or(eax, 1 << 12)?; // SVME
        a.wrmsr()?;
        a.mov(ecx, 0xc001_0117u32)?; // VM_HSAVE_PA
        a.mov(eax, u32::try_from(HOST_SAVE).unwrap())?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.mov(edx, u32::try_from(PORT).unwrap())?;
        a.out(dx, al)?;
        a.mov(rax, rdi)?;
        a.vmload()?;
        a.vmrun()?;
        a.mov(rax, cr3)?;
        a.mov(qword_ptr(done + 16), rax)?;
        a.mov(rax, qword_ptr(rdi + 0x70))?; // EXITCODE
        a.mov(qword_ptr(done + 24), rax)?;
        a.push(rdi)?; // the stack is L1's
        a.pop(rdi)?;
        a.inc(qword_ptr(done + 32))?;
        a.mov(eax, u32::try_from(L1_LAST_TABLES).unwrap())?;
        a.mov(cr3, rax)?;
        a.xor(eax, eax)?;
        a.mov(ds, eax)?;
        a.mov(es, eax)?;
        a.out(dx, al)?;
        a.hlt()
    })
}

/// Counts passes, of which each writes to the port, then calls L1.
fn l2() -> Vec<u8> {
    use iced_x86::code_asm::*;
    programs::assemble_at(L2_CODE, |a| {
        let done = i32::try_from(DONE).unwrap();
        let mut next = a.create_label();
        a.mov(ebx, u32::try_from(PASSES).unwrap())?;
        a.set_label(&mut next)?;
        a.push(rbx)?;
        a.inc(qword_ptr(done))?;
        a.mov(rax, cr3)?;
        a.mov(qword_ptr(done + 8), rax)?;
        a.mov(edx, u32::try_from(PORT).unwrap())?;
        a.out(dx, al)?;
        a.pop(rbx)?;
        a.dec(rbx)?;
        a.jnz(next)?;
        a.vmmcall()
    })
}

/// Writes what VMRUN takes; L2 is in ring 0 of long mode, as L1 is.
fn write_vmcb(machine: &Machine, with_nested_paging: bool) {
    let write = |offset: u64, bytes: &[u8]| machine.block.write(VMCB + offset, bytes).unwrap();
    write(0, &[0; 0x1000]);
    let word = |offset, value: u64| write(offset, &value.to_le_bytes());
    let half = |offset, value: u32| write(offset, &value.to_le_bytes());
    half(0x10, 1 | 1 << 1); // intercepts VMRUN, as it must, and VMMCALL
    half(0x58, 1); // address space identifier
    if with_nested_paging {
        half(0x90, 1);
        word(0xb0, TABLES);
    }
    let segment = |offset, selector: u16, attributes: u16| {
        write(offset, &[selector, attributes].map(u16::to_le_bytes).concat());
        half(offset + 4, 0xffff_ffff);
    };
    segment(0x410, 8, 0xa9b); // CS: code of 64 bits
    for data in [0x400, 0x420, 0x430, 0x440, 0x450] {
        segment(data, 16, 0xc93);
    }
    segment(0x490, 24, 0x8b); // TR
    word(0x4d0, 1 << 8 | 1 << 10 | 1 << 12); // EFER: long mode, SVME as it must
    word(0x548, 1 << 5); // CR4: physical address extension
    word(0x550, L2_TABLES);
    word(0x558, 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31); // CR0: PE, ET, NE, WP, PG
    word(0x560, 0x400); // DR7
    word(0x568, 0xffff_0ff0); // DR6
    word(0x570, 2); // RFLAGS
    word(0x578, L2_CODE);
    word(0x5d8, L2_STACK);
    word(0x668, 0x0007_0406_0007_0406); // PAT after a reset
}

/// A machine whose port ends runs of `vcpu`.
fn attach_port(machine: &Machine, vcpu: &Vcpu) {
    let ends = Arc::new(KickPort(vcpu.kicker()));
    machine
        .memory
        .transaction(|map| {
            let port = map.mmio("end", 1, ends)?;
            map.add_subregion(machine.ports, PORT, port)
        })
        .unwrap();
}

/// A machine with L1 about to begin.
fn start(with_nested_paging: bool) -> (Machine, Vcpu) {
    let machine = Machine::new(RAM);
    let vcpu = machine.privileged(&l1(), &[VMCB]);
    let cpuid = Kvm::new().unwrap().get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
    vcpu.fd().set_cpuid2(&cpuid).unwrap();
    machine.block.write(L2_CODE, &l2()).unwrap();
    let [table]: [u64; 1] = machine.words(TABLES);
    for tables in [L2_TABLES, L1_LAST_TABLES] {
        machine.block.write(tables, &table.to_le_bytes()).unwrap();
    }
    write_vmcb(&machine, with_nested_paging);
    attach_port(&machine, &vcpu);
    (machine, vcpu)
}

/// Another machine with the memory of `machine`, and a vCPU in `state`, which went through text.
fn carry(machine: &Machine, state: &VcpuState) -> (Machine, Vcpu) {
    let next = Machine::new(RAM);
    next.block.write(0, &memory(machine)).unwrap();
    let text = serde_json::to_string(state).unwrap();
    let mut vcpu = next.vcpu();
    vcpu.restore(&serde_json::from_str(&text).unwrap()).unwrap();
    attach_port(&next, &vcpu);
    (next, vcpu)
}

fn memory(machine: &Machine) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(RAM).unwrap()];
    machine.block.read(0, &mut bytes).unwrap();
    bytes
}

/// Runs until the next write to the port, and tells whether L2 made it.
fn run(vcpu: &mut Vcpu) -> bool {
    assert_eq!(vcpu.run().unwrap(), VcpuEvent::Kicked);
    is_in_l2(&vcpu.save().unwrap())
}

fn is_in_l2(state: &VcpuState) -> bool {
    nested_flags(&serde_json::to_value(state).unwrap()) & KVM_STATE_NESTED_GUEST_MODE != 0
}

/// The flags of the nested state, which is written as bytes: the first 16 bits.
fn nested_flags(state: &serde_json::Value) -> u32 {
    let byte = |n: usize| u32::try_from(state["nested"][n].as_u64().unwrap()).unwrap();
    byte(0) | byte(1) << 8
}

fn a_nested_guest_goes_on_in_another_machine() {
    for with_nested_paging in [false, true] {
        let (mut machine, mut vcpu) = start(with_nested_paging);
        assert!(!run(&mut vcpu), "L1 has begun L2 too early");
        for pass in 0..=PASSES {
            let mut mirror = Mirror::new(&machine);
            let in_l2 = run(&mut vcpu);
            // What KVM writes for L1 as L2 ends, the VMCB, is in the log, too.
            mirror.harvest(&machine.block);
            assert!(mirror.is_whole(&machine.block), "a page is lost in pass {pass}");
            let wanted = if pass < PASSES { Done::in_l2(pass + 1) } else { Done::in_l1() };
            assert_eq!((in_l2, Done::of(&machine)), (pass < PASSES, wanted));
            drop(mirror);
            let state = vcpu.save().unwrap();
            let (next, copy) = carry(&machine, &state);
            assert_eq!(copy.fd().get_regs().unwrap(), vcpu.fd().get_regs().unwrap());
            assert_eq!(copy.fd().get_sregs().unwrap(), vcpu.fd().get_sregs().unwrap());
            (machine, vcpu) = (next, copy);
        }
        assert_eq!(vcpu.run().unwrap(), VcpuEvent::Halted);
    }
}

/// From L1 and from L2 to states of either.
fn a_nested_guest_is_rolled_back() {
    for with_nested_paging in [false, true] {
        let (machine, mut vcpu) = start(with_nested_paging);
        let mut points = Vec::new();
        // Before L2, in it, and after it.
        for pass in 0..=PASSES + 1 {
            let in_l2 = run(&mut vcpu);
            let wanted = if pass <= PASSES { Done::in_l2(pass) } else { Done::in_l1() };
            assert_eq!((in_l2, Done::of(&machine)), ((1..=PASSES).contains(&pass), wanted));
            points.push((vcpu.save().unwrap(), memory(&machine), wanted));
        }
        let last = points.len() - 1;
        for (from, to) in
            [(last, 0), (last, 2), (2, 0), (3, 1), (0, last - 1), (1, last), (last - 1, last)]
        {
            for when in [RollBack::Now, RollBack::WithNextRun] {
                for at in [from, to] {
                    let (state, bytes, _) = &points[at];
                    machine.block.write(0, bytes).unwrap();
                    vcpu.roll_back(state, when).unwrap();
                }
                let state = &points[to].0;
                let saved = vcpu.save().unwrap();
                let value = |state| serde_json::to_value(state).unwrap();
                let (saved, wanted) = (value(&saved), value(state));
                for part in ["registers", "special"] {
                    assert_eq!(saved[part], wanted[part], "{part}: from {from} to {to}");
                }
                assert_eq!(nested_flags(&saved), nested_flags(&wanted), "from {from} to {to}");
                for (at, (.., wanted)) in points.iter().enumerate().skip(to + 1) {
                    run(&mut vcpu);
                    assert_eq!(Done::of(&machine), *wanted, "from {from} to {to}, at {at}");
                }
                assert_eq!(vcpu.run().unwrap(), VcpuEvent::Halted);
            }
        }
    }
}
