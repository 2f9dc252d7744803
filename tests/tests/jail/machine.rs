//! The machine that is jailed.

use std::hint::spin_loop;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_accel::kvm_ioctls::Kvm;
use kvm_accel::{Buses, DirtyTracking, KvmConfig, KvmError, KvmVm, RollBack, VcpuSet, VcpuState};
use machines::guest::{DATA, boot_at, programs};
use memory_region::{GlobalLogClaim, MapError, MemoryMap, RegionId};
use migration_ram::{Checkpoints, Device, Precopy, Receiver, Socket, ValueDevice};
use ram_block::{DirtyClient, RamBlock};

const RAM: u64 = 16 << 20;
const PAGE: u64 = 4096;
/// Where each vCPU's code is, what it counts in, and the page that it stores to.
const VCPUS: [(u64, u64, u64); 2] =
    [(0x2_0000, DATA, DATA + 0x10_0000), (0x2_1000, DATA + PAGE, DATA + 0x20_0000)];

/// RAM, two vCPUs, a hole that comes and goes, and two clients of the log.
pub struct Machine {
    memory: Arc<MemoryMap>,
    block: Arc<RamBlock>,
    hole: RegionId,
    vm: Arc<KvmVm>,
    vcpus: VcpuSet,
    log: GlobalLogClaim,
    checkpoints: Checkpoints,
}

impl Machine {
    /// What is made before a machine runs.
    pub fn start(tracking: DirtyTracking) -> Self {
        let (memory, block) = (MemoryMap::new(), RamBlock::anonymous("ram", RAM).unwrap());
        // It opens the page map, which a jail may not allow later.
        assert_eq!(block.data_extents(0..RAM).next(), None);
        let made = memory.transaction(|map| {
            let system = map.container("system", 1 << 64)?;
            let ram = map.ram("ram", block.clone())?;
            map.add_subregion(system, 0, ram)?;
            let hole = map.alias("hole", ram, 0, 1 << 20)?;
            map.set_enabled(hole, false)?;
            map.add_subregion_overlap(system, 8 << 20, hole, 1)?;
            Ok::<_, MapError>((system, map.container("ports", 1 << 16)?, hole))
        });
        let (system, ports, hole) = made.unwrap();
        let space = memory.address_space("memory", system).unwrap();
        let ports = memory.address_space("io", ports).unwrap();
        let config = KvmConfig { tracking, ..KvmConfig::default() };
        let vm = KvmVm::with_config(Kvm::new().unwrap().create_vm().unwrap(), config).unwrap();
        memory.add_listener(&space, vm.clone()).unwrap();
        let buses = || Buses { memory: space.clone(), ports: ports.clone() };
        let vcpus = VcpuSet::new([0, 1].map(|id| vm.create_vcpu(id, buses()).unwrap()));
        let log = memory.claim_global_log(DirtyClient::VGA).unwrap();
        let states = vcpus.clone();
        let back = vcpus.clone();
        let device = ValueDevice::new("vcpus", move || Ok(states.save()?), |_| Ok(()));
        let device = device.roll_back(move |states: &Vec<VcpuState>| {
            Ok(back.roll_back(states, RollBack::WithNextRun)?)
        });
        let checkpoints = Checkpoints::new(&memory, vec![Arc::new(device)]).unwrap();
        Self { memory, block, hole, vm, vcpus, log, checkpoints }
    }

    /// Gives the vCPUs their programs.
    pub fn boot(&self) {
        self.vcpus
            .each(|index, vcpu| {
                let (code, counter, page) = VCPUS[index];
                let program = programs::store_and_copy_back(code);
                boot_at(vcpu, &self.block, code, &program, &[page, counter]);
                Ok::<_, KvmError>(())
            })
            .unwrap();
    }

    fn counts(&self) -> [u64; 2] {
        VCPUS.map(|(_, counter, _)| {
            let mut word = [0; 8];
            self.block.read(counter, &mut word).unwrap();
            u64::from_le_bytes(word)
        })
    }

    /// Waits, without a system call, until both vCPUs have counted on.
    fn wait(&self) {
        let (before, start) = (self.counts(), Instant::now());
        while self.counts().iter().zip(before).any(|(now, before)| *now == before) {
            assert!(start.elapsed() < Duration::from_secs(30), "the guests stand still");
            spin_loop();
        }
    }

    /// All that a machine does in its life.
    pub fn run(&mut self) {
        self.checkpoints.take().unwrap();
        let at_first = self.counts();
        self.vcpus.start().unwrap();
        let limited = self.vm.set_dirty_limit(Some(64 << 20)).is_ok();
        for _ in 0..5 {
            self.wait();
            let hole = self.hole;
            self.memory.transaction(|map| map.set_enabled(hole, true)).unwrap();
            self.log.sync().unwrap();
            let harvest = self.log.snapshot_and_clear(&self.block, ..).unwrap();
            assert!(harvest.commit().count() > 0);
            drop(self.vm.pause(Duration::from_secs(10)).unwrap());
            self.memory.transaction(|map| map.set_enabled(hole, false)).unwrap();
        }
        if limited {
            self.vm.set_dirty_limit(None).unwrap();
        }
        self.wait();
        let stopped = self.vcpus.stop().unwrap();
        self.checkpoints.reset().unwrap();
        assert_eq!(self.counts(), at_first);
        drop(stopped);
        self.wait();
        let (vm, vcpus) = (self.vm.clone(), self.vcpus.clone());
        let pause = move || vm.pause(Duration::from_secs(10)).map_err(Into::into);
        // The vCPUs' states are read while they are stopped alone.
        let stopped = vcpus.stop().unwrap();
        self.checkpoints.take_live(pause).unwrap();
        drop(stopped);
        self.wait();
        drop(self.vcpus.stop().unwrap());
        self.wait();
    }

    fn device(&self) -> Arc<dyn Device> {
        let (save, restore) = (self.vcpus.clone(), self.vcpus.clone());
        Arc::new(ValueDevice::new(
            "vcpus",
            move || Ok(save.save()?),
            move |states: &Vec<VcpuState>| Ok(restore.restore(states)?),
        ))
    }

    /// Sends the machine, which runs meanwhile.
    pub fn migrate(self, socket: &mut Socket) {
        self.vcpus.start().unwrap();
        self.wait();
        let vcpus = self.vcpus.clone();
        let pause = move || vcpus.stop().map_err(Into::into);
        let precopy = Precopy::new(self.memory.clone()).device(self.device());
        let migrated = precopy.run(socket, pause, |_| ()).unwrap();
        migrated.paused.for_good();
    }

    /// Receives a machine, which goes on.
    pub fn restore(self, socket: &mut Socket) {
        let receiver = Receiver::new(std::slice::from_ref(&self.block)).device(self.device());
        receiver.run(socket).unwrap();
        assert!(self.counts().iter().all(|count| *count > 0));
        self.vcpus.start().unwrap();
        self.wait();
        self.vcpus.stop().unwrap().for_good();
    }
}
