//! Guests that are slowed down: all vCPUs for a part of the time, or each at a rate of
//! dirtied memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use integration_tests::harness::Test;
use kvm_accel::{DirtyTracking, KvmConfig, KvmError, PauseGuard, VcpuEvent, VcpuThread};
use machines::guest::{DATA, TABLE_PAGES, programs};
use memory_region::GlobalLogClaim;
use migration_ram::{DirtyRate, Throttle};
use ram_block::{DirtyClient, RamBlock};

use super::machine::{Machine, seconds, tracked_by, wait_until};

/// In every way of tracking.
pub const TESTS: &[Test] =
    &[("a_dirty_rate_is_that_of_the_guest", a_dirty_rate_is_that_of_the_guest)];

/// Of rings only, and for which the way is all one.
pub const ONCE: &[Test] = &[
    ("a_throttled_guest_stores_a_part", a_throttled_guest_stores_a_part),
    ("a_vcpu_dirties_at_its_limit", a_vcpu_dirties_at_its_limit),
    ("each_vcpu_has_its_own_limit", each_vcpu_has_its_own_limit),
    ("a_vcpu_that_waits_for_its_limit_can_be_had", a_vcpu_that_waits_for_its_limit_can_be_had),
    ("vcpus_stop_before_they_pass_their_bound", vcpus_stop_before_they_pass_their_bound),
    ("limits_that_cannot_be_kept_are_refused", limits_that_cannot_be_kept_are_refused),
];

const RING: DirtyTracking = DirtyTracking::Ring { entries: 65_536 };

