//! Checkpoints of machines without an accelerator, against plain copies of all memory.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use memory_region::{GlobalLogClaim, MemoryMap, RegionId};
use migration_ram::{
    CheckpointError, CheckpointId, Checkpoints, Device, DirtyEpochs, FnDevice, Rewind,
};
use proptest::prelude::*;
use ram_block::{PageSize, RamBlock};

type Memory = Vec<Vec<u8>>;

/// A machine of two blocks, one of small pages, and a device.
struct Machine {
    map: Arc<MemoryMap>,
    regions: Vec<RegionId>,
    blocks: Vec<Arc<RamBlock>>,
    counter: Arc<AtomicU64>,
    /// Its state cannot be put back as long as this is set.
    broken: Arc<AtomicBool>,
}

const PAGES: u64 = 600;

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap()
}

impl Machine {
    fn new() -> Self {
        let map = MemoryMap::new();
        let small = PageSize::new(64).unwrap();
        let blocks = vec![
            RamBlock::anonymous("ram", PAGES * 4096).unwrap(),
            RamBlock::builder("nvram", PAGES * 64).page_size(small).anonymous().unwrap(),
        ];
        let regions = map
            .transaction(|map| {
                blocks.iter().map(|block| map.ram(block.id(), block.clone())).collect()
            })
            .unwrap();
        Self { map, regions, blocks, counter: Arc::default(), broken: Arc::default() }
    }

    fn device(&self) -> Arc<dyn Device> {
        let (save, restore, broken) =
            (self.counter.clone(), self.counter.clone(), self.broken.clone());
        Arc::new(FnDevice::new(
            "counter",
            move || Ok(save.load(Ordering::Relaxed).to_be_bytes().to_vec()),
            move |_, state| {
                if broken.load(Ordering::Relaxed) {
                    return Err("out of order".into());
                }
                restore.store(u64::from_be_bytes(state.try_into()?), Ordering::Relaxed);
                Ok(())
            },
        ))
    }

    fn checkpoints(&self) -> Checkpoints {
        Checkpoints::new(&self.map, vec![self.device()]).unwrap()
    }

    /// Writes, and counts it.
    fn write(&self, write: Write) {
        let Write { block, at, len, byte } = write;
        let block = &self.blocks[usize::from(block)];
        let at = at % block.len();
        let len = usize::try_from(u64::from(len).min(block.len() - at)).unwrap();
        block.write(at, &vec![byte; len]).unwrap();
        self.counter.fetch_add(1, Ordering::Relaxed);
    }

    fn memory(&self) -> Memory {
        let all = |block: &Arc<RamBlock>| {
            let mut bytes = vec![0; usize::try_from(block.len()).unwrap()];
            block.read(0, &mut bytes).unwrap();
            bytes
        };
        self.blocks.iter().map(all).collect()
    }

    fn state(&self) -> (Memory, u64) {
        (self.memory(), self.counter.load(Ordering::Relaxed))
    }
}

/// A client that mirrors memory by its own log, as a migration or a display does.
struct Mirror {
    log: GlobalLogClaim,
    copy: Memory,
}

impl Mirror {
    fn new(machine: &Machine) -> Self {
        let log = machine.map.claim_global_log("mirror").unwrap();
        Self { log, copy: machine.memory() }
    }

    fn follow(&mut self, machine: &Machine) {
        assert!(self.catch_up(machine));
    }

    /// Reads what is dirty; returns whether that is all that has changed.
    fn catch_up(&mut self, machine: &Machine) -> bool {
        self.log.sync().unwrap();
        for (block, copy) in machine.blocks.iter().zip(&mut self.copy) {
            let size = block.page_size();
            let visited = self.log.visit_runs(block, 0, |pages| {
                let bytes = size.bytes_of(&pages);
                let range = index(bytes.start)..index(bytes.end);
                block.read(bytes.start, &mut copy[range]).unwrap();
                ControlFlow::<()>::Continue(())
            });
            assert!(visited.unwrap().is_continue());
        }
        self.copy == machine.memory()
    }
}

#[derive(Clone, Copy, Debug)]
struct Write {
    block: bool,
    at: u64,
    len: u16,
    byte: u8,
}

