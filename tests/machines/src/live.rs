//! A machine that is moved while it works: one processor draws the scene, the other one
//! writes pages and beats. All that it is goes along: RAM, video memory, both processors, the
//! display and the ports.

use std::sync::Arc;
use std::time::Duration;

use kvm_accel::{Buses, KvmConfig, KvmError, KvmVm, PauseGuard, StoppedVcpus, VcpuSet, VcpuState};
use memory_region::MapError;
use migration_ram::{Device, DeviceError, FnDevice, ValueDevice};

use crate::demo::{AnyError, Board, FRAME_BUFFER};
use crate::guest::{self, programs};
use crate::heartbeat_port::HeartbeatPort;
use crate::scene::Scene;

/// Pages that are written from one beat to the next.
const PAGES_A_BEAT: u64 = 64;
/// Where the code of the processor that beats is, and where what it writes begins.
const BEAT_CODE: u64 = 0x2_0000;
const BEAT_DATA: u64 = 0x20_0000;
const PAGE: u64 = 4096;

/// What such a machine is made of; source and destination have the same.
#[derive(Clone, Debug)]
pub struct Shape {
    /// RAM, in bytes.
    pub ram: u64,
    /// Bytes of it that are written over and over.
    pub working_set: u64,
    /// Bytes of pages that are written in a second, at most.
    pub dirty_rate: u64,
    /// How KVM is set up.
    pub kvm: KvmConfig,
}

/// The machine.
#[derive(Debug)]
pub struct Live {
    /// RAM, display and ports.
    pub board: Board,
    /// Where the guest shows that it is alive.
    pub beats: Arc<HeartbeatPort>,
    vm: Arc<KvmVm>,
    vcpus: VcpuSet,
}

impl Live {
    /// A machine whose processors have no program yet.
    ///
    /// # Errors
    ///
    /// If KVM cannot be used, there is no memory, or the shape is impossible.
    pub fn new(shape: &Shape) -> Result<Self, AnyError> {
        let needed = BEAT_DATA + shape.working_set;
        if shape.ram < needed || shape.ram > FRAME_BUFFER || shape.working_set < PAGE {
            return Err(format!(
                "RAM of {} bytes: a working set of {} needs {needed}, and {FRAME_BUFFER} is the \
                    most",
                shape.ram, shape.working_set
            )
            .into());
        }
        let board = Board::with_ram(shape.ram)?;
        let beat_bytes = u128::from(PAGES_A_BEAT * PAGE) * 1_000_000_000;
        let period = u64::try_from(beat_bytes / u128::from(shape.dirty_rate.max(1)))?;
        let beats = Arc::new(HeartbeatPort::new(Duration::from_nanos(period)));
        board.memory.transaction(|map| {
            let port = map.mmio("beats", HeartbeatPort::SIZE, beats.clone())?;
            map.add_subregion(board.ports.root(), HeartbeatPort::PORT.into(), port)?;
            Ok::<_, MapError>(())
        })?;
        let fd = kvm_accel::kvm_ioctls::Kvm::new()?.create_vm()?;
        let vm = KvmVm::with_config(fd, shape.kvm.clone())?;
        board.memory.add_listener(&board.space, vm.clone())?;
        let buses = || Buses { memory: board.space.clone(), ports: board.ports.clone() };
        let vcpus = [vm.create_vcpu(0, buses())?, vm.create_vcpu(1, buses())?];
        let vcpus = VcpuSet::new(vcpus);
        Ok(Self { board, beats, vm, vcpus })
    }

