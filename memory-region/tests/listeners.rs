//! Who is told what, in which order, and what happens when somebody refuses.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use memory_region::{
    AddressSpace, GlobalLogChange, ListenerError, MapError, MemoryListener, MemoryMap, RegionId,
    Section, ViewChange,
};
use ram_block::{ClientSet, DirtyClient, RamBlock};

const VGA: DirtyClient = DirtyClient::VGA;
const MIGRATION: DirtyClient = DirtyClient::MIGRATION;

/// The first client that is not built in.
fn first() -> DirtyClient {
    DirtyClient::dynamic().next().unwrap()
}

type Journal = Arc<Mutex<Vec<String>>>;

/// Notes what it is told in a journal that it shares with others.
struct Notes {
    name: &'static str,
    priority: i32,
    journal: Journal,
    refuses: Mutex<Option<&'static str>>,
    /// Whether it syncs everything at once.
    at_once: bool,
}

impl Notes {
    fn new(name: &'static str, priority: i32, journal: &Journal) -> Arc<Self> {
        let (journal, refuses) = (journal.clone(), Mutex::default());
        Arc::new(Self { name, priority, journal, refuses, at_once: false })
    }

    fn note(&self, step: &str, what: String) -> Result<(), ListenerError> {
        self.journal.lock().unwrap().push(format!("{} {step}{what}", self.name));
        match *self.refuses.lock().unwrap() {
            Some(refused) if refused == step => Err("no".into()),
            _ => Ok(()),
        }
    }
}

fn shape(change: &ViewChange) -> String {
    let ViewChange { removed, added, log_changed, .. } = change;
    format!(" -{} +{} ~{}", removed.len(), added.len(), log_changed.len())
}

impl MemoryListener for Notes {
    fn name(&self) -> &str {
        self.name
    }

    fn priority(&self) -> i32 {
        self.priority
    }

    fn prepare(&self, change: &ViewChange) -> Result<(), ListenerError> {
        self.note("prepare", shape(change))
    }

    fn commit(&self, change: &ViewChange) -> Result<(), ListenerError> {
        let global = change.global_log.map(|GlobalLogChange { old, new }| format!(" {old}>{new}"));
        self.note("commit", shape(change) + &global.unwrap_or_default())
    }

    fn cancel(&self, change: &ViewChange) {
        self.note("cancel", shape(change)).unwrap();
    }

    fn sync(&self, section: &Section) -> Result<(), ListenerError> {
        self.note("sync", format!(" {:#x}", section.start()))
    }

    fn sync_all(&self) -> Result<bool, ListenerError> {
        self.note("all", String::new())?;
        Ok(self.at_once)
    }

    fn log_clear(&self, section: &Section, bytes: Range<u64>) -> Result<(), ListenerError> {
        self.note("clear", format!(" {:#x}: {:#x}..{:#x}", section.start(), bytes.start, bytes.end))
    }
}

struct Bus {
    map: Arc<MemoryMap>,
    space: Arc<AddressSpace>,
    root: RegionId,
    ram: RegionId,
    block: Arc<RamBlock>,
    journal: Journal,
}

impl Bus {
    fn new() -> Self {
        let map = MemoryMap::new();
        let block = RamBlock::anonymous("ram", 1 << 20).unwrap();
        let (root, ram) = map
            .transaction(|map| {
                let root = map.container("root", 1 << 32)?;
                let ram = map.ram("ram", block.clone())?;
                map.add_subregion(root, 0, ram)?;
                Ok((root, ram))
            })
            .unwrap();
        let space = map.address_space("memory", root).unwrap();
        Self { map, space, root, ram, block, journal: Journal::default() }
    }

    fn listener(&self, name: &'static str, priority: i32) -> Arc<Notes> {
        let listener = Notes::new(name, priority, &self.journal);
        self.map.add_listener(&self.space, listener.clone()).unwrap();
        listener
    }

    fn journal(&self) -> Vec<String> {
        std::mem::take(&mut *self.journal.lock().unwrap())
    }

    fn hide(&self) -> Result<(), MapError> {
        self.map.transaction(|map| map.set_enabled(self.ram, false))
    }
}

#[test]
fn what_goes_is_told_backwards_and_the_change_forwards() {
    let bus = Bus::new();
    for (name, priority) in [("first", 0), ("high", 5), ("second", 0), ("low", -3)] {
        bus.listener(name, priority);
        assert_eq!(
            bus.journal(),
            ["prepare", "commit"].map(|step| format!("{name} {step} -0 +1 ~0"))
        );
    }
    bus.hide().unwrap();
    let order = ["low", "first", "second", "high"];
    let prepares = order.iter().rev().map(|name| format!("{name} prepare -1 +0 ~0"));
    let commits = order.iter().map(|name| format!("{name} commit -1 +0 ~0"));
    assert_eq!(bus.journal(), prepares.chain(commits).collect::<Vec<_>>());
}

