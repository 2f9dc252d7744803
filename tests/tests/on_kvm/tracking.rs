//! Many clients at once, in every way of tracking: what each of them gathers by its own
//! harvests, in any order, is all of memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use integration_tests::harness::Test;
use kvm_accel::{DirtyTracking, KvmConfig, KvmError};
use machines::guest::{DATA, programs};
use memory_region::GlobalLogClaim;
use ram_block::{Claimant, DirtyClient};
use vmm_sys_util::signal::{Killable, SIGRTMIN};

use super::machine::{Machine, Obedient, seconds, tracked_by, wait_until};

/// In every way of tracking.
pub const TESTS: &[Test] = &[
    ("clients_that_sync_clear_and_harvest_at_random_lose_nothing", random_clients),
    ("clients_in_any_order_lose_nothing_step_by_step", clients_in_any_order),
    ("a_log_may_start_and_stop_all_the_time", logs_start_and_stop),
];

/// Of rings only.
pub const RINGS: &[Test] = &[
    ("rings_of_any_size_lose_nothing_unnoticed", rings_of_any_size),
    ("two_processors_with_small_rings_go_on", two_processors_with_small_rings_go_on),
    ("sizes_that_kvm_does_not_take_are_refused", odd_sizes_are_refused),
    ("signals_end_no_reset", signals_end_no_reset),
];

const RAM: u64 = 16 << 20;

