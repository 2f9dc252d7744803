//! A board with a VGA, a driver's tables of registers, and a monitor: the picture by
//! definition, from registers and video memory.
#![allow(dead_code, unreachable_pub)] // each test uses a part

pub mod abuse;
pub mod modes;
pub mod monitor;
pub mod programs;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use display_vga::{Rect, Refresh, Screen, Surface, Vga};
use memory_region::{AddressSpace, MemoryMap, RegionId};
use ram_block::RamBlock;

/// The address of video memory.
pub const BASE: u64 = 0xe000_0000;
/// The address of the MMIO region.
pub const MMIO: u64 = 0xf000_0000;

/// A driver's accesses to a PC, ours or another one.
pub trait Pc {
    /// Writes a port of 8 bits.
    fn out(&self, port: u16, value: u8);
    /// Writes a port of 16 bits.
    fn out16(&self, port: u16, value: u16);
    /// Reads a port of 8 bits.
    fn input(&self, port: u16) -> u8;
    /// Writes memory.
    fn poke(&self, address: u64, bytes: &[u8]);
    /// Reads a byte of memory.
    fn peek(&self, address: u64) -> u8;

    /// Writes a register by its index.
    fn set(&self, port: u16, index: u8, value: u8) {
        self.out16(port, u16::from_le_bytes([index, value]));
    }

    /// Writes a VBE register.
    fn vbe(&self, register: u16, value: u16) {
        self.out16(0x1ce, register);
        self.out16(0x1cf, value);
    }
}

impl Pc for Board {
    fn out(&self, port: u16, value: u8) {
        self.ports.write(port.into(), &[value]).unwrap();
    }

    fn out16(&self, port: u16, value: u16) {
        self.ports.write(port.into(), &value.to_le_bytes()).unwrap();
    }

    fn input(&self, port: u16) -> u8 {
        let mut value = [0];
        self.ports.read(port.into(), &mut value).unwrap();
        value[0]
    }

    fn poke(&self, address: u64, bytes: &[u8]) {
        self.memory.write(address, bytes).unwrap();
    }

    fn peek(&self, address: u64) -> u8 {
        let mut value = [0];
        self.memory.read(address, &mut value).unwrap();
        value[0]
    }
}

pub struct Board {
    pub map: Arc<MemoryMap>,
    pub memory: Arc<AddressSpace>,
    pub ports: Arc<AddressSpace>,
    pub vga: Arc<Vga>,
    pub vram: RegionId,
    /// Nanoseconds.
    pub clock: Arc<AtomicU64>,
}

impl Board {
    pub fn new(vram: u64) -> Self {
        let map = MemoryMap::new();
        let clock = Arc::new(AtomicU64::new(0));
        let now = clock.clone();
        let time = move || Duration::from_nanos(now.load(Ordering::Relaxed));
        let block = RamBlock::anonymous("vga.vram", vram).unwrap();
        let vga = Vga::with_clock(block, time).unwrap();
        let regions = vga.add_to(&map).unwrap();
        let (system, ports) = map
            .transaction(|map| {
                let system = map.container("system", 1 << 32)?;
                let ports = map.container("ports", 1 << 16)?;
                map.add_subregion(system, Vga::WINDOW, regions.window)?;
                map.add_subregion(system, BASE, regions.vram)?;
                map.add_subregion(system, MMIO, regions.mmio)?;
                map.add_subregion(ports, Vga::PORTS, regions.ports)?;
                map.add_subregion(ports, Vga::VBE_PORTS, regions.vbe_ports)?;
                Ok((system, ports))
            })
            .unwrap();
        let memory = map.address_space("memory", system).unwrap();
        let ports = map.address_space("io", ports).unwrap();
        Self { map, memory, ports, vga, vram: regions.vram, clock }
    }

    pub fn screen(&self) -> Screen {
        Screen::new(self.map.clone(), self.vga.clone(), self.vram).unwrap()
    }

    pub fn vram(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.vga.vram().len()).unwrap()];
        self.vga.vram().read(0, &mut bytes).unwrap();
        bytes
    }
}

/// The first pixel in which two pictures differ.
pub fn difference(a: &Surface, b: &Surface) -> Option<String> {
    if (a.width(), a.height()) != (b.width(), b.height()) {
        return Some(format!("{a:?} against {b:?}"));
    }
    let (left, right) = (a.bytes(), b.bytes());
    if left == right {
        return None;
    }
    let at = left
        .chunks_exact(4)
        .zip(right.chunks_exact(4))
        .position(|(left, right)| left[..3] != right[..3])?;
    let at = u32::try_from(at).unwrap();
    let (x, y) = (at % a.width(), at / a.width());
    Some(format!("({x}, {y}): {:02x?} against {:02x?}", a.pixel(x, y), b.pixel(x, y)))
}

/// The first pixel that changed and is not in the damage.
pub fn undamaged(before: &Surface, now: &Surface, refresh: &Refresh) -> Option<(u32, u32)> {
    if (before.width(), before.height()) != (now.width(), now.height()) {
        return (refresh.damage != [now.area()]).then_some((0, 0));
    }
    let line = now.width() as usize * 4;
    let mut covered = vec![false; now.width() as usize];
    let (old, new) = (before.bytes(), now.bytes());
    for y in 0..now.height() {
        let range = y as usize * line..(y as usize + 1) * line;
        if old[range.clone()] == new[range.clone()] {
            continue;
        }
        covered.fill(false);
        let on_line = |rect: &&Rect| (rect.y..rect.bottom()).contains(&y);
        for rect in refresh.damage.iter().filter(on_line) {
            covered[rect.x as usize..rect.right() as usize].fill(true);
        }
        let pixels = old[range.clone()].chunks(4).zip(new[range].chunks(4)).zip(&covered);
        if let Some(x) =
            pixels.into_iter().position(|((old, new), covered)| old[..3] != new[..3] && !covered)
        {
            return Some((u32::try_from(x).unwrap(), y));
        }
    }
    None
}