fn write() -> impl Strategy<Value = Write> {
    let at = prop_oneof![0..40 * 4096_u64, any::<u64>()];
    let len = prop_oneof![1..10_u16, Just(64), Just(4096), 1..20_000_u16];
    (any::<bool>(), at, len, 0..4_u8).prop_map(|(block, at, len, byte)| Write {
        block,
        at,
        len,
        byte,
    })
}

#[derive(Clone, Debug)]
enum Step {
    Write(Write),
    Take,
    TakeLive(Write),
    Reset,
    Restore(prop::sample::Index),
    Remove(prop::sample::Index),
    Count,
    Follow,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => write().prop_map(Step::Write),
        3 => Just(Step::Take),
        1 => write().prop_map(Step::TakeLive),
        2 => Just(Step::Reset),
        4 => any::<prop::sample::Index>().prop_map(Step::Restore),
        2 => any::<prop::sample::Index>().prop_map(Step::Remove),
        1 => Just(Step::Count),
        1 => Just(Step::Follow),
    ]
}

proptest! {
    /// Trees of checkpoints, visited and cut in any order: each is what all memory and the device
    /// were when it was taken, and another client of the log misses nothing.
    #[test]
    fn each_checkpoint_is_its_instant(steps in prop::collection::vec(step(), 1..120)) {
        let machine = Machine::new();
        machine.write(Write { block: false, at: 0x3000, len: 9000, byte: 9 });
        let mut checkpoints = machine.checkpoints();
        let mut mirror = Mirror::new(&machine);
        let mut taken: BTreeMap<CheckpointId, (Memory, u64)> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Write(write) => machine.write(write),
                Step::Take => {
                    taken.insert(checkpoints.take().unwrap(), machine.state());
                }
                Step::TakeLive(write) => {
                    // Between the rounds and the pause it runs on.
                    let pause = || {
                        machine.write(write);
                        Ok(())
                    };
                    let (checkpoint, _) = checkpoints.take_live(pause).unwrap();
                    taken.insert(checkpoint, machine.state());
                }
                Step::Reset => match checkpoints.current() {
                    Some(current) => {
                        checkpoints.reset().unwrap();
                        prop_assert!(machine.state() == taken[&current]);
                        prop_assert_eq!(checkpoints.reset().unwrap().pages, 0);
                    }
                    None => {
                        let refused = checkpoints.reset();
                        prop_assert!(matches!(refused, Err(CheckpointError::NoCheckpoint)));
                    }
                },
                Step::Restore(index) if !taken.is_empty() => {
                    let all: Vec<_> = taken.iter().collect();
                    let (checkpoint, state) = *index.get(&all);
                    checkpoints.restore(*checkpoint).unwrap();
                    prop_assert!(machine.state() == *state);
                    prop_assert_eq!(checkpoints.current(), Some(*checkpoint));
                }
                Step::Remove(index) if !taken.is_empty() => {
                    let before = machine.state();
                    let checkpoint = *index.get(&taken.keys().collect::<Vec<_>>()).to_owned();
                    checkpoints.remove(checkpoint).unwrap();
                    taken.remove(&checkpoint);
                    prop_assert!(machine.state() == before);
                    let refused = checkpoints.restore(checkpoint);
                    let removed = matches!(refused, Err(CheckpointError::Removed { .. }));
                    prop_assert!(removed);
                }
                Step::Count => if let Some(current) = checkpoints.current() {
                    let dirty = checkpoints.count_dirty().unwrap();
                    prop_assert_eq!(checkpoints.count_dirty().unwrap(), dirty);
                    // As many at least as differ.
                    let (now, then) = (machine.memory(), &taken[&current].0);
                    let differ = |(n, size): (usize, usize)| {
                        let pages = now[n].chunks(size).zip(then[n].chunks(size));
                        pages.filter(|(now, then)| now != then).count()
                    };
                    let differing: usize = [(0, 4096), (1, 64)].map(differ).iter().sum();
                    prop_assert!(dirty >= differing as u64);
                },
                Step::Follow => mirror.follow(&machine),
                _ => {}
            }
            prop_assert!(checkpoints.all().eq(taken.keys().copied()));
        }
        mirror.follow(&machine);
        for (checkpoint, state) in &taken {
            checkpoints.restore(*checkpoint).unwrap();
            prop_assert!(machine.state() == *state);
        }
        mirror.follow(&machine);
        for checkpoint in taken.keys() {
            checkpoints.remove(*checkpoint).unwrap();
        }
        prop_assert_eq!(checkpoints.bytes_kept(), 0);
        prop_assert_eq!(checkpoints.bytes_of_steps(), 0);
    }

    /// A ring of the last checkpoints, against copies of all memory.
    #[test]
    fn a_rewind_plays_back_and_forth(
        max_steps in 1..8_usize,
        steps in prop::collection::vec((write(), prop::option::of(-6..6_isize)), 1..60),
    ) {
        let machine = Machine::new();
        let checkpoints = Checkpoints::new(&machine.map, Vec::new()).unwrap();
        let max_bytes = 40 * 4096;
        let mut rewind = Rewind::new(checkpoints).limit_steps(max_steps).limit_bytes(max_bytes);
        prop_assert!(matches!(rewind.seek(0), Err(CheckpointError::NoCheckpoint)));
        let (mut copies, mut at) = (Vec::<Memory>::new(), 0_usize);
        for (number, (write, seek)) in steps.into_iter().enumerate() {
            machine.write(write);
            match seek {
                Some(seek) if !copies.is_empty() => {
                    let (now, copy) = (at.saturating_add_signed(seek), &copies);
                    at = now.min(copies.len() - 1);
                    let state: &(usize, Memory) = rewind.seek(seek).unwrap();
                    prop_assert!(state.1 == copy[at] && machine.memory() == copy[at]);
                }
                _ => {
                    rewind.record((number, machine.memory())).unwrap();
                    copies.truncate(at + 1);
                    copies.push(machine.memory());
                    // As many as fit, of the newest.
                    prop_assert!((1..=max_steps.min(copies.len())).contains(&rewind.len()));
                    prop_assert_eq!(rewind.checkpoints().all().count(), rewind.len());
                    let bytes = rewind.checkpoints().bytes_of_steps();
                    prop_assert!(bytes <= max_bytes || rewind.len() == 1);
                    copies.drain(..copies.len() - rewind.len());
                    at = copies.len() - 1;
                }
            }
            prop_assert_eq!((rewind.len(), rewind.position()), (copies.len(), at));
        }
    }

    /// Three series that overlap, of which any epoch may be aborted: a copy that takes the pages of
    /// each epoch that is committed is memory at that instant, and holds the last one until then.
    #[test]
    fn epochs_that_overlap_are_each_one_instant(
        steps in prop::collection::vec((write(), 0..3_usize, 0..3_u8), 1..80),
    ) {
        let machine = Machine::new();
        let mut all = ["backup", "fuzzer", "mirror"].map(|name| {
            let empty = |block: &Arc<RamBlock>| vec![0xff; index(block.len())];
            let empty: Memory = machine.blocks.iter().map(empty).collect();
            (DirtyEpochs::new(&machine.map, name).unwrap(), empty)
        });
        for (write, number, action) in steps {
            machine.write(write);
            let (series, copy) = &mut all[number];
            let epoch = series.begin().unwrap();
            if action == 0 {
                drop(epoch); // aborted
                continue;
            }
            let (before, mut pages) = (copy.clone(), 0);
            for (block, run) in epoch.runs() {
                let at = machine.blocks.iter().position(|known| Arc::ptr_eq(known, block)).unwrap();
                let bytes = block.page_size().bytes_of(&run);
                let range = index(bytes.start)..index(bytes.end);
                block.read(bytes.start, &mut copy[at][range]).unwrap();
                pages += run.end - run.start;
            }
            prop_assert_eq!(epoch.pages(), pages);
            prop_assert!(*copy == machine.memory());
            if action == 1 {
                *copy = before; // it cannot be kept
            } else {
                epoch.commit();
            }
        }
    }
}

