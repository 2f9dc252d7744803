//! A port that ends the run of the processor that writes to it.

use kvm_accel::VcpuKicker;
use memory_region::MmioDevice;

/// Kicks a vCPU at each write.
#[derive(Debug)]
pub struct KickPort(pub VcpuKicker);

impl MmioDevice for KickPort {
    fn read(&self, _: u64, _: usize) -> u64 {
        0
    }

    fn write(&self, _: u64, _: usize, _: u64) {
        self.0.kick();
    }
}
