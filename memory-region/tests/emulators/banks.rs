//! Banks that are switched.

use std::sync::{Arc, Mutex};

use memory_region::{ListenerError, MapError, MemoryListener, Section, Tlb, ViewChange};
use proptest::prelude::*;

use crate::machine::{BANK, Banked};

proptest! {
    /// A bank that is switched in place shows what a rendered map shows.
    #[test]
    fn a_switched_bank_is_a_rendered_one(
        switches in prop::collection::vec((0..7usize, 0..16u64, 0..3u64), 1..30),
    ) {
        let (ours, rendered) = (Banked::new(), Banked::new());
        for (alias, bank, fine) in switches {
            let offset = bank * BANK + fine * 0x200;
            let moved = ours.map.set_alias_offset(ours.aliases[alias], offset);
            let alias = rendered.aliases[alias];
            let expected = rendered.map.transaction(|map| map.set_alias_offset(alias, offset));
            let text = |result: Result<(), MapError>| result.map_err(|error| error.to_string());
            prop_assert_eq!(text(moved), text(expected));
            prop_assert_eq!(ours.views(), rendered.views());
            // A commit afterwards starts from the same tree.
            prop_assert_eq!(ours.map.mtree().to_string(), rendered.map.mtree().to_string());
        }
        ours.map.transaction(|map| map.set_enabled(ours.aliases[0], false)).unwrap();
        rendered.map.transaction(|map| map.set_enabled(rendered.aliases[0], false)).unwrap();
        prop_assert_eq!(ours.views(), rendered.views());
    }
}

#[test]
fn a_bank_is_switched_at_all_its_addresses() {
    let banked = Banked::new();
    let block = banked.map.ram_blocks()[0].clone();
    (0..16u8).for_each(|bank| block.write(u64::from(bank) * BANK, &[bank]).unwrap());
    let root = banked.spaces[0].root();
    let space = banked.map.wrapping_address_space("cpu", root, 16).unwrap();
    let mut tlb: Tlb = Tlb::new(&space);
    for bank in [3, 7, 5] {
        banked.map.set_alias_offset(banked.aliases[0], u64::from(bank) * BANK).unwrap();
        for upper in 0..4 {
            let address = upper << 16 | BANK;
            assert_eq!(tlb.load_le::<u8>(address).unwrap(), bank);
            assert_eq!(tlb.fetch_le::<u8>(address).unwrap(), bank);
        }
    }
}

/// Notes where the sections that come begin in their regions; refuses some.
#[derive(Default)]
struct Follower(Mutex<Vec<u64>>);

impl MemoryListener for Follower {
    fn name(&self) -> &str {
        "follower"
    }

    fn commit(&self, change: &ViewChange) -> Result<(), ListenerError> {
        let added = change.added.iter().map(Section::offset);
        if added.clone().any(|offset| offset == 13 * BANK) {
            return Err("not this one".into());
        }
        self.0.lock().unwrap().extend(added);
        Ok(())
    }

    fn sync(&self, _: &Section) -> Result<(), ListenerError> {
        Ok(())
    }
}

#[test]
fn a_listener_hears_of_a_switched_bank() {
    let banked = Banked::new();
    let follower = Arc::new(Follower::default());
    banked.map.add_listener(&banked.spaces[0], follower.clone()).unwrap();
    follower.0.lock().unwrap().clear();
    let switch = |bank| banked.map.set_alias_offset(banked.aliases[0], bank * BANK);
    switch(5).unwrap();
    // It went on in the second window before.
    assert_eq!(*follower.0.lock().unwrap(), [5 * BANK, BANK]);
    let before = banked.views();
    assert!(matches!(switch(13), Err(MapError::Refused { .. })));
    assert_eq!(banked.views(), before);
    // It is where it was.
    banked.map.transaction(|map| map.set_enabled(banked.aliases[1], false)).unwrap();
    let first = banked.spaces[0].view().sections()[0].offset();
    assert_eq!(first, 5 * BANK);
}

/// The page of the last instruction, and those before it.
#[test]
fn fetches_follow_a_switched_bank() {
    let banked = Banked::new();
    let block = banked.map.ram_blocks()[0].clone();
    (0..16u8).for_each(|bank| block.write(u64::from(bank) * BANK, &[bank]).unwrap());
    let mut tlb: Tlb = Tlb::new(&banked.spaces[0]);
    for elsewhere in [false, true] {
        for bank in [4, 9, 2] {
            banked.map.set_alias_offset(banked.aliases[0], u64::from(bank) * BANK).unwrap();
            assert_eq!(tlb.fetch_le::<u8>(BANK).unwrap(), bank);
            if elsewhere {
                tlb.fetch_le::<u8>(3 * BANK).unwrap();
            }
        }
    }
}
