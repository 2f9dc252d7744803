//! From a guest's store to its clients' bitmaps.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use integration_tests::harness::Test;
use kvm_accel::{DirtyTracking, KvmVm, PauseGuard, VcpuThread};
use machines::guest::{DATA, programs};
use memory_region::{
    GlobalLogClaim, ListenerError, LogClaim, MemoryListener, RegionId, Section, ViewChange,
};
use ram_block::{DirtyClient, RamBlock};

use super::machine::{Machine, seconds, wait_until};

pub const TESTS: &[Test] = &[
    ("a_guests_pages_reach_every_client_that_is_on", a_guests_pages_reach_every_client_that_is_on),
    ("a_slot_may_begin_at_any_page_of_its_block", a_slot_may_begin_at_any_page_of_its_block),
    (
        "stores_through_every_region_of_a_block_are_logged",
        stores_through_every_region_of_a_block_are_logged,
    ),
    (
        "nothing_is_lost_while_slots_and_logs_come_and_go",
        nothing_is_lost_while_slots_and_logs_come_and_go,
    ),
    (
        "a_second_clear_takes_nothing_of_what_was_written_since_the_first",
        a_second_clear_takes_nothing_of_what_was_written_since_the_first,
    ),
    (
        "what_is_taken_while_a_map_comes_is_watched_again",
        what_is_taken_while_a_map_comes_is_watched_again,
    ),
    (
        "what_a_guest_writes_while_a_map_comes_is_in_the_harvest_of_that_moment",
        what_a_guest_writes_while_a_map_comes_is_in_the_harvest_of_that_moment,
    ),
    ("the_mirror_sees_bits_that_one_client_eats", the_mirror_sees_bits_that_one_client_eats),
];

const VGA: DirtyClient = DirtyClient::VGA;
const CODE: DirtyClient = DirtyClient::CODE;
const MIGRATION: DirtyClient = DirtyClient::MIGRATION;

/// The pages of `block` that `client` has, without taking them.
fn dirty(block: &RamBlock, client: DirtyClient) -> Vec<u64> {
    (0..block.pages()).filter(|page| block.dirty().is_dirty(client, *page)).collect()
}

fn take(log: &mut GlobalLogClaim, block: &Arc<RamBlock>) -> Vec<u64> {
    log.sync().unwrap();
    log.snapshot_and_clear(block, 0..block.len()).unwrap().commit().pages().collect()
}

/// Whether a log that starts has all pages, and reports bring them until they are cleared.
fn starts_with_all(machine: &Machine) -> bool {
    machine.vm.dirty_tracking().initially_set
}

fn a_guests_pages_reach_every_client_that_is_on() {
    let machine = Machine::new(16 << 20);
    let page = machine.block.page_size().bytes();
    let mut vga = machine.memory.claim_log(machine.ram, VGA).unwrap();
    let mut migration = machine.memory.claim_global_log(MIGRATION).unwrap();
    machine.store(1, &[]); // what booting writes, and the page tables' own bits
    vga.snapshot_and_clear(0..16 << 20).unwrap().commit();
    take(&mut migration, &machine.block);

    let pages = [1000, 1001, 1063, 1064, 2047, 4095];
    machine.store(7, &pages.map(|number| number * page + number));
    assert_eq!(dirty(&machine.block, VGA).iter().filter(|page| **page >= 1000).count(), 0);
    machine.memory.sync_dirty_log(machine.ram).unwrap();
    for client in [VGA, MIGRATION] {
        let found: Vec<_> =
            dirty(&machine.block, client).into_iter().filter(|page| *page >= 1000).collect();
        assert_eq!(found, pages, "{client}");
    }
    assert_eq!(dirty(&machine.block, CODE), [0; 0]);
    for number in pages {
        let mut byte = [0];
        machine.block.read(number * page + number, &mut byte).unwrap();
        assert_eq!(byte, [7]);
    }

    let seen = vga.snapshot_and_clear(0..16 << 20).unwrap().commit();
    assert!(pages.iter().all(|page| seen.is_dirty(*page)));
    assert_eq!(dirty(&machine.block, VGA), [0; 0]);
    assert!(pages.iter().all(|page| machine.block.dirty().is_dirty(MIGRATION, *page)));
}