/// The first word at `at`, which a guest counts up.
fn count(block: &RamBlock, at: u64) -> u64 {
    let mut bytes = [0; 8];
    block.read(at, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

/// A pause that looks whether the guest stores all the same.
struct Still {
    block: Arc<RamBlock>,
    passes: u64,
    stores: Arc<AtomicU64>,
    _guard: PauseGuard,
}

impl Drop for Still {
    fn drop(&mut self) {
        let stores = count(&self.block, DATA) - self.passes;
        self.stores.fetch_add(stores, Ordering::Relaxed);
    }
}

fn a_throttled_guest_stores_a_part() {
    let machine = Machine::new(16 << 20);
    let page = machine.block.page_size().bytes();
    let arguments = [DATA + page, DATA + 9 * page, page, DATA];
    let guest = machine.start(&programs::increment_pages(), &arguments);
    let passes = || machine.words::<1>(DATA)[0];
    wait_until("a pass", || passes() > 0);
    let while_still = Arc::<AtomicU64>::default();
    let pause = {
        let (vm, block, stores) = (machine.vm.clone(), machine.block.clone(), while_still.clone());
        move || {
            let guard = vm.pause(seconds(5))?;
            let (block, stores) = (block.clone(), stores.clone());
            Ok::<_, KvmError>(Still { passes: count(&block, DATA), block, stores, _guard: guard })
        }
    };
    let throttle = Throttle::new(pause).unwrap();
    throttle.set(80);
    // Of a time in which the host let the throttle have its turns: a slice that the host makes
    // long is not paid for in full.
    wait_until("the guest to stand still for its part", || {
        let (begin, still) = (Instant::now(), throttle.stopped_time());
        std::thread::sleep(Duration::from_millis(500));
        let stood = throttle.stopped_time() - still;
        let part = stood.as_secs_f64() / begin.elapsed().as_secs_f64();
        println!("{part:.3} of the time still");
        (0.65..0.88).contains(&part)
    });
    let before = passes();
    wait_until("the guest to store in between", || passes() > before);
    assert_eq!(throttle.failures(), 0);
    assert_eq!(while_still.load(Ordering::Relaxed), 0, "passes in pauses");
    drop(throttle);
    let before = passes();
    wait_until("the guest to go on", || passes() > before);
    guest.stop().unwrap();
}

/// A guest that goes through 200 pages again and again.
fn a_dirty_rate_is_that_of_the_guest() {
    let machine = Machine::new(16 << 20);
    let page = machine.block.page_size().bytes();
    let arguments = [DATA + page, DATA + 200 * page, page, DATA];
    let guest = machine.start(&programs::increment_pages(), &arguments);
    wait_until("a pass", || machine.words::<1>(DATA)[0] > 0);
    // With nested paging the processor's own walks write the guest's page tables, too.
    let expected = 200..=200 + TABLE_PAGES;
    // Of a guest that had a processor meanwhile.
    wait_until("the guest to write its 200 pages", || {
        let report = DirtyRate::measure(&machine.memory, Duration::from_millis(640)).unwrap();
        println!("{report}");
        assert!(report.curve.is_sorted_by_key(|sample| sample.pages));
        assert!(report.working_set().pages <= *expected.end());
        expected.contains(&report.working_set().pages)
    });
    assert!(machine.vm.slots().iter().all(|slot| !slot.logged));
    guest.stop().unwrap();
    let idle = DirtyRate::measure(&machine.memory, Duration::from_millis(20)).unwrap();
    assert_eq!(idle.working_set().pages, 0);
}

/// So much that a guest takes seconds to go through it.
const RAM: u64 = 400 << 20;

/// A machine with such RAM, and the log of it.
fn populated() -> (Machine, GlobalLogClaim) {
    // Rings alone say what is dirtied; syncs look into processors each time.
    let config = KvmConfig { pml_flush_interval: Duration::ZERO, ..KvmConfig::default() };
    let machine = Machine::with_config(RAM, config);
    for at in (0..RAM).step_by(1 << 20) {
        machine.block.write(at, &[0; 1 << 20]).unwrap();
    }
    let log = machine.memory.claim_global_log(DirtyClient::MIGRATION).unwrap();
    (machine, log)
}

/// A guest that goes through the pages from `from` to `to`, in MiB after [`DATA`].
fn sweep(machine: &Machine, from: u64, to: u64) -> VcpuThread {
    let page = machine.block.page_size().bytes();
    let arguments = [DATA + (from << 20) + page, DATA + (to << 20), page, DATA + (from << 20)];
    machine.start(&programs::increment_pages(), &arguments)
}

/// Takes the dirty pages of the bytes; how many they are.
fn take(log: &mut GlobalLogClaim, block: &Arc<RamBlock>, from: u64, to: u64) -> u64 {
    let bytes = DATA + (from << 20)..DATA + (to << 20);
    log.snapshot_and_clear(block, bytes).unwrap().commit().count()
}

/// What vCPUs have dirtied since their limit was set, against what they were allowed to.
struct Account<'a, const N: usize> {
    machine: &'a Machine,
    log: &'a mut GlobalLogClaim,
    /// Where each vCPU stores.
    ranges: [(u64, u64); N],
    /// Bytes per second of each.
    limit: u64,
    began: Instant,
    /// For how long they had been kept out by then.
    limited: Duration,
    /// Bytes.
    dirtied: [u64; N],
}

impl<'a, const N: usize> Account<'a, N> {
    /// Sets the limit, with which each vCPU begins anew.
    fn begin(
        (machine, log): (&'a Machine, &'a mut GlobalLogClaim),
        ranges: [(u64, u64); N],
        limit: u64,
    ) -> Self {
        let limited = machine.vm.dirty_log_stats().throttled;
        let began = Instant::now();
        machine.vm.set_dirty_limit(Some(limit)).unwrap();
        assert_eq!(machine.vm.dirty_limit(), Some(limit));
        let mut account = Self { machine, log, ranges, limit, began, limited, dirtied: [0; N] };
        account.look();
        account.dirtied = [0; N]; // before there was a limit
        account
    }

    fn look(&mut self) {
        std::thread::sleep(Duration::from_millis(20));
        self.log.sync().unwrap();
        let page = self.machine.block.page_size().bytes();
        for (dirtied, (from, to)) in self.dirtied.iter_mut().zip(self.ranges) {
            *dirtied += take(self.log, &self.machine.block, from, to) * page;
        }
    }

    /// Whether each vCPU has dirtied what it was allowed to, and was not kept out for more than
    /// that. How much processor time the host gives to whom does not matter for either: a vCPU
    /// that had none dirtied less, and was not kept out for it; what one dirtied while nobody
    /// looked is paid for later.
    fn is_kept(&self) -> bool {
        let parts = self.parts();
        let out = self.machine.vm.dirty_log_stats().throttled - self.limited;
        let paid = self.limit as f64 * out.as_secs_f64();
        let dirtied = self.dirtied.iter().sum::<u64>() as f64;
        let paid = paid / dirtied;
        println!("limit {} MiB/s: {parts:.3?} dirtied, {paid:.3} paid for", self.limit >> 20);
        parts.iter().all(|part| *part < 1.2) && paid < 1.2
    }

    /// Waits until each has dirtied at least as much as it may within a second and a half, and
    /// the account is kept. What is saved up, or is still owed, weighs the less the longer it
    /// takes. Returns the largest part that one has dirtied of what it may: a slow host's guest
    /// does not come to its limit.
    fn check(mut self) -> f64 {
        let enough = self.limit * 3 / 2;
        wait_until("the guests to dirty memory", || {
            self.look();
            self.dirtied.iter().all(|bytes| *bytes > enough)
        });
        wait_until("no more to be dirtied than is allowed, and no less", || {
            self.look();
            self.is_kept()
        });
        self.parts().into_iter().fold(0.0, f64::max)
    }

    /// The part that each has dirtied of what it was allowed to.
    fn parts(&self) -> [f64; N] {
        let allowed = self.limit as f64 * self.began.elapsed().as_secs_f64();
        self.dirtied.map(|bytes| bytes as f64 / allowed)
    }
}

fn a_vcpu_dirties_at_its_limit() {
    tracked_by(RING, || {
        let (machine, mut log) = populated();
        let guest = sweep(&machine, 0, 350);
        let mut limited = 0;
        for mib in [1, 4, 16, 40] {
            let limit = mib << 20;
            let before = machine.vm.dirty_log_stats();
            let part = Account::begin((&machine, &mut log), [(0, 350)], limit).check();
            if part < 0.8 {
                break;
            }
            limited += 1;
            let after = machine.vm.dirty_log_stats();
            assert!(after.throttled > before.throttled, "{after:?}");
            // By how much depends on the host: the vCPU is throttled from a sync on, and blocked
            // once the host has let it leave its processor.
            assert!(after.blocked > before.blocked, "{after:?}");
        }
        assert!(limited > 0, "no limit was reached");
        machine.vm.set_dirty_limit(None).unwrap();
        let before = machine.vm.dirty_log_stats().throttled;
        take(&mut log, &machine.block, 0, 350);
        let mut dirtied = 0;
        wait_until("the guest to go on without a limit", || {
            log.sync().unwrap();
            dirtied += take(&mut log, &machine.block, 0, 350);
            dirtied > 10_000
        });
        assert_eq!(machine.vm.dirty_log_stats().throttled, before);
        assert!(!guest.is_finished());
        guest.stop().unwrap();
    });
}

fn each_vcpu_has_its_own_limit() {
    tracked_by(RING, || {
        let (machine, mut log) = populated();
        let limit = 8 << 20;
        // Before there are vCPUs.
        machine.vm.set_dirty_limit(Some(limit)).unwrap();
        let guests = [sweep(&machine, 0, 150), sweep(&machine, 150, 300)];
        wait_until("them to be limited", || {
            machine.vm.dirty_log_stats().throttled > Duration::from_millis(100)
        });
        Account::begin((&machine, &mut log), [(0, 150), (150, 300)], limit).check();
        guests.into_iter().for_each(|guest| drop(guest.stop().unwrap()));
    });
}

fn a_vcpu_that_waits_for_its_limit_can_be_had() {
    tracked_by(RING, || {
        let (machine, mut log) = populated();
        // A page in an hour.
        machine.vm.set_dirty_limit(Some(1)).unwrap();
        let guest = sweep(&machine, 0, 350);
        let limited = || machine.vm.dirty_log_stats().throttled;
        wait_until("the guest to be kept out", || limited() > Duration::ZERO);
        let mut seen = |what: &str| {
            log.sync().unwrap();
            let pages = take(&mut log, &machine.block, 0, 350);
            println!("{what}: {pages} pages");
            pages
        };
        seen("before it was kept out");
        // It waits for hours, and no pause waits for that.
        for _ in 0..20 {
            drop(machine.vm.pause(seconds(5)).unwrap());
        }
        // Slots change, and it does not come in by that.
        let late = RamBlock::anonymous("late", 1 << 20).unwrap();
        let system = machine.system;
        let add = machine.memory.transaction(|map| {
            let late = map.ram("late", late.clone())?;
            map.add_subregion(system, 1 << 32, late)
        });
        add.unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(seen("while it is kept out"), 0);
        // A kick gets it out of its run, and no limit lets it go on.
        let (vcpu, event) = guest.stop().unwrap();
        assert_eq!(event, VcpuEvent::Kicked);
        let guest = vcpu.spawn("vcpu").unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(seen("after a kick"), 0);
        machine.vm.set_dirty_limit(None).unwrap();
        wait_until("the guest to go on", || seen("without a limit") > 100);
        guest.stop().unwrap();
    });
}

/// Two guests that go through memory, beside a thread that syncs another client: again and again
/// from a log that is clean, until they stop.
fn vcpus_stop_before_they_pass_their_bound() {
    const ENTRIES: u64 = 1024;
    // What each vCPU may write again after a sync: its count, the page that it has come to, and
    // with nested paging the page tables.
    const AGAIN: u64 = 2 * (2 + TABLE_PAGES);
    tracked_by(DirtyTracking::Ring { entries: 1024 }, || {
        let (machine, mut log) = populated();
        let least = 2 * ENTRIES;
        // For one vCPU too few.
        machine.vm.set_dirty_bound(Some(0)).unwrap();
        let stopped = |guest: VcpuThread| {
            let (vcpu, event) = guest.join().unwrap();
            assert_eq!(event, VcpuEvent::DirtyBound);
            vcpu
        };
        let mut vcpus = [sweep(&machine, 0, 150), sweep(&machine, 150, 300)].map(stopped);
        let (ended, syncs) = (AtomicBool::new(false), AtomicU64::new(0));
        let other = machine.memory.claim_global_log(DirtyClient::VGA).unwrap();
        vcpus = thread::scope(|scope| {
            let _ends = SetOnDrop(&ended);
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    other.sync().unwrap();
                    syncs.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(1));
                }
            });
            let mut stopped_early = 0;
            for bound in [least, least + 1, least + 500, 3 * least, 10 * least].repeat(4) {
                log.sync().unwrap();
                drop(log.snapshot_and_clear(&machine.block, 0..RAM).unwrap().commit());
                machine.vm.set_dirty_bound(Some(bound)).unwrap();
                let overruns = machine.vm.dirty_log_stats().ring_overruns;
                let syncs_before = syncs.load(Ordering::Relaxed);
                let guests = vcpus.map(|vcpu| vcpu.spawn("vcpu").unwrap());
                wait_until("the guests to stop", || guests.iter().all(VcpuThread::is_finished));
                vcpus = guests.map(stopped);
                let syncs = syncs.load(Ordering::Relaxed) - syncs_before;
                assert_eq!(machine.vm.dirty_log_stats().ring_overruns, overruns);
                log.sync().unwrap();
                let harvest = log.snapshot_and_clear(&machine.block, 0..RAM).unwrap();
                let pages = harvest.commit().count();
                println!("{pages} pages of {bound}, {syncs} syncs");
                assert!(pages <= bound, "{pages} pages are dirty, {bound} were allowed");
                // A page that is written again after a sync counts again.
                let counted = pages + syncs * AGAIN;
                stopped_early += u64::from(counted + least + TABLE_PAGES < bound);
            }
            assert!(stopped_early < 10, "{stopped_early} of 20 stopped too early");
            vcpus
        });
        machine.vm.set_dirty_bound(None).unwrap();
        let guests = vcpus.map(|vcpu| vcpu.spawn("vcpu").unwrap());
        let mut dirtied = 0;
        wait_until("the guests to go on without a bound", || {
            log.sync().unwrap();
            dirtied += take(&mut log, &machine.block, 0, 300);
            dirtied > 20_000
        });
        guests.into_iter().for_each(|guest| drop(guest.stop().unwrap()));
    });
}

