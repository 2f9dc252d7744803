//! The chips that KVM plays for a machine.

use integration_tests::harness::Test;
use kvm_accel::kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_accel::kvm_ioctls::Kvm;
use kvm_accel::{Chips, ChipsState, KvmConfig, KvmError, KvmVm};

pub const TESTS: &[Test] = &[
    ("chips_go_to_another_machine", chips_go_to_another_machine),
    ("a_timer_is_stopped_with_its_machine", a_timer_is_stopped_with_its_machine),
    ("a_machine_has_the_chips_that_it_has", a_machine_has_the_chips_that_it_has),
];

/// A virtual machine with chips whose registers are not what they are at first.
fn with_chips(count: u32) -> std::sync::Arc<KvmVm> {
    let fd = Kvm::new().unwrap().create_vm().unwrap();
    let vm = KvmVm::with_config(fd, KvmConfig::default()).unwrap();
    vm.fd().create_irq_chip().unwrap();
    let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.fd().create_pit2(config).unwrap();
    let mut timer = vm.fd().get_pit2().unwrap();
    timer.channels[2].count = count;
    timer.channels[2].mode = 2;
    vm.fd().set_pit2(&timer).unwrap();
    for line in [3, 17] {
        vm.fd().set_irq_line(line, true).unwrap();
    }
    vm
}

fn chips_go_to_another_machine() {
    let state = Chips::new(with_chips(12_345)).save().unwrap();
    let text = serde_json::to_string(&state).unwrap();
    let vm = with_chips(5);
    for line in [3, 17] {
        vm.fd().set_irq_line(line, false).unwrap();
    }
    let there = Chips::new(vm.clone());
    there.restore(&serde_json::from_str(&text).unwrap()).unwrap();
    let found = there.save().unwrap();
    let controllers =
        |state: &ChipsState| serde_json::to_value(state).unwrap()["controllers"].clone();
    assert_eq!(controllers(&found), controllers(&state));
    assert_eq!(vm.fd().get_pit2().unwrap().channels[2].count, 12_345);
    assert!(found.clock() >= state.clock(), "the clock goes on");
}

/// A timer that is stopped raises no interrupt, and is saved, restored and started all the same.
fn a_timer_is_stopped_with_its_machine() {
    let vm = with_chips(7);
    let mut timer = vm.fd().get_pit2().unwrap();
    (timer.channels[0].count, timer.channels[0].mode) = (1193, 2); // a millisecond
    vm.fd().set_pit2(&timer).unwrap();
    let chips = Chips::new(vm.clone());
    chips.stop().unwrap();
    chips.stop().unwrap();
    let mode = || vm.fd().get_pit2().unwrap().channels[0].mode;
    assert_ne!(mode(), 2);
    let state = chips.save().unwrap();
    let text = serde_json::to_string(&state).unwrap();
    let other = with_chips(7);
    Chips::new(other.clone()).restore(&serde_json::from_str(&text).unwrap()).unwrap();
    let saved = other.fd().get_pit2().unwrap().channels[0];
    assert_eq!((saved.mode, saved.count), (2, 1193), "the state is of the timer that counts");
    chips.restore(&state).unwrap();
    assert_ne!(mode(), 2, "a restored timer counts before its machine");
    chips.start().unwrap();
    assert_eq!((mode(), vm.fd().get_pit2().unwrap().channels[0].count), (2, 1193));
    chips.start().unwrap();
}

fn a_machine_has_the_chips_that_it_has() {
    let none = KvmVm::new(Kvm::new().unwrap().create_vm().unwrap()).unwrap();
    let none = Chips::new(none);
    none.stop().unwrap();
    let state = none.save().unwrap();
    none.restore(&state).unwrap();
    none.start().unwrap();
    let others = Chips::new(with_chips(7)).save().unwrap();
    let refused = none.restore(&others).unwrap_err();
    assert!(matches!(refused, KvmError::Chip { part: "interval timer", .. }), "{refused}");
    // A machine with chips that are not in the state keeps its own.
    let some = with_chips(7);
    Chips::new(some.clone()).restore(&state).unwrap();
    assert_eq!(some.fd().get_pit2().unwrap().channels[2].count, 7);
}