fn a_slot_may_begin_at_any_page_of_its_block() {
    let machine = Machine::new(16 << 20);
    let odd = RamBlock::anonymous("odd", 256 * machine.block.page_size().bytes()).unwrap();
    let page = odd.page_size().bytes();
    let region = machine.memory.transaction(|map| map.ram("odd", odd.clone())).unwrap();
    let mut logs = [VGA, MIGRATION].map(|client| machine.memory.claim_log(region, client).unwrap());
    let guest = 0x4000_0000;
    for first in 0..64 {
        let window = machine
            .memory
            .transaction(|map| {
                let window = map.alias("window", region, first * page, u128::from(130 * page))?;
                map.add_subregion(machine.system, guest, window)?;
                Ok(window)
            })
            .unwrap();
        let pages = [0, 1, 62, 63, 64, 65, 127, 128, 129];
        machine.store(1, &pages.map(|number| guest + number * page + 9));
        // Half of them through the sync, half of them because the slot goes.
        if first % 2 == 0 {
            machine.memory.sync_dirty_log(region).unwrap();
        }
        machine
            .memory
            .transaction(|map| {
                map.del_subregion(window)?;
                map.remove(window)
            })
            .unwrap();
        let expected = pages.map(|number| first + number);
        for log in &mut logs {
            let client = log.client();
            // No slot shows the block: there is nothing to sync any more.
            let harvest = log.snapshot_and_clear(0..odd.len()).unwrap();
            let found: Vec<_> = harvest.commit().pages().collect();
            if starts_with_all(&machine) {
                // The slot is new each time.
                assert_eq!(found, (first..first + 130).collect::<Vec<_>>(), "{client}");
            } else {
                assert_eq!(found, expected, "{client} from page {first}");
            }
        }
    }
}

/// One block in two regions: who logs the one gets the stores through the other.
fn stores_through_every_region_of_a_block_are_logged() {
    let machine = Machine::new(16 << 20);
    let block = RamBlock::anonymous("shared", 64 * machine.block.page_size().bytes()).unwrap();
    let page = block.page_size().bytes();
    let (one, other) = (0x4000_0000, 0x5000_0000);
    let region = machine
        .memory
        .transaction(|map| {
            let first = map.ram("one", block.clone())?;
            let second = map.ram("other", block.clone())?;
            map.add_subregion(machine.system, one, first)?;
            map.add_subregion(machine.system, other, second)?;
            Ok(first)
        })
        .unwrap();
    let mut log = machine.memory.claim_log(region, VGA).unwrap();
    log.snapshot_and_clear(0..block.len()).unwrap().commit();
    machine.store(1, &[one + 3 * page, other + 5 * page]);
    machine.space.write(other + 7 * page, &[1]).unwrap();
    let harvest = log.snapshot_and_clear(0..block.len()).unwrap();
    assert_eq!(harvest.commit().pages().collect::<Vec<_>>(), [3, 5, 7]);
}

/// A copy of memory that is kept up to date by one client's harvests alone.
struct Mirror {
    log: LogClaim,
    bytes: Vec<u8>,
}

impl Mirror {
    fn new(machine: &Machine) -> Self {
        let log = machine.memory.claim_log(machine.ram, MIGRATION).unwrap();
        let mut bytes = vec![0; usize::try_from(machine.block.len()).unwrap()];
        machine.block.read(0, &mut bytes).unwrap();
        Self { log, bytes }
    }

    fn update(&mut self, machine: &Machine) {
        let page = machine.block.page_size().bytes();
        let harvest = self.log.snapshot_and_clear(0..machine.block.len()).unwrap();
        for run in harvest.commit().runs() {
            let bytes = usize::try_from(run.start * page).unwrap()
                ..usize::try_from(run.end * page).unwrap();
            machine.block.read(run.start * page, &mut self.bytes[bytes]).unwrap();
        }
    }

    fn first_difference(&self, block: &RamBlock) -> Option<usize> {
        let mut now = vec![0; self.bytes.len()];
        block.read(0, &mut now).unwrap();
        self.bytes.iter().zip(&now).position(|(kept, now)| kept != now)
    }
}

