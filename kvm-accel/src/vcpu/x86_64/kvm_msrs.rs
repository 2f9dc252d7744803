//! KVM's own model-specific registers, by which a guest names memory that KVM writes.
//!
//! KVM writes there not only as the guest runs, but also when some of them are set: the wall
//! clock's structure is filled in, the system time's gets another version and loses its flags.
//! Memory that was put back would not be what it was.

use std::sync::Arc;

use kvm_bindings::kvm_msr_entry;
use ram_block::RamBlock;

use crate::machine::Machine;

/// Registers, the bits that are the address, and how many bytes there are KVM's (kernel
/// documentation, virt/kvm/x86/msr.rst).
const NAMING: [(u32, u64, usize); 7] = [
    (0x11, !0, 12),           // wall clock, as old guests know it
    (0x12, !1, 32),           // system time, as they know it
    (0x4b56_4d00, !0, 12),    // wall clock
    (0x4b56_4d01, !1, 32),    // system time
    (0x4b56_4d02, !0x3f, 64), // asynchronous page faults
    (0x4b56_4d03, !0x3f, 64), // steal time
    (0x4b56_4d04, !0x3, 4),   // end of interrupt
];

/// Bytes of a block, at an offset.
struct Part(Arc<RamBlock>, u64, Vec<u8>);

/// The memory that some registers name, as it was before they were set.
pub(super) struct NamedMemory(Vec<Part>);

impl NamedMemory {
    /// Of `msrs`, which are to be set; none in the common case, as guests set these once.
    pub(super) fn read(machine: &Machine, msrs: &[kvm_msr_entry]) -> Self {
        let mut parts = Vec::new();
        for msr in msrs {
            let Some((_, mask, len)) = NAMING.iter().find(|(index, ..)| *index == msr.index) else {
                continue;
            };
            let (mut address, mut left) = (msr.data & mask, *len);
            // Where there is no slot, KVM writes nothing.
            while let Some((block, offset, room)) = machine.block_at(address).filter(|_| left > 0) {
                let mut bytes = vec![0; usize::try_from(room).unwrap_or(left).min(left)];
                if block.read(offset, &mut bytes).is_err() {
                    break;
                }
                (address, left) = (address.wrapping_add(bytes.len() as u64), left - bytes.len());
                parts.push(Part(block, offset, bytes));
            }
        }
        Self(parts)
    }

    /// Undoes what was written since.
    pub(super) fn put_back(self) {
        for Part(block, offset, bytes) in self.0 {
            let mut now = vec![0; bytes.len()];
            if block.read(offset, &mut now).is_ok() && now != bytes {
                let _ = block.write(offset, &bytes);
            }
        }
    }
}
