//! The machine: its map, its devices in their places, its processor.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use display_vga::{RefreshError, Screen, Vga};
use kvm_accel::kvm_ioctls::Kvm;
use kvm_accel::{Buses, Chips, DirtyTracking, KvmConfig, KvmVm, Vcpu, VcpuState};
use memory_region::{AddressSpace, MemoryMap, MmioDevice, RegionId};

use super::chips;
use super::chipset;
use super::debug_port::DebugPort;
use super::disk::Disk;
use super::e820;
use super::fw_cfg::{self, FwCfg, Items};
use super::graphics::graphics;
use super::kernel;
use super::keyboard::Keyboard;
use super::layout::Layout;
use super::pci::PciBus;
use super::processor::{Control, Paused, Processor};
use super::rtc::Rtc;
use super::serial::{Output, SerialPort};
use super::system_port::SystemPort;
use machines::demo::AnyError;
use migration_ram::{Device, DeviceError};

/// What a machine starts.
#[derive(Clone, Debug)]
pub enum Boot {
    /// Firmware, from the processor's reset on.
    Firmware {
        /// The firmware: SeaBIOS for example.
        bios: Vec<u8>,
        /// The graphics card's ROM, by which firmware draws.
        vga_bios: Option<Vec<u8>>,
    },
    /// A kernel, without firmware.
    Kernel {
        /// A bzImage.
        image: Vec<u8>,
        /// What it is told.
        command_line: String,
    },
}

/// What a machine is made of.
pub struct Config {
    /// Bytes of RAM.
    pub ram: u64,
    /// What it starts.
    pub boot: Boot,
    /// The content of its hard disk, if it has one.
    pub disk: Option<Vec<u8>>,
    /// What its serial port writes to.
    pub serial: Output,
    /// How KVM tracks the pages that it writes.
    pub tracking: DirtyTracking,
}

impl Config {
    /// The least RAM, in bytes.
    pub const MIN_RAM: u64 = 2 << 20;

    /// A machine of 128 MiB that starts `boot`.
    pub fn new(boot: Boot) -> Self {
        let serial = Box::new(std::io::sink());
        Self { ram: 128 << 20, boot, disk: None, serial, tracking: DirtyTracking::Auto }
    }
}

/// A small PC.
///
/// It stands still until it is [started](Self::start).
pub struct Machine {
    // The processor goes first: nothing acts on the devices then.
    processor: Processor,
    /// It is paused until it is started.
    unstarted: Option<Paused>,
    at_reset: VcpuState,
    power_on: Arc<PowerOn>,
    _ticker: Ticker,
    vm: Arc<KvmVm>,
    layout: Arc<Layout>,
    vga: Arc<Vga>,
    vram: RegionId,
    keyboard: Arc<Keyboard>,
    serial: Arc<SerialPort>,
    control: Arc<Control>,
    devices: Vec<Arc<dyn Device>>,
}