/// While a guest stores without end, one client harvests; another is switched on and
/// off; regions come and go in the middle of RAM, so that its slots are split and
/// joined. What the first client gathered must be all of memory.
fn nothing_is_lost_while_slots_and_logs_come_and_go() {
    let machine = Machine::new(16 << 20);
    let page = machine.block.page_size().bytes();
    let (start, end, beat) = (DATA + 16 * page, DATA + 1500 * page, DATA);
    let mut mirror = Mirror::new(&machine);
    let window = machine
        .memory
        .transaction(|map| {
            let window = map.ram("window", RamBlock::anonymous("window", 32 * page)?)?;
            map.add_subregion_overlap(machine.system, DATA + 700 * page, window, 1)?;
            map.set_enabled(window, false)?;
            Ok(window)
        })
        .unwrap();
    let guest = machine.start(&programs::increment_pages(), &[start, end, page, beat]);
    let passes = || {
        let mut count = [0; 8];
        machine.block.read(beat, &mut count).unwrap();
        u64::from_le_bytes(count)
    };
    wait_until("a pass", || passes() > 0);
    // At least so many, and until the guest, which a busy host seldom lets run, went over all
    // pages meanwhile.
    let limit = Instant::now() + seconds(60);
    let before = passes();
    for round in 0.. {
        if round >= 150 && passes() > before {
            break;
        }
        assert!(Instant::now() < limit, "the guest made no pass in {round} rounds");
        let claim = || machine.memory.claim_log(machine.ram, VGA).unwrap();
        let mut vga = (round % 2 == 0).then(claim);
        machine.memory.transaction(|map| map.set_enabled(window, round % 3 == 0)).unwrap();
        if let Some(vga) = &mut vga {
            vga.snapshot_and_clear(0..16 << 20).unwrap().commit();
        }
        if round % 5 == 0 {
            mirror.update(&machine);
        }
    }
    assert!(!guest.is_finished(), "{:?}", guest.join());
    guest.stop().unwrap();
    mirror.update(&machine);
    assert_eq!(mirror.first_difference(&machine.block), None, "a page was lost");
}

/// Two clients take and clear the same page, step by step, with the guest writing between
/// them: VGA clears with what it got before the migration's clear. The migration's copy must
/// get the guest's second write.
fn a_second_clear_takes_nothing_of_what_was_written_since_the_first() {
    let machine = Machine::new(16 << 20);
    let page = machine.block.page_size().bytes();
    let (address, number) = (DATA + 1000 * page, (DATA + 1000 * page) / page);
    let memory = &machine.memory;
    let [mut vga, mut migration] =
        [VGA, MIGRATION].map(|client| memory.claim_global_log(client).unwrap());
    machine.store(1, &[address]);
    for log in [&mut vga, &mut migration] {
        take(log, &machine.block);
    }
    let read = || {
        let mut byte = [0];
        machine.block.read(address, &mut byte).unwrap();
        byte[0]
    };
    let take_and_clear = |log: &mut GlobalLogClaim| {
        let harvest = log.snapshot_and_clear(&machine.block, address..address + page);
        harvest.unwrap().commit().is_dirty(number)
    };

    machine.store(2, &[address]); // P1
    memory.sync_all_dirty_logs().unwrap(); // both have the bit
    assert!(take_and_clear(&mut migration));
    assert_eq!(read(), 2, "P1 is sent");
    machine.store(3, &[address]); // P2
    assert!(take_and_clear(&mut vga), "the bit of P1"); // VGA has not synced since
    memory.sync_all_dirty_logs().unwrap();
    assert!(take_and_clear(&mut migration), "P2 is lost");
    assert_eq!(read(), 3);
}

/// The same harvests by two clients, who each take only what VGA's own sync brought if
/// fan-out is left out: kept to show that the mirror sees such a loss.
fn the_mirror_sees_bits_that_one_client_eats() {
    let machine = Machine::new(16 << 20);
    if machine.vm.dirty_tracking().tracking == DirtyTracking::ManualProtect {
        return; // nobody's sync eats anything: see the test of two clients that clear
    }
    let page = machine.block.page_size().bytes();
    let mut mirror = Mirror::new(&machine);
    machine.store(5, &[DATA + 1000 * page]);
    // A sync whose bits reach one client only: the migration's are taken and dropped.
    mirror.log.snapshot_and_clear(0..machine.block.len()).unwrap().commit();
    mirror.update(&machine);
    assert!(mirror.first_difference(&machine.block).is_some());
}

/// A listener that does something, once, when the accelerator has followed and the map is
/// not published yet.
struct Meanwhile<F>(Mutex<Option<F>>);

impl<F: FnOnce() + Send> MemoryListener for Meanwhile<F> {
    fn name(&self) -> &'static str {
        "meanwhile"
    }

    fn priority(&self) -> i32 {
        5
    }

    fn commit(&self, change: &ViewChange) -> Result<(), ListenerError> {
        if change.added.iter().any(|section| section.name() == "other") {
            self.0.lock().unwrap().take().expect("the window comes once")();
        }
        Ok(())
    }

    fn sync(&self, _: &Section) -> Result<(), ListenerError> {
        Ok(())
    }
}

/// A block that is shown by two regions, of which the second hides a part of the first when its
/// window is enabled; a guest increments the first byte of each page through them, for ever.
struct ShownTwice {
    machine: Machine,
    window: RegionId,
    shown: Arc<Shown>,
    running: VcpuThread,
}

