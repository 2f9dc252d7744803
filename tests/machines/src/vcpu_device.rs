//! A vCPU as a device that is migrated and checkpointed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_accel::{RollBack, Vcpu, VcpuState};
use migration_ram::{Device, DeviceError, DeviceState};

/// A vCPU whose owner runs it while nobody saves it: both lock it.
pub struct VcpuDevice {
    vcpu: Arc<Mutex<Vcpu>>,
    when: RollBack,
}

impl VcpuDevice {
    /// The device of `vcpu`, whose registers go back to KVM as `when` says.
    pub fn new(vcpu: Arc<Mutex<Vcpu>>, when: RollBack) -> Self {
        Self { vcpu, when }
    }

    fn vcpu(&self) -> MutexGuard<'_, Vcpu> {
        self.vcpu.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for VcpuDevice {
    fn name(&self) -> &str {
        "vcpu"
    }

    fn version(&self) -> u32 {
        1
    }

    fn save(&self) -> Result<Vec<u8>, DeviceError> {
        Ok(serde_json::to_vec(&self.vcpu().save()?)?)
    }

    fn restore(&self, _version: u32, state: &[u8]) -> Result<(), DeviceError> {
        let state: VcpuState = serde_json::from_slice(state)?;
        Ok(self.vcpu().restore(&state)?)
    }

    fn checkpoint(&self) -> Result<DeviceState, DeviceError> {
        Ok(DeviceState::new(self.vcpu().save()?, size_of::<VcpuState>()))
    }

    fn roll_back(&self, state: &DeviceState) -> Result<(), DeviceError> {
        Ok(self.vcpu().roll_back(state.get()?, self.when)?)
    }
}
