//! The table of checkpoints that are taken while the guest runs: for how long it is paused.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use integration_tests::bench::{Budget, FEWEST, Share, left_out};
use kvm_accel::RollBack;
use machines::guest::{DATA, boot_at, programs};
use machines::heartbeat_port::HeartbeatPort;
use machines::tracking::TrackingMode;
use machines::vcpu_device::VcpuDevice;
use migration_ram::{Checkpoints, Device};
use serde_json::{Value, json};

use crate::case::{PAGE, median};
use crate::options::Options;
use crate::ours::Machine;
use crate::raw;
use crate::running::Running;

/// What the guest writes over and over: 64 MiB.
const WORKING_SET: u64 = 16_384 * PAGE;
/// Pages between two waits.
const PAGES_A_BEAT: u64 = 64;
const CODE: u64 = 0x2_0000;
const FIRST: u64 = DATA + (1 << 20);
/// From one checkpoint to the next.
const INTERVAL: Duration = Duration::from_millis(50);

fn rows(options: &Options) -> impl Iterator<Item = (u64, TrackingMode, u64)> {
    options.gib.iter().flat_map(move |gib| {
        let ways = options.ways.iter();
        ways.flat_map(move |way| options.rates.iter().map(move |rate| (*gib, *way, *rate)))
    })
}

/// Of all rows.
pub fn weight(options: &Options) -> f64 {
    rows(options).count() as f64 * 0.4
}

pub fn table(options: &Options, budget: &mut Budget) -> Vec<Value> {
    println!(
        "{:<32} {:>7} {:>7} {:>8} {:>8} {:>8} {:>8} {:>8} {:>7} {:>9} {:>8}",
        "us",
        "rounds",
        "pages",
        "paused",
        "log",
        "KVM's",
        "copy",
        "state",
        "/limit",
        "/with log",
        "/smaller"
    );
    let mut done: Vec<Row> = Vec::new();
    for (gib, way, rate) in rows(options) {
        let name = format!("{}, {gib} GiB, {rate} pages/s", way.name());
        let Some(share) = budget.row(0.4, Instant::now()) else {
            left_out(&name);
            continue;
        };
        match measure(gib, way, rate, options, share) {
            None => println!("{name}: not here"),
            Some(row) => {
                row.print(&name, done.iter().find(|other| other.is_like(&row)));
                done.push(row);
            }
        }
    }
    done.iter().map(Row::json).collect()
}

/// A row that was measured.
struct Row {
    gib: u64,
    way: TrackingMode,
    rate: u64,
    rounds: Vec<u32>,
    pages: Vec<u64>,
    paused: Vec<Duration>,
    /// To read the log of a machine that stands still.
    log: Vec<Duration>,
    /// What KVM took of that.
    kvm: Vec<Duration>,
    /// To copy as many pages.
    copy: Vec<Duration>,
    /// To save the vCPU.
    state: Vec<Duration>,
}

