//! The states of vCPUs of arm64: features, vectors, pending errors, and back in place.

use std::mem::offset_of;

use integration_tests::harness::Test;
use kvm_accel::kvm_bindings::{
    KVM_ARM_VCPU_EL1_32BIT, KVM_ARM_VCPU_SVE, KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_ARM64_SVE,
    KVM_REG_SIZE_U128, KVM_REG_SIZE_U512, KVM_REG_SIZE_U2048, kvm_regs, kvm_vcpu_events,
    kvm_vcpu_events__bindgen_ty_1,
};
use kvm_accel::kvm_ioctls::Cap;
use kvm_accel::{KvmError, RollBack, Vcpu, VcpuEvent, VcpuState};
use machines::guest::{DATA, boot, initialize, programs};
use serde_json::{Value, json};

use crate::on_kvm::machine::{Machine, wait_until};

pub const TESTS: &[Test] = &[
    ("a_state_of_other_features_is_refused", a_state_of_other_features_is_refused),
    ("vectors_go_with_their_lengths", vectors_go_with_their_lengths),
    ("a_pending_error_is_carried_and_taken_back", a_pending_error_is_carried_and_taken_back),
    ("a_vcpu_goes_back_in_place", a_vcpu_goes_back_in_place),
    ("each_vcpu_is_somewhere_else", each_vcpu_is_somewhere_else),
    ("a_vcpu_that_nobody_initialized_has_no_state", a_vcpu_that_nobody_initialized_has_no_state),
];

/// The virtual and the physical counter (KVM_REG_ARM_TIMER_CNT, KVM_REG_ARM_PTIMER_CNT).
const COUNTERS: [u64; 2] = [0x6030_0000_0013_df1a, 0x6030_0000_0013_df01];

/// How a guest of [`store_and_report_sum`](programs::store_and_report_sum) says that it is done.
pub const REPORTED: VcpuEvent = VcpuEvent::Kicked;

/// Changes a vector as a guest would.
pub fn change_vectors(vcpu: &Vcpu, word: u64) {
    let offset = offset_of!(kvm_regs, fp_regs) + 16 * 5;
    let v5 = KVM_REG_ARM64
        | KVM_REG_SIZE_U128
        | u64::from(KVM_REG_ARM_CORE)
        | u64::try_from(offset / 4).unwrap();
    vcpu.fd().set_one_reg(v5, &u128::from(word).to_le_bytes()).unwrap();
}

/// All that KVM has of a vCPU, but for the time that passes.
pub fn registers(vcpu: &Vcpu) -> Value {
    without_counters(&vcpu.save().unwrap())
}

/// A state whose counters are 0.
pub fn without_counters(state: &VcpuState) -> Value {
    let mut state = serde_json::to_value(state).unwrap();
    let registers = state["registers"].clone();
    let mut offset = 0;
    for number in registers["numbers"].as_array().unwrap() {
        let number = number.as_u64().unwrap();
        let size = 1 << (number >> 52 & 0xf);
        if COUNTERS.contains(&number) {
            let values = state["registers"]["values"].as_array_mut().unwrap();
            values[offset..offset + size].fill(json!(0));
        }
        offset += size;
    }
    assert_eq!(registers["values"].as_array().unwrap().len(), offset);
    state
}

fn through_text(state: &VcpuState) -> VcpuState {
    serde_json::from_str(&serde_json::to_string(state).unwrap()).unwrap()
}

fn a_state_of_other_features_is_refused() {
    let machine = Machine::new(16 << 20);
    let state = machine.vcpu().save().unwrap();
    let mut other = serde_json::to_value(&state).unwrap();
    // The features follow the target, in bytes.
    let bits = other["init"][4].as_u64().unwrap();
    other["init"][4] = json!(bits | 1 << KVM_ARM_VCPU_EL1_32BIT);
    let refused = machine.vcpu().restore(&serde_json::from_value(other).unwrap()).unwrap_err();
    assert!(matches!(refused, KvmError::State { part: "initialization", .. }), "{refused}");
    let mut short = serde_json::to_value(&state).unwrap();
    short["registers"]["values"].as_array_mut().unwrap().pop();
    let refused = machine.vcpu().restore(&serde_json::from_value(short).unwrap()).unwrap_err();
    assert!(matches!(refused, KvmError::State { part: "registers", .. }), "{refused}");
    // A number of no register.
    let mut wrong = serde_json::to_value(&state).unwrap();
    wrong["registers"]["numbers"][0] = json!(0x60f0_0000_0000_0000_u64);
    assert!(machine.vcpu().restore(&serde_json::from_value(wrong).unwrap()).is_err());
}

