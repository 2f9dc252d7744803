//! The demonstration's machine: RAM, a VGA, and a guest that draws a scene.

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use display_vga::Vga;
use kvm_accel::{KvmVm, PauseGuard, VcpuThread};
use memory_region::{AddressSpace, MapError, MemoryMap, RegionId};
use migration_ram::{Device, FnDevice};
use ram_block::RamBlock;

use crate::frame_port::FramePort;
use crate::scene::Scene;
use crate::software::{SoftwareGuest, SoftwarePause};

/// Errors of any kind, as a program's `main` returns them.
pub type AnyError = Box<dyn Error + Send + Sync>;

/// What an error and its sources say, in one line.
pub fn explain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

/// How a program ends: says what failed, if it did.
pub fn end(result: Result<(), AnyError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", explain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// Where video memory is, as a guest-physical address.
pub const FRAME_BUFFER: u64 = 0xe000_0000;
/// The size of RAM in bytes.
pub const RAM_SIZE: u64 = 32 << 20;
/// The size of video memory in bytes.
pub const VRAM_SIZE: u64 = 16 << 20;

/// The parts of a machine without a processor: RAM at 0, video memory at
/// [`FRAME_BUFFER`] and in the low window, the VGA's ports and the [`FramePort`].
#[derive(Debug)]
pub struct Board {
    /// The memory map.
    pub memory: Arc<MemoryMap>,
    /// What processors see.
    pub space: Arc<AddressSpace>,
    /// The I/O ports.
    pub ports: Arc<AddressSpace>,
    /// RAM.
    pub ram: Arc<RamBlock>,
    /// The display.
    pub vga: Arc<Vga>,
    /// The region of video memory.
    pub vram: RegionId,
    /// Keeps step with the guest.
    pub frames: Arc<FramePort>,
}

impl Board {
    /// A machine's parts.
    ///
    /// # Errors
    ///
    /// If there is no memory for it.
    pub fn new() -> Result<Self, AnyError> {
        Self::with_ram(RAM_SIZE)
    }

    /// A machine's parts, with so many bytes of RAM: as many as lie below the frame buffer.
    ///
    /// # Errors
    ///
    /// If there is no memory for it.
    pub fn with_ram(size: u64) -> Result<Self, AnyError> {
        let memory = MemoryMap::new();
        let ram = RamBlock::anonymous("pc.ram", size)?;
        let vga = Vga::new("vga.vram", VRAM_SIZE)?;
        let frames = Arc::new(FramePort::default());
        let regions = vga.add_to(&memory)?;
        let (system, ports) = memory.transaction(|map| {
            let system = map.container("system", 1 << 64)?;
            let ports = map.container("ports", 1 << 16)?;
            let low = map.ram("ram", ram.clone())?;
            let frame_port = map.mmio("frames", FramePort::SIZE, frames.clone())?;
            map.add_subregion_overlap(system, 0, low, 0)?;
            map.add_subregion_overlap(system, Vga::WINDOW, regions.window, 1)?;
            map.add_subregion(system, FRAME_BUFFER, regions.vram)?;
            map.add_subregion(ports, Vga::PORTS, regions.ports)?;
            map.add_subregion(ports, Vga::VBE_PORTS, regions.vbe_ports)?;
            map.add_subregion(ports, FramePort::PORT.into(), frame_port)?;
            Ok::<_, MapError>((system, ports))
        })?;
        let vram = regions.vram;
        let space = memory.address_space("memory", system)?;
        let ports = memory.address_space("io", ports)?;
        Ok(Self { memory, space, ports, ram, vga, vram, frames })
    }

    /// The display and the port of frames, to be saved.
    pub fn devices(&self) -> Vec<Arc<dyn Device>> {
        let (save, restore) = (self.vga.clone(), self.vga.clone());
        let vga =
            FnDevice::new("vga", move || Ok(save.save()), move |_, s| Ok(restore.restore(s)?));
        let (save, restore) = (self.frames.clone(), self.frames.clone());
        let frames = FnDevice::new(
            "frames",
            move || Ok(serde_json::to_vec(&save.state())?),
            move |_, state| {
                let (allowed, done) = serde_json::from_slice(state)?;
                restore.set_state(allowed, done);
                Ok(())
            },
        );
        vec![Arc::new(vga), Arc::new(frames)]
    }

    /// Starts a guest that draws `scene`, on KVM.
    ///
    /// # Errors
    ///
    /// If KVM cannot be used, or there is no guest program for this processor.
    #[cfg(target_arch = "x86_64")]
    pub fn start_on_kvm(&self, scene: &Scene) -> Result<Guest, AnyError> {
        let vm = KvmVm::new(kvm_accel::kvm_ioctls::Kvm::new()?.create_vm()?)?;
        self.memory.add_listener(&self.space, vm.clone())?;
        let buses = kvm_accel::Buses { memory: self.space.clone(), ports: self.ports.clone() };
        let vcpu = vm.create_vcpu(0, buses)?;
        let code = crate::guest::scene::program(&self.ram, scene, FRAME_BUFFER);
        crate::guest::boot(&vcpu, &self.ram, &code, &[]);
        Ok(Guest::Kvm { vcpu: vcpu.spawn("vcpu0")?, vm })
    }

    /// Starts a guest that draws `scene`, on KVM.
    ///
    /// # Errors
    ///
    /// Always: there is no guest program for this processor.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn start_on_kvm(&self, _: &Scene) -> Result<Guest, AnyError> {
        Err("there is a guest program for x86-64 only".into())
    }

    /// Starts a guest that draws `scene`, in software.
    pub fn start_in_software(&self, scene: &Scene) -> Guest {
        let (memory, ports) = (self.space.clone(), self.ports.clone());
        Guest::Software(SoftwareGuest::start(memory, ports, FRAME_BUFFER, scene.clone()))
    }
}

/// A guest that runs until it is dropped.
#[derive(Debug)]
pub enum Guest {
    /// On KVM.
    Kvm {
        /// Its processor.
        vcpu: VcpuThread,
        /// Its virtual machine.
        vm: Arc<KvmVm>,
    },
    /// In software.
    Software(SoftwareGuest),
}

/// As long as this is kept, the guest stands still.
#[derive(Debug)]
pub enum Paused<'a> {
    /// On KVM.
    Kvm(PauseGuard),
    /// In software.
    Software(SoftwarePause<'a>),
}

impl Guest {
    /// The accelerator's name.
    pub fn accelerator(&self) -> &'static str {
        match self {
            Self::Kvm { .. } => "kvm",
            Self::Software(_) => "software",
        }
    }

    /// Stops the guest for as long as the result is kept.
    ///
    /// # Errors
    ///
    /// If it does not stop within a second.
    pub fn pause(&self) -> Result<Paused<'_>, AnyError> {
        match self {
            Self::Kvm { vm, .. } => Ok(Paused::Kvm(vm.pause(Duration::from_secs(1))?)),
            Self::Software(guest) => Ok(Paused::Software(guest.pause())),
        }
    }

    /// Whether the guest ended by itself, which it should not.
    pub fn is_finished(&self) -> bool {
        match self {
            Self::Kvm { vcpu, .. } => vcpu.is_finished(),
            Self::Software(guest) => guest.is_finished(),
        }
    }
}