fn measure(gib: u64, way: TrackingMode, rate: u64, options: &Options, share: Share) -> Option<Row> {
    let machine = Machine::new(gib, way, options)?;
    let beats =
        Arc::new(HeartbeatPort::new(Duration::from_secs(PAGES_A_BEAT) / u32::try_from(rate).ok()?));
    machine.add_port(HeartbeatPort::PORT, HeartbeatPort::SIZE, beats);
    let vcpu = machine.vcpu();
    let program = programs::increment_pages_and_beat(CODE);
    let port = HeartbeatPort::PORT.into();
    let arguments = [FIRST, FIRST + WORKING_SET, port, PAGE, PAGES_A_BEAT];
    boot_at(&vcpu, &machine.block, CODE, &program, &arguments);
    let guest = Running::new(vcpu);
    let device = Arc::new(VcpuDevice::new(guest.vcpu.clone(), RollBack::Now));
    let mut checkpoints = Checkpoints::new(&machine.memory, vec![device.clone()]).unwrap();
    checkpoints.take_live(|| Ok(guest.pause())).unwrap();
    let mut row = Row {
        gib,
        way,
        rate,
        rounds: Vec::new(),
        pages: Vec::new(),
        paused: Vec::new(),
        log: Vec::new(),
        kvm: Vec::new(),
        copy: Vec::new(),
        state: Vec::new(),
    };
    let mut buffers = Vec::new();
    while row.paused.len() < FEWEST
        || share.goes_on(row.paused.len(), options.rounds, Instant::now())
    {
        thread::sleep(INTERVAL);
        let (checkpoint, stats) = checkpoints.take_live(|| Ok(guest.pause())).unwrap();
        row.rounds.push(stats.rounds);
        row.pages.push(stats.pages_paused);
        row.paused.push(stats.paused);

        // What of that no way could save: as many pages, and the state.
        let pages = usize::try_from(stats.pages_paused).unwrap();
        buffers.resize(buffers.len().max(pages), vec![1; usize::try_from(PAGE).unwrap()]);
        let still = guest.pause();
        let start = Instant::now();
        drop(device.checkpoint().unwrap());
        row.state.push(start.elapsed());
        let start = Instant::now();
        for (page, buffer) in (FIRST / PAGE..).zip(&mut buffers[..pages]) {
            raw::copy_out(&machine.block, page, buffer);
        }
        row.copy.push(start.elapsed());
        let before = kvm_time(&machine);
        let start = Instant::now();
        checkpoints.count_dirty().unwrap();
        row.log.push(start.elapsed());
        row.kvm.push(kvm_time(&machine) - before);
        drop(still);
        // Keeps one checkpoint beside the current one.
        let old: Vec<_> = checkpoints.all().filter(|other| *other != checkpoint).collect();
        old.into_iter().for_each(|old| checkpoints.remove(old).unwrap());
    }
    Some(row)
}

/// The time of KVM's calls about its logs.
fn kvm_time(machine: &Machine) -> Duration {
    let stats = machine.vm.dirty_log_stats();
    stats.gets.time + stats.clears.time + stats.resets.time
}

impl Row {
    fn is_like(&self, other: &Self) -> bool {
        self.way == other.way && self.rate == other.rate
    }

    fn paused(&self) -> f64 {
        median(self.paused.iter().copied())
    }

    /// Times the copy and the state, which no way could save.
    fn to_limit(&self) -> f64 {
        let least = self.copy.iter().zip(&self.state).map(|(copy, state)| *copy + *state);
        self.paused() / median(least).max(0.001)
    }

    /// Times that and KVM's calls.
    fn to_limit_with_log(&self) -> f64 {
        let least = self.copy.iter().zip(&self.state).zip(&self.kvm);
        let least = least.map(|((copy, state), kvm)| *copy + *state + *kvm);
        self.paused() / median(least).max(0.001)
    }

    fn print(&self, name: &str, smaller: Option<&Self>) {
        let smaller = smaller.map(|other| self.paused() / other.paused().max(0.001));
        println!(
            "{name:<32} {:>7} {:>7} {:>8.1} {:>8.1} {:>8.1} {:>8.1} {:>8.1} {:>7.2} {:>9.2} {:>8}",
            middle(&self.rounds),
            middle(&self.pages),
            self.paused(),
            median(self.log.iter().copied()),
            median(self.kvm.iter().copied()),
            median(self.copy.iter().copied()),
            median(self.state.iter().copied()),
            self.to_limit(),
            self.to_limit_with_log(),
            smaller.map_or_else(String::new, |times| format!("{times:.2}")),
        );
    }

    fn json(&self) -> Value {
        let of = |times: &[Duration]| median(times.iter().copied());
        json!({
            "tracking": self.way.name(), "gib": self.gib,
            "pages_per_second": self.rate,
            "rounds": middle(&self.rounds), "pages_paused": middle(&self.pages),
            "paused_us": self.paused(), "log_us": of(&self.log), "kvm_us": of(&self.kvm),
            "copy_us": of(&self.copy),
            "state_us": of(&self.state), "to_limit": self.to_limit(),
            "to_limit_with_log": self.to_limit_with_log(),
            "checkpoints": self.paused.len(),
        })
    }
}

fn middle<T: Copy + Ord>(values: &[T]) -> T {
    let mut values = values.to_vec();
    values.sort_unstable();
    values[values.len() / 2]
}
