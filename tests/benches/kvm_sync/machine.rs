//! A machine whose guest writes the pages that it is told to.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_accel::kvm_ioctls::Kvm;
use kvm_accel::{Buses, DirtyLogStats, KvmConfig, KvmVm, VcpuThread};
use machines::guest::{DATA, boot, programs};
use memory_region::{MemoryMap, RegionId};
use ram_block::RamBlock;

/// Size of the video memory.
pub const VIDEO: u64 = 16 << 20;
/// Where the machine's RAM begins: the guest reaches its first 3 GiB.
const RAM: u64 = 1 << 30;
/// Where the guest is told how many pages to write, in the first page of its data.
const LIST: u64 = DATA + 0x1000;

/// RAM and video memory that are logged, and a guest with a little memory of its own.
pub struct Machine {
    pub memory: Arc<MemoryMap>,
    pub ram: RegionId,
    pub block: Arc<RamBlock>,
    pub video: RegionId,
    pub vm: Arc<KvmVm>,
    pub buses: Buses,
    pub low: Arc<RamBlock>,
    guest: Option<VcpuThread>,
}

impl Machine {
    /// None if KVM does not track pages in this way.
    pub fn new(gib: u64, config: KvmConfig) -> Option<Self> {
        let memory = MemoryMap::new();
        let low = RamBlock::anonymous("low", 64 << 20).unwrap();
        let block = RamBlock::anonymous("ram", gib << 30).unwrap();
        let (system, ports, ram, video) = memory
            .transaction(|map| {
                let system = map.container("system", 1 << 64)?;
                let own = map.ram("low", low.clone())?;
                let ram = map.ram("ram", block.clone())?;
                let video = map.ram("video", RamBlock::anonymous("video", VIDEO)?)?;
                map.add_subregion(system, 0, own)?;
                map.add_subregion(system, RAM, ram)?;
                map.add_subregion(system, RAM + (gib << 30), video)?;
                Ok((system, map.container("ports", 1 << 16)?, ram, video))
            })
            .unwrap();
        let space = memory.address_space("memory", system).unwrap();
        let buses =
            Buses { memory: space.clone(), ports: memory.address_space("io", ports).unwrap() };
        let vm = KvmVm::with_config(Kvm::new().ok()?.create_vm().ok()?, config).ok()?;
        memory.add_listener(&space, vm.clone()).unwrap();
        Some(Self { memory, ram, block, video, vm, buses, low, guest: None })
    }

    /// Starts a program on a vCPU of its own.
    pub fn start(&self, id: u64, code: &[u8], arguments: &[u64]) -> VcpuThread {
        let vcpu = self.vm.create_vcpu(id, self.buses.clone()).unwrap();
        boot(&vcpu, &self.low, code, arguments);
        vcpu.spawn("vcpu").unwrap()
    }

    /// Lets the guest write to `count` pages that are spread evenly over the first `spread`
    /// bytes of RAM, and waits for it.
    pub fn write(&mut self, count: u64, spread: u64) {
        if count == 0 {
            return;
        }
        let page = self.block.page_size().bytes();
        let pages = spread.min(self.block.len()) / page;
        let list: Vec<u8> =
            (0..count).flat_map(|n| (RAM + n * pages / count * page).to_le_bytes()).collect();
        self.low.write(LIST, &list).unwrap();
        self.low.write(DATA, &count.to_le_bytes()).unwrap();
        if self.guest.is_none() {
            self.guest = Some(self.start(0, &programs::store_when_asked(), &[LIST, DATA]));
        }
        while self.word(DATA) != 0 {
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// The 64-bit word at `address` of the guest's own memory.
    pub fn word(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        self.low.read(address, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    pub fn stats(&self) -> DirtyLogStats {
        self.vm.dirty_log_stats()
    }
}

/// Where RAM lies, for programs of their own.
pub const fn ram_at(offset: u64) -> u64 {
    RAM + offset
}

/// What something took, time after time.
#[derive(Default)]
pub struct Times(Vec<Duration>);

impl Times {
    pub fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let begin = Instant::now();
        let result = work();
        self.0.push(begin.elapsed());
        result
    }

    pub fn add(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub fn total(&self) -> Duration {
        self.0.iter().sum()
    }

    /// In microseconds.
    pub fn median(&self) -> f64 {
        let mut times = self.0.clone();
        times.sort_unstable();
        times.get(times.len() / 2).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    }
}
