//! KVM's slots against the flat view.

use std::error::Error;

use integration_tests::harness::Test;
use kvm_accel::{KvmConfig, KvmError, SlotInfo};
use machines::guest::{DATA, programs};
use memory_region::MapError;
use ram_block::{DirtyClient, PageSize, RamBlock};

use super::machine::{Machine, Recorder, wait_until};

pub const TESTS: &[Test] = &[
    ("slots_follow_the_flat_view", slots_follow_the_flat_view),
    (
        "a_full_slot_table_refuses_the_map_and_keeps_the_guest",
        a_full_slot_table_refuses_the_map_and_keeps_the_guest,
    ),
    ("a_block_of_smaller_pages_is_refused", a_block_of_smaller_pages_is_refused),
    ("kvms_refusal_takes_the_commit_back", kvms_refusal_takes_the_commit_back),
    ("a_guest_runs_on_while_its_code_is_remapped", a_guest_runs_on_while_its_code_is_remapped),
];

/// What is expected of a slot.
#[derive(Clone, Copy, Debug)]
struct Slot {
    guest_phys_addr: u64,
    size: u64,
    readonly: bool,
    logged: bool,
}

impl PartialEq<Slot> for SlotInfo {
    fn eq(&self, slot: &Slot) -> bool {
        let &Slot { guest_phys_addr, size, readonly, logged } = slot;
        (self.guest_phys_addr, self.size) == (guest_phys_addr, size)
            && (self.readonly, self.logged) == (readonly, logged)
    }
}

fn slot(guest_phys_addr: u64, size: u64) -> Slot {
    Slot { guest_phys_addr, size, readonly: false, logged: false }
}

fn slots_follow_the_flat_view() {
    let machine = Machine::new(16 << 20);
    let memory = &machine.memory;
    assert_eq!(machine.vm.slots(), [slot(0, 16 << 20)]);

    // The VGA window splits RAM around it.
    let vram = RamBlock::anonymous("vram", 1 << 20).unwrap();
    let (vram, window) = memory
        .transaction(|map| {
            let vram = map.ram("vram", vram)?;
            let window = map.alias("window", vram, 0, 0x2_0000)?;
            map.add_subregion_overlap(machine.system, 0xa_0000, window, 1)?;
            map.add_subregion(machine.system, 0xe000_0000, vram)?;
            Ok((vram, window))
        })
        .unwrap();
    let split = [
        slot(0, 0xa_0000),
        slot(0xa_0000, 0x2_0000),
        slot(0xc_0000, (16 << 20) - 0xc_0000),
        slot(0xe000_0000, 1 << 20),
    ];
    assert_eq!(machine.vm.slots(), split);

    // The log is on where the region is, through the alias too; ROM is read-only.
    let log = memory.claim_log(vram, DirtyClient::VGA).unwrap();
    let logged = |slot| Slot { logged: true, ..slot };
    assert_eq!(machine.vm.slots(), [split[0], logged(split[1]), split[2], logged(split[3])]);
    drop(log);
    assert_eq!(machine.vm.slots(), split);
    let rom = memory
        .transaction(|map| {
            let rom = map.rom("rom", RamBlock::anonymous("rom", 0x1_0000)?)?;
            map.add_subregion(machine.system, 0xffff_0000, rom)?;
            map.set_enabled(window, false)?;
            Ok(rom)
        })
        .unwrap();
    let readonly = Slot { readonly: true, ..slot(0xffff_0000, 0x1_0000) };
    assert_eq!(machine.vm.slots(), [slot(0, 16 << 20), split[3], readonly]);

    // A store to ROM goes nowhere; a load comes from it; a device hides a part of it.
    let device = Recorder::new(0x5566_7788);
    memory
        .transaction(|map| {
            let registers = map.mmio("device", 0x10, device.clone())?;
            map.add_subregion_overlap(machine.system, 0xffff_8000, registers, 1)
        })
        .unwrap();
    memory.ram_block(rom).unwrap().write(0x100, &0x1122_3344u64.to_le_bytes()).unwrap();
    machine.run(&programs::load_and_store_all_sizes(), &[0xffff_0100, DATA, 0xdead]);
    assert_eq!(machine.words::<4>(DATA), [0x44, 0x3344, 0x1122_3344, 0x1122_3344]);
    let mut bytes = [0; 8];
    memory.ram_block(rom).unwrap().read(0x100, &mut bytes).unwrap();
    assert_eq!(u64::from_le_bytes(bytes), 0x1122_3344);
    assert!(device.accesses().is_empty());
    // The page around the device has no slot, but is read all the same.
    memory.ram_block(rom).unwrap().write(0x8100, &[7]).unwrap();
    machine.run(&programs::load_and_store_all_sizes(), &[0xffff_8100, DATA, 0]);
    assert_eq!(machine.words::<1>(DATA), [7]);
}