/// What can be done with it from the middle of a commit, too.
struct Shown {
    vm: Arc<KvmVm>,
    block: Arc<RamBlock>,
    vga: Mutex<LogClaim>,
}

/// A page that the window shows.
const IN_WINDOW: u64 = 8;

impl ShownTwice {
    fn new() -> Self {
        let machine = Machine::new(16 << 20);
        let page = machine.block.page_size().bytes();
        let block = RamBlock::anonymous("shown twice", 64 * page).unwrap();
        let guest = 0x4000_0000;
        let placed = machine.memory.transaction(|map| {
            let region = map.ram("shown", block.clone())?;
            map.add_subregion(machine.system, guest, region)?;
            let other = map.ram("other", block.clone())?;
            let window = map.alias("window", other, IN_WINDOW * page, u128::from(16 * page))?;
            map.add_subregion_overlap(machine.system, guest + IN_WINDOW * page, window, 1)?;
            map.set_enabled(window, false)?;
            Ok((region, window))
        });
        let (region, window) = placed.unwrap();
        let vga = machine.memory.claim_log(region, VGA).unwrap().into();
        let arguments = [guest, guest + block.len(), page, DATA];
        let running = machine.start(&programs::increment_pages(), &arguments);
        let shown = Arc::new(Shown { vm: machine.vm.clone(), block, vga });
        Self { machine, window, shown, running }
    }

    /// Enables the window, with something done when KVM has its slot and the map is not
    /// published.
    fn show_the_window<T: Send + 'static>(
        &self,
        meanwhile: impl FnOnce(&Shown) -> T + Send + 'static,
    ) -> T {
        let (shown, done) = (self.shown.clone(), Arc::new(Mutex::new(None)));
        let result = done.clone();
        let work = move || *done.lock().unwrap() = Some(meanwhile(&shown));
        let meanwhile = Arc::new(Meanwhile(Mutex::new(Some(work))));
        let Machine { memory, space, .. } = &self.machine;
        memory.add_listener(space, meanwhile).unwrap();
        memory.transaction(|map| map.set_enabled(self.window, true)).unwrap();
        result.lock().unwrap().take().expect("it was done in the middle of the commit")
    }
}

impl Shown {
    fn pause(&self) -> PauseGuard {
        self.vm.pause(seconds(10)).unwrap()
    }

    fn take(&self) -> Vec<u64> {
        let harvest = self.vga.lock().unwrap().snapshot_and_clear(0..self.block.len()).unwrap();
        harvest.commit().pages().collect()
    }

    fn wait_for_a_store(&self) {
        let byte = || {
            let mut byte = [0];
            self.block.read(IN_WINDOW * self.block.page_size().bytes(), &mut byte).unwrap();
            byte
        };
        let before = byte();
        wait_until("a store through the window", || byte() != before);
    }
}

/// KVM has the slots of a map before the map is published: what a guest writes through them
/// is in a harvest that begins after the write.
fn what_a_guest_writes_while_a_map_comes_is_in_the_harvest_of_that_moment() {
    let twice = ShownTwice::new();
    let found = twice.show_the_window(|shown| {
        let paused = shown.pause();
        shown.take();
        drop(paused);
        shown.wait_for_a_store();
        let _paused = shown.pause();
        shown.take()
    });
    assert!(found.contains(&IN_WINDOW), "{found:?}");
    twice.running.stop().unwrap();
}

/// What one client takes through a slot of a map that is not published is watched again before
/// it reads the page: or another one's clear, later, takes what was written since.
fn what_is_taken_while_a_map_comes_is_watched_again() {
    let twice = ShownTwice::new();
    let mut migration = twice.machine.memory.claim_global_log(MIGRATION).unwrap();
    let paused = twice.show_the_window(|shown| {
        shown.wait_for_a_store();
        let paused = shown.pause();
        assert!(shown.take().contains(&IN_WINDOW));
        drop(paused);
        shown.wait_for_a_store();
        shown.pause()
    });
    // The other one has the bit of the first store, and is about to read the page.
    let block = &twice.shown.block;
    let bytes = block.page_size().bytes_of(&(IN_WINDOW..IN_WINDOW + 1));
    let taken = migration.snapshot_and_clear(block, bytes).unwrap().commit();
    assert!(taken.is_dirty(IN_WINDOW));
    assert!(twice.shown.take().contains(&IN_WINDOW), "the second store is lost");
    drop(paused);
    twice.running.stop().unwrap();
}
