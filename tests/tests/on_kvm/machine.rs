//! A machine for one test: RAM from address 0, one vCPU, and a map to add to.

use std::cell::Cell;
use std::sync::{Arc, Mutex};

#[cfg(target_arch = "x86_64")]
use kvm_accel::kvm_bindings::kvm_sregs;
use kvm_accel::kvm_ioctls::{Kvm, VmFd};
use kvm_accel::{Buses, DirtyTracking, KvmConfig, KvmVm, Vcpu, VcpuEvent, VcpuThread};
pub use machines::deadline::{seconds, wait_until};
use machines::guest::{DATA, ENDED, boot, port};
use machines::kick_port::KickPort;
use memory_region::{AddressSpace, MemoryMap, MmioDevice, RegionId};
use ram_block::RamBlock;

pub struct Machine {
    pub memory: Arc<MemoryMap>,
    pub system: RegionId,
    pub ports: RegionId,
    pub ram: RegionId,
    pub block: Arc<RamBlock>,
    pub space: Arc<AddressSpace>,
    pub port_space: Arc<AddressSpace>,
    pub vm: Arc<KvmVm>,
    vcpus: Cell<u64>,
}

thread_local! {
    /// How the machines that this thread makes track written pages.
    static TRACKING: Cell<DirtyTracking> = const { Cell::new(DirtyTracking::Auto) };
}

/// Runs `body` with machines that track written pages in this way.
pub fn tracked_by(tracking: DirtyTracking, body: impl FnOnce()) {
    TRACKING.set(tracking);
    body();
    TRACKING.set(DirtyTracking::Auto);
}

impl Machine {
    pub fn new(ram_size: u64) -> Self {
        Self::with_config(ram_size, KvmConfig::default())
    }

    /// A machine with the tracking of the test that runs.
    pub fn with_config(ram_size: u64, config: KvmConfig) -> Self {
        let fd = Kvm::new().unwrap().create_vm().unwrap();
        Self::over(fd.into(), ram_size, config)
    }

    /// As [`with_config`](Self::with_config), over a machine of KVM that is there already.
    pub fn over(fd: Arc<VmFd>, ram_size: u64, config: KvmConfig) -> Self {
        let config = KvmConfig { tracking: TRACKING.get(), ..config };
        let memory = MemoryMap::new();
        let block = RamBlock::anonymous("ram", ram_size).unwrap();
        let (system, ports, ram) = memory
            .transaction(|map| {
                let system = map.container("system", 1 << 64)?;
                let ports = map.container("ports", 1 << 16)?;
                let ram = map.ram("ram", block.clone())?;
                map.add_subregion_overlap(system, 0, ram, 0)?;
                // Where there are no ports, they are a window of memory.
                #[cfg(not(target_arch = "x86_64"))]
                map.add_subregion(system, port(0), ports)?;
                Ok((system, ports, ram))
            })
            .unwrap();
        let space = memory.address_space("memory", system).unwrap();
        let port_space = memory.address_space("io", ports).unwrap();
        let vm = KvmVm::over(fd, config).unwrap();
        memory.add_listener(&space, vm.clone()).unwrap();
        Self { memory, system, ports, ram, block, space, port_space, vm, vcpus: 0.into() }
    }

    /// Starts a program on a vCPU of its own. One program at a time: they share their
    /// place in memory.
    pub fn start(&self, code: &[u8], arguments: &[u64]) -> VcpuThread {
        let vcpu = self.vcpu();
        boot(&vcpu, &self.block, code, arguments);
        vcpu.spawn("vcpu").unwrap()
    }

    /// As [`start`](Self::start), in ring 0.
    pub fn start_privileged(&self, code: &[u8], arguments: &[u64]) -> VcpuThread {
        self.privileged(code, arguments).spawn("vcpu").unwrap()
    }

    /// A vCPU that is about to run a program in ring 0.
    pub fn privileged(&self, code: &[u8], arguments: &[u64]) -> Vcpu {
        let vcpu = self.vcpu();
        boot(&vcpu, &self.block, code, arguments);
        #[cfg(target_arch = "x86_64")]
        {
            let mut sregs = vcpu.fd().get_sregs().unwrap();
            let kvm_sregs { cs, ds, es, fs, gs, ss, .. } = &mut sregs;
            for segment in [cs, ds, es, fs, gs, ss] {
                segment.selector &= !3;
                segment.dpl = 0;
            }
            vcpu.fd().set_sregs(&sregs).unwrap();
        }
        vcpu
    }