/// Ends the thread beside, also after a panic.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn limits_that_cannot_be_kept_are_refused() {
    for tracking in [DirtyTracking::Bitmap, DirtyTracking::ManualProtect] {
        tracked_by(tracking, || {
            let machine = Machine::new(1 << 20);
            let refused = machine.vm.set_dirty_limit(Some(1 << 20)).unwrap_err();
            assert!(matches!(refused, KvmError::NoRings { tracking: t, .. } if t == tracking));
            let refused = machine.vm.set_dirty_bound(Some(1 << 20)).unwrap_err();
            assert!(matches!(refused, KvmError::NoRings { tracking: t, .. } if t == tracking));
            assert_eq!(machine.vm.dirty_limit(), None);
        });
    }
    tracked_by(RING, || {
        let machine = Machine::new(1 << 20);
        let refused = machine.vm.set_dirty_limit(Some(0)).unwrap_err();
        assert!(matches!(refused, KvmError::Config { found: 0, .. }), "{refused}");
        machine.vm.set_dirty_bound(Some(0)).unwrap(); // of no vCPUs
        let mut vcpu = machine.vcpu();
        assert_eq!(vcpu.run().unwrap(), VcpuEvent::DirtyBound);
        let refused = machine.vm.set_dirty_bound(Some(65_535)).unwrap_err();
        let least = 65_536;
        assert!(matches!(refused, KvmError::DirtyBound { asked: 65_535, least: l } if l == least));
        assert_eq!(vcpu.run().unwrap(), VcpuEvent::DirtyBound);
    });
}
