//! Our migration stream into a real QEMU.

use std::process::ExitCode;

use integration_tests::harness;
use integration_tests::qemu::{self, Qemu, connect};
use memory_region::MemoryMap;
use migration_ram::{Migrated, Precopy};
use ram_block::RamBlock;

fn main() -> ExitCode {
    let tests = harness::named(&[("qemu_takes_what_we_send", qemu_takes_what_we_send)]);
    harness::run(&qemu::need(), tests)
}

/// Random, zero and repeated pages, some of them written again in a second round.
fn qemu_takes_what_we_send() {
    const LEN: u64 = 64 << 20;
    let socket = "unix:{dir}/migration";
    let mut qemu =
        Qemu::start("in", &["-machine", "none", "-m", "64", "-incoming", socket]).unwrap();
    let mut out = connect(&qemu.path("migration")).unwrap();

    let memory = MemoryMap::new();
    let ram = RamBlock::anonymous("ram", LEN).unwrap();
    memory.update(|map| map.ram("ram", ram.clone())).unwrap();
    let mut noise = 1u64;
    for page in (0..LEN / 4096).filter(|page| page % 3 != 0) {
        let bytes: Vec<u8> = (0..512u64)
            .flat_map(|word| {
                noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(word);
                if page % 3 == 1 { noise.to_le_bytes() } else { [0x5a; 8] }
            })
            .collect();
        ram.write(page * 4096, &bytes).unwrap();
    }
    let Migrated { stats, .. } = Precopy::new(memory)
        .run(
            &mut out,
            || Ok(()),
            |round| {
                // A page that was random becomes zero, one that was zero is written.
                if round.round == 0 {
                    ram.write(4096, &[0; 4096]).unwrap();
                    ram.write(3 * 4096 + 77, b"late").unwrap();
                }
            },
        )
        .unwrap();
    assert_eq!(stats.rounds.last().unwrap().pages, 2);
    qemu.wait_migrated().unwrap();

    let mut expected = vec![0; usize::try_from(LEN).unwrap()];
    ram.read(0, &mut expected).unwrap();
    let there = qemu.memory(LEN).unwrap();
    let difference = there.iter().zip(&expected).position(|(there, here)| there != here);
    assert_eq!((there.len(), difference), (expected.len(), None));
}
