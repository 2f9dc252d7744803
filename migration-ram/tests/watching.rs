//! A guest whose stores are not logged until their pages are re-armed, as with KVM's manual
//! protection.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use memory_region::{ListenerError, MemoryListener, MemoryMap, Section, ViewChange};
use migration_ram::{Precopy, receive};
use ram_block::RamBlock;

const LEN: u64 = 256 << 20;

/// A log with manual protection, whose bits are all set at the beginning. Just before the pages at
/// `at` are re-armed, the guest fills one of them: its bit was set already, so the store changes
/// nothing in the log.
struct Accelerator {
    ram: Arc<RamBlock>,
    /// A mapping of the block; stores through it are not marked.
    guest: File,
    at: u64,
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    on: bool,
    pages: BTreeSet<u64>,
    stored: bool,
}

impl MemoryListener for Accelerator {
    fn name(&self) -> &str {
        "an accelerator"
    }

    fn commit(&self, change: &ViewChange) -> Result<(), ListenerError> {
        let mut log = self.log.lock().unwrap();
        for relogged in &change.log_changed {
            let on = !relogged.section.log().is_empty();
            if on && !log.on {
                log.pages = (0..self.ram.pages()).collect();
            }
            log.on = on;
        }
        Ok(())
    }

    fn sync(&self, section: &Section) -> Result<(), ListenerError> {
        if section.name() != "ram" {
            return Ok(());
        }
        let pages: Vec<u64> = self.log.lock().unwrap().pages.iter().copied().collect();
        section.ram().unwrap().dirty().mark_pages(&pages);
        Ok(())
    }

    fn log_clear(&self, section: &Section, bytes: Range<u64>) -> Result<(), ListenerError> {
        if section.name() != "ram" {
            return Ok(());
        }
        let mut log = self.log.lock().unwrap();
        let page = self.ram.page_size();
        if !log.stored && bytes.contains(&self.at) {
            log.stored = true;
            self.guest.write_all_at(b"from the guest", self.at).unwrap();
            log.pages.insert(page.page_of(self.at));
        }
        let pages = page.page_of(bytes.start)..page.count(bytes.end);
        log.pages.retain(|number| !pages.contains(number));
        Ok(())
    }
}

#[test]
fn a_hole_that_is_filled_before_it_is_watched_is_sent() {
    for at in [0, 100 << 20, LEN - (1 << 20)] {
        let memory = MemoryMap::new();
        let ram = RamBlock::memfd("ram", LEN).unwrap();
        let guest = ram.file().unwrap().try_clone().unwrap();
        let log = Mutex::default();
        let accelerator = Arc::new(Accelerator { ram: ram.clone(), guest, at, log });
        let root = memory
            .transaction(|map| {
                let root = map.container("root", 1 << 64)?;
                let all = map.ram("ram", ram.clone())?;
                map.add_subregion(root, 0, all)?;
                // Is sent first; what it has re-armed is not the next block's.
                let first = map.ram("a", RamBlock::anonymous("a", LEN)?)?;
                map.add_subregion(root, 1 << 40, first)?;
                Ok(root)
            })
            .unwrap();
        let space = memory.address_space("memory", root).unwrap();
        memory.add_listener(&space, accelerator.clone()).unwrap();
        let mut stream = Vec::new();
        let migrated = Precopy::new(memory).run(&mut stream, || Ok(()), |_| ()).unwrap();
        assert_eq!(migrated.stats.rounds.len(), 2);
        assert!(accelerator.log.lock().unwrap().stored);
        let twin = RamBlock::anonymous("ram", LEN).unwrap();
        let first = RamBlock::anonymous("a", LEN).unwrap();
        receive(&mut stream.as_slice(), &[first, twin.clone()]).unwrap();
        let mut found = [0; 14];
        twin.read(at, &mut found).unwrap();
        assert_eq!(&found, b"from the guest", "at {at:#x}");
    }
}
