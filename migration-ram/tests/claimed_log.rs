//! A migration claims its log: nothing else harvests it while the migration runs.

use memory_region::{MapError, MemoryMap};
use migration_ram::{Precopy, receive};
use ram_block::{DirtyClient, DirtyError, RamBlock};

const LEN: u64 = 1 << 20;
const MIGRATION: DirtyClient = DirtyClient::MIGRATION;

/// A harvest of a log that was switched on before is refused while a migration runs, and the page
/// is sent.
#[test]
fn a_second_harvester_takes_nothing_from_a_migration() {
    let memory = MemoryMap::new();
    let ram = RamBlock::anonymous("pc.ram", LEN).unwrap();
    let region = memory.transaction(|map| map.ram("ram", ram.clone())).unwrap();
    memory.set_log(region, MIGRATION, true).unwrap();
    let (mut stream, mut tries) = (Vec::new(), 0);
    let (other, guest) = (memory.clone(), ram.clone());
    let observe = |_: &migration_ram::Progress| {
        if tries > 0 {
            return;
        }
        tries += 1;
        guest.write(0x5000, b"kept").unwrap();
        let taken = other.snapshot_and_clear(region, MIGRATION, 0..LEN);
        assert!(matches!(taken, Err(MapError::Claimed { .. })), "{taken:?}");
        let taken = guest.dirty().snapshot_and_clear(MIGRATION, 0..guest.pages());
        assert!(matches!(taken, Err(DirtyError::Claimed { .. })), "{taken:?}");
        assert!(guest.dirty().disable(MIGRATION).is_err());
        assert!(other.set_global_log(MIGRATION, false).is_err());
    };
    let sent = Precopy::new(memory.clone()).run(&mut stream, || Ok(()), observe);
    drop(sent.unwrap());
    assert_eq!(tries, 1);
    let twin = RamBlock::anonymous("pc.ram", LEN).unwrap();
    receive(&mut stream.as_slice(), std::slice::from_ref(&twin)).unwrap();
    let mut found = [0; 4];
    twin.read(0x5000, &mut found).unwrap();
    assert_eq!(&found, b"kept");
    // After the migration the region's own log works as before.
    memory.snapshot_and_clear(region, MIGRATION, 0..LEN).unwrap().commit();
}
