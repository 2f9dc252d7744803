//! A flash chip: read directly, until a guest gives it a command.

use std::sync::{Arc, OnceLock};

use integration_tests::harness::Test;
use machines::guest::{DATA, programs};
use memory_region::{MemoryMap, MmioDevice, RegionId};
use ram_block::RamBlock;

use super::machine::Machine;

pub const TESTS: &[Test] =
    &[("a_flash_chip_answers_itself_after_a_command", a_flash_chip_answers_itself_after_a_command)];

const FLASH: u64 = 0xffc0_0000;
const NAME: u64 = 0x89;

/// Commands of Intel's flash chips: 0x90 reads the name, 0xff the contents.
#[derive(Default)]
struct Flash(OnceLock<(Arc<MemoryMap>, RegionId)>);

impl MmioDevice for Flash {
    fn read(&self, _: u64, _: usize) -> u64 {
        NAME
    }

    fn write(&self, _: u64, _: usize, value: u64) {
        let (memory, region) = self.0.get().unwrap();
        memory.transaction(|map| map.set_romd(*region, value == 0xff)).unwrap();
    }
}

/// The handler changes the map from the vCPU's own thread, under the guest's feet.
fn a_flash_chip_answers_itself_after_a_command() {
    let machine = Machine::new(16 << 20);
    let (block, device) =
        (RamBlock::anonymous("flash", 1 << 20).unwrap(), Arc::new(Flash::default()));
    block.write(0, &[0xc3]).unwrap();
    let region = machine
        .memory
        .transaction(|map| {
            let region = map.rom_device("flash", block.clone(), device.clone())?;
            map.add_subregion(machine.system, FLASH, region)?;
            Ok(region)
        })
        .unwrap();
    let _ = device.0.set((machine.memory.clone(), region));
    let direct = machine.vm.slots()[1];
    assert_eq!((direct.guest_phys_addr, direct.size), (FLASH, 1 << 20));
    assert!(direct.readonly && !direct.logged);
    for _ in 0..20 {
        machine.block.write(DATA, &[0; 3]).unwrap();
        machine.run(&programs::ask_flash(), &[FLASH, DATA]);
        let mut seen = [0; 3];
        machine.block.read(DATA, &mut seen).unwrap();
        assert_eq!(seen, [0xc3, 0x89, 0xc3]);
    }
    machine.memory.transaction(|map| map.set_romd(region, false)).unwrap();
    assert_eq!(machine.vm.slots().len(), 1);
}