impl Machine {
    /// A machine.
    ///
    /// # Errors
    ///
    /// If KVM cannot be used, or what is to be started is not fit for it.
    pub fn new(config: Config) -> Result<Self, AnyError> {
        if config.ram < Config::MIN_RAM || !config.ram.is_multiple_of(1 << 20) {
            return Err(
                format!("{} bytes of RAM: at least 2 MiB, and whole MiB", config.ram).into()
            );
        }
        let (bios, vga_bios) = match &config.boot {
            Boot::Firmware { bios, vga_bios } => (Some(bios.as_slice()), vga_bios.as_deref()),
            Boot::Kernel { .. } => (None, None),
        };
        let layout = Arc::new(Layout::new(config.ram, bios)?);
        let kvm_config = KvmConfig { tracking: config.tracking, ..KvmConfig::default() };
        let vm = KvmVm::with_config(Kvm::new()?.create_vm()?, kvm_config)?;
        chips::create(&vm)?;
        layout.memory.add_listener(&layout.space, vm.clone())?;
        layout.memory.add_listener(&layout.port_space, vm.pio_listener())?;
        let irq = |number| chips::irq_line(&vm, number);
        let control = Arc::new(Control::default());
        let reset = || control.reset_line();

        let vga = Vga::new("vga.vram", Vga::DEFAULT_VRAM)?;
        let (regions, card) = graphics(&layout, &vga, vga_bios)?;
        let mut functions = vec![
            ((0, 0), chipset::host_bridge(layout.shadow())),
            ((1, 0), chipset::isa_bridge()),
            ((2, 0), card),
        ];
        let disk = config.disk.map(|image| Disk::new(&image, irq(Disk::IRQ))).transpose()?;
        if disk.is_some() {
            functions.push(((1, 1), chipset::ide()));
        }
        let pci = PciBus::new(functions, reset());
        let rtc = Rtc::new(layout.low_ram(), layout.high_ram(), irq(Rtc::IRQ));
        let keyboard = Keyboard::new(irq(Keyboard::IRQ), reset());
        let serial = Arc::new(SerialPort::new(irq(SerialPort::IRQ), config.serial));
        let system_port = Arc::new(SystemPort::new(reset()));
        let items = Items::default()
            .item(fw_cfg::CPUS, &1u16.to_le_bytes())
            .item(fw_cfg::MAX_CPUS, &1u16.to_le_bytes())
            .file("etc/e820", &e820::file(&layout));
        let fw_cfg = FwCfg::new(items, layout.space.clone());

        layout.memory.transaction(|map| {
            let [data, status] = Keyboard::DATA_AND_STATUS;
            let mut place = |name, at, ports, device: Arc<dyn MmioDevice>| {
                let region = map.mmio(name, ports, device)?;
                map.add_subregion(layout.ports, at, region)
            };
            place("pci", PciBus::PORT, PciBus::PORTS, pci.clone())?;
            place("rtc", Rtc::PORT, Rtc::PORTS, rtc.clone())?;
            place("keyboard", data, 1, keyboard.port(0))?;
            place("keyboard status", status, 1, keyboard.port(1))?;
            place("serial", SerialPort::PORT, SerialPort::PORTS, serial.clone())?;
            place("system control", SystemPort::PORT, 1, system_port.clone())?;
            place("debug", DebugPort::PORT, 1, Arc::new(DebugPort::default()))?;
            place("fw_cfg", FwCfg::PORT, FwCfg::PORTS, fw_cfg.clone())?;
            if let Some(disk) = &disk {
                place("ide", Disk::PORT, Disk::PORTS, disk.clone())?;
                place("ide control", Disk::CONTROL_PORT, 1, disk.control())?;
                map.ram("disk", disk.block().clone())?;
            }
            Ok(())
        })?;

        let buses = Buses { memory: layout.space.clone(), ports: layout.port_space.clone() };
        let processor = Processor::new(&vm, buses, control.clone())?;
        let chips = Arc::new(Chips::new(vm.clone()));
        control.stops(chips.clone());
        let unstarted = Some(processor.pause());
        let mut devices: Vec<Arc<dyn Device>> = vec![
            pci,
            Arc::new(Display(vga.clone())),
            keyboard.clone(),
            serial.clone(),
            system_port,
            fw_cfg,
        ];
        devices.extend(disk.map(|disk| disk as Arc<dyn Device>));
        // After all that may raise an interrupt as it is restored: the serial port does.
        devices.push(Arc::new(chips::device(&chips)));
        let power_on = PowerOn::new(&devices, &layout, &vga, config.boot)?;
        // What is backed by a battery outlives a reset; the processor has its own, for which it is
        // asked by the line.
        devices.extend([rtc.clone(), control.clone() as Arc<dyn Device>, processor.device()]);
        let at_reset = processor.vcpu().save()?;
        power_on.begin(&processor.vcpu())?;
        let ticker = Ticker::new(rtc, control.clone())?;
        Ok(Self {
            processor,
            unstarted,
            at_reset,
            power_on: Arc::new(power_on),
            _ticker: ticker,
            vm,
            layout,
            vga,
            vram: regions.vram,
            keyboard,
            serial,
            control,
            devices,
        })
    }

    /// Lets it run: from power-on, or from what was [restored](Self::devices).
    ///
    /// # Errors
    ///
    /// If there is no thread for it.
    pub fn start(&mut self) -> Result<(), AnyError> {
        let (at_reset, power_on) = (self.at_reset.clone(), self.power_on.clone());
        self.processor.start(at_reset, Box::new(move |vcpu| power_on.reset(vcpu)))?;
        self.unstarted = None;
        Ok(())
    }

