//! Who may call what from where: nothing waits for itself.
#![cfg(not(target_family = "wasm"))] // has no threads

#[path = "common/deadline.rs"]
mod deadline;

use std::error::Error;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};

use memory_region::{
    AccessSizes, AddressSpace, ListenerError, MapError, MemoryListener, MemoryMap, MmioAccess,
    MmioDevice, RegionId, Section, Transaction, ViewChange,
};
use ram_block::{DirtyClient, RamBlock};

const VGA: DirtyClient = DirtyClient::VGA;
const SIZE: u64 = 1 << 20;

/// Fails if `body` takes longer than any of this can take.
fn in_time<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, wait) = mpsc::channel();
    let thread = std::thread::spawn(move || done.send(body()));
    match wait.recv_timeout(deadline::seconds(60)) {
        Ok(value) => value,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("it waits for itself"),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            std::panic::resume_unwind(thread.join().unwrap_err())
        }
    }
}

struct Bus {
    map: Arc<MemoryMap>,
    root: RegionId,
    ram: RegionId,
    block: Arc<RamBlock>,
    space: Arc<AddressSpace>,
}

fn bus() -> Bus {
    let map = MemoryMap::new();
    let block = RamBlock::anonymous("ram", SIZE).unwrap();
    let (root, ram) = map
        .transaction(|map| {
            let root = map.container("root", 1 << 32)?;
            let ram = map.ram("ram", block.clone())?;
            map.add_subregion(root, 0, ram)?;
            Ok((root, ram))
        })
        .unwrap();
    let space = map.address_space("space", root).unwrap();
    Bus { map, root, ram, block, space }
}

/// What became of a device's own use of the map as it was dropped.
type Last = Arc<Mutex<Vec<Result<(), String>>>>;

/// A device that changes the map as it is dropped.
struct Leaves {
    map: Arc<MemoryMap>,
    ram: RegionId,
    access: MmioAccess,
    last: Last,
}

impl MmioDevice for Leaves {
    fn read(&self, _: u64, _: usize) -> u64 {
        0
    }

    fn write(&self, _: u64, _: usize, _: u64) {}

    fn access(&self) -> MmioAccess {
        self.access
    }
}

impl Drop for Leaves {
    fn drop(&mut self) {
        self.map.ram_blocks();
        // For good, so that the test sees it.
        let logged = self.map.claim_log(self.ram, VGA).map(std::mem::forget);
        self.last.lock().unwrap().push(logged.map_err(|error| error.to_string()));
    }
}

