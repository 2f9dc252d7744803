//! The registers of vCPUs of x86-64, to be compared and changed.

use kvm_accel::{Vcpu, VcpuEvent};
use serde_json::Value;

/// How a guest of [`store_and_report_sum`](machines::guest::programs::store_and_report_sum) says
/// that it is done.
pub const REPORTED: VcpuEvent = VcpuEvent::Halted;

/// Changes vectors as a guest would. Some KVMs run ring 0 in an emulator that knows no floating
/// point.
pub fn change_vectors(vcpu: &Vcpu, word: u64) {
    let mut unit = vcpu.fd().get_fpu().unwrap();
    unit.fpr[0][..8].copy_from_slice(&word.to_le_bytes());
    unit.xmm[5][..8].copy_from_slice(&word.to_be_bytes());
    vcpu.fd().set_fpu(&unit).unwrap();
}

/// All that KVM has of a vCPU, but for the time that passes.
pub fn registers(vcpu: &Vcpu) -> Value {
    let mut state = serde_json::to_value(vcpu.save().unwrap()).unwrap();
    remove_time(&mut state);
    state
}

/// Takes the registers that count time out of the saved state of a vCPU.
pub fn remove_time(state: &mut Value) {
    const TIME_STAMP_COUNTER: u32 = 0x10;
    /// Of Hyper-V, where KVM has it: what the vCPU has run, and the time of the machine, which KVM
    /// lets nobody set (Hypervisor Top Level Functional Specification, HV_X64_MSR_VP_RUNTIME and
    /// HV_X64_MSR_TIME_REF_COUNT).
    const HYPER_V_TIMES: [u32; 2] = [0x4000_0010, 0x4000_0020];
    // Each register is its bytes, the index first.
    let index = |msr: &Value| {
        let byte = |n: usize| u8::try_from(msr[n].as_u64().unwrap()).unwrap();
        u32::from_le_bytes([0, 1, 2, 3].map(byte))
    };
    let msrs = state["msrs"].as_array_mut().unwrap();
    msrs.retain(|msr| !HYPER_V_TIMES.contains(&index(msr)));
    let before = msrs.len();
    msrs.retain(|msr| index(msr) != TIME_STAMP_COUNTER);
    assert_eq!(msrs.len() + 1, before, "there is one counter");
}
