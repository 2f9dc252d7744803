//! A PC's shadow RAM, under the feet of a guest that runs from it.

use integration_tests::harness::Test;
use kvm_accel::kvm_ioctls::Kvm;
use kvm_accel::{Buses, KvmVm};
use machines::frame_port::FramePort;
use machines::guest::{DATA, boot, programs};
use machines::pc::{ISA_BIOS, Pam, Pc};
use ram_block::{DirtyClient, RamBlock};

use crate::on_kvm::machine::{seconds, wait_until};

pub const TESTS: &[Test] =
    &[("a_guest_runs_in_shadow_ram_that_toggles", a_guest_runs_in_shadow_ram_that_toggles)];

/// The segment of the BIOS.
const SEGMENT: usize = 3;
const ENTRY: u64 = ISA_BIOS + 0x1000;
/// Where the guest stores in its own segment.
const CELL: u64 = ISA_BIOS + 0x8000;

fn word(block: &RamBlock, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    block.read(offset, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

fn a_guest_runs_in_shadow_ram_that_toggles() {
    let pc = Pc::new(64 << 20, std::sync::Arc::new(FramePort::default())).unwrap();
    let vm = KvmVm::new(Kvm::new().unwrap().create_vm().unwrap()).unwrap();
    pc.memory.add_listener(&pc.space, vm.clone()).unwrap();
    let ports = pc.memory.transaction(|map| map.container("ports", 1 << 16)).unwrap();
    let ports = pc.memory.address_space("io", ports).unwrap();
    let vcpu = vm.create_vcpu(0, Buses { memory: pc.space.clone(), ports }).unwrap();
    // The same program in the ROM and in the RAM behind it.
    let code = programs::store_and_copy_back(ENTRY);
    pc.bios.write(ENTRY - ISA_BIOS, &code).unwrap();
    pc.ram.write(ENTRY, &code).unwrap();
    const IN_ROM: u64 = 0x0052_4f4d;
    pc.bios.write(CELL - ISA_BIOS, &IN_ROM.to_le_bytes()).unwrap();
    boot(&vcpu, &pc.ram, &programs::jump_to(ENTRY), &[CELL, DATA]);
    let guest = vcpu.spawn("vcpu0").unwrap();
    let rounds = || word(&pc.ram, DATA);
    // The guest has begun a round after the change, and finished it.
    let two_rounds = || {
        let before = rounds();
        wait_until("two rounds", || rounds() > before + 2);
    };
    // A still guest's last store, and what it read back before that.
    let still = || {
        let paused = vm.pause(seconds(10)).unwrap();
        let seen = (word(&pc.ram, CELL), word(&pc.ram, DATA + 8), rounds());
        drop(paused);
        seen
    };
    let mut log = pc.memory.claim_global_log(DirtyClient::MIGRATION).unwrap();
    let mut cell_is_dirty = || {
        log.sync().unwrap();
        let dirty = log.snapshot_and_clear(&pc.ram, CELL..CELL + 8);
        dirty.unwrap().commit().count() > 0
    };
    for round in 0..40 {
        pc.set_pam(SEGMENT, Pam::Pci).unwrap();
        // An access that was under way may still go to the map as it was.
        two_rounds();
        cell_is_dirty();
        let (kept, read, _) = still();
        assert_eq!(read, IN_ROM, "round {round}: the ROM does not show");
        two_rounds();
        assert_eq!(still().0, kept, "round {round}: a store went behind the ROM");
        assert!(!cell_is_dirty());

        pc.set_pam(SEGMENT, Pam::Ram).unwrap();
        two_rounds();
        let (stored, read, count) = still();
        assert!(stored > kept && count - stored <= 1, "round {round}: a store did not arrive");
        assert!(count - read <= 1, "round {round}: {read} was read in round {count}");
        assert!(cell_is_dirty());

        pc.set_pam(SEGMENT, Pam::ReadOnly).unwrap();
        two_rounds();
        cell_is_dirty();
        let (kept, read, count) = still();
        assert_eq!(read, kept, "round {round}: what is kept is not what is read");
        assert!(count > kept, "round {round}: a store went into kept RAM");
        two_rounds();
        assert_eq!(still().0, kept);
        assert!(!cell_is_dirty());
        assert_eq!(word(&pc.bios, CELL - ISA_BIOS), IN_ROM);
    }
    assert!(!guest.is_finished(), "{:?}", guest.join());
    guest.stop().unwrap();
}
