//! What a guest can reach whose vCPU its machine does not know of.

use iced_x86::code_asm::*;
use integration_tests::harness::Test;
use kvm_accel::KvmConfig;
use kvm_accel::kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use machines::guest::{CODE, DATA, boot_descriptor, programs};

use crate::on_kvm::lifetimes::{count, drop_all_but_the_block};
use crate::on_kvm::machine::{Machine, wait_until};

/// It does not matter how written pages are tracked: a vCPU that is there before the machine is
/// taken over forbids rings.
pub const TESTS: &[Test] = &[
    (
        "a_vcpu_that_outlives_its_machine_finds_no_memory",
        a_vcpu_that_outlives_its_machine_finds_no_memory,
    ),
    (
        "a_guest_that_stores_while_its_machine_is_dropped_stops",
        a_guest_that_stores_while_its_machine_is_dropped_stops,
    ),
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
