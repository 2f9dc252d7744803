//! Our checkpoints, over a machine of KVM with a vCPU.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kvm_accel::kvm_ioctls::Kvm;
use kvm_accel::{Buses, KvmConfig, KvmVm, RollBack, Vcpu, VcpuEvent};
use machines::guest::{boot, programs};
use machines::kick_port::KickPort;
use machines::tracking::TrackingMode;
use machines::vcpu_device::VcpuDevice;
use memory_region::{AddressSpace, MemoryMap, MmioDevice, RegionId};
use migration_ram::Checkpoints;
use ram_block::RamBlock;

use crate::case::{ASKED, Contestant, LIST, Laps, PORT, Parts, prepare};
use crate::options::Options;

/// RAM, ports and KVM.
pub struct Machine {
    pub memory: Arc<MemoryMap>,
    pub block: Arc<RamBlock>,
    pub vm: Arc<KvmVm>,
    pub ports: RegionId,
    buses: (Arc<AddressSpace>, Arc<AddressSpace>),
}

impl Machine {
    /// None if KVM does not track pages in this way.
    pub fn new(gib: u64, way: TrackingMode, options: &Options) -> Option<Self> {
        let mut config = KvmConfig {
            tracking: way.tracking(),
            // Each page is written and re-armed many times.
            initially_set: false,
            // Nothing runs when the log is read.
            pml_flush_interval: Duration::MAX,
            ..KvmConfig::default()
        };
        if let Some(gib) = options.slot_gib {
            config.max_slot_bytes = gib << 30;
        }
        let memory = MemoryMap::new();
        let block = RamBlock::anonymous("ram", gib << 30).unwrap();
        let (system, ports) = memory
            .transaction(|map| {
                let system = map.container("system", 1 << 64)?;
                let ram = map.ram("ram", block.clone())?;
                map.add_subregion(system, 0, ram)?;
                Ok((system, map.container("ports", 1 << 16)?))
            })
            .unwrap();
        let space = memory.address_space("memory", system).unwrap();
        let buses = (space.clone(), memory.address_space("io", ports).unwrap());
        let vm = KvmVm::with_config(Kvm::new().ok()?.create_vm().ok()?, config).ok()?;
        memory.add_listener(&space, vm.clone()).unwrap();
        Some(Self { memory, block, vm, ports, buses })
    }

    pub fn vcpu(&self) -> Vcpu {
        let (memory, ports) = self.buses.clone();
        self.vm.create_vcpu(0, Buses { memory, ports }).unwrap()
    }

    pub fn add_port(&self, port: u16, size: u128, device: Arc<dyn MmioDevice>) {
        let add = self.memory.transaction(|map| {
            let region = map.mmio("port", size, device)?;
            map.add_subregion(self.ports, port.into(), region)
        });
        add.unwrap();
    }
}

/// A machine that is reset by its checkpoints.
pub struct Ours {
    machine: Machine,
    vcpu: Arc<Mutex<Vcpu>>,
    checkpoints: Checkpoints,
}

impl Ours {
    /// None if KVM does not track pages in this way.
    pub fn new(
        gib: u64,
        way: TrackingMode,
        pages: u64,
        when: RollBack,
        options: &Options,
    ) -> Option<Self> {
        let machine = Machine::new(gib, way, options)?;
        let vcpu = machine.vcpu();
        machine.add_port(PORT, 1, Arc::new(KickPort(vcpu.kicker())));
        prepare(&machine.block, pages);
        let code = programs::store_and_report();
        boot(&vcpu, &machine.block, &code, &[LIST, ASKED, PORT.into()]);
        let vcpu = Arc::new(Mutex::new(vcpu));
        let device = Arc::new(VcpuDevice::new(vcpu.clone(), when));
        let checkpoints = Checkpoints::new(&machine.memory, vec![device]).unwrap();
        let mut ours = Self { machine, vcpu, checkpoints };
        ours.checkpoints.take().unwrap();
        Some(ours)
    }

    /// The model-specific registers that are part of its state.
    pub fn msrs(&self) -> Vec<u32> {
        let vcpu = self.vcpu.lock().unwrap_or_else(PoisonError::into_inner);
        let state = serde_json::to_value(vcpu.save().unwrap()).unwrap();
        // Each of them is its bytes, the index first.
        let index = |msr: &serde_json::Value| {
            let byte = |n: usize| u8::try_from(msr[n].as_u64().unwrap()).unwrap();
            u32::from_le_bytes(std::array::from_fn(byte))
        };
        state["msrs"].as_array().unwrap().iter().map(index).collect()
    }
}

impl Contestant for Ours {
    fn run(&mut self) {
        let mut vcpu = self.vcpu.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(vcpu.run().unwrap(), VcpuEvent::Kicked);
    }

    fn reset(&mut self) -> Parts {
        let mut laps = Laps::start();
        let stats = self.checkpoints.reset().unwrap();
        Parts {
            whole: laps.lap(),
            pages: stats.pages,
            get: stats.get,
            clear: stats.clear,
            copy: stats.copy,
            state: stats.state,
        }
    }

    fn ram(&self) -> &RamBlock {
        &self.machine.block
    }
}