/// How long the random ones run: a few seconds, or as many as are asked for.
pub fn duration() -> Duration {
    let seconds = std::env::var("TRACKING_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(2))
}

pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// A copy of memory that one client keeps by its harvests.
pub struct Mirror {
    log: GlobalLogClaim,
    bytes: Vec<u8>,
}

impl Mirror {
    /// The log started, and all of memory read after that.
    pub fn start(machine: &Machine, claimant: impl Into<Claimant>) -> Self {
        let log = machine.memory.claim_global_log(claimant).unwrap();
        let mut bytes = vec![0; usize::try_from(machine.block.len()).unwrap()];
        machine.block.read(0, &mut bytes).unwrap();
        Self { log, bytes }
    }

    /// Takes the bits of some pages, lets them be watched again, and reads them.
    pub fn harvest(&mut self, machine: &Machine, pages: std::ops::Range<u64>) {
        let size = machine.block.page_size();
        let page = size.bytes();
        let harvest = self.log.snapshot_and_clear(&machine.block, size.bytes_of(&pages)).unwrap();
        for run in harvest.commit().runs() {
            let bytes = usize::try_from(run.start * page).unwrap()
                ..usize::try_from(run.end * page).unwrap();
            machine.block.read(run.start * page, &mut self.bytes[bytes]).unwrap();
        }
    }

    /// Lets some pages be watched again, whose bits it may not have taken.
    fn clear(&mut self, machine: &Machine, pages: &std::ops::Range<u64>) {
        let bytes = machine.block.page_size().bytes_of(pages);
        self.log.clear(&machine.block, bytes).unwrap();
    }

    pub fn check(&mut self, machine: &Machine, seed: u64) {
        self.log.sync().unwrap();
        self.harvest(machine, 0..machine.block.pages());
        let mut now = vec![0; self.bytes.len()];
        machine.block.read(0, &mut now).unwrap();
        if self.bytes == now {
            return;
        }
        let lost = self.bytes.iter().zip(&now).position(|(kept, now)| kept != now);
        let losses = machine.vm.dirty_log_stats();
        assert_eq!(lost, None, "client {}, seed {seed:#x}, {losses:?}", self.log.client());
    }
}

/// Another one for each run; TRACKING_SEED repeats one.
pub fn seed() -> u64 {
    let asked = std::env::var("TRACKING_SEED").ok().and_then(|text| text.parse().ok());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    asked.unwrap_or_else(|| u64::try_from(now.as_nanos()).unwrap_or(1)) | 1
}

/// Slots are split at `split`, or not.
fn random_config(random: &mut Random, split: u64) -> KvmConfig {
    KvmConfig {
        max_slot_bytes: [u64::MAX, split][usize::from(random.below(2) == 1)],
        initially_set: random.below(2) == 1,
        clear_chunk_bytes: [256 << 10, 32 << 20][usize::from(random.below(2) == 1)],
        pml_flush_interval: Duration::from_millis(random.below(2) * 50),
        ..KvmConfig::default()
    }
}

fn random_clients() {
    let seed = seed();
    let mut random = Random(seed);
    let machine = Machine::with_config(RAM, random_config(&mut random, 5 << 20));
    let page = machine.block.page_size().bytes();
    let clients: [Claimant; 4] =
        [DirtyClient::VGA.into(), DirtyClient::MIGRATION.into(), "one".into(), "two".into()];
    let count = usize::try_from(2 + random.below(3)).unwrap();
    let end = DATA + page * (100 + random.below(3000));
    let guest = machine.start(&programs::increment_pages(), &[DATA + page, end, page, DATA]);
    let mut mirrors: Vec<Option<Mirror>> = clients[..count].iter().map(|_| None).collect();
    let deadline = Instant::now() + duration();
    let mut checks = 0;
    // A slow host comes to no check within that time.
    while Instant::now() < deadline || checks == 0 {
        // What is lost shows until the guest writes it again: so look often, while it stands.
        if random.below(30) == 0 {
            let still = machine.vm.pause(seconds(5)).unwrap();
            for mirror in mirrors.iter_mut().flatten() {
                mirror.check(&machine, seed);
                checks += 1;
            }
            drop(still);
        }
        let n = usize::try_from(random.below(count as u64)).unwrap();
        let Some(mirror) = &mut mirrors[n] else {
            mirrors[n] = Some(Mirror::start(&machine, clients[n].clone()));
            continue;
        };
        let start = random.below(machine.block.pages());
        let pages = start..(start + 1 + random.below(2000)).min(machine.block.pages());
        match random.below(10) {
            0 => machine.memory.sync_all_dirty_logs().unwrap(),
            1..4 => machine.memory.sync_dirty_log(machine.ram).unwrap(),
            4..8 => mirror.harvest(&machine, pages),
            8 => mirror.clear(&machine, &pages),
            _ if random.below(2) == 0 => mirrors[n] = None,
            // A device writes too.
            _ => {
                let at = end + page + random.below(100) * page;
                machine.space.write(at, &random.0.to_le_bytes()).unwrap();
            }
        }
    }
    assert!(!guest.is_finished(), "{:?}", guest.join());
    guest.stop().unwrap();
    for mirror in mirrors.iter_mut().flatten() {
        mirror.check(&machine, seed);
    }
}

/// A guest stores only when it is asked to, so that what one step loses no later store mends:
/// two clients come, sync, take, clear and go in any order, over few pages.
fn clients_in_any_order() {
    let seed = seed();
    let mut random = Random(seed);
    // Little memory, as it is compared often.
    let split = DATA + (64 << 10);
    let machine = Machine::with_config(DATA + (128 << 10), random_config(&mut random, split));
    let page = machine.block.page_size().bytes();
    let mut guest = Obedient::new(&machine);
    let clients = [DirtyClient::VGA, DirtyClient::MIGRATION];
    let mut mirrors: [Option<Mirror>; 2] = [None, None];
    // On both sides of the end of a slot.
    let first = split / page - 8;
    let (mut stores, deadline) = (0, Instant::now() + duration());
    while Instant::now() < deadline || stores < 200 {
        if random.below(40) == 0 {
            mirrors.iter_mut().flatten().for_each(|mirror| mirror.check(&machine, seed));
        }
        let n = usize::try_from(random.below(2)).unwrap();
        let start = first + random.below(16);
        let pages = start..start + 1 + random.below(8);
        match (&mut mirrors[n], random.below(12)) {
            (_, 0..4) => {
                let count = usize::try_from(1 + random.below(3)).unwrap();
                let at: Vec<_> = (0..count).map(|_| (first + random.below(16)) * page).collect();
                stores += 1;
                guest.store(&machine, u8::try_from(random.below(256)).unwrap(), &at);
            }
            (_, 4..6) => machine.memory.sync_dirty_log(machine.ram).unwrap(),
            (Some(mirror), 6..9) => mirror.harvest(&machine, pages),
            (Some(mirror), 9) => mirror.clear(&machine, &pages),
            (slot @ Some(_), 10) => *slot = None,
            (slot @ None, _) => *slot = Some(Mirror::start(&machine, clients[n])),
            (Some(_), _) => {}
        }
    }
    mirrors.iter_mut().flatten().for_each(|mirror| mirror.check(&machine, seed));
}

fn logs_start_and_stop() {
    let machine = Machine::new(RAM);
    let page = machine.block.page_size().bytes();
    let guest =
        machine.start(&programs::increment_pages(), &[DATA + page, DATA + 500 * page, page, DATA]);
    let mut kept = Mirror::start(&machine, DirtyClient::MIGRATION);
    for round in 0..1000 {
        let claim = || machine.memory.claim_log(machine.ram, DirtyClient::VGA).unwrap();
        let _vga = (round % 20 < 10 && round % 2 == 0).then(claim);
        if round % 20 >= 10 {
            // The last client too, so that the slot's own log stops and starts.
            drop(kept);
            kept = Mirror::start(&machine, DirtyClient::MIGRATION);
        }
        if round % 7 == 0 {
            machine.memory.sync_dirty_log(machine.ram).unwrap();
            kept.harvest(&machine, 0..machine.block.pages());
        }
    }
    assert!(!guest.is_finished(), "{:?}", guest.join());
    guest.stop().unwrap();
    kept.check(&machine, 0);
}

/// Guests in ring 0 are emulated on some hosts, whose emulator overruns small rings: the
/// copy is whole all the same.
fn rings_of_any_size() {
    let mut sizes = 0;
    for entries in (6..=16).map(|shift| 1 << shift) {
        let fd = kvm_accel::kvm_ioctls::Kvm::new().unwrap().create_vm().unwrap();
        let tracking = DirtyTracking::Ring { entries };
        let config = KvmConfig { tracking, ..KvmConfig::default() };
        match kvm_accel::KvmVm::with_config(fd, config) {
            Err(KvmError::Tracking { .. }) if entries < 4096 => continue,
            taken => drop(taken.unwrap()),
        }
        sizes += 1;
        tracked_by(tracking, || overrun(entries));
    }
    assert!(sizes >= 5, "KVM takes {sizes} sizes only");
}

fn overrun(entries: u32) {
    let machine = Machine::new(RAM);
    let page = machine.block.page_size().bytes();
    let mut mirror = Mirror::start(&machine, DirtyClient::MIGRATION);
    let code = programs::increment_pages();
    let arguments = [DATA + page, DATA + 3000 * page, page, DATA];
    let guest = machine.start_privileged(&code, &arguments);
    let passes = || machine.words::<1>(DATA)[0];
    for round in 1..4 {
        wait_until("a pass", || passes() > round * 2);
        machine.memory.sync_dirty_log(machine.ram).unwrap();
        mirror.harvest(&machine, 0..machine.block.pages());
    }
    assert!(!guest.is_finished(), "{:?}", guest.join());
    guest.stop().unwrap();
    mirror.check(&machine, entries.into());
    let stats = machine.vm.dirty_log_stats();
    println!(
        "ring of {entries}: {} pages, full {} times, {} losses, {} resets in {:?}",
        stats.pages, stats.ring_full, stats.ring_overruns, stats.resets.calls, stats.resets.time
    );
}

/// Rings that are full all the time, while another thread empties them too: nobody takes
/// an emptied ring for a lost one, and the guests go on.
fn two_processors_with_small_rings_go_on() {
    for entries in [1024, 2048, 4096] {
        tracked_by(DirtyTracking::Ring { entries }, || {
            let machine = Machine::new(64 << 20);
            let page = machine.block.page_size().bytes();
            let mut mirror = Mirror::start(&machine, DirtyClient::MIGRATION);
            let start = |from: u64, beat: u64| {
                let (from, to) = (DATA + from * page, DATA + (from + 5000) * page);
                machine.start(&programs::increment_pages(), &[from, to, page, DATA + beat * page])
            };
            let guests = [start(2, 0), start(6000, 1)];
            let beats = || [0, 1].map(|beat| machine.words::<1>(DATA + beat * page)[0]);
            wait_until("a full ring", || machine.vm.dirty_log_stats().ring_full > 0);
            let deadline = Instant::now() + duration() / 2;
            while Instant::now() < deadline {
                machine.memory.sync_dirty_log(machine.ram).unwrap();
                mirror.harvest(&machine, 0..machine.block.pages());
            }
            let before = beats();
            wait_until("a pass of both", || beats().iter().zip(before).all(|(now, b)| *now > b));
            for guest in guests {
                assert!(!guest.is_finished(), "{:?}", guest.join());
                guest.stop().unwrap();
            }
            mirror.check(&machine, entries.into());
            let stats = machine.vm.dirty_log_stats();
            assert!(stats.ring_full > 0, "{stats:?}");
            // Guests in ring 3 run natively, and stop before their rings are overrun.
            assert_eq!(stats.ring_overruns, 0, "{stats:?}");
        });
    }
}

/// KVM ends a reset for a signal, with entries freed whose pages it does not watch again: none
/// comes to a thread that resets, and none is lost by that.
fn signals_end_no_reset() {
    let entries = 65_536;
    tracked_by(DirtyTracking::Ring { entries }, || {
        let machine = Machine::new(64 << 20);
        let page = machine.block.page_size().bytes();
        let (signal, caught) = (SIGRTMIN() + 1, Arc::new(AtomicBool::new(false)));
        let handler = signal_hook::flag::register(signal, caught.clone()).unwrap();
        let mut mirror = Mirror::start(&machine, DirtyClient::MIGRATION);
        let arguments = [DATA + page, DATA + 10_000 * page, page, DATA];
        let guest = machine.start(&programs::increment_pages(), &arguments);
        let done = Arc::new(AtomicBool::new(false));
        let syncs = std::thread::spawn({
            let done = done.clone();
            move || {
                while !done.load(Ordering::Acquire) {
                    machine.memory.sync_dirty_log(machine.ram).unwrap();
                    mirror.harvest(&machine, 0..machine.block.pages());
                }
                (machine, mirror)
            }
        });
        let deadline = Instant::now() + duration();
        while Instant::now() < deadline && !syncs.is_finished() {
            syncs.kill(signal).unwrap();
            // It is to do something else than to be interrupted, too.
            std::thread::sleep(Duration::from_micros(50));
        }
        done.store(true, Ordering::Release);
        let (machine, mut mirror) = syncs.join().unwrap();
        signal_hook::low_level::unregister(handler);
        assert!(!guest.is_finished(), "{:?}", guest.join());
        guest.stop().unwrap();
        mirror.check(&machine, 0);
        let stats = machine.vm.dirty_log_stats();
        assert!(caught.load(Ordering::Relaxed) && stats.resets.calls > 10, "{stats:?}");
        assert_eq!(stats.ring_overruns, 0, "{stats:?}");
    });
}

fn odd_sizes_are_refused() {
    for entries in [0, 1, 3, 65_535, 1 << 30, u32::MAX] {
        let fd = kvm_accel::kvm_ioctls::Kvm::new().unwrap().create_vm().unwrap();
        let tracking = DirtyTracking::Ring { entries };
        let config = KvmConfig { tracking, ..KvmConfig::default() };
        let refused = kvm_accel::KvmVm::with_config(fd, config).unwrap_err();
        assert!(matches!(refused, KvmError::Tracking { .. }), "{refused}");
    }
    let fd = || kvm_accel::kvm_ioctls::Kvm::new().unwrap().create_vm().unwrap();
    let config = KvmConfig { max_slot_bytes: 1000, ..KvmConfig::default() };
    assert!(matches!(kvm_accel::KvmVm::with_config(fd(), config), Err(KvmError::Config { .. })));
    let config = KvmConfig { clear_chunk_bytes: 4096, ..KvmConfig::default() };
    assert!(matches!(kvm_accel::KvmVm::with_config(fd(), config), Err(KvmError::Config { .. })));
}
