//! What tests of owners' loops share: a virtual machine that its owner keeps, a mirror of RAM, and
//! an end for loops.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_accel::VcpuKicker;
use kvm_accel::kvm_ioctls::{Kvm, VmFd};
use memory_region::GlobalLogClaim;
use ram_block::{DirtyClient, RamBlock};

use crate::on_kvm::machine::Machine;

pub fn create_vm() -> Arc<VmFd> {
    Arc::new(Kvm::new().unwrap().create_vm().unwrap())
}

/// A copy of RAM, kept by harvests.
pub struct Mirror {
    log: GlobalLogClaim,
    bytes: Vec<u8>,
}

impl Mirror {
    pub fn new(machine: &Machine) -> Self {
        let log = machine.memory.claim_global_log(DirtyClient::MIGRATION).unwrap();
        let mut bytes = vec![0; usize::try_from(machine.block.len()).unwrap()];
        machine.block.read(0, &mut bytes).unwrap();
        Self { log, bytes }
    }

    /// The pages that were dirty.
    pub fn harvest(&mut self, block: &Arc<RamBlock>) -> Vec<u64> {
        self.log.sync().unwrap();
        let dirty = self.log.snapshot_and_clear(block, ..).unwrap().commit();
        let page_bytes = block.page_size().bytes();
        let mut copies: Vec<_> =
            self.bytes.chunks_mut(usize::try_from(page_bytes).unwrap()).collect();
        for page in dirty.pages() {
            block.read(page * page_bytes, copies[usize::try_from(page).unwrap()]).unwrap();
        }
        dirty.pages().collect()
    }

    pub fn is_whole(&self, block: &RamBlock) -> bool {
        let mut now = vec![0; self.bytes.len()];
        block.read(0, &mut now).unwrap();
        now == self.bytes
    }
}

/// Ends loops, also after a panic.
pub struct Ends<'a>(pub &'a AtomicBool, pub Vec<VcpuKicker>);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        self.1.iter().for_each(VcpuKicker::kick);
    }
}
