//! The state of a vCPU, carried to another machine.

use integration_tests::harness::Test;
#[cfg(target_arch = "x86_64")]
use kvm_accel::kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_accel::{Vcpu, VcpuEvent, VcpuState};
use machines::guest::{DATA, programs};

#[cfg(target_arch = "aarch64")]
use super::aarch64::states::without_counters;
use super::machine::{Machine, wait_until};

pub const TESTS: &[Test] = &[
    ("a_guest_goes_on_in_another_machine", a_guest_goes_on_in_another_machine),
    #[cfg(target_arch = "x86_64")]
    ("a_state_has_the_registers_that_kvm_does_not_list", a_state_has_unlisted_registers),
    #[cfg(target_arch = "x86_64")]
    ("a_state_has_the_tasks_priority", a_state_has_the_tasks_priority),
    ("a_state_that_is_none_is_refused", a_state_that_is_none_is_refused),
];

/// A guest that counts its passes over memory is stopped at any moment, its state is written
/// out and read in, and it goes on in a second machine, from where it was and with nothing
/// done twice.
fn a_guest_goes_on_in_another_machine() {
    let mut machine = Machine::new(16 << 20);
    let page = machine.block.page_size().bytes();
    let code = programs::increment_pages();
    let mut guest = machine.start(&code, &[DATA + page, DATA + 100 * page, page, DATA]);
    let mut before = 0;
    for _ in 0..5 {
        wait_until("some passes", || machine.counter() > before + 3);
        let (vcpu, event) = guest.stop().unwrap();
        assert_eq!(event, VcpuEvent::Kicked);
        let state = serde_json::to_string(&vcpu.save().unwrap()).unwrap();
        before = machine.counter();

        let next = Machine::new(16 << 20);
        let mut bytes = vec![0; 16 << 20];
        machine.block.read(0, &mut bytes).unwrap();
        next.block.write(0, &bytes).unwrap();
        let state: VcpuState = serde_json::from_str(&state).unwrap();
        #[cfg(target_arch = "x86_64")]
        assert_eq!(state.instruction_pointer(), vcpu.fd().get_regs().unwrap().rip);
        let mut copy = next.vcpu();
        copy.restore(&state).unwrap();
        same_registers(&copy, &vcpu);
        guest = copy.spawn("copy").unwrap();
        machine = next;
    }
    wait_until("the last machine to go on", || machine.counter() > before + 3);
    guest.stop().unwrap();
    // Every page was incremented in turn, across all machines.
    let mut bytes = vec![0; 16 << 20];
    machine.block.read(0, &mut bytes).unwrap();
    let at = |n: u64| bytes[usize::try_from(DATA + n * page).unwrap()];
    let steps: Vec<_> =
        (1..99).map(|n| at(n).wrapping_sub(at(n + 1))).filter(|step| *step != 0).collect();
    assert!(steps.is_empty() || steps == [1], "steps {steps:?}");
}

#[cfg(target_arch = "x86_64")]
fn same_registers(copy: &Vcpu, vcpu: &Vcpu) {
    assert_eq!(copy.fd().get_regs().unwrap(), vcpu.fd().get_regs().unwrap());
    assert_eq!(copy.fd().get_sregs().unwrap(), vcpu.fd().get_sregs().unwrap());
    assert_eq!(copy.fd().get_xcrs().unwrap(), vcpu.fd().get_xcrs().unwrap());
}

/// All that KVM lists but the counters, which go on.
#[cfg(target_arch = "aarch64")]
fn same_registers(copy: &Vcpu, vcpu: &Vcpu) {
    assert_eq!(without_counters(&copy.save().unwrap()), without_counters(&vcpu.save().unwrap()));
}

/// Memory types and machine checks, which KVM_GET_MSR_INDEX_LIST leaves out.
#[cfg(target_arch = "x86_64")]
fn a_state_has_unlisted_registers() {
    let machine = Machine::new(16 << 20);
    let vcpu = machine.vcpu();
    let entry = |(index, data)| kvm_msr_entry { index, data, ..Default::default() };
    let wanted = [
        (0x2ff, 0xc06), // memory types are on, write back unless said otherwise
        (0x200, 0x8000_0000),
        (0x201, 0xf_8000_0800),
        (0x250, 0x0606_0606_0606_0606),
        (0x26f, 0x0505_0505_0505_0505),
        (0x400, u64::MAX),
        (0x404, u64::MAX),
    ];
    let set = Msrs::from_entries(&wanted.map(entry)).unwrap();
    assert_eq!(vcpu.fd().set_msrs(&set).unwrap(), wanted.len());
    let state = serde_json::to_string(&vcpu.save().unwrap()).unwrap();
    let mut copy = Machine::new(16 << 20).vcpu();
    copy.restore(&serde_json::from_str(&state).unwrap()).unwrap();
    let mut found = Msrs::from_entries(&wanted.map(|(index, _)| entry((index, 0)))).unwrap();
    assert_eq!(copy.fd().get_msrs(&mut found).unwrap(), wanted.len());
    assert_eq!(found.as_slice(), set.as_slice());
}

/// Without a local APIC in KVM, CR8 is set by each run from what the machine's owner says.
#[cfg(target_arch = "x86_64")]
fn a_state_has_the_tasks_priority() {
    let machine = Machine::new(16 << 20);
    let code = programs::increment_pages();
    let page = machine.block.page_size().bytes();
    let mut vcpu = machine.privileged(&code, &[DATA + page, DATA + 2 * page, page, DATA]);
    vcpu.run_page().set_cr8(5);
    let guest = vcpu.spawn("vcpu").unwrap();
    wait_until("a pass", || machine.counter() > 0);
    let (vcpu, _) = guest.stop().unwrap();
    let mut bytes = vec![0; 16 << 20];
    machine.block.read(0, &mut bytes).unwrap();

    let next = Machine::new(16 << 20);
    next.block.write(0, &bytes).unwrap();
    let mut copy = next.vcpu();
    copy.restore(&vcpu.save().unwrap()).unwrap();
    let before = next.counter();
    let guest = copy.spawn("copy").unwrap();
    wait_until("another pass", || next.counter() > before);
    let (copy, _) = guest.stop().unwrap();
    assert_eq!(copy.fd().get_sregs().unwrap().cr8, 5);
}

fn a_state_that_is_none_is_refused() {
    let machine = Machine::new(16 << 20);
    let state = serde_json::to_value(machine.vcpu().save().unwrap()).unwrap();
    let mut vcpu = machine.vcpu();
    vcpu.restore(&serde_json::from_value(state.clone()).unwrap()).unwrap();
    // Each part broken in turn: refused by the reader or by KVM, or harmless.
    let object = state.as_object().unwrap();
    for part in object.keys() {
        for broken in [serde_json::json!(null), serde_json::json!([]), serde_json::json!([255])] {
            let mut state = object.clone();
            state[part] = broken;
            if let Ok(state) = serde_json::from_value::<VcpuState>(state.into()) {
                let _ = vcpu.restore(&state);
            }
        }
    }
    let mut none = object.clone();
    none["registers"] = serde_json::json!(null);
    assert!(serde_json::from_value::<VcpuState>(none.into()).is_err());
}
