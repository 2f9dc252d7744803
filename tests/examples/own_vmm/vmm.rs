//! The VMM.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use kvm_accel::kvm_ioctls::{Kvm, VcpuExit, VmFd};
use kvm_accel::{GuardedVcpu, KickSignal, KvmConfig, KvmVm, VcpuRun, VcpuState};
use machines::demo::AnyError;
use machines::guest::{CODE, DATA, boot_descriptor, programs};
use memory_region::{MapError, MemoryMap};
use migration_ram::{DeviceError, Precopy, Receiver, ValueDevice};
use ram_block::RamBlock;

const RAM: u64 = 256 << 20;
/// The guest writes a growing number there: the one device of this VMM.
const PORT: u16 = 0x510;
/// The VMM's own signal, for which it has a handler.
const SIGNAL: i32 = signal_hook::consts::SIGUSR1;

/// The VMM's own structure. `kvm-accel` brought `vm`, and wrapped the vCPU's descriptor.
struct Vmm {
    _fd: Arc<VmFd>, // for its interrupt controllers, eventfds, slots of its own
    _vm: Arc<KvmVm>,
    memory: Arc<MemoryMap>,
    ram: Arc<RamBlock>,
    vcpu: Arc<Mutex<GuardedVcpu>>,
    /// The device.
    last: AtomicU32,
}

impl Vmm {
    fn new() -> Result<Self, AnyError> {
        // The map says what guests see; KVM's slots follow it.
        let (memory, ram) = (MemoryMap::new(), RamBlock::anonymous("ram", RAM)?);
        let system = memory.transaction(|map| {
            let system = map.container("system", 1 << 64)?;
            let region = map.ram("ram", ram.clone())?;
            map.add_subregion(system, 0, region)?;
            Ok::<_, MapError>(system)
        })?;
        let system = memory.address_space("memory", system)?;

        let fd = Arc::new(Kvm::new()?.create_vm()?);
        let kick_signal = KickSignal::Existing(SIGNAL);
        let vm = KvmVm::over(fd.clone(), KvmConfig { kick_signal, ..KvmConfig::default() })?;
        memory.add_listener(&system, vm.clone())?;
        let vcpu = vm.adopt_vcpu(0, fd.create_vcpu(0)?, None)?;
        let (vcpu, last) = (Arc::new(Mutex::new(vcpu)), AtomicU32::new(0));
        Ok(Self { _fd: fd, _vm: vm, memory, ram, vcpu, last })
    }

    /// The VMM's run loop: what was `fd.run()` is `runs.run()`.
    fn run(&self) -> Result<(), AnyError> {
        let mut vcpu = self.vcpu.lock().unwrap_or_else(PoisonError::into_inner);
        let mut runs = vcpu.run_loop()?;
        loop {
            match runs.run()? {
                VcpuRun::Exit(VcpuExit::IoOut(PORT, data)) => {
                    self.last.store(u32::from_le_bytes(data.try_into()?), Ordering::Release);
                }
                VcpuRun::Exit(VcpuExit::MmioRead(_, data)) => data.fill(0xff),
                VcpuRun::Exit(exit) => return Err(format!("an exit: {exit:?}").into()),
                VcpuRun::Continue => {}
                VcpuRun::Kicked | VcpuRun::DirtyBound => return Ok(()),
                other => return Err(format!("an event: {other:?}").into()),
            }
        }
    }

    /// The vCPU, and the device, as what goes along with RAM.
    fn state(self: &Arc<Self>) -> Arc<ValueDevice<(VcpuState, u32)>> {
        let (source, destination) = (self.clone(), self.clone());
        Arc::new(ValueDevice::new(
            "vcpu and port",
            move || {
                let vcpu = source.vcpu.lock().unwrap_or_else(PoisonError::into_inner);
                Ok((vcpu.save()?, source.last.load(Ordering::Acquire)))
            },
            move |(state, last): &(VcpuState, u32)| {
                destination.last.store(*last, Ordering::Release);
                let mut vcpu = destination.vcpu.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(vcpu.restore(state)?)
            },
        ))
    }
}

fn wait_for(vmm: &Vmm, number: u32) {
    while vmm.last.load(Ordering::Acquire) < number {
        thread::yield_now();
    }
}

/// Runs a guest, and moves it to another VMM.
pub fn run() -> Result<(), AnyError> {
    signal_hook::flag::register(SIGNAL, Arc::new(AtomicBool::new(false)))?;
    let source = Arc::new(Vmm::new()?);
    let kicker = {
        let vcpu = source.vcpu.lock().unwrap_or_else(PoisonError::into_inner);
        let program = programs::increment_pages_and_beat(CODE);
        let arguments = [DATA, DATA + (64 << 20), PORT.into(), 4096, 256];
        boot_descriptor(vcpu.fd(), &source.ram, CODE, &program, &arguments);
        vcpu.kicker()
    };
    let running = thread::spawn({
        let source = source.clone();
        move || source.run()
    });
    wait_for(&source, 100);

    // To the other VMM while the guest runs; a socket would do as well.
    let mut stream = Vec::new();
    let pause = || {
        kicker.kick();
        running.join().map_err(|_| DeviceError::from("the loop panicked"))?
    };
    let precopy = Precopy::new(source.memory.clone()).device(source.state());
    let migrated = precopy.run(&mut stream, pause, |round| println!("{round}"))?;
    println!("{} pages", migrated.stats.pages());

    let destination = Arc::new(Vmm::new()?);
    let receiver =
        Receiver::new(std::slice::from_ref(&destination.ram)).device(destination.state());
    receiver.run(&mut stream.as_slice())?;
    let last = destination.last.load(Ordering::Acquire);
    assert_eq!(last, source.last.load(Ordering::Acquire));
    let kicker = destination.vcpu.lock().unwrap_or_else(PoisonError::into_inner).kicker();
    thread::scope(|scope| {
        let running = scope.spawn(|| destination.run());
        wait_for(&destination, last + 100);
        kicker.kick();
        running.join().map_err(|_| "the loop panicked")?
    })?;
    println!("The guest went on from number {last}.");
    Ok(())
}
