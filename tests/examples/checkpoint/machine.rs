//! The demonstration's machine with two processors: one draws the scene, the other one writes pages
//! here and there, those of the picture too.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use display_vga::{Screen, Surface, write_png};
use kvm_accel::kvm_ioctls::Kvm;
use kvm_accel::{Buses, KvmConfig, KvmVm, RollBack, Vcpu, VcpuEvent, VcpuKicker};
use machines::demo::{AnyError, Board, FRAME_BUFFER};
use machines::frame_port::FramePort;
use machines::guest::{self, DATA, programs};
use machines::kick_port::KickPort;
use machines::scene::Scene;
use machines::tracking::TrackingMode;
use machines::vcpu_device::VcpuDevice;
use memory_region::{MapError, MmioDevice};
use migration_ram::Checkpoints;
use ram_block::RamBlock;

const PAGE: u64 = 4096;
/// The code of the processor that writes pages, how many and what, and where.
const CODE: u64 = 0x2_0000;
const ASKED: u64 = DATA + 0x1000;
const LIST: u64 = DATA + 0x1_0000;
/// Where the pages in RAM begin.
const FIRST: u64 = DATA + (2 << 20);
/// The port that ends a case.
const PORT: u16 = 0x510;
/// The most pages of a case: half of them are RAM.
pub const MAX_PAGES: u64 = 8000;

/// The port by which the guest says that a frame is drawn, which ends its run.
struct EndsFrame {
    frames: Arc<FramePort>,
    kicker: VcpuKicker,
}

impl MmioDevice for EndsFrame {
    fn read(&self, _: u64, _: usize) -> u64 {
        self.frames.next()
    }

    fn write(&self, _: u64, _: usize, value: u64) {
        self.frames.finish(value);
        self.kicker.kick();
    }
}

/// The machine, whose processors run when they are told to.
pub struct Machine {
    pub board: Board,
    pub screen: Screen,
    pub checkpoints: Checkpoints,
    draws: Arc<Mutex<Vcpu>>,
    writes: Arc<Mutex<Vcpu>>,
}

impl Machine {
    /// A machine that has drawn frame 0. In a case it writes `pages` pages.
    pub fn new(mode: TrackingMode, pages: u64) -> Result<Self, AnyError> {
        let board = Board::new()?;
        // Pages are re-armed many times, which costs less so.
        let config =
            KvmConfig { tracking: mode.tracking(), initially_set: false, ..KvmConfig::default() };
        let vm = KvmVm::with_config(Kvm::new()?.create_vm()?, config)?;
        board.memory.add_listener(&board.space, vm.clone())?;
        let buses = || Buses { memory: board.space.clone(), ports: board.ports.clone() };
        let [draws, writes] = [vm.create_vcpu(0, buses())?, vm.create_vcpu(1, buses())?];
        let frames = EndsFrame { frames: board.frames.clone(), kicker: draws.kicker() };
        let ends = KickPort(writes.kicker());
        board.memory.transaction(|map| {
            let ports = board.ports.root();
            let frames = map.mmio("frame ends", FramePort::SIZE, Arc::new(frames))?;
            map.add_subregion_overlap(ports, FramePort::PORT.into(), frames, 1)?;
            let ends = map.mmio("case ends", 1, Arc::new(ends))?;
            map.add_subregion(ports, PORT.into(), ends)?;
            Ok::<_, MapError>(())
        })?;
        let code = guest::scene::program(&board.ram, &Scene::new(640, 480), FRAME_BUFFER);
        guest::boot(&draws, &board.ram, &code, &[]);
        write_list(&board.ram, pages)?;
        let code = programs::store_and_report();
        guest::boot_at(&writes, &board.ram, CODE, &code, &[LIST, ASKED, PORT.into()]);

        let [draws, writes] = [draws, writes].map(|vcpu| Arc::new(Mutex::new(vcpu)));
        let mut devices = board.devices();
        for vcpu in [&draws, &writes] {
            devices.push(Arc::new(VcpuDevice::new(vcpu.clone(), RollBack::WithNextRun)));
        }
        let screen = Screen::new(board.memory.clone(), board.vga.clone(), board.vram)?;
        let checkpoints = Checkpoints::new(&board.memory, devices)?;
        let machine = Self { board, screen, checkpoints, draws, writes };
        run(&machine.draws)?;
        Ok(machine)
    }

    /// Draws a frame: the one after the last.
    pub fn draw(&self, frame: u64) -> Result<(), AnyError> {
        self.board.frames.allow(frame);
        run(&self.draws)
    }

    /// Writes the pages of a case.
    pub fn write_pages(&self) -> Result<(), AnyError> {
        run(&self.writes)
    }

    /// The picture, as the display has it after a refresh.
    pub fn refreshed(&mut self) -> Result<Surface, AnyError> {
        self.screen.refresh()?;
        Ok(self.screen.surface().clone())
    }

    /// All of RAM and video memory.
    pub fn memory(&self) -> Result<Vec<u8>, AnyError> {
        let mut all = Vec::new();
        for block in [&self.board.ram, self.board.vga.vram()] {
            let start = all.len();
            all.resize(start + usize::try_from(block.len())?, 0);
            block.read(0, &mut all[start..])?;
        }
        Ok(all)
    }

    /// Writes the display's picture to a file.
    pub fn write_png(&self, path: &Path) -> Result<(), AnyError> {
        let write = || write_png(self.screen.surface(), BufWriter::new(File::create(path)?));
        write().map_err(|error| format!("{}: {error}", path.display()).into())
    }
}

fn run(vcpu: &Mutex<Vcpu>) -> Result<(), AnyError> {
    match vcpu.lock().unwrap_or_else(PoisonError::into_inner).run()? {
        VcpuEvent::Kicked => Ok(()),
        other => Err(format!("the guest ended, which it should not: {other:?}").into()),
    }
}

/// Half of the pages are spread over RAM, the others are the first ones of video memory.
fn write_list(ram: &RamBlock, pages: u64) -> Result<(), AnyError> {
    let in_ram = pages / 2;
    let stride = (ram.len() - FIRST) / PAGE / in_ram;
    let low = (0..in_ram).map(|n| FIRST + n * stride * PAGE);
    let video = (0..pages - in_ram).map(|n| FRAME_BUFFER + n * PAGE);
    let list: Vec<u8> = low.chain(video).flat_map(u64::to_le_bytes).collect();
    ram.write(LIST, &list)?;
    ram.write(ASKED, &[pages, 0xff].map(u64::to_le_bytes).concat())?;
    Ok(())
}