    /// A vCPU that has not run yet.
    pub fn vcpu(&self) -> Vcpu {
        #[allow(unused_mut)] // where a vCPU is initialized by being made
        let mut vcpu = self.uninitialized();
        #[cfg(target_arch = "aarch64")]
        vcpu.init(&machines::guest::initialize(&self.vm)).unwrap();
        vcpu
    }

    /// A vCPU as KVM makes it.
    pub fn uninitialized(&self) -> Vcpu {
        let id = self.vcpus.replace(self.vcpus.get() + 1);
        let buses = Buses { memory: self.space.clone(), ports: self.port_space.clone() };
        self.vm.create_vcpu(id, buses).unwrap()
    }

    /// The 64-bit words at `address` of RAM.
    pub fn words<const N: usize>(&self, address: u64) -> [u64; N] {
        std::array::from_fn(|n| {
            let mut bytes = [0; 8];
            self.block.read(address + 8 * n as u64, &mut bytes).unwrap();
            u64::from_le_bytes(bytes)
        })
    }

    /// What a guest that counts has counted so far.
    pub fn counter(&self) -> u64 {
        self.words::<1>(DATA)[0]
    }

    /// Runs a program to its end.
    pub fn run(&self, code: &[u8], arguments: &[u64]) {
        let (_, event) = self.start(code, arguments).join().unwrap();
        assert_eq!(event, ENDED, "the program did not end as it should");
    }

    /// Lets a guest store `byte` at each of `addresses`.
    pub fn store(&self, byte: u8, addresses: &[u64]) {
        let list: Vec<u8> = addresses.iter().flat_map(|address| address.to_le_bytes()).collect();
        self.block.write(DATA, &list).unwrap();
        let code = machines::guest::programs::store_at_addresses();
        self.run(&code, &[DATA, addresses.len() as u64, u64::from(byte)]);
    }
}

/// A guest that stores when it is asked to, and is out of its processor else.
pub struct Obedient {
    vcpu: Vcpu,
}

impl Obedient {
    const PORT: u16 = 0x510;
    /// A page before its list.
    const ASKED: u64 = DATA;
    const LIST: u64 = DATA + 0x1000;

    pub fn new(machine: &Machine) -> Self {
        let vcpu = machine.vcpu();
        let ends = Arc::new(KickPort(vcpu.kicker()));
        machine
            .memory
            .transaction(|map| {
                let end = map.mmio("end", 1, ends)?;
                map.add_subregion(machine.ports, Self::PORT.into(), end)
            })
            .unwrap();
        let code = machines::guest::programs::store_and_report();
        boot(&vcpu, &machine.block, &code, &[Self::LIST, Self::ASKED, port(Self::PORT)]);
        Self { vcpu }
    }

    /// Stores `byte` at each of `addresses`, of which there is one at least.
    pub fn store(&mut self, machine: &Machine, byte: u8, addresses: &[u64]) {
        let asked = [addresses.len() as u64, byte.into()].map(u64::to_le_bytes).concat();
        machine.block.write(Self::ASKED, &asked).unwrap();
        let list: Vec<u8> = addresses.iter().flat_map(|address| address.to_le_bytes()).collect();
        machine.block.write(Self::LIST, &list).unwrap();
        assert_eq!(self.vcpu.run().unwrap(), VcpuEvent::Kicked);
    }
}

/// A device that notes its accesses and answers every read with the same value.
pub struct Recorder {
    value: u64,
    accesses: Mutex<Vec<Access>>,
}

/// An access that a device saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read { offset: u64, size: usize },
    Write { offset: u64, size: usize, value: u64 },
}

impl Recorder {
    pub fn new(value: u64) -> Arc<Self> {
        Arc::new(Self { value, accesses: Mutex::default() })
    }

    /// What was seen since the last call.
    pub fn accesses(&self) -> Vec<Access> {
        std::mem::take(&mut self.accesses.lock().unwrap())
    }
}

impl MmioDevice for Recorder {
    fn read(&self, offset: u64, size: usize) -> u64 {
        self.accesses.lock().unwrap().push(Access::Read { offset, size });
        self.value
    }

    fn write(&self, offset: u64, size: usize, value: u64) {
        self.accesses.lock().unwrap().push(Access::Write { offset, size, value });
    }
}