#[test]
fn a_refusal_takes_everybody_back() {
    let bus = Bus::new();
    let listeners = [("low", 0), ("middle", 1), ("high", 2)].map(|(n, p)| bus.listener(n, p));
    bus.journal();
    *listeners[1].refuses.lock().unwrap() = Some("commit");
    assert!(matches!(bus.hide(), Err(MapError::Refused { listener, .. }) if listener == "middle"));
    assert_eq!(
        bus.journal(),
        [
            "high prepare -1 +0 ~0",
            "middle prepare -1 +0 ~0",
            "low prepare -1 +0 ~0",
            "low commit -1 +0 ~0",
            "middle commit -1 +0 ~0",
            "low prepare -0 +1 ~0",
            "low commit -0 +1 ~0",
            "middle cancel -1 +0 ~0",
            "high cancel -1 +0 ~0",
        ]
    );
    *listeners[1].refuses.lock().unwrap() = Some("prepare");
    assert!(matches!(bus.hide(), Err(MapError::Refused { listener, .. }) if listener == "middle"));
    assert_eq!(
        bus.journal(),
        ["high prepare -1 +0 ~0", "middle prepare -1 +0 ~0", "high cancel -1 +0 ~0"]
    );
    assert!(bus.space.view().section_at(0).is_some());
    // Late ones, and those who leave, may refuse too.
    *listeners[1].refuses.lock().unwrap() = Some("commit");
    let leaving: Arc<dyn MemoryListener> = listeners[1].clone();
    assert!(bus.map.remove_listener(&bus.space, &leaving).is_err());
    let late = Notes::new("late", 0, &bus.journal);
    *late.refuses.lock().unwrap() = Some("commit");
    assert!(bus.map.add_listener(&bus.space, late).is_err());
    bus.journal();
    *listeners[1].refuses.lock().unwrap() = None;
    bus.hide().unwrap();
    assert_eq!(bus.journal().len(), 6);
}

#[test]
fn global_logs_are_told_with_their_reasons_also_to_the_late() {
    let bus = Bus::new();
    let early = bus.listener("early", 0);
    let log = bus.map.claim_log(bus.ram, "first").unwrap();
    assert_eq!(log.client(), first());
    bus.journal();
    let commits = || {
        let journal = bus.journal();
        journal.into_iter().filter(|line| line.contains("commit")).collect::<Vec<_>>()
    };
    let migration = bus.map.claim_global_log(MIGRATION).unwrap();
    assert_eq!(commits(), ["early commit -0 +0 ~1 none>migration"]);
    let vga = bus.map.claim_global_log(VGA).unwrap();
    assert_eq!(commits(), ["early commit -0 +0 ~1 migration>vga|migration"]);
    let late = bus.listener("late", 0);
    assert_eq!(commits(), ["late commit -0 +1 ~0 none>vga|migration"]);
    let late: Arc<dyn MemoryListener> = late;
    bus.map.remove_listener(&bus.space, &late).unwrap();
    assert_eq!(commits(), ["late commit -1 +0 ~0 vga|migration>none"]);
    // A refusal leaves the reasons as they were.
    *early.refuses.lock().unwrap() = Some("commit");
    drop(migration);
    *early.refuses.lock().unwrap() = None;
    let all = ClientSet::EMPTY.with(VGA).with(MIGRATION).with(first());
    assert_eq!(bus.block.dirty().enabled(), all);
    commits();
    // The next change tries again what was refused.
    drop(vga);
    assert_eq!(
        commits(),
        ["early commit -0 +0 ~1 vga|migration>migration", "early commit -0 +0 ~1 migration>none"]
    );
    assert_eq!(bus.block.dirty().enabled(), ClientSet::EMPTY.with(first()));
    drop(log);
}

#[test]
fn everything_is_synced_at_once_by_those_who_can() {
    let bus = Bus::new();
    bus.listener("one by one", 0);
    let ring = Notes {
        name: "ring",
        at_once: true,
        ..Arc::into_inner(Notes::new("", 0, &bus.journal)).unwrap()
    };
    bus.map.add_listener(&bus.space, Arc::new(ring)).unwrap();
    let hole = bus.map.transaction(|map| {
        let hole = map.reservation("hole", 0x1000)?;
        map.add_subregion_overlap(bus.root, 0x8000, hole, 1)
    });
    hole.unwrap();
    let _log = bus.map.claim_log(bus.ram, VGA).unwrap();
    bus.journal();
    bus.map.sync_all_dirty_logs().unwrap();
    assert_eq!(
        bus.journal(),
        ["one by one all", "one by one sync 0x0", "one by one sync 0x9000", "ring all"]
    );
    // A region's: from everybody who has its block.
    bus.map.sync_dirty_log(bus.ram).unwrap();
    let synced =
        ["one by one sync 0x0", "ring sync 0x0", "one by one sync 0x9000", "ring sync 0x9000"];
    assert_eq!(bus.journal(), synced);
}