/// As firmware may do while the machine runs.
#[test]
fn a_block_that_is_resized_while_a_checkpoint_is_taken_fails_it() {
    let machine = Machine::new();
    let ram = RamBlock::builder("rom", 0x2000).max_len(0x100_0000).anonymous().unwrap();
    machine.map.transaction(|map| map.ram("rom", ram.clone())).unwrap();
    let mut checkpoints = machine.checkpoints();
    for live in [0x80_0000, 0x1000] {
        let resize = || {
            ram.resize(live)?;
            ram.write(live - 1, &[1])?;
            Ok(())
        };
        let refused = checkpoints.take_live(resize).unwrap_err();
        let CheckpointError::BlockChanged { block } = &refused else { panic!("{refused}") };
        assert_eq!(block, "rom");
        // There was none before, so that the machine's memory as it is now is as good.
        assert_eq!(checkpoints.current(), None);
    }
    let taken = checkpoints.take().unwrap();
    ram.write(0, &[2; 0x1000]).unwrap();
    assert_eq!(checkpoints.restore(taken).unwrap().pages, 1);
    ram.resize(0x8_0000).unwrap();
    assert!(checkpoints.count_dirty().unwrap() > 0);
    let refused = checkpoints.reset();
    assert!(matches!(refused, Err(CheckpointError::BlockChanged { .. })), "{refused:?}");
}