    /// Stops it for as long as the result is kept.
    pub fn pause(&self) -> Paused {
        self.processor.pause()
    }

    /// Why it went no further, if so.
    pub fn ended(&self) -> Option<String> {
        self.control.ended()
    }

    /// Its memory map: what a migration sends the blocks of.
    pub fn memory(&self) -> &Arc<MemoryMap> {
        &self.layout.memory
    }

    /// The I/O ports.
    pub fn ports(&self) -> &Arc<AddressSpace> {
        &self.layout.port_space
    }

    /// KVM's machine.
    pub fn vm(&self) -> &Arc<KvmVm> {
        &self.vm
    }

    /// Its display.
    pub fn vga(&self) -> &Arc<Vga> {
        &self.vga
    }

    /// A look at its display.
    ///
    /// # Errors
    ///
    /// If there is one already.
    pub fn screen(&self) -> Result<Screen, RefreshError> {
        Screen::new(self.memory().clone(), self.vga.clone(), self.vram)
    }

    /// Its keyboard.
    pub fn keyboard(&self) -> &Arc<Keyboard> {
        &self.keyboard
    }

    /// Its serial port.
    pub fn serial(&self) -> &Arc<SerialPort> {
        &self.serial
    }

    /// What makes up the machine's state beside the blocks of its memory, in the order in
    /// which it is to be restored: for a migration, saved while the machine is
    /// [paused](Self::pause) and restored before its start; for
    /// [checkpoints](migration_ram::Checkpoints), saved and put back while it is paused.
    pub fn devices(&self) -> &[Arc<dyn Device>] {
        &self.devices
    }
}

/// What is done at a reset.
struct PowerOn {
    /// The devices' states as after power-on.
    states: Vec<(Arc<dyn Device>, Vec<u8>)>,
    layout: Arc<Layout>,
    vga: Arc<Vga>,
    boot: Boot,
}

impl PowerOn {
    fn new(
        devices: &[Arc<dyn Device>],
        layout: &Arc<Layout>,
        vga: &Arc<Vga>,
        boot: Boot,
    ) -> Result<Self, AnyError> {
        let states = devices.iter().map(|device| Ok((device.clone(), device.save()?)));
        let states = states.collect::<Result<_, AnyError>>()?;
        Ok(Self { states, layout: layout.clone(), vga: vga.clone(), boot })
    }

    /// Makes `vcpu`, which is as after power-on, begin what the machine starts.
    fn begin(&self, vcpu: &Vcpu) -> Result<(), AnyError> {
        let Boot::Kernel { image, command_line } = &self.boot else { return Ok(()) };
        self.vga.set_text_mode()?;
        let entry = kernel::load(&self.layout, image, command_line)?;
        kernel::begin(vcpu, entry)
    }

    fn reset(&self, vcpu: &Vcpu) -> Result<(), AnyError> {
        for (device, state) in &self.states {
            device.restore(device.version(), state)?;
        }
        self.begin(vcpu)
    }
}

/// Gives the clock its periodic interrupt.
struct Ticker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    fn new(rtc: Arc<Rtc>, control: Arc<Control>) -> Result<Self, AnyError> {
        /// While the guest wants no interrupts, and while the machine stands still.
        const IDLE: Duration = Duration::from_millis(100);
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, clock) = (stop.clone(), rtc.clone());
        let body = move || {
            while !stopped.load(Ordering::Relaxed) {
                let wait = control.unless_paused(|| clock.tick()).flatten();
                std::thread::park_timeout(wait.unwrap_or(IDLE));
            }
        };
        let thread = std::thread::Builder::new().name("rtc".to_owned()).spawn(body)?;
        rtc.wakes(thread.thread().clone());
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// The display, whose own state is versioned bytes already.
struct Display(Arc<Vga>);

impl Device for Display {
    fn name(&self) -> &str {
        "vga"
    }

    fn version(&self) -> u32 {
        1
    }

    fn save(&self) -> Result<Vec<u8>, DeviceError> {
        Ok(self.0.save())
    }

    fn restore(&self, _: u32, state: &[u8]) -> Result<(), DeviceError> {
        Ok(self.0.restore(state)?)
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("vga", &self.vga).field("ended", &self.ended()).finish()
    }
}