    /// Gives the processors their programs, as a machine that is switched on.
    ///
    /// # Errors
    ///
    /// If they run.
    pub fn boot(&self, scene: &Scene, shape: &Shape) -> Result<(), AnyError> {
        let ram = &self.board.ram;
        let code = guest::scene::program(ram, scene, FRAME_BUFFER);
        let end = BEAT_DATA + shape.working_set / PAGE * PAGE;
        let arguments = [BEAT_DATA, end, u64::from(HeartbeatPort::PORT), PAGE, PAGES_A_BEAT];
        self.vcpus.each(|id, vcpu| {
            match id {
                0 => guest::boot(vcpu, ram, &code, &[]),
                _ => {
                    let program = programs::increment_pages_and_beat(BEAT_CODE);
                    guest::boot_at(vcpu, ram, BEAT_CODE, &program, &arguments);
                }
            }
            Ok::<_, KvmError>(())
        })?;
        Ok(())
    }

    /// Lets the processors run.
    ///
    /// # Errors
    ///
    /// If a thread cannot be started.
    pub fn start(&self) -> Result<(), AnyError> {
        Ok(self.vcpus.start()?)
    }

    /// Brings the processors to rest, between two instructions, with nothing under way.
    ///
    /// # Errors
    ///
    /// If one of them ended by itself, or cannot be run.
    pub fn stop(&self) -> Result<StoppedVcpus, DeviceError> {
        Ok(self.vcpus.stop()?)
    }

    /// Keeps the processors out of the guest for a while, wherever they are.
    pub fn pause(&self) -> impl Fn() -> Result<PauseGuard, DeviceError> + Send + Sync + 'static {
        let vm = self.vm.clone();
        move || Ok(vm.pause(Duration::from_secs(1))?)
    }

    /// Limits what the processors dirty, in bytes per second of all of them together; `None` is
    /// no limit. It is shared out evenly.
    pub fn limit(&self) -> impl Fn(Option<u64>) -> Result<(), DeviceError> + Send + Sync + 'static {
        let (vm, vcpus) = (self.vm.clone(), self.vcpus.count() as u64);
        move |bytes| Ok(vm.set_dirty_limit(bytes.map(|bytes| (bytes / vcpus).max(1)))?)
    }

    /// Whether a processor ended by itself, which none should.
    pub fn is_finished(&self) -> bool {
        self.vcpus.is_finished()
    }

    /// How KVM tracks written pages, and why so.
    pub fn tracking(&self) -> String {
        self.vm.dirty_tracking().to_string()
    }

    /// Everything but RAM, to go along or to be received.
    pub fn devices(&self) -> Vec<Arc<dyn Device>> {
        let (save, restore) = (self.vcpus.clone(), self.vcpus.clone());
        let vcpus = ValueDevice::new(
            "vcpus",
            move || Ok(save.save()?),
            move |states: &Vec<VcpuState>| Ok(restore.restore(states)?),
        );
        let mut devices: Vec<Arc<dyn Device>> = vec![Arc::new(vcpus)];
        devices.extend(self.board.devices());
        let (save, restore) = (self.beats.clone(), self.beats.clone());
        devices.push(Arc::new(FnDevice::new(
            "beats",
            move || Ok(save.last().0.to_be_bytes().to_vec()),
            move |_, state| {
                restore.set(u32::from_be_bytes(state.try_into()?));
                Ok(())
            },
        )));
        devices
    }

    /// A checksum over RAM and video memory: the same on both sides, if nothing was lost.
    ///
    /// # Errors
    ///
    /// If memory cannot be read.
    pub fn checksum(&self) -> Result<u32, AnyError> {
        let mut sum = crc32fast::Hasher::new();
        let mut bytes = vec![0; 1 << 20];
        for block in [&self.board.ram, self.board.vga.vram()] {
            for extent in block.data_extents(0..block.len()) {
                for offset in extent.clone().step_by(bytes.len()) {
                    let len = usize::try_from(extent.end - offset)?.min(bytes.len());
                    block.read(offset, &mut bytes[..len])?;
                    // Where there is nothing, the other side may have zeros.
                    for (page, at) in bytes[..len].chunks(4096).zip((offset..).step_by(4096)) {
                        if page.iter().any(|byte| *byte != 0) {
                            sum.update(&at.to_be_bytes());
                            sum.update(page);
                        }
                    }
                }
            }
        }
        Ok(sum.finalize())
    }
}
