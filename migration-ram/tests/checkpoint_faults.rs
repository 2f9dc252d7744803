//! Checkpoints whose devices, pauses and limits fail at any moment, of blocks of several page sizes
//! that grow, leave and join, beside clients that come and go: against plain copies of all memory.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use memory_region::{
    GlobalLogClaim, ListenerError, MapError, MemoryListener, MemoryMap, RegionId, Section,
    ViewChange,
};
use migration_ram::{
    CheckpointError, CheckpointId, Checkpoints, Device, DirtyEpochs, FnDevice, Rewind,
};
use proptest::prelude::*;
use ram_block::{PageSize, RamBlock};

const SIZES: [u64; 4] = [64, 1024, 4096, 16384];
const PAGES: u64 = 24;

type Memory = Vec<Vec<u8>>;

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap()
}

fn read(block: &RamBlock) -> Vec<u8> {
    let mut bytes = vec![0; index(block.len())];
    block.read(0, &mut bytes).unwrap();
    bytes
}

/// What the devices refuse.
const SAVING: u8 = 1;
const ROLLING_BACK: u8 = 2;

/// A machine of a block of each size, and of two devices, of which the second may fail.
struct Machine {
    map: Arc<MemoryMap>,
    regions: Vec<RegionId>,
    blocks: Vec<Arc<RamBlock>>,
    counter: Arc<AtomicU64>,
    refused: Arc<AtomicU8>,
}

impl Machine {
    fn new() -> Self {
        let map = MemoryMap::new();
        let block = |size: &u64| {
            let page = PageSize::new(*size).unwrap();
            let len = (PAGES * size).next_multiple_of(4096);
            let builder = RamBlock::builder(&format!("ram of {size}"), len).page_size(page);
            builder.max_len(2 * len).anonymous().unwrap()
        };
        let blocks: Vec<_> = SIZES.iter().map(block).collect();
        let add = |block: &Arc<RamBlock>| map.transaction(|map| map.ram(block.id(), block.clone()));
        let regions = blocks.iter().map(|block| add(block).unwrap()).collect();
        Self { map, regions, blocks, counter: Arc::default(), refused: Arc::default() }
    }

    fn devices(&self) -> Vec<Arc<dyn Device>> {
        let stores = {
            // Stores to memory as it is saved, as some do.
            let block = self.blocks[2].clone();
            move || {
                let mut byte = [0];
                block.read(4096, &mut byte)?;
                block.write(4096, &[byte[0].wrapping_add(1)])?;
                Ok(Vec::new())
            }
        };
        let (save, load) = (self.counter.clone(), self.counter.clone());
        let (at_save, at_load) = (self.refused.clone(), self.refused.clone());
        let fails = |refused: &AtomicU8, what: u8| refused.load(Ordering::Relaxed) & what != 0;
        let counter = FnDevice::new(
            "counter",
            move || match fails(&at_save, SAVING) {
                true => Err("not saved".into()),
                false => Ok(save.load(Ordering::Relaxed).to_be_bytes().to_vec()),
            },
            move |_, state| {
                if fails(&at_load, ROLLING_BACK) {
                    return Err("not put back".into());
                }
                load.store(u64::from_be_bytes(state.try_into()?), Ordering::Relaxed);
                Ok(())
            },
        );
        vec![Arc::new(FnDevice::new("stores", stores, |_, _| Ok(()))), Arc::new(counter)]
    }

    fn memory(&self) -> Memory {
        self.blocks.iter().map(|block| read(block)).collect()
    }

    fn state(&self) -> (Memory, u64) {
        (self.memory(), self.counter.load(Ordering::Relaxed))
    }

    fn write(&self, block: usize, at: u64, len: u64, byte: u8) {
        let block = &self.blocks[block % self.blocks.len()];
        let at = at % block.len();
        block.write(at, &vec![byte; index(len.min(block.len() - at))]).unwrap();
        self.counter.fetch_add(1, Ordering::Relaxed);
    }

    fn discard(&self, block: usize, page: u64, pages: u64) {
        let block = &self.blocks[block % self.blocks.len()];
        let page = page % block.pages();
        let size = block.page_size().bytes();
        block.discard(page * size, pages.min(block.pages() - page) * size).unwrap();
    }
}