/// What a transaction does with a device that it is given.
type Edit = fn(&mut Transaction<'_>, RegionId, Arc<Leaves>) -> Result<(), MapError>;

#[test]
fn a_device_that_a_transaction_brings_and_does_not_keep_may_use_the_map() {
    let ways: [(&str, bool, Edit); 6] = [
        ("made and removed", true, |map, _, device| {
            let region = map.mmio("device", 0x1000, device)?;
            map.remove(region)
        }),
        ("of no size", false, |map, _, device| map.mmio("device", 0, device).map(drop)),
        ("of no size, but what of it", true, |map, _, device| {
            assert!(map.mmio("device", 0, device).is_err());
            Ok(())
        }),
        ("of a block whose name is taken", false, |map, _, device| {
            let block = RamBlock::anonymous("ram", SIZE)?;
            map.rom_device("flash", block, device).map(drop)
        }),
        ("that does not fit", false, |map, root, device| {
            let region = map.mmio("device", 0x1000, device)?;
            map.add_subregion(root, 0, region)
        }),
        ("in a map that is too deep", false, |map, root, device| {
            let mut region = map.mmio("device", 0x1000, device)?;
            for _ in 0..200 {
                region = map.alias("alias", region, 0, 0x1000)?;
            }
            map.add_subregion_overlap(root, 0, region, 1)
        }),
    ];
    for (way, stays, edit) in ways {
        in_time(move || {
            let Bus { map, root, ram, block, .. } = bus();
            let last = Last::default();
            let access = MmioAccess::default();
            let device = Arc::new(Leaves { map: map.clone(), ram, access, last: last.clone() });
            let result = map.transaction(|map| edit(map, root, device));
            assert_eq!(result.is_ok(), stays, "{way}");
            assert_eq!(*last.lock().unwrap(), [Ok(())], "{way}");
            assert!(block.dirty().enabled().contains(VGA), "{way}");
        });
    }
}

#[test]
fn a_device_of_impossible_accesses_may_use_the_map() {
    in_time(|| {
        let Bus { map, ram, block, .. } = bus();
        let access = MmioAccess { valid: AccessSizes::aligned(3, 3), ..MmioAccess::default() };
        let last = Last::default();
        let device = Arc::new(Leaves { map: map.clone(), ram, access, last: last.clone() });
        let refused = map.transaction(|map| map.mmio("device", 8, device)).unwrap_err();
        assert!(matches!(refused, MapError::AccessSizes { .. }));
        assert_eq!(*last.lock().unwrap(), [Ok(())]);
        assert!(block.dirty().enabled().contains(VGA));
    });
}

/// What a closure captures and hands to nobody goes with the closure: its use of the map
/// is an error there, and no wait without end. The same goes for what it returns, if the
/// commit fails: that is dropped after.
#[test]
fn what_a_transaction_captures_and_what_it_returns() {
    in_time(|| {
        let Bus { map, root, ram, .. } = bus();
        let last = Last::default();
        let access = MmioAccess::default();
        let leaves = || Leaves { map: map.clone(), ram, access, last: last.clone() };
        let (captured, returned) = (leaves(), leaves());
        let refused = map.transaction(move |map| {
            map.container("none", 0)?;
            drop(captured);
            Ok(())
        });
        assert!(matches!(refused, Err(MapError::Size { .. })));
        let says = "The map cannot be changed from within an update's closure or a listener";
        assert_eq!(std::mem::take(&mut *last.lock().unwrap()), [Err(says.to_owned())]);

        let refused = map.transaction(move |map| {
            let mut region = map.reservation("device", 0x1000)?;
            for _ in 0..200 {
                region = map.alias("alias", region, 0, 0x1000)?;
            }
            map.add_subregion_overlap(root, 0, region, 1)?;
            Ok(returned)
        });
        assert!(matches!(refused, Err(MapError::TooDeep { .. })));
        assert_eq!(*last.lock().unwrap(), [Ok(())]);
    });
}

/// Uses its map from within each of its calls, in every way there is.
struct Uses {
    bus: OnceLock<Bus>,
    faults: Mutex<Vec<String>>,
}

impl Uses {
    fn call(&self, from: &str) {
        let Bus { map, root, ram, space, .. } = self.bus.get().unwrap();
        let nested = |what: &str, result: Result<(), MapError>| {
            if !matches!(result, Err(MapError::Reentrant)) {
                self.faults.lock().unwrap().push(format!("{what} in {from}: {result:?}"));
            }
        };
        nested("update", map.transaction(|_| Ok(())));
        nested("claim_log", map.claim_log(*ram, VGA).map(drop));
        nested("claim_global_log", map.claim_global_log("own").map(drop));
        nested("address_space", map.address_space("other", *root).map(drop));
        nested("remove_address_space", map.remove_address_space(space));
        nested("add_listener", map.add_listener(space, Arc::new(Silent)));
        let silent: Arc<dyn MemoryListener> = Arc::new(Silent);
        nested("remove_listener", map.remove_listener(space, &silent).map(drop));
        // To look is no harm.
        map.ram_block(*ram).unwrap();
        assert_eq!(map.ram_blocks().len(), 1);
        assert!(format!("{map:?}{}{}", map.mtree(), map.flat_views()).contains("space"));
        space.read(0, &mut [0; 8]).unwrap();
    }
}

impl MemoryListener for Uses {
    fn name(&self) -> &str {
        "uses"
    }

    fn prepare(&self, _: &ViewChange) -> Result<(), ListenerError> {
        self.call("prepare");
        Ok(())
    }

    fn commit(&self, _: &ViewChange) -> Result<(), ListenerError> {
        self.call("commit");
        self.bus.get().unwrap().map.sync_all_dirty_logs()?;
        Err("no".into())
    }

    fn cancel(&self, _: &ViewChange) {
        self.call("cancel");
    }

    fn sync(&self, _: &Section) -> Result<(), ListenerError> {
        Ok(())
    }
}

struct Silent;

impl MemoryListener for Silent {
    fn name(&self) -> &str {
        "silent"
    }

    fn commit(&self, _: &ViewChange) -> Result<(), ListenerError> {
        Ok(())
    }

    fn sync(&self, _: &Section) -> Result<(), ListenerError> {
        Ok(())
    }
}

#[test]
fn a_listener_may_look_at_the_map_and_is_told_if_it_changes_it() {
    in_time(|| {
        let uses = Arc::new(Uses { bus: OnceLock::new(), faults: Mutex::default() });
        let bus = bus();
        let (map, space) = (bus.map.clone(), bus.space.clone());
        assert!(uses.bus.set(bus).is_ok());
        let refused = map.add_listener(&space, uses.clone()).unwrap_err();
        assert_eq!(refused.source().unwrap().to_string(), "no");
        assert_eq!(*uses.faults.lock().unwrap(), [""; 0]);
        // And from within the closure of an update.
        map.transaction(|_| {
            uses.call("update");
            Ok(())
        })
        .unwrap();
        assert_eq!(*uses.faults.lock().unwrap(), [""; 0]);
        // Nothing of all that is left: the turn is free again, and no log is on.
        map.claim_log(uses.bus.get().unwrap().ram, VGA).map(drop).unwrap();
        map.claim_global_log("own").map(drop).unwrap();
    });
}

/// Harvests and other looks do not wait for a commit that takes its time.
#[test]
fn looks_do_not_wait_for_a_commit() {
    struct Waits(Mutex<mpsc::Receiver<()>>, mpsc::Sender<()>);
    impl MemoryListener for Waits {
        fn name(&self) -> &str {
            "waits"
        }

        fn commit(&self, _: &ViewChange) -> Result<(), ListenerError> {
            self.1.send(())?;
            Ok(self.0.lock().unwrap().recv_timeout(deadline::seconds(60))?)
        }

        fn sync(&self, _: &Section) -> Result<(), ListenerError> {
            Ok(())
        }
    }
    let Bus { map, ram, space, .. } = bus();
    let mut log = map.claim_log(ram, VGA).unwrap();
    let (go, wait) = mpsc::channel();
    let (entered, commits) = mpsc::channel();
    std::thread::scope(|scope| {
        let changes = scope.spawn(|| {
            map.add_listener(&space, Arc::new(Waits(Mutex::new(wait), entered)))?;
            map.transaction(|map| map.set_enabled(ram, false))
        });
        for enabled in [true, true] {
            commits.recv_timeout(deadline::seconds(60)).unwrap();
            space.write(5, &[1]).unwrap();
            let harvest = log.snapshot_and_clear(0..SIZE).unwrap();
            assert_eq!(harvest.commit().count(), 1);
            assert_eq!(space.view().section_at(0).is_some(), enabled);
            assert_eq!(map.ram_block(ram).unwrap().id(), "ram");
            go.send(()).unwrap();
        }
        changes.join().unwrap().unwrap();
    });
    assert!(space.view().section_at(0).is_none());
}

#[test]
fn an_id_is_free_again_when_the_last_region_of_its_block_is_gone() {
    let Bus { map, ram, block, root, .. } = bus();
    let again = map.transaction(|map| map.ram("again", block.clone())).unwrap();
    let other = || map.transaction(|map| map.ram("other", RamBlock::anonymous("ram", SIZE)?));
    map.transaction(|map| map.remove(again)).unwrap();
    assert!(matches!(other(), Err(MapError::DuplicateBlock { id }) if id == "ram"));
    // A transaction that fails gives nothing free.
    let refused = map.transaction(|map| {
        map.del_subregion(ram)?;
        map.remove(ram)?;
        map.remove(root)
    });
    assert!(refused.is_err());
    assert!(other().is_err());
    map.transaction(|map| {
        map.del_subregion(ram)?;
        map.remove(ram)
    })
    .unwrap();
    other().unwrap();
    assert_eq!(map.ram_blocks().len(), 1);
}

/// What is dropped in the middle of a change ends after it, whatever becomes of the change.
#[test]
fn claims_that_are_dropped_in_a_turn_end_after_it() {
    let changes: [fn() -> Result<(), MapError>; 2] = [|| Ok(()), || Err(MapError::Reentrant)];
    for change in changes {
        in_time(move || {
            let Bus { map, ram, block, .. } = bus();
            // Several times, for more claims than there are numbers in all.
            for _ in 0..4 {
                let claims = (
                    map.claim_log(ram, VGA).unwrap(),
                    map.claim_global_log(DirtyClient::MIGRATION).unwrap(),
                    ["a", "b"].map(|name| map.claim_global_log(name).unwrap()),
                );
                assert_eq!(block.dirty().enabled().iter().count(), 4);
                let ended = map.transaction(move |_| {
                    drop(claims);
                    change()
                });
                assert_eq!(ended.is_ok(), change().is_ok());
                assert!(block.dirty().enabled().is_empty(), "{}", block.dirty().enabled());
            }
        });
    }
}

/// A visitor may end the claims of others, claim and harvest, and take the region out of the map:
/// what was taken of a granule is still visited, and the visit ends.
#[test]
fn a_visitor_may_use_the_map() {
    in_time(|| {
        let Bus { map, ram, block, .. } = bus();
        let page = block.page_size().bytes();
        let mut log = map.claim_global_log(DirtyClient::MIGRATION).unwrap();
        let mut other = Some(map.claim_log(ram, VGA).unwrap());
        let pages = [1, 3, 5, 9];
        pages.iter().for_each(|n| block.write(n * page, &[1]).unwrap());
        let mut visited = Vec::new();
        let flow = log.visit_runs(&block, 0, |run| {
            visited.push(run.start);
            if visited.len() == 2 {
                drop(other.take());
                let mut claim = map.claim_log(ram, "visitor").unwrap();
                assert!(claim.snapshot_and_clear(0..SIZE).unwrap().commit().is_empty());
                map.transaction(|map| {
                    map.del_subregion(ram)?;
                    map.remove(ram)
                })
                .unwrap();
            }
            ControlFlow::<()>::Continue(())
        });
        assert_eq!((flow.unwrap(), visited), (ControlFlow::Continue(()), pages.to_vec()));
        assert!(block.dirty().enabled().is_empty());
    });
}

/// A hook of a code watch may, too, whoever writes: a store, a merge or a resize.
#[test]
fn a_hook_of_a_code_watch_may_use_the_map() {
    in_time(|| {
        let map = MemoryMap::new();
        let block = RamBlock::builder("ram", SIZE).max_len(2 * SIZE).anonymous().unwrap();
        let ram = map.transaction(|map| map.ram("ram", block.clone())).unwrap();
        let (hook_map, claim) = (map.clone(), Mutex::new(map.claim_log(ram, VGA).ok()));
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let watch = block.dirty().watch_code(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            let mut log = hook_map.claim_log(ram, "hook").unwrap();
            log.snapshot_and_clear(0..0x1000).unwrap().commit();
            drop(log);
            drop(hook_map.claim_global_log("all").unwrap());
            drop(claim.lock().unwrap().take());
            hook_map.transaction(|map| map.container("container", 1).map(drop)).unwrap();
        });
        let (watch, page) = (watch.unwrap(), block.page_size().bytes());
        watch.watch(0..block.pages()).unwrap();
        let writes: [&dyn Fn(); 3] = [
            &|| block.write(page, &[1]).unwrap(),
            &|| assert!(block.dirty().merge(0, 64, &[1 << 7]).is_ok()),
            &|| block.resize(SIZE / 2).unwrap(),
        ];
        for write in writes {
            let before = calls.load(Ordering::Relaxed);
            write();
            assert!(calls.load(Ordering::Relaxed) > before);
        }
        assert!(!block.dirty().enabled().contains(VGA), "the hook has dropped its claim");
    });
}

/// After it, and not some time later: when the update returns, also while others change the
/// map.
#[test]
fn what_was_dropped_in_a_turn_has_ended_when_the_update_returns() {
    in_time(|| {
        let Bus { map, .. } = bus();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        map.transaction(|_| Ok(())).unwrap();
                    }
                });
            }
            let claims = (0..20_000).map(|_| {
                let log = map.claim_global_log(VGA)?;
                map.transaction(|_| {
                    drop(log);
                    Ok(())
                })
            });
            let result = claims.collect::<Result<(), MapError>>();
            done.store(true, Ordering::Relaxed);
            result.unwrap();
        });
    });
}
