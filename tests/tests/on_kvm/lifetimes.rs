//! What a guest can reach when its machine, its map or its memory is dropped before its vCPU.

use std::sync::Arc;

use iced_x86::code_asm::*;
use integration_tests::harness::Test;
use kvm_accel::kvm_bindings::{KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, kvm_enable_cap};
use kvm_accel::kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use kvm_accel::{KvmConfig, VcpuEvent};
use machines::guest::{CODE, DATA, boot_descriptor, programs};
use ram_block::{DirtyClient, RamBlock};

use super::machine::{Machine, wait_until};

/// Those for which it does not matter how written pages are tracked: a vCPU that is there
/// before the machine is taken over forbids rings.
pub const ONCE: &[Test] = &[
    (
        "a_vcpu_that_outlives_its_machine_finds_no_memory",
        a_vcpu_that_outlives_its_machine_finds_no_memory,
    ),
    (
        "a_guest_that_stores_while_its_machine_is_dropped_stops",
        a_guest_that_stores_while_its_machine_is_dropped_stops,
    ),
    ("capabilities_of_tracking_are_not_the_owners", capabilities_of_tracking_are_not_the_owners),
];

pub const TESTS: &[Test] = &[
    ("a_vcpu_keeps_the_memory_of_its_guest", a_vcpu_keeps_the_memory_of_its_guest),
    ("a_dropped_machine_gives_its_log_to_the_block", a_dropped_machine_gives_its_log_to_the_block),
];

/// A machine with a vCPU that `KvmVm` does not know of, about to count in memory; with an exit
/// after each count if `exits`.
fn with_a_stray_vcpu(exits: bool) -> (Machine, VcpuFd) {
    let vm = Kvm::new().unwrap().create_vm().unwrap();
    let stray = vm.create_vcpu(7).unwrap();
    let machine = Machine::over(vm.into(), 16 << 20, KvmConfig::default());
    let code = programs::assemble(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.inc(qword_ptr(rdi))?;
        if exits {
            a.out(0x80, al)?;
        }
        a.jmp(again)
    });
    boot_descriptor(&stray, &machine.block, CODE, &code, &[DATA]);
    (machine, stray)
}

fn count(block: &RamBlock) -> u64 {
    let mut bytes = [0; 8];
    block.read(DATA, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

/// The block is kept here, to see what is stored to it. Else it would be freed now.
fn drop_all_but_the_block(machine: Machine) -> Arc<RamBlock> {
    let block = machine.block.clone();
    drop(machine);
    assert_eq!(Arc::strong_count(&block), 1, "the slots are gone, and the block is kept");
    block
}

fn a_vcpu_that_outlives_its_machine_finds_no_memory() {
    let (machine, mut stray) = with_a_stray_vcpu(true);
    for _ in 0..3 {
        assert!(matches!(stray.run(), Ok(VcpuExit::IoOut(0x80, _))));
    }
    let block = drop_all_but_the_block(machine);
    let before = count(&block);
    assert!(before > 0);
    for _ in 0..10 {
        let exit = stray.run();
        assert!(!matches!(exit, Ok(VcpuExit::IoOut(..))), "the guest runs on in the block");
    }
    assert_eq!(count(&block), before);
}

fn a_guest_that_stores_while_its_machine_is_dropped_stops() {
    let (machine, mut stray) = with_a_stray_vcpu(false);
    let runner = std::thread::spawn(move || format!("{:?}", stray.run()));
    wait_until("the guest to count", || machine.counter() > 0);
    let block = drop_all_but_the_block(machine);
    let before = count(&block);
    wait_until("the guest to stop", || runner.is_finished());
    assert_eq!(count(&block), before, "a store after the machine was dropped");
    runner.join().unwrap();
}

/// In whatever order the rest is dropped, the guest goes on, and its block is freed with its
/// vCPU.
fn a_vcpu_keeps_the_memory_of_its_guest() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1]] {
        let machine = Machine::new(16 << 20);
        let vcpu = machine.privileged(
            &programs::increment_pages(),
            &[DATA + 0x1000, DATA + 0x2000, 0x1000, DATA],
        );
        let kicker = vcpu.kicker();
        let guest = vcpu.spawn("vcpu").unwrap();
        let Machine { memory, block, space, port_space, vm, .. } = machine;
        let weak = Arc::downgrade(&block);
        let (mut map, mut spaces, mut vm) =
            (Some((memory, block)), Some((space, port_space)), Some(vm));
        for part in order {
            match part {
                0 => drop(map.take()),
                1 => drop(spaces.take()),
                _ => drop(vm.take()),
            }
            let count = || count(&weak.upgrade().expect("the guest's memory"));
            let before = count();
            wait_until("the guest to go on", || count() > before);
        }
        kicker.kick();
        let (vcpu, event) = guest.join().unwrap();
        assert_eq!(event, VcpuEvent::Kicked);
        assert!(weak.upgrade().is_some());
        drop(vcpu);
        assert!(weak.upgrade().is_none(), "{order:?}: nobody has the block any more");
        kicker.kick(); // its page is there for as long as a kicker
    }
}

/// A client of the block, which outlives the machine, gets what the machine logged for one of its
/// own.
fn a_dropped_machine_gives_its_log_to_the_block() {
    let machine = Machine::new(16 << 20);
    let mut own = machine.memory.claim_log(machine.ram, "machine").unwrap();
    let vga = machine.block.dirty().claim(DirtyClient::VGA).unwrap();
    own.snapshot_and_clear(0..16 << 20).unwrap().commit();
    vga.snapshot_and_clear(0..machine.block.pages()).unwrap().commit();
    let page = machine.block.page_size().page_of(8 << 20);
    machine.store(1, &[8 << 20]);
    assert!(!machine.block.dirty().is_dirty(DirtyClient::VGA, page));
    drop(own);
    drop_all_but_the_block(machine);
    let snapshot = vga.snapshot_and_clear(page..page + 1).unwrap();
    assert_eq!(snapshot.commit().count(), 1);
}

fn capabilities_of_tracking_are_not_the_owners() {
    let machine = Machine::new(16 << 20);
    let cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2;
    let off = kvm_enable_cap { cap, ..kvm_enable_cap::default() };
    assert_eq!(machine.vm.fd().enable_cap(&off).unwrap_err().errno(), 1); // EPERM
}
