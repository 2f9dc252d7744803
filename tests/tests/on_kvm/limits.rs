//! Guests that are slowed down: all vCPUs for a part of the time, or each at a rate of
//! dirtied memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use integration_tests::guest::{DATA, programs};
use integration_tests::harness::Test;
use kvm_accel::{DirtyTracking, KvmConfig, KvmError, PauseGuard, VcpuThread};
use migration_ram::{DirtyRate, Throttle};
use ram_block::{DirtyClient, RamBlock};

use super::machine::{Machine, tracked_by, wait_until};

/// In every way of tracking.
pub const TESTS: &[Test] =
    &[("a_dirty_rate_is_that_of_the_guest", a_dirty_rate_is_that_of_the_guest)];

/// Of rings only, and for which the way is all one.
pub const ONCE: &[Test] = &[
    ("a_throttled_guest_stores_a_part", a_throttled_guest_stores_a_part),
    ("a_vcpu_dirties_at_its_limit", a_vcpu_dirties_at_its_limit),
    ("each_vcpu_has_its_own_limit", each_vcpu_has_its_own_limit),
    ("a_vcpu_that_waits_for_its_limit_can_be_had", a_vcpu_that_waits_for_its_limit_can_be_had),
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
            let guard = vm.pause(Duration::from_secs(5))?;
            let (block, stores) = (block.clone(), stores.clone());
            Ok::<_, KvmError>(Still { passes: count(&block, DATA), block, stores, _guard: guard })
        }
    };
    let throttle = Throttle::new(pause).unwrap();
    // A host with much else to do may keep the guest, or who stops it, from its turn.
    let as_asked = (0..5).any(|_| {
        // By turns, so that what else the host does is the same for both.
        let (mut free, mut slowed) = (0.0, 0.0);
        let (mut stood, mut time) = (Duration::ZERO, Duration::ZERO);
        for percent in [0, 80, 0, 80] {
            throttle.set(percent);
            let (begin, before, still) = (Instant::now(), passes(), throttle.stood_still());
            std::thread::sleep(Duration::from_millis(500));
            let (stores, elapsed) = ((passes() - before) as f64, begin.elapsed());
            if percent == 0 {
                free += stores / elapsed.as_secs_f64();
            } else {
                slowed += stores / elapsed.as_secs_f64();
                stood += throttle.stood_still() - still;
                time += elapsed;
            }
        }
        // The first slice of each turn runs, however long it becomes on a busy host.
        let part = stood.as_secs_f64() / time.as_secs_f64();
        // Five on a host that does nothing else; where the guest shares its processor, it gets
        // more of it the less it wants, down to two where it had 40 % of one.
        let ratio = free / slowed;
        println!("{ratio:.2} times fewer stores, {part:.3} of the time still");
        (0.65..0.88).contains(&part) && (1.5..10.0).contains(&ratio)
    });
    assert!(as_asked, "never slowed down as asked");
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
    // Of a guest that had a processor meanwhile.
    let found_all = (0..20).any(|_| {
        let report = DirtyRate::measure(&machine.memory, Duration::from_millis(640)).unwrap();
        println!("{report}");
        assert!(report.curve.is_sorted_by_key(|sample| sample.pages));
        assert!(report.working_set().pages <= 200);
        report.working_set().pages == 200
    });
    assert!(found_all, "the guest writes 200 pages");
    assert!(machine.vm.slots().iter().all(|slot| !slot.logged));
    guest.stop().unwrap();
    let idle = DirtyRate::measure(&machine.memory, Duration::from_millis(20)).unwrap();
    assert_eq!(idle.working_set().pages, 0);
}

/// So much that a guest takes seconds to go through it.
const RAM: u64 = 400 << 20;

fn populated() -> Machine {
    // Rings alone say what is dirtied; syncs look into processors each time.
    let config = KvmConfig { ring_staleness: Duration::ZERO, ..KvmConfig::default() };
    let machine = Machine::with_config(RAM, config);
    for at in (0..RAM).step_by(1 << 20) {
        machine.block.write(at, &[0; 1 << 20]).unwrap();
    }
    machine.memory.set_log(machine.ram, DirtyClient::MIGRATION, true).unwrap();
    machine
}

/// A guest that goes through the pages from `from` to `to`, in MiB after [`DATA`].
fn sweep(machine: &Machine, from: u64, to: u64) -> VcpuThread {
    let page = machine.block.page_size().bytes();
    let arguments = [DATA + (from << 20) + page, DATA + (to << 20), page, DATA + (from << 20)];
    machine.start(&programs::increment_pages(), &arguments)
}

/// Takes the dirty pages of the bytes; how many they are.
fn take(block: &RamBlock, from: u64, to: u64) -> u64 {
    let page = block.page_size();
    let pages = page.page_of(DATA + (from << 20))..page.page_of(DATA + (to << 20));
    block.dirty().snapshot_and_clear(DirtyClient::MIGRATION, pages).unwrap().commit().count()
}