/// Checkpoints, and what memory and the counter were at each.
struct Series {
    checkpoints: Checkpoints,
    taken: BTreeMap<CheckpointId, (Memory, u64)>,
}

impl Series {
    fn new(machine: &Machine, limit: u64) -> Self {
        let checkpoints = Checkpoints::new(&machine.map, machine.devices()).unwrap();
        Self { checkpoints: checkpoints.limit_bytes(limit), taken: BTreeMap::new() }
    }

    /// Each content of a page that is in a checkpoint is kept once, and no other.
    fn check(&self) {
        assert!(self.checkpoints.all().eq(self.taken.keys().copied()));
        let mut contents = HashSet::new();
        for (memory, _) in self.taken.values() {
            for (bytes, size) in memory.iter().zip(SIZES) {
                let pages = bytes.chunks(index(size));
                contents.extend(pages.filter(|page| page.iter().any(|byte| *byte != 0)));
            }
        }
        let bytes: usize = contents.iter().map(|page| page.len()).sum();
        assert_eq!(self.checkpoints.bytes_kept(), bytes as u64);
    }

    /// What a step may refuse; memory is as it was then.
    fn refuse(&self, machine: &Machine, before: &Memory, error: &CheckpointError) {
        assert!(
            matches!(
                error,
                CheckpointError::Save { .. }
                    | CheckpointError::Pause(_)
                    | CheckpointError::Limit { .. }
            ),
            "{error}"
        );
        // But for what the device has stored.
        let mut now = machine.memory();
        now[2][4096] = before[2][4096];
        assert!(now == *before, "{error}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize, u64, u64, u8),
    Discard(usize, u64, u64),
    Take,
    TakeLive { writes: bool, pauses: bool },
    Restore(prop::sample::Index),
    Remove(prop::sample::Index),
    Count(u64),
    Refuse(u8),
    Client(bool),
    Other,
}

fn step() -> impl Strategy<Value = Step> {
    let pages = prop_oneof![1..200_u64, 1..70_000_u64];
    prop_oneof![
        10 => (0..4_usize, any::<u64>(), pages, 0..3_u8).prop_map(|(block, at, len, byte)| {
            Step::Write(block, at, len, byte)
        }),
        2 => (0..4_usize, any::<u64>(), 1..9_u64).prop_map(|(block, page, pages)| {
            Step::Discard(block, page, pages)
        }),
        3 => Just(Step::Take),
        2 => (any::<bool>(), prop::bool::weighted(0.7)).prop_map(|(writes, pauses)| {
            Step::TakeLive { writes, pauses }
        }),
        5 => any::<prop::sample::Index>().prop_map(Step::Restore),
        2 => any::<prop::sample::Index>().prop_map(Step::Remove),
        1 => (0..50_u64).prop_map(Step::Count),
        3 => prop_oneof![2 => Just(0), 1 => 0..4_u8].prop_map(Step::Refuse),
        2 => any::<bool>().prop_map(Step::Client),
        2 => Just(Step::Other),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Two series of checkpoints of one machine, of which either may be refused at any step, and
    /// other clients that begin, take what there is, and end in between.
    #[test]
    fn whatever_fails_each_checkpoint_is_its_instant(
        steps in prop::collection::vec((0..2_usize, step()), 1..100),
        limit in prop_oneof![Just(u64::MAX), 0..400_000_u64],
    ) {
        let machine = Machine::new();
        machine.write(2, 3000, 9000, 9);
        let mut all = [Series::new(&machine, u64::MAX), Series::new(&machine, limit)];
        let mut clients: Vec<GlobalLogClaim> = Vec::new();
        for (number, step) in steps {
            let before = machine.memory();
            let series = &mut all[number];
            match step {
                Step::Write(block, at, len, byte) => machine.write(block, at, len, byte),
                Step::Discard(block, page, pages) => machine.discard(block, page, pages),
                Step::Refuse(what) => machine.refused.store(what, Ordering::Relaxed),
                Step::Take => match series.checkpoints.take() {
                    Ok(taken) => drop(series.taken.insert(taken, machine.state())),
                    Err(error) => series.refuse(&machine, &before, &error),
                },
                Step::TakeLive { writes, pauses } => {
                    let pause = || {
                        if writes {
                            machine.write(0, 100, 500, 7);
                            machine.write(3, 20_000, 40_000, 7);
                        }
                        if pauses { Ok(()) } else { Err("it does not stop".into()) }
                    };
                    match series.checkpoints.take_live(pause) {
                        Ok((taken, _)) => drop(series.taken.insert(taken, machine.state())),
                        Err(CheckpointError::Pause(_)) => prop_assert!(!pauses),
                        Err(error) if !writes => series.refuse(&machine, &before, &error),
                        Err(_) => {}
                    }
                }
                Step::Restore(index) if !series.taken.is_empty() => {
                    let keys: Vec<_> = series.taken.keys().copied().collect();
                    let to = *index.get(&keys);
                    let counter = machine.state().1;
                    let (memory, then) = &series.taken[&to];
                    match series.checkpoints.restore(to) {
                        Ok(_) => prop_assert!(machine.state() == (memory.clone(), *then)),
                        Err(CheckpointError::RollBack { device, .. }) => {
                            prop_assert_eq!(device, "counter");
                            prop_assert!(machine.memory() == *memory);
                            prop_assert_eq!(machine.state().1, counter);
                        }
                        Err(error) => prop_assert!(false, "{}", error),
                    }
                    prop_assert_eq!(series.checkpoints.current(), Some(to));
                    prop_assert_eq!(series.checkpoints.count_dirty().unwrap(), 0);
                }
                Step::Remove(index) if !series.taken.is_empty() => {
                    let keys: Vec<_> = series.taken.keys().copied().collect();
                    let checkpoint = *index.get(&keys);
                    let parent = series.checkpoints.parent(checkpoint).unwrap();
                    let was_current = series.checkpoints.current() == Some(checkpoint);
                    series.checkpoints.remove(checkpoint).unwrap();
                    series.taken.remove(&checkpoint);
                    prop_assert!(machine.memory() == before);
                    if was_current && parent.is_some() {
                        prop_assert_eq!(series.checkpoints.current(), parent);
                    }
                }
                Step::Count(limit) => match series.checkpoints.current() {
                    Some(current) => {
                        let dirty = series.checkpoints.count_dirty().unwrap();
                        let differ: usize = (0..SIZES.len())
                            .map(|n| {
                                let size = index(SIZES[n]);
                                let then = series.taken[&current].0[n].chunks(size);
                                let pages = before[n].chunks(size).zip(then);
                                pages.filter(|(now, then)| now != then).count()
                            })
                            .sum();
                        prop_assert!(dirty >= differ as u64);
                        let overshoot = series.checkpoints.overshoot(limit).unwrap();
                        prop_assert_eq!(overshoot, dirty.checked_sub(limit));
                    }
                    None => {
                        let refused = series.checkpoints.overshoot(limit);
                        prop_assert!(matches!(refused, Err(CheckpointError::NoCheckpoint)));
                    }
                },
                Step::Client(true) if clients.len() < 3 => {
                    let name = format!("client {}", clients.len());
                    clients.push(machine.map.claim_global_log(name.as_str()).unwrap());
                }
                Step::Client(_) => drop(clients.pop()),
                Step::Other => {
                    for log in &mut clients {
                        log.sync().unwrap();
                        for block in &machine.blocks {
                            drop(log.snapshot_and_clear(block, ..).unwrap().commit());
                        }
                    }
                }
                _ => {}
            }
            all[number].check();
        }
        machine.refused.store(0, Ordering::Relaxed);
        for series in &mut all {
            for (checkpoint, state) in &series.taken {
                series.checkpoints.restore(*checkpoint).unwrap();
                prop_assert!(machine.state() == *state);
            }
            for checkpoint in series.taken.keys() {
                series.checkpoints.remove(*checkpoint).unwrap();
            }
            prop_assert_eq!(series.checkpoints.bytes_kept(), 0);
            prop_assert_eq!(series.checkpoints.bytes_of_steps(), 0);
        }
    }

    /// Blocks leave and join, grow and shrink: what was taken before is refused, and nothing is
    /// written then, until all of it was removed; a new series begins with what there is.
    #[test]
    fn a_machine_of_other_blocks_is_refused_until_all_is_removed(
        steps in prop::collection::vec((0..6_u8, 0..4_usize, any::<u64>()), 1..60),
    ) {
        let machine = Machine::new();
        let mut regions: Vec<_> = machine.regions.iter().copied().map(Some).collect();
        let mut checkpoints = Checkpoints::new(&machine.map, Vec::new()).unwrap();
        let mut taken: BTreeMap<CheckpointId, Memory> = BTreeMap::new();
        let mut epochs = DirtyEpochs::new(&machine.map, "epochs").unwrap();
        let mut copies: Vec<Option<Vec<u8>>> = vec![None; SIZES.len()];
        // Which blocks the first checkpoint has, and which have changed since.
        let (mut had, mut changed) = ([false; SIZES.len()], [false; SIZES.len()]);
        for (action, n, at) in steps {
            let block = &machine.blocks[n];
            let now: [bool; SIZES.len()] = std::array::from_fn(|n| regions[n].is_some());
            let is_other = had != now || (0..SIZES.len()).any(|n| had[n] && changed[n]);
            match action {
                0 => machine.write(n, at, at % 30_000 + 1, 5),
                1 => match regions[n].take() {
                    Some(region) => {
                        machine.map.transaction(|map| map.remove(region)).unwrap();
                        (changed[n], copies[n]) = (true, None);
                    }
                    None => {
                        let joins = machine.map.transaction(|map| map.ram("ram", block.clone()));
                        regions[n] = Some(joins.unwrap());
                    }
                },
                2 if at % 3 == 0 => {
                    let unit = SIZES[n].max(4096);
                    let len = (at / 3 % (block.max_len() / unit) + 1) * unit;
                    if len != block.len() {
                        block.resize(len).unwrap();
                        (changed[n], copies[n]) = (true, None);
                    }
                }
                3 => {
                    let before = machine.memory();
                    match checkpoints.take() {
                        Ok(new) => {
                            prop_assert!(!is_other || taken.is_empty());
                            if taken.is_empty() {
                                (had, changed) = (now, [false; SIZES.len()]);
                            }
                            taken.insert(new, machine.memory());
                        }
                        Err(error) => {
                            let named = matches!(
                                error,
                                CheckpointError::BlockGone { .. }
                                    | CheckpointError::BlockJoined { .. }
                                    | CheckpointError::BlockChanged { .. }
                            );
                            prop_assert!(named && !taken.is_empty(), "{}", error);
                            prop_assert!(is_other);
                        }
                    }
                    prop_assert!(machine.memory() == before);
                }
                4 if !taken.is_empty() => {
                    let keys: Vec<_> = taken.keys().copied().collect();
                    let to = keys[index(at % keys.len() as u64)];
                    if at % 5 == 0 {
                        checkpoints.remove(to).unwrap();
                        taken.remove(&to);
                        continue;
                    }
                    let before = machine.memory();
                    match checkpoints.restore(to) {
                        Ok(_) => {
                            prop_assert!(!is_other);
                            // Blocks that are not in the map are nobody's.
                            let is_in = |n: &usize| regions[*n].is_some();
                            for n in (0..SIZES.len()).filter(is_in) {
                                prop_assert!(read(&machine.blocks[n]) == taken[&to][n]);
                            }
                        }
                        Err(_) => {
                            prop_assert!(is_other);
                            prop_assert!(machine.memory() == before);
                        }
                    }
                }
                5 => {
                    let epoch = epochs.begin().unwrap();
                    let commits = at % 2 == 0;
                    for (block, run) in epoch.runs() {
                        let known = |known: &Arc<RamBlock>| Arc::ptr_eq(known, block);
                        let n = machine.blocks.iter().position(known).unwrap();
                        prop_assert!(regions[n].is_some(), "a block that is gone");
                        let bytes = block.page_size().bytes_of(&run);
                        let copy = copies[n].get_or_insert_with(|| vec![0xee; index(block.len())]);
                        let mut now = vec![0; index(bytes.end - bytes.start)];
                        block.read(bytes.start, &mut now).unwrap();
                        if commits {
                            copy[index(bytes.start)..index(bytes.end)].copy_from_slice(&now);
                        }
                    }
                    if commits {
                        epoch.commit();
                        for n in (0..SIZES.len()).filter(|n| regions[*n].is_some()) {
                            let copy = copies[n].as_ref().unwrap();
                            prop_assert!(*copy == read(&machine.blocks[n]), "block {}", n);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// A rewind of a machine that is always put back, against copies; what is kept stays within
    /// both limits.
    #[test]
    fn a_rewind_keeps_within_both_limits(
        max_steps in 0..6_usize,
        max_pages in 0..40_u64,
        steps in
            prop::collection::vec((0..4_usize, any::<u64>(), 1..40_000_u64, -4..8_isize), 1..50),
    ) {
        let machine = Machine::new();
        let max_bytes = max_pages * 4096;
        let checkpoints = Checkpoints::new(&machine.map, Vec::new()).unwrap();
        let mut rewind = Rewind::new(checkpoints).limit_steps(max_steps).limit_bytes(max_bytes);
        let (mut copies, mut at) = (Vec::<Memory>::new(), 0_usize);
        for (block, offset, len, seek) in steps {
            machine.write(block, offset, len, u8::try_from(len % 251).unwrap());
            if seek < 4 && !copies.is_empty() {
                at = at.saturating_add_signed(seek).min(copies.len() - 1);
                let copy: &Memory = rewind.seek(seek).unwrap();
                prop_assert!(*copy == copies[at] && machine.memory() == copies[at]);
            } else {
                rewind.record(machine.memory()).unwrap();
                copies.truncate(at + 1);
                copies.push(machine.memory());
                copies.drain(..copies.len() - rewind.len());
                at = copies.len() - 1;
                prop_assert!(rewind.len() <= max_steps.max(1));
                let bytes = rewind.checkpoints().bytes_of_steps();
                prop_assert!(bytes <= max_bytes || rewind.len() == 1);
                if rewind.len() == 1 {
                    prop_assert_eq!(bytes, 0);
                }
            }
        }
    }
}

/// The machine runs on when the result of the pause is dropped, and not before all is copied.
#[test]
fn a_live_checkpoint_ends_its_pause_when_all_is_copied() {
    struct RunsOn<'a>(&'a Machine);
    impl Drop for RunsOn<'_> {
        fn drop(&mut self) {
            (0..SIZES.len()).for_each(|block| self.0.write(block, 0, 60_000, 0xaa));
        }
    }
    let machine = Machine::new();
    let mut checkpoints = Checkpoints::new(&machine.map, machine.devices()).unwrap();
    for byte in 1..4 {
        (0..SIZES.len()).for_each(|block| machine.write(block, 700, 40_000, byte));
        let paused = machine.state();
        let (taken, stats) = checkpoints.take_live(|| Ok(RunsOn(&machine))).unwrap();
        assert!(stats.pages_paused > 0, "what the device stored");
        assert!(machine.state() != paused, "it runs on");
        checkpoints.restore(taken).unwrap();
        let mut then = paused.0;
        then[2][4096] = then[2][4096].wrapping_add(1);
        assert!(machine.state() == (then, paused.1), "{byte}");
    }
}

/// Another series, a mirror or a fuzzer that has its own log hears of each page that is put back,
/// whatever its size, and the one that puts it back of none.
#[test]
fn what_one_series_puts_back_the_other_puts_back_too() {
    let machine = Machine::new();
    let mut all = [(); 2].map(|()| Checkpoints::new(&machine.map, machine.devices()).unwrap());
    let first = all[0].take().unwrap();
    let zeros = machine.memory();
    (0..SIZES.len()).for_each(|block| machine.write(block, 100, 50_000, 3));
    let second = all[1].take().unwrap();
    let written = machine.memory();
    for _ in 0..3 {
        all[0].restore(first).unwrap();
        let mut now = machine.memory();
        now[2][4096] = zeros[2][4096];
        assert!(now == zeros);
        assert_eq!(all[0].count_dirty().unwrap(), 0);
        assert!(all[1].count_dirty().unwrap() > 0);
        all[1].restore(second).unwrap();
        assert!(machine.memory() == written);
        assert_eq!(all[1].count_dirty().unwrap(), 0);
    }
}

/// An accelerator that reports a page with each sync until its log is cleared, as KVM does with
/// manual protection.
#[derive(Default)]
struct Protecting {
    written: Mutex<BTreeSet<(String, u64)>>,
}

impl Protecting {
    /// A guest writes a page.
    fn store(&self, block: &RamBlock, page: u64) {
        self.written.lock().unwrap().insert((block.id().to_owned(), page));
    }

    fn uncleared(&self) -> usize {
        self.written.lock().unwrap().len()
    }
}

impl MemoryListener for Protecting {
    fn name(&self) -> &str {
        "protecting"
    }

    fn commit(&self, _: &ViewChange) -> Result<(), ListenerError> {
        Ok(())
    }

    fn sync(&self, section: &Section) -> Result<(), ListenerError> {
        let Some(block) = section.ram() else { return Ok(()) };
        let size = block.page_size().bytes();
        for (id, page) in &*self.written.lock().unwrap() {
            if id == block.id() {
                block.dirty().mark(page * size, size);
            }
        }
        Ok(())
    }

    fn log_clear(&self, section: &Section, bytes: Range<u64>) -> Result<(), ListenerError> {
        let Some(block) = section.ram() else { return Ok(()) };
        let size = block.page_size().bytes();
        let is_kept =
            |(id, page): &(String, u64)| id != block.id() || !bytes.contains(&(page * size));
        self.written.lock().unwrap().retain(is_kept);
        Ok(())
    }
}

/// What is taken is re-armed, and not before: else the same pages come again and again, or writes
/// after that are missed.
#[test]
fn what_is_taken_of_a_log_is_re_armed() {
    let machine = Machine::new();
    let system = machine.map.transaction(|map| {
        let system = map.container("system", 1 << 40)?;
        for (n, region) in machine.regions.iter().enumerate() {
            map.add_subregion(system, (n as u64) << 32, *region)?;
        }
        Ok::<_, MapError>(system)
    });
    let space = machine.map.address_space("memory", system.unwrap()).unwrap();
    let accelerator = Arc::new(Protecting::default());
    machine.map.add_listener(&space, accelerator.clone()).unwrap();
    let store = || {
        for block in &machine.blocks {
            [3, 5, 20].into_iter().for_each(|page| accelerator.store(block, page));
        }
        3 * machine.blocks.len() as u64
    };
    let mut epochs = DirtyEpochs::new(&machine.map, "epochs").unwrap();
    epochs.begin().unwrap().commit();
    for commits in [true, false, true] {
        let pages = store();
        let epoch = epochs.begin().unwrap();
        assert_eq!(epoch.pages(), pages);
        assert_eq!(accelerator.uncleared(), 0);
        if commits {
            epoch.commit();
        } else {
            drop(epoch);
            let epoch = epochs.begin().unwrap();
            assert_eq!(epoch.pages(), pages);
            epoch.commit();
        }
        assert_eq!(epochs.begin().unwrap().pages(), 0);
    }
    drop(epochs);
    let mut checkpoints = Checkpoints::new(&machine.map, Vec::new()).unwrap();
    store();
    checkpoints.take().unwrap();
    assert_eq!(accelerator.uncleared(), 0);
    for _ in 0..3 {
        let pages = store();
        // To count does not re-arm.
        assert_eq!(checkpoints.count_dirty().unwrap(), pages);
        assert_eq!(checkpoints.count_dirty().unwrap(), pages);
        assert_eq!(accelerator.uncleared() as u64, pages);
        assert_eq!(checkpoints.reset().unwrap().pages, pages);
        assert_eq!(accelerator.uncleared(), 0);
        assert_eq!(checkpoints.reset().unwrap().pages, 0);
        let pages = store();
        let (_, stats) = checkpoints.take_live(|| Ok(())).unwrap();
        assert!(stats.pages_live + stats.pages_paused >= pages);
        assert_eq!(accelerator.uncleared(), 0);
    }
}

/// A pause, a device or a hook that panics: what was copied, or was to be put back, is dirty still.
#[test]
fn panics_leave_pages_dirty() {
    let map = MemoryMap::new();
    let ram = RamBlock::anonymous("ram", 1 << 20).unwrap();
    map.transaction(|map| map.ram("ram", ram.clone())).unwrap();
    let mut checkpoints = Checkpoints::new(&map, Vec::new()).unwrap();
    ram.write(0, &[1; 1 << 17]).unwrap();
    checkpoints.take().unwrap();
    let before = read(&ram);
    let panics = |body: &mut dyn FnMut()| {
        let body = std::panic::AssertUnwindSafe(body);
        std::panic::catch_unwind(body).unwrap_err();
    };

    // In the pause of a live checkpoint, after its rounds.
    ram.write(0x3000, &[2; 1 << 17]).unwrap();
    panics(&mut || {
        let _ = checkpoints.take_live(|| -> Result<(), _> { panic!("a pause") });
    });
    assert_eq!(checkpoints.count_dirty().unwrap(), 32);
    checkpoints.reset().unwrap();
    assert!(read(&ram) == before);

    // In a hook for the code that a reset writes over.
    ram.write(0x5000, &[3; 1 << 16]).unwrap();
    let watch = ram.dirty().watch_code(|_| panic!("a hook")).unwrap();
    let _token = watch.watch(8..9).unwrap();
    panics(&mut || drop(checkpoints.reset()));
    drop(watch);
    checkpoints.reset().unwrap();
    assert!(read(&ram) == before);
}

/// Pages that are copied again, as they were written in the meantime, take no more room.
#[test]
fn a_page_that_is_copied_twice_counts_once() {
    const COUNT: u64 = 100;
    let map = MemoryMap::new();
    let ram = RamBlock::anonymous("ram", 1 << 20).unwrap();
    map.transaction(|map| map.ram("ram", ram.clone())).unwrap();
    let page = ram.page_size().bytes();
    let mut checkpoints = Checkpoints::new(&map, Vec::new()).unwrap().limit_bytes(150 * page);
    let write = |byte: u8| {
        for n in 0..COUNT {
            ram.write(n * page, &[byte, u8::try_from(n).unwrap()]).unwrap();
        }
    };
    write(1);
    // The guest writes all of them again before the pause.
    let paused = checkpoints.take_live(|| {
        write(2);
        Ok(())
    });
    paused.unwrap();
    assert_eq!(checkpoints.bytes_kept(), COUNT * page);
    // Other contents beside those are too many.
    write(3);
    let refused = checkpoints.take().unwrap_err();
    let needed = 200 * page;
    assert!(matches!(refused, CheckpointError::Limit { needed: n, .. } if n == needed));
}

/// A device that does not go back leaves the machine at the checkpoint all the same.
#[test]
fn a_rewind_that_fails_in_a_device_is_where_memory_is() {
    let map = MemoryMap::new();
    let ram = RamBlock::anonymous("ram", 1 << 20).unwrap();
    map.transaction(|map| map.ram("ram", ram.clone())).unwrap();
    let fails = Arc::new(AtomicU8::new(0));
    let refuses = fails.clone();
    let restore = move |_, _: &[u8]| match refuses.load(Ordering::Relaxed) {
        0 => Ok(()),
        _ => Err("it does not".into()),
    };
    let device = FnDevice::new("device", || Ok(Vec::new()), restore);
    let checkpoints = Checkpoints::new(&map, vec![Arc::new(device)]).unwrap();
    let mut rewind = Rewind::new(checkpoints);
    for number in 0..4_u8 {
        ram.write(0, &[number]).unwrap();
        rewind.record(number).unwrap();
    }
    fails.store(1, Ordering::Relaxed);
    assert!(matches!(rewind.seek(-2), Err(CheckpointError::RollBack { .. })));
    assert_eq!(rewind.position(), 1);
    fails.store(0, Ordering::Relaxed);
    assert_eq!(*rewind.seek(0).unwrap(), 1);
    assert_eq!(read(&ram)[0], 1);
}
