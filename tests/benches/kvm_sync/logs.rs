//! Machines whose log is started, brought and cleared, and the clock beside them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use integration_tests::guest::{DATA, boot, programs};
use kvm_accel::kvm_ioctls::Kvm;
use kvm_accel::{Buses, DirtyLogStats, DirtyTracking, KvmConfig, KvmVm, VcpuEvent};
use memory_region::{MemoryMap, RegionId};
use ram_block::{DirtyClient, RamBlock};
use serde_json::{Value, json};

#[derive(Parser)]
struct Options {
    /// Rounds of which the median is taken
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Sizes of the guests, in GiB
    #[arg(long, value_delimiter = ',', default_value = "1,64,1024")]
    gib: Vec<u64>,
    /// Pages that the guest writes in each round
    #[arg(long, value_delimiter = ',', default_value = "0,100,1000")]
    pages: Vec<u64>,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

const VIDEO: u64 = 16 << 20;
/// Where RAM beyond what the guest maps one to one would lie is of no matter: it writes
/// through a window on all of it.
const WINDOW: u64 = 1 << 30;

struct Machine {
    memory: Arc<MemoryMap>,
    ram: RegionId,
    block: Arc<RamBlock>,
    video: RegionId,
    vm: Arc<KvmVm>,
    buses: Buses,
    vcpus: u64,
    code: Arc<RamBlock>,
}

impl Machine {
    /// Low memory for the guest's program, RAM at 4 GiB, and a gibibyte of it also where the
    /// program reaches it.
    fn new(gib: u64, tracking: DirtyTracking) -> Option<Self> {
        let memory = MemoryMap::new();
        let code = RamBlock::anonymous("code", 64 << 20).unwrap();
        let block = RamBlock::anonymous("ram", gib << 30).unwrap();
        let (system, ports, ram, video) = memory
            .update(|map| {
                let system = map.container("system", 1 << 64)?;
                let low = map.ram("code", code.clone())?;
                let ram = map.ram("ram", block.clone())?;
                let video = map.ram("video", RamBlock::anonymous("video", VIDEO)?)?;
                map.place(system, 0, low)?;
                map.place(system, WINDOW, ram)?;
                map.place(system, WINDOW + (gib << 30), video)?;
                Ok((system, map.container("ports", 1 << 16)?, ram, video))
            })
            .unwrap();
        let space = memory.address_space("memory", system).unwrap();
        let buses =
            Buses { memory: space.clone(), ports: memory.address_space("io", ports).unwrap() };
        let config = KvmConfig { tracking, ring_staleness: Duration::ZERO, ..KvmConfig::default() };
        let vm = KvmVm::with_config(Kvm::new().ok()?.create_vm().ok()?, config).ok()?;
        memory.add_listener(&space, vm.clone()).unwrap();
        Some(Self { memory, ram, block, video, vm, buses, vcpus: 0, code })
    }

    /// Lets the guest write to `count` pages of its first 3 GiB of RAM, spread evenly.
    fn write(&mut self, count: u64) {
        if count == 0 {
            return;
        }
        let page = self.block.page_size().bytes();
        let reach = self.block.len().min(2 << 30) / page;
        let at = |n: u64| WINDOW + n * (reach / count) * page;
        let list: Vec<u8> = (0..count).flat_map(|n| at(n).to_le_bytes()).collect();
        self.code.write(DATA, &list).unwrap();
        let vcpu = self.vm.create_vcpu(self.vcpus, self.buses.clone()).unwrap();
        self.vcpus += 1;
        boot(&vcpu, &self.code, &programs::store_at_addresses(), &[DATA, count, 7]);
        let (_, event) = vcpu.spawn("vcpu").unwrap().join().unwrap();
        assert_eq!(event, VcpuEvent::Shutdown);
    }

    fn stats(&self) -> DirtyLogStats {
        self.vm.dirty_log_stats()
    }
}

#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let begin = Instant::now();
        let result = work();
        self.0.push(begin.elapsed());
        result
    }

    fn median(&self) -> f64 {
        let mut times = self.0.clone();
        times.sort_unstable();
        times.get(times.len() / 2).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    }
}

fn measure(
    name: &str,
    tracking: DirtyTracking,
    gib: u64,
    count: u64,
    rounds: usize,
) -> Option<Value> {
    let client = DirtyClient::MIGRATION;
    let mut machine = Machine::new(gib, tracking)?;
    let [mut start, mut sync, mut calls, mut clear, mut video] = [(); 5].map(|()| Times::default());
    let memory = machine.memory.clone();
    memory.set_log(machine.video, DirtyClient::VGA, true).unwrap();
    for _ in 0..rounds.min(10) {
        start.time(|| memory.set_log(machine.ram, client, true).unwrap());
        memory.set_log(machine.ram, client, false).unwrap();
    }
    memory.set_log(machine.ram, client, true).unwrap();
    let mut private = vec![0u64; usize::try_from(machine.block.pages().div_ceil(64)).unwrap()];
    let pages = 0..machine.block.pages();
    // The first rounds fill the guest's memory and take what a log starts with.
    for round in 0..rounds + 2 {
        machine.write(count);
        let before = machine.stats();
        let mut one = Times::default();
        one.time(|| memory.sync_dirty_log(machine.ram).unwrap());
        let after = machine.stats();
        let found = machine.block.dirty().move_into(client, pages.clone(), &mut private).unwrap();
        private.fill(0);
        let mut two = Times::default();
        two.time(|| memory.log_clear(&machine.block, 0..machine.block.len()).unwrap());
        let mut three = Times::default();
        three.time(|| memory.sync_dirty_log(machine.video).unwrap());
        memory.snapshot_and_clear(machine.video, DirtyClient::VGA, 0..VIDEO).unwrap().commit();
        if round >= 2 {
            assert!(found >= count, "{found} of {count} pages were found");
            sync.0.extend(one.0);
            clear.0.extend(two.0);
            video.0.extend(three.0);
            let spent = |stats: &DirtyLogStats| stats.gets.time + stats.resets.time;
            calls.0.push(spent(&after) - spent(&before));
        }
    }
    println!(
        "{name:<8} {gib:>6} {count:>7} {:>10.1} {:>10.1} {:>10.1} {:>6.2} {:>10.1} {:>10.1}",
        start.median(),
        sync.median(),
        calls.median(),
        sync.median() / calls.median().max(0.001),
        clear.median(),
        video.median()
    );
    Some(json!({
        "tracking": name, "gib": gib, "pages": count, "start_us": start.median(),
        "sync_us": sync.median(), "kvm_us": calls.median(), "clear_us": clear.median(),
        "video_sync_us": video.median(),
    }))
}

pub fn main() {
    let options = Options::parse();
    println!(
        "{:<8} {:>6} {:>7} {:>10} {:>10} {:>10} {:>6} {:>10} {:>10}",
        "us", "GiB", "pages", "start", "sync", "KVM's part", "times", "clear", "VRAM sync"
    );
    let modes = [
        ("bitmap", DirtyTracking::Bitmap),
        ("manual", DirtyTracking::ManualProtect),
        ("ring", DirtyTracking::Ring { entries: 65_536 }),
    ];
    let mut rows = Vec::new();
    for (name, tracking) in modes {
        for count in &options.pages {
            for gib in &options.gib {
                match measure(name, tracking, *gib, *count, options.rounds) {
                    Some(row) => rows.push(row),
                    None => println!("{name:<8} {gib:>6} {count:>7} not here"),
                }
            }
        }
    }
    println!("{}", json!({ "rounds": options.rounds, "rows": rows }));
}