/// The reason below a map's refusal.
fn reason(error: &MapError) -> &KvmError {
    error.source().and_then(|source| source.downcast_ref()).expect("a refusal by KVM")
}

fn a_full_slot_table_refuses_the_map_and_keeps_the_guest() {
    let machine =
        Machine::with_config(16 << 20, KvmConfig { slot_limit: 3, ..KvmConfig::default() });
    let page = machine.block.page_size().bytes();
    let arguments = [DATA + page, DATA + 5 * page, page, DATA];
    let guest = machine.start(&programs::increment_pages(), &arguments);
    let place = |at: u64| {
        machine.memory.transaction(|map| {
            let hole = map.mmio("hole", u128::from(page), Recorder::new(0))?;
            map.add_subregion_overlap(machine.system, at, hole, 1)
        })
    };
    place(8 << 20).unwrap();
    place(10 << 20).unwrap();
    let before = machine.vm.slots();
    let refused = place(12 << 20).unwrap_err();
    assert!(matches!(reason(&refused), KvmError::SlotLimit { needed: 4, limit: 3 }), "{refused:?}");
    assert_eq!(machine.vm.slots(), before);
    let beat = machine.words::<1>(DATA);
    wait_until("the next pass", || machine.words::<1>(DATA) != beat);
    guest.stop().unwrap();
}

fn a_block_of_smaller_pages_is_refused() {
    let machine = Machine::new(16 << 20);
    let before = machine.vm.slots();
    for bytes in [64, 2 << 20] {
        let size = PageSize::new(bytes).unwrap();
        let block = RamBlock::builder("other", 4 << 20).page_size(size).anonymous().unwrap();
        let refused = machine.memory.transaction(|map| {
            let other = map.ram("other", block)?;
            map.add_subregion(machine.system, 0xe000_0000, other)
        });
        let refused = refused.unwrap_err();
        let found = match reason(&refused) {
            KvmError::PageSize { found, .. } => *found,
            other => panic!("{other}"),
        };
        assert_eq!(found, bytes);
        assert_eq!(machine.vm.slots(), before);
    }
    machine.store(3, &[9 << 20]);
    assert_eq!(machine.words::<1>(9 << 20), [3]);
}

fn kvms_refusal_takes_the_commit_back() {
    let machine = Machine::new(16 << 20);
    let before = machine.vm.slots();
    // More than any processor's physical addresses: KVM refuses the second slot, when
    // the first is already made and RAM's is already split.
    let refused = machine.memory.transaction(|map| {
        let first = map.ram("first", RamBlock::anonymous("first", 1 << 20)?)?;
        let second = map.ram("second", RamBlock::anonymous("second", 1 << 20)?)?;
        map.add_subregion_overlap(machine.system, 8 << 20, first, 1)?;
        map.add_subregion(machine.system, 1 << 60, second)
    });
    let refused = refused.unwrap_err();
    assert!(
        matches!(reason(&refused), KvmError::SetSlot { guest: 0x1000_0000_0000_0000, .. }),
        "{refused:?}"
    );
    assert_eq!(machine.vm.slots(), before);
    machine.store(3, &[9 << 20]);
    assert_eq!(machine.words::<1>(9 << 20), [3]);
}

/// The code of a guest lies in a slot that is split, joined and split again.
fn a_guest_runs_on_while_its_code_is_remapped() {
    let machine = Machine::new(16 << 20);
    let page = machine.block.page_size().bytes();
    let guest = machine.start(&programs::store_and_read_back(), &[DATA + page, DATA]);
    let hole = machine
        .memory
        .transaction(|map| {
            let hole = map.mmio("hole", u128::from(page), Recorder::new(0))?;
            map.add_subregion_overlap(machine.system, 4 << 20, hole, 1)?;
            Ok(hole)
        })
        .unwrap();
    for round in 0..300 {
        machine.memory.transaction(|map| map.set_enabled(hole, round % 2 == 0)).unwrap();
    }
    let rounds = machine.words::<1>(DATA);
    wait_until("the next round", || machine.words::<1>(DATA) != rounds);
    assert!(!guest.is_finished(), "{:?}", guest.join());
    guest.stop().unwrap();
    let [rounds, differences] = machine.words::<2>(DATA);
    assert!(rounds > 0);
    assert_eq!(differences, 0);
}
