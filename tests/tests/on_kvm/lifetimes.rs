//! What a guest can reach when its machine, its map or its memory is dropped before its vCPU.

use std::sync::Arc;

use integration_tests::harness::Test;
use kvm_accel::VcpuEvent;
use kvm_accel::kvm_bindings::{KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, kvm_enable_cap};
use machines::guest::{DATA, programs};
use ram_block::{DirtyClient, RamBlock};

use super::machine::{Machine, wait_until};

/// Those for which it does not matter how written pages are tracked.
pub const ONCE: &[Test] =
    &[("capabilities_of_tracking_are_not_the_owners", capabilities_of_tracking_are_not_the_owners)];

pub const TESTS: &[Test] = &[
    ("a_vcpu_keeps_the_memory_of_its_guest", a_vcpu_keeps_the_memory_of_its_guest),
    ("a_dropped_machine_gives_its_log_to_the_block", a_dropped_machine_gives_its_log_to_the_block),
];

pub(super) fn count(block: &RamBlock) -> u64 {
    let mut bytes = [0; 8];
    block.read(DATA, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

/// The block is kept here, to see what is stored to it. Else it would be freed now.
pub(super) fn drop_all_but_the_block(machine: Machine) -> Arc<RamBlock> {
    let block = machine.block.clone();
    drop(machine);
    assert_eq!(Arc::strong_count(&block), 1, "the slots are gone, and the block is kept");
    block
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