/// Bytes per second that are dirtied in ranges of memory, over a second and a half.
fn rates<const N: usize>(machine: &Machine, ranges: [(u64, u64); N]) -> [f64; N] {
    let look = || {
        let now = Instant::now();
        machine.memory.sync_all_dirty_logs().unwrap();
        (now, ranges.map(|(from, to)| take(&machine.block, from, to)))
    };
    let (begin, _) = look();
    std::thread::sleep(Duration::from_millis(1500));
    let (end, pages) = look();
    let page = machine.block.page_size().bytes() as f64;
    pages.map(|pages| pages as f64 * page / (end - begin).as_secs_f64())
}

/// Whether what is dirtied in each range comes near `limit` bytes per second. A host with much
/// else to do may keep from its turn the guest, which dirties less then, or who looks at what it
/// dirties, so that it dirties more.
fn keep_to<const N: usize>(machine: &Machine, ranges: [(u64, u64); N], limit: u64) -> bool {
    (0..5).any(|_| {
        let rates = rates(machine, ranges).map(|rate| rate / limit as f64);
        println!("limit {} MiB/s: {rates:.3?} of it", limit >> 20);
        rates.iter().all(|rate| (0.8..1.2).contains(rate))
    })
}

fn a_vcpu_dirties_at_its_limit() {
    tracked_by(RING, || {
        let machine = populated();
        let guest = sweep(&machine, 0, 350);
        for mib in [4, 16, 40] {
            let limit = mib << 20;
            machine.vm.set_dirty_limit(Some(limit)).unwrap();
            assert_eq!(machine.vm.dirty_limit(), Some(limit));
            let before = machine.vm.dirty_log_stats();
            let kept = keep_to(&machine, [(0, 350)], limit);
            let after = machine.vm.dirty_log_stats();
            let waited = after.limited - before.limited;
            println!("{waited:?} out");
            assert!(kept, "limit {mib} MiB/s: {after:?}");
            assert!(waited > Duration::from_millis(100), "{after:?}");
            assert!(after.stood_still >= after.limited / 2, "{after:?}");
        }
        machine.vm.set_dirty_limit(None).unwrap();
        let before = machine.vm.dirty_log_stats().limited;
        let [rate] = rates(&machine, [(0, 350)]);
        println!("no limit: {:.2} MiB/s", rate / f64::from(1 << 20));
        assert_eq!(machine.vm.dirty_log_stats().limited, before);
        assert!(!guest.is_finished());
        guest.stop().unwrap();
    });
}

fn each_vcpu_has_its_own_limit() {
    tracked_by(RING, || {
        let machine = populated();
        let limit = 8 << 20;
        // Before there are vCPUs.
        machine.vm.set_dirty_limit(Some(limit)).unwrap();
        let guests = [sweep(&machine, 0, 150), sweep(&machine, 150, 300)];
        wait_until("them to be limited", || {
            machine.vm.dirty_log_stats().limited > Duration::from_millis(100)
        });
        assert!(keep_to(&machine, [(0, 150), (150, 300)], limit));
        guests.into_iter().for_each(|guest| drop(guest.stop().unwrap()));
    });
}

fn a_vcpu_that_waits_for_its_limit_can_be_had() {
    tracked_by(RING, || {
        let machine = populated();
        // A page in an hour.
        machine.vm.set_dirty_limit(Some(1)).unwrap();
        let guest = sweep(&machine, 0, 350);
        let limited = || machine.vm.dirty_log_stats().limited;
        wait_until("the guest to be kept out", || limited() > Duration::ZERO);
        let seen = |what: &str| {
            machine.memory.sync_all_dirty_logs().unwrap();
            let pages = take(&machine.block, 0, 350);
            println!("{what}: {pages} pages");
            pages
        };
        seen("before it was kept out");
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            let begin = Instant::now();
            drop(machine.vm.pause(Duration::from_secs(5)).unwrap());
            longest = longest.max(begin.elapsed());
        }
        println!("paused within {longest:?}");
        assert!(longest < Duration::from_secs(1));
        // Slots change, and it does not come in by that.
        let late = RamBlock::anonymous("late", 1 << 20).unwrap();
        let system = machine.system;
        let add = machine.memory.update(|map| {
            let late = map.ram("late", late.clone())?;
            map.place(system, 1 << 32, late)
        });
        add.unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(seen("while it is kept out"), 0);
        // A kick gets it out of its run, and no limit lets it go on.
        let (vcpu, event) = guest.stop().unwrap();
        assert_eq!(event, kvm_accel::VcpuEvent::Kicked);
        let guest = vcpu.spawn("vcpu").unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(seen("after a kick"), 0);
        machine.vm.set_dirty_limit(None).unwrap();
        wait_until("the guest to go on", || seen("without a limit") > 100);
        guest.stop().unwrap();
    });
}

fn limits_that_cannot_be_kept_are_refused() {
    for tracking in [DirtyTracking::Bitmap, DirtyTracking::ManualProtect] {
        tracked_by(tracking, || {
            let machine = Machine::new(1 << 20);
            let refused = machine.vm.set_dirty_limit(Some(1 << 20)).unwrap_err();
            assert!(matches!(refused, KvmError::NoRings { tracking: t } if t == tracking));
            assert_eq!(machine.vm.dirty_limit(), None);
        });
    }
    tracked_by(RING, || {
        let machine = Machine::new(1 << 20);
        let refused = machine.vm.set_dirty_limit(Some(0)).unwrap_err();
        assert!(matches!(refused, KvmError::Config { found: 0, .. }), "{refused}");
    });
}