#[test]
fn an_epoch_has_all_of_a_block_that_joins() {
    let machine = Machine::new();
    let mut series = DirtyEpochs::new(&machine.map, "backup").unwrap();
    series.begin().unwrap().commit();
    assert_eq!(series.begin().unwrap().pages(), 0);
    let joins = RamBlock::anonymous("more", 1 << 20).unwrap();
    let more = machine.map.transaction(|map| map.ram("more", joins.clone())).unwrap();
    assert_eq!(series.begin().unwrap().pages(), joins.pages());
    machine.map.transaction(|map| map.remove(more)).unwrap();
    assert_eq!(series.begin().unwrap().pages(), 0);
    machine.map.transaction(|map| map.ram("more", joins.clone())).unwrap();
    series.begin().unwrap().commit();
    assert_eq!(series.begin().unwrap().pages(), 0);
}

#[test]
fn an_overshoot_is_what_was_written_beyond_the_limit() {
    let machine = Machine::new();
    let mut checkpoints = machine.checkpoints();
    checkpoints.take().unwrap();
    for (pages, found) in [(4, None), (5, Some(0)), (9, Some(4))] {
        machine.blocks[0].write(0, &vec![1; pages * 4096]).unwrap();
        assert_eq!(checkpoints.overshoot(5).unwrap(), found);
    }
    assert_eq!(checkpoints.reset().unwrap().pages, 9);
    assert_eq!(checkpoints.overshoot(5).unwrap(), None);
}

#[test]
fn equal_pages_are_kept_once_and_zeros_not_at_all() {
    let machine = Machine::new();
    let mut checkpoints = machine.checkpoints();
    for page in 0..100 {
        machine.blocks[0].write(page * 4096, &[7; 4096]).unwrap();
    }
    machine.blocks[0].write(200 * 4096, &[0; 4096]).unwrap();
    let first = checkpoints.take().unwrap();
    assert_eq!(checkpoints.bytes_kept(), 4096);
    // Written, and the same: nothing differs.
    machine.blocks[0].write(0, &[7; 4096]).unwrap();
    checkpoints.take().unwrap();
    assert_eq!(checkpoints.bytes_kept(), 4096);
    machine.blocks[0].write(0, &[8; 4096]).unwrap();
    let third = checkpoints.take().unwrap();
    assert_eq!(checkpoints.bytes_kept(), 2 * 4096);
    checkpoints.remove(third).unwrap();
    checkpoints.remove(first).unwrap();
    assert_eq!(checkpoints.bytes_kept(), 4096);
}

