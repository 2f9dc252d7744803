//! A migration claims its log: nothing else harvests it while the migration runs.

use memory_region::{MapError, MemoryMap};
use migration_ram::{Precopy, receive};
use ram_block::{DirtyClient, DirtyError, RamBlock};

const LEN: u64 = 1 << 20;
const MIGRATION: DirtyClient = DirtyClient::MIGRATION;

#[test]
fn a_second_harvester_takes_nothing_from_a_migration() {
    let memory = MemoryMap::new();
    let ram = RamBlock::anonymous("pc.ram", LEN).unwrap();
    let region = memory.transaction(|map| map.ram("ram", ram.clone())).unwrap();
    let (mut stream, mut tries) = (Vec::new(), 0);
    let (other, guest) = (memory.clone(), ram.clone());
    let mut beside = memory.claim_log(region, "beside").unwrap();
    let observe = |_: &migration_ram::Progress| {
        if tries > 0 {
            return;
        }
        tries += 1;
        guest.write(0x5000, b"kept").unwrap();
        let taken = other.claim_log(region, MIGRATION);
        assert!(matches!(taken, Err(MapError::Claimed { .. })), "{taken:?}");
        let taken = other.claim_global_log(MIGRATION);
        assert!(matches!(taken, Err(MapError::Claimed { .. })), "{taken:?}");
        let taken = guest.dirty().claim(MIGRATION);
        assert!(matches!(taken, Err(DirtyError::Claimed { .. })), "{taken:?}");
        // Another client takes its own.
        assert!(beside.snapshot_and_clear(0..LEN).unwrap().commit().is_dirty(5));
    };
    let sent = Precopy::new(memory.clone()).run(&mut stream, || Ok(()), observe);
    drop(sent.unwrap());
    assert_eq!(tries, 1);
    let twin = RamBlock::anonymous("pc.ram", LEN).unwrap();
    receive(&mut stream.as_slice(), std::slice::from_ref(&twin)).unwrap();
    let mut found = [0; 4];
    twin.read(0x5000, &mut found).unwrap();
    assert_eq!(&found, b"kept");
    // After the migration the log is free again.
    memory.claim_log(region, MIGRATION).unwrap().snapshot_and_clear(0..LEN).unwrap().commit();
}