fn vectors_go_with_their_lengths() {
    const LENGTHS: u64 = KVM_REG_ARM64 | KVM_REG_SIZE_U512 | KVM_REG_ARM64_SVE as u64 | 0xffff;
    const Z3: u64 = KVM_REG_ARM64 | KVM_REG_SIZE_U2048 | KVM_REG_ARM64_SVE as u64 | 3 << 5;
    let machine = Machine::new(16 << 20);
    if !machine.vm.fd().check_extension(Cap::ArmSve) {
        println!("no SVE here");
        return;
    }
    let mut init = initialize(&machine.vm);
    init.features[0] |= 1 << KVM_ARM_VCPU_SVE;
    let mut vcpu = machine.uninitialized();
    vcpu.init(&init).unwrap();
    // Vectors of 128 bits only.
    let mut lengths = [0; 64];
    lengths[0] = 1;
    vcpu.fd().set_one_reg(LENGTHS, &lengths).unwrap();
    assert!(vcpu.save().is_err(), "a vCPU that has no registers yet");
    vcpu.fd().vcpu_finalize(&4).unwrap();
    let mut z3 = [0; 256];
    z3[..16].fill(0x5a);
    vcpu.fd().set_one_reg(Z3, &z3).unwrap();
    let state = through_text(&vcpu.save().unwrap());

    let there = Machine::new(16 << 20);
    let mut copy = there.uninitialized();
    copy.restore(&state).unwrap();
    let mut found = [1; 256];
    copy.fd().get_one_reg(Z3, &mut found).unwrap();
    assert_eq!(found, z3);
    let mut found = [1; 64];
    copy.fd().get_one_reg(LENGTHS, &mut found).unwrap();
    assert_eq!(found, lengths);
    assert_eq!(without_counters(&copy.save().unwrap()), without_counters(&state));
    // And once more in the same one.
    copy.restore(&state).unwrap();
    // One without vectors does not take it.
    assert!(Machine::new(16 << 20).vcpu().restore(&state).is_err());
}

fn a_pending_error_is_carried_and_taken_back() {
    let machine = Machine::new(16 << 20);
    let mut vcpu = machine.vcpu();
    boot(&vcpu, &machine.block, &programs::increment_pages(), &[DATA]);
    let pending = |vcpu: &Vcpu| vcpu.fd().get_vcpu_events().unwrap().exception.serror_pending;
    let without = vcpu.save().unwrap();
    let exception = kvm_vcpu_events__bindgen_ty_1 { serror_pending: 1, ..Default::default() };
    vcpu.fd().set_vcpu_events(&kvm_vcpu_events { exception, ..Default::default() }).unwrap();
    assert_eq!(pending(&vcpu), 1);
    let with = through_text(&vcpu.save().unwrap());

    let mut copy = Machine::new(16 << 20).vcpu();
    copy.restore(&with).unwrap();
    assert_eq!(pending(&copy), 1);
    vcpu.roll_back(&without, RollBack::Now).unwrap();
    assert_eq!(pending(&vcpu), 0);
    assert_eq!(without_counters(&vcpu.save().unwrap()), without_counters(&without));
    vcpu.roll_back(&with, RollBack::WithNextRun).unwrap();
    assert_eq!(pending(&vcpu), 1);
}

/// A guest that counts is put back, with its memory, again and again, and does the same again.
fn a_vcpu_goes_back_in_place() {
    let machine = Machine::new(16 << 20);
    let page = machine.block.page_size().bytes();
    let mut guest =
        machine.start(&programs::increment_pages(), &[DATA + page, DATA + 100 * page, page, DATA]);
    wait_until("some passes", || machine.counter() > 3);
    let (vcpu, _) = guest.stop().unwrap();
    let state = vcpu.save().unwrap();
    let mut bytes = vec![0; 16 << 20];
    machine.block.read(0, &mut bytes).unwrap();
    guest = vcpu.spawn("vcpu").unwrap();
    for _ in 0..10 {
        let before = machine.counter();
        wait_until("a pass", || machine.counter() > before + 1);
        let (mut vcpu, event) = guest.stop().unwrap();
        assert_eq!(event, VcpuEvent::Kicked);
        machine.block.write(0, &bytes).unwrap();
        vcpu.roll_back(&state, RollBack::Now).unwrap();
        assert_eq!(without_counters(&vcpu.save().unwrap()), without_counters(&state));
        guest = vcpu.spawn("vcpu").unwrap();
    }
    guest.stop().unwrap();
}

fn each_vcpu_is_somewhere_else() {
    let machine = Machine::new(16 << 20);
    let vcpus: Vec<_> = (0..3).map(|_| machine.vcpu()).collect();
    let places: Vec<_> = vcpus.iter().map(|vcpu| vcpu.mpidr().unwrap() & 0xff_ffff).collect();
    assert_eq!(places, [0, 1, 2]);
}

fn a_vcpu_that_nobody_initialized_has_no_state() {
    let machine = Machine::new(16 << 20);
    let vcpu = machine.uninitialized();
    assert!(vcpu.mpidr().is_err());
    let refused = vcpu.save().unwrap_err();
    assert!(matches!(refused, KvmError::State { part: "initialization", .. }), "{refused}");
    // A state initializes one.
    let state = machine.vcpu().save().unwrap();
    let mut other = Machine::new(16 << 20).uninitialized();
    other.restore(&state).unwrap();
    assert_eq!(without_counters(&other.save().unwrap()), without_counters(&state));
}