#[test]
fn what_a_live_checkpoint_copies_again_is_what_was_written_again() {
    let machine = Machine::new();
    let mut checkpoints = machine.checkpoints();
    for page in 0..400 {
        machine.blocks[0].write(page * 4096, &page.to_le_bytes()).unwrap();
    }
    let pause = || {
        (0..10).for_each(|page| machine.blocks[0].write(page * 4096, &[1]).unwrap());
        Ok(())
    };
    let (_, stats) = checkpoints.take_live(pause).unwrap();
    assert!(stats.pages_live >= 400, "{stats:?}");
    assert_eq!(stats.pages_paused, 10, "{stats:?}");
    let paused = Arc::new(Mutex::new(Vec::new()));
    struct Pause(Arc<Mutex<Vec<&'static str>>>);
    impl Drop for Pause {
        fn drop(&mut self) {
            self.0.lock().unwrap().push("goes on");
        }
    }
    let pause = || {
        paused.lock().unwrap().push("paused");
        Ok(Pause(paused.clone()))
    };
    checkpoints.take_live(pause).unwrap();
    assert_eq!(*paused.lock().unwrap(), ["paused", "goes on"]);
    let refused = checkpoints.take_live(|| Err::<(), _>("it does not stop".into()));
    assert!(matches!(refused, Err(CheckpointError::Pause(_))));
}

#[test]
fn a_device_that_is_not_put_back_is_named_and_memory_is_whole() {
    let machine = Machine::new();
    let mut checkpoints = machine.checkpoints();
    checkpoints.take().unwrap();
    let state = machine.state();
    machine.write(Write { block: false, at: 0, len: 9000, byte: 1 });
    machine.broken.store(true, Ordering::Relaxed);
    let refused = checkpoints.reset().unwrap_err();
    let CheckpointError::RollBack { device, instance: 0, .. } = &refused else {
        panic!("{refused}")
    };
    assert_eq!(device, "counter");
    assert!(machine.memory() == state.0);
    machine.broken.store(false, Ordering::Relaxed);
    assert_eq!(checkpoints.reset().unwrap().pages, 0);
    assert!(machine.state() == state);
}

/// What was copied while the machine ran is still dirty.
#[test]
fn a_live_checkpoint_that_fails_loses_no_page() {
    let machine = Machine::new();
    let mut checkpoints = machine.checkpoints();
    checkpoints.take().unwrap();
    let state = machine.state();
    machine.write(Write { block: false, at: 0, len: 9000, byte: 1 });
    let refused = checkpoints.take_live(|| Err::<(), _>("it does not stop".into()));
    assert!(matches!(refused, Err(CheckpointError::Pause(_))));
    assert_eq!(checkpoints.bytes_kept(), 0);
    assert_eq!(checkpoints.count_dirty().unwrap(), 3);
    assert_eq!(checkpoints.reset().unwrap().pages, 3);
    assert!(machine.state() == state);
}

#[test]
fn a_page_that_differs_on_the_way_and_was_written_is_put_back_once() {
    let machine = Machine::new();
    let mut checkpoints = machine.checkpoints();
    let first = checkpoints.take().unwrap();
    machine.blocks[0].write(0x1000, &[1]).unwrap();
    checkpoints.take().unwrap();
    machine.blocks[0].write(0x1000, &[2; 0x2000]).unwrap();
    assert_eq!(checkpoints.restore(first).unwrap().pages, 2);
}

#[test]
fn a_limit_is_kept_and_the_pages_are_not_lost() {
    let machine = Machine::new();
    let mut checkpoints = machine.checkpoints().limit_bytes(10 * 4096);
    let start = checkpoints.take().unwrap();
    let state = machine.state();
    machine.write(Write { block: false, at: 0, len: 4096 * 11, byte: 1 });
    for live in [false, true] {
        let refused = match live {
            false => checkpoints.take().map(drop),
            true => checkpoints.take_live(|| Ok(())).map(drop),
        };
        let refused = refused.unwrap_err();
        assert!(
            matches!(refused, CheckpointError::Limit { limit: 40_960, needed: 45_056 }),
            "{refused}"
        );
        assert_eq!(checkpoints.current(), Some(start));
        assert_eq!(checkpoints.bytes_kept(), 0);
        assert_eq!(checkpoints.count_dirty().unwrap(), 11);
    }
    assert_eq!(checkpoints.reset().unwrap().pages, 11);
    assert!(machine.state() == state);
}

#[test]
fn a_machine_whose_memory_has_changed_is_refused_by_name() {
    let machine = Machine::new();
    let mut checkpoints = machine.checkpoints();
    let start = checkpoints.take().unwrap();

    let other = Machine::new().checkpoints();
    let mut of_other = other;
    assert!(matches!(of_other.restore(start), Err(CheckpointError::OtherMachine { .. })));
    assert!(matches!(of_other.reset(), Err(CheckpointError::NoCheckpoint)));

    let joins = RamBlock::anonymous("more", 1 << 20).unwrap();
    let more = machine.map.transaction(|map| map.ram("more", joins)).unwrap();
    for refused in [checkpoints.reset().map(drop), checkpoints.take().map(drop)] {
        let Err(CheckpointError::BlockJoined { block }) = refused else { panic!("{refused:?}") };
        assert_eq!(block, "more");
    }
    machine.map.transaction(|map| map.remove(more)).unwrap();
    checkpoints.reset().unwrap();

    machine.map.transaction(|map| map.remove(machine.regions[0])).unwrap();
    let refused = checkpoints.reset();
    let Err(CheckpointError::BlockGone { block }) = refused else { panic!("{refused:?}") };
    assert_eq!(block, "ram");
    // Its log was interrupted.
    let ram = machine.blocks[0].clone();
    machine.map.transaction(|map| map.ram("ram", ram)).unwrap();
    let refused = checkpoints.reset();
    let Err(CheckpointError::BlockChanged { block }) = refused else { panic!("{refused:?}") };
    assert_eq!(block, "ram");
}

/// How a loop of resets puts memory back; returns how many pages.
type PutBack = fn(&mut Loop) -> u64;

/// A machine that is reset again and again, beside a client that mirrors it.
struct Loop {
    machine: Machine,
    checkpoints: Checkpoints,
    mirror: Mirror,
    /// For a loop by hand: a log and a copy of its own.
    own: Mirror,
}

impl Loop {
    /// Puts back what the log of its own has, by `write`.
    fn by_hand(&mut self, write: impl Fn(&mut GlobalLogClaim, &Arc<RamBlock>, u64, &[u8])) -> u64 {
        let Mirror { log, copy } = &mut self.own;
        let (block, mut dirty) = (&self.machine.blocks[0], Vec::new());
        let visited = log.visit_runs(block, 0, |pages| {
            dirty.extend(pages);
            ControlFlow::<()>::Continue(())
        });
        assert!(visited.unwrap().is_continue());
        for page in &dirty {
            let bytes = &copy[0][index(page * 4096)..index((page + 1) * 4096)];
            write(log, block, page * 4096, bytes);
        }
        dirty.len() as u64
    }

    /// Whether each reset puts back what was written since the last one, and no more, and the
    /// mirror comes out right.
    fn is_right(put_back: PutBack) -> bool {
        let machine = Machine::new();
        let mut checkpoints = machine.checkpoints();
        checkpoints.take().unwrap();
        let (before, mirror, own) = (machine.memory(), Mirror::new(&machine), {
            let log = machine.map.claim_global_log("own").unwrap();
            Mirror { log, copy: machine.memory() }
        });
        let mut it = Self { machine, checkpoints, mirror, own };
        (1..20).all(|round| {
            for page in round..2 * round {
                it.machine.blocks[0].write(page * 4096, &[1]).unwrap();
            }
            it.mirror.follow(&it.machine);
            let pages = put_back(&mut it);
            let Self { machine, mirror, .. } = &mut it;
            pages == round && machine.memory() == before && mirror.catch_up(machine)
        })
    }
}

#[test]
fn resets_that_hear_themselves_or_take_anothers_pages_are_found_out() {
    assert!(Loop::is_right(|it| it.checkpoints.reset().unwrap().pages));
    let by_hand = |it: &mut Loop| {
        it.by_hand(|log, block, offset, bytes| log.write(block, [(offset, bytes)]).unwrap())
    };
    assert!(Loop::is_right(by_hand));
    // Its own log hears of what it writes.
    let hears_itself =
        |it: &mut Loop| it.by_hand(|_, block, offset, bytes| block.write(offset, bytes).unwrap());
    assert!(!Loop::is_right(hears_itself));
    // Takes the mirror's pages along.
    let takes_all = |it: &mut Loop| {
        let pages = it.checkpoints.reset().unwrap().pages;
        let all = |_| ControlFlow::<()>::Continue(());
        let taken = it.mirror.log.visit_runs(&it.machine.blocks[0], 0, all);
        assert!(taken.unwrap().is_continue());
        pages
    };
    assert!(!Loop::is_right(takes_all));
}