#[test]
fn who_is_about_to_read_pages_says_so() {
    let bus = Bus::new();
    let window = bus.map.transaction(|map| {
        let window = map.alias("window", bus.ram, 0x4_0000, 0x1_0000)?;
        map.add_subregion(bus.root, 0x100_0000, window)?;
        map.set_readonly(window, true)
    });
    window.unwrap();
    let listener = bus.listener("kvm", 0);
    bus.journal();
    let mut log = bus.map.claim_global_log(MIGRATION).unwrap();
    bus.journal();
    let mut clear = |bytes| log.clear(&bus.block, bytes);
    clear(0x3_f000..0x4_2000).unwrap();
    clear(0x5000..0x5000).unwrap();
    assert_eq!(
        bus.journal(),
        ["kvm clear 0x0: 0x3f000..0x42000", "kvm clear 0x1000000: 0x40000..0x42000"]
    );
    *listener.refuses.lock().unwrap() = Some("clear");
    assert!(matches!(clear(0..0x1000), Err(MapError::Sync { listener, .. }) if listener == "kvm"));
}

/// Syncs whenever it follows: as others may, on their threads, at this moment.
struct Syncs {
    map: Arc<MemoryMap>,
    ram: RegionId,
    all: bool,
    notes: Arc<Notes>,
}

impl MemoryListener for Syncs {
    fn name(&self) -> &'static str {
        "syncs"
    }

    fn priority(&self) -> i32 {
        5
    }

    fn commit(&self, change: &ViewChange) -> Result<(), ListenerError> {
        match self.all {
            true => self.map.sync_all_dirty_logs()?,
            false => self.map.sync_dirty_log(self.ram)?,
        }
        self.notes.commit(change)
    }

    fn sync(&self, section: &Section) -> Result<(), ListenerError> {
        self.notes.sync(section)
    }
}

/// A guest may write through what comes as soon as its accelerator has followed, and whoever
/// has seen it written must find it.
#[test]
fn what_is_coming_is_synced_too() {
    for all in [false, true] {
        let bus = Bus::new();
        let _log = bus.map.claim_log(bus.ram, VGA).unwrap();
        let window = bus.map.transaction(|map| {
            let window = map.alias("window", bus.ram, 0x4_0000, 0x1_0000)?;
            map.add_subregion(bus.root, 0x100_0000, window)?;
            map.set_enabled(window, false)?;
            Ok(window)
        });
        let window = window.unwrap();
        bus.listener("kvm", 0);
        let syncs = |journal: Vec<String>| -> Vec<String> {
            journal.into_iter().filter(|line| line.contains("sync ")).collect()
        };
        // One that is registered now is asked while it is told.
        let notes = Notes::new("late", 5, &bus.journal);
        let late = Arc::new(Syncs { map: bus.map.clone(), ram: bus.ram, all, notes });
        bus.map.add_listener(&bus.space, late.clone()).unwrap();
        assert_eq!(syncs(bus.journal()), ["kvm sync 0x0", "late sync 0x0"], "{all}");

        let show = |on| bus.map.transaction(|map| map.set_enabled(window, on));
        show(true).unwrap();
        let journal = syncs(bus.journal());
        assert!(journal.contains(&"kvm sync 0x1000000".to_owned()), "{journal:?}");
        // What goes was synced as it went, and what was taken back is not asked for.
        show(false).unwrap();
        bus.journal();
        *late.notes.refuses.lock().unwrap() = Some("commit");
        show(true).unwrap_err();
        bus.journal();
        bus.map.sync_dirty_log(bus.ram).unwrap();
        assert_eq!(syncs(bus.journal()), ["kvm sync 0x0", "late sync 0x0"]);
        // Nor is one that was refused.
        let other = Notes::new("other", 0, &bus.journal);
        *other.refuses.lock().unwrap() = Some("commit");
        bus.map.add_listener(&bus.space, other).unwrap_err();
        bus.journal();
        bus.map.sync_dirty_log(bus.ram).unwrap();
        assert_eq!(syncs(bus.journal()), ["kvm sync 0x0", "late sync 0x0"]);
    }
}
