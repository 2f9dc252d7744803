//! The registers, used as by drivers, and in ways that drivers should not.

use super::*;
use crate::registers::vbe::*;
use memory_region::{AddressSpace, ListenerError, MemoryListener, MemoryMap, Section, ViewChange};
use proptest::prelude::*;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};

/// The address of BAR 2.
const MMIO: u64 = 0xf000_0000;

struct Board {
    vga: Arc<Vga>,
    memory: Arc<AddressSpace>,
    ports: Arc<AddressSpace>,
    map: Arc<MemoryMap>,
}

impl Board {
    fn new(vram: u64) -> Self {
        let map = MemoryMap::new();
        let vga = Vga::new("vram", vram).unwrap();
        let regions = vga.add_to(&map).unwrap();
        let (system, ports) = map
            .transaction(|map| {
                let system = map.container("system", 1 << 32)?;
                let ports = map.container("ports", 1 << 16)?;
                map.add_subregion(system, Vga::WINDOW, regions.window)?;
                map.add_subregion(system, MMIO, regions.mmio)?;
                map.add_subregion(ports, Vga::PORTS, regions.ports)?;
                map.add_subregion(ports, Vga::VBE_PORTS, regions.vbe_ports)?;
                Ok((system, ports))
            })
            .unwrap();
        let memory = map.address_space("memory", system).unwrap();
        let ports = map.address_space("io", ports).unwrap();
        Self { vga, memory, ports, map }
    }

    fn set(&self, register: u16, value: u16) {
        self.ports.write(0x1ce, &register.to_le_bytes()).unwrap();
        self.ports.write(0x1cf, &value.to_le_bytes()).unwrap();
    }

    fn get(&self, register: u16) -> u16 {
        self.ports.write(0x1ce, &register.to_le_bytes()).unwrap();
        let mut value = [0; 2];
        self.ports.read(0x1d0, &mut value).unwrap();
        u16::from_le_bytes(value)
    }

    /// An index port and the data port after it, in one access.
    fn out(&self, port: u64, index: u8, value: u8) {
        self.ports.write(port, &[index, value]).unwrap();
    }

    fn byte(&self, vram: u64) -> u8 {
        let mut byte = [0];
        self.vga.vram().read(vram, &mut byte).unwrap();
        byte[0]
    }

    /// Whether the low window is video memory itself.
    fn is_direct(&self, address: u64) -> bool {
        let view = self.memory.view();
        let section = view
            .sections()
            .iter()
            .find(|section| section.start() <= address && address <= section.last());
        section.is_some_and(|section| section.ram().is_some())
    }
}

#[test]
fn a_driver_sets_a_mode_through_the_ports() {
    let board = Board::new(2 << 20);
    let vga = &board.vga;
    assert_eq!(board.get(ID), 0xb0c5);
    assert_eq!(board.get(VIDEO_MEMORY_64K), 32);
    vga.vram().write(4, &[9]).unwrap();
    for (register, value) in [(X_RESOLUTION, 640), (Y_RESOLUTION, 480), (BITS_PER_PIXEL, 32)] {
        board.set(register, value);
    }
    assert_eq!(vga.mode(), Ok(None));
    board.set(ENABLE, ENABLED | LINEAR_FRAME_BUFFER);
    let mode = vga.mode().unwrap().unwrap();
    assert_eq!((mode.width(), mode.height(), mode.bytes()), (640, 480, 0..640 * 480 * 4));
    assert_eq!(mode.to_string(), "32-bit graphics, 640x480");
    assert_eq!(board.byte(4), 0);
    assert_eq!(u64::from(board.get(VIRTUAL_HEIGHT)), (2 << 20) / (640 * 4));
    board.set(Y_OFFSET, 100);
    assert_eq!(vga.mode().unwrap().unwrap().bytes().start, 100 * 640 * 4);
    board.set(ENABLE, 0);
    assert_eq!(vga.mode(), Ok(None));
}

#[test]
fn the_geometry_may_change_while_it_is_shown() {
    let board = Board::new(2 << 20);
    board.set(ENABLE, ENABLED);
    assert_eq!(board.vga.mode(), Err(VbeError::Geometry { width: 0, height: 0 }));
    for (register, value) in [(BITS_PER_PIXEL, 16), (X_RESOLUTION, 320), (Y_RESOLUTION, 200)] {
        board.set(register, value);
    }
    let mode = board.vga.mode().unwrap().unwrap();
    assert_eq!((mode.width(), mode.height()), (320, 200));
    assert_eq!(board.get(VIRTUAL_WIDTH), 320);
    assert_eq!(u64::from(board.get(VIRTUAL_HEIGHT)), (2 << 20) / 640);
}

#[test]
fn a_depth_that_does_not_exist_is_8() {
    let board = Board::new(2 << 20);
    for (register, value) in [(X_RESOLUTION, 320), (Y_RESOLUTION, 200), (ENABLE, ENABLED)] {
        board.set(register, value); // as a guest that knows of one depth only
    }
    let mode = || board.vga.mode().unwrap().unwrap().to_string();
    assert_eq!((mode().as_str(), board.get(BITS_PER_PIXEL)), ("8-bit graphics, 320x200", 8));
    assert!(board.is_direct(0xa0000));
    board.set(BITS_PER_PIXEL, 16);
    assert_eq!(mode(), "16-bit graphics, 320x200");
    board.set(BITS_PER_PIXEL, 7);
    assert_eq!(mode(), "8-bit graphics, 320x200");
}

#[test]
fn offsets_that_no_longer_fit_are_reset() {
    let board = Board::new(4 << 20);
    board.vga.set_mode(800, 600, 32).unwrap();
    board.set(Y_OFFSET, 448);
    assert_eq!(board.get(Y_OFFSET), 448);
    board.set(VIRTUAL_WIDTH, 1024);
    assert_eq!([board.get(VIRTUAL_WIDTH), board.get(Y_OFFSET)], [1024, 0]);
    assert_eq!(board.vga.mode().unwrap().unwrap().bytes().start, 0);
    board.set(Y_OFFSET, u16::MAX);
    assert_eq!(board.get(Y_OFFSET), 0);
    // An offset to the right may be longer than a line, as long as there is memory.
    let board = Board::new(2 << 20);
    board.vga.set_mode(800, 600, 32).unwrap();
    board.set(X_OFFSET, 40_000);
    assert_eq!(board.get(X_OFFSET), 40_000);
    board.set(X_OFFSET, 50_000);
    assert_eq!([board.get(X_OFFSET), board.get(Y_OFFSET)], [0, 0]);
}

#[test]
fn capabilities_are_read_in_place_of_the_geometry() {
    let board = Board::new(2 << 20);
    board.set(ENABLE, 2);
    let capabilities = [X_RESOLUTION, Y_RESOLUTION, BITS_PER_PIXEL].map(|r| board.get(r));
    assert_eq!(capabilities, [16000, 12000, 32]);
}

#[test]
fn a_mode_larger_than_video_memory_is_refused() {
    let board = Board::new(2 << 20);
    let vga = &board.vga;
    vga.set_mode(640, 480, 32).unwrap();
    let before = vga.mode();
    let refused = vga.set_mode(1024, 768, 32).unwrap_err();
    assert!(matches!(refused, VbeError::TooLarge { needed: 3_145_728, vram: 2_097_152, .. }));
    assert_eq!(vga.mode(), before);

    // A guest that sets it all the same gets a blank screen, and does no harm.
    board.set(ENABLE, 0);
    board.set(X_RESOLUTION, 1024);
    board.set(Y_RESOLUTION, 768);
    board.set(ENABLE, ENABLED);
    assert_eq!(vga.mode(), Err(refused));
    assert_eq!(vga.screenshot().unwrap(), None);
}

#[test]
fn video_memory_has_a_size_that_registers_can_tell() {
    for bytes in [0, 4096, 128 << 10, (1 << 20) + 4096, 512 << 20, u64::MAX] {
        let refused = Vga::new("vram", bytes).unwrap_err();
        assert!(matches!(refused, VgaError::VideoMemory { bytes: b } if b == bytes));
    }
    assert_eq!(Board::new(256 << 20).get(VIDEO_MEMORY_64K), 4096);
    assert_eq!(Board::new(256 << 10).get(VIDEO_MEMORY_64K), 4);
}

#[test]
fn banks_are_video_memory_itself() {
    let board = Board::new(2 << 20);
    board.vga.set_mode(640, 480, 8).unwrap();
    // There is no bank 32. The highest bits say whether it is for reads or writes: it is for both.
    for (bank, shown) in [(0u16, 0u16), (3, 3), (31, 31), (32, 31), (0xc003, 3), (0x4001, 1)] {
        board.set(BANK, bank);
        assert_eq!(board.get(BANK), shown);
        assert!(board.is_direct(0xa0000) && board.is_direct(0xaffff));
        assert!(!board.is_direct(0xb0000));
        board.memory.write(0xa1234, &[7]).unwrap();
        let at = (u64::from(shown) << 16) + 0x1234;
        assert_eq!(board.byte(at), 7);
        board.vga.vram().write(at, &[0]).unwrap();
    }
    board.set(ENABLE, 0);
    assert!(!board.is_direct(0xa0000));
}

/// Lets another vCPU run while the map changes a bank's alias.
struct Meanwhile {
    go: Sender<()>,
    done: Mutex<Receiver<()>>,
    other_was_done: Mutex<Option<bool>>,
}

impl MemoryListener for Meanwhile {
    fn name(&self) -> &str {
        "meanwhile"
    }

    fn commit(&self, change: &ViewChange) -> Result<(), ListenerError> {
        let bank_1 = |section: &Section| section.ram().is_some() && section.offset() == 1 << 16;
        if change.added.iter().any(bank_1) {
            self.go.send(())?;
            let waited = lock(&self.done).recv_timeout(Duration::from_millis(100));
            *lock(&self.other_was_done) = Some(waited != Err(RecvTimeoutError::Timeout));
        }
        Ok(())
    }

    fn sync(&self, _: &Section) -> Result<(), ListenerError> {
        Ok(())
    }
}

#[test]
fn a_bank_that_is_set_back_while_the_map_changes_waits_for_the_map() {
    let board = Board::new(1 << 20);
    board.vga.set_mode(640, 480, 8).unwrap();
    let (go, wait_for_go) = channel();
    let (done, wait_for_done) = channel();
    let meanwhile =
        Arc::new(Meanwhile { go, done: wait_for_done.into(), other_was_done: Mutex::default() });
    board.map.add_listener(&board.memory, meanwhile.clone()).unwrap();
    let other = &board;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            wait_for_go.recv().unwrap();
            other.set(BANK, 0);
            other.memory.write(0xa0000, &[7]).unwrap();
            done.send(()).unwrap();
        });
        board.set(BANK, 1);
    });
    assert_eq!(*lock(&meanwhile.other_was_done), Some(false));
    assert_eq!([board.byte(0), board.byte(1 << 16)], [7, 0]);
}

#[test]
fn a_mode_that_is_set_is_shown_whatever_hid_the_screen() {
    let board = Board::new(2 << 20);
    board.out(0x3c4, 1, 0x20);
    board.ports.write(0x3c0, &[0]).unwrap();
    board.vga.vram().write(64 * 48 * 4 - 1, &[7, 8]).unwrap();
    board.vga.set_mode(64, 48, 32).unwrap();
    assert_eq!(board.vga.mode().unwrap().unwrap().width(), 64);
    // On what is visible of video memory, cleared.
    assert_eq!([board.byte(64 * 48 * 4 - 1), board.byte(64 * 48 * 4)], [0, 8]);
    board.out(0x3c4, 1, 0x20);
    assert_eq!(board.vga.mode(), Ok(None));
    // One that is refused leaves it off.
    board.vga.set_mode(64, 48, 7).unwrap_err();
    assert_eq!(board.vga.mode(), Ok(None));
}

#[test]
fn chain_4_is_video_memory_itself_as_long_as_nothing_changes_bytes() {
    let board = Board::new(1 << 20);
    board.out(0x3c2, 3, 0);
    for (port, index, value) in
        [(0x3c4, 2, 0x0f), (0x3c4, 4, 0x0e), (0x3ce, 5, 0x40), (0x3ce, 6, 0x05), (0x3ce, 8, 0xff)]
    {
        assert!(!board.is_direct(0xa0000));
        board.out(port, index, value);
    }
    assert!(board.is_direct(0xa0000) && board.is_direct(0xaffff) && !board.is_direct(0xb0000));
    board.memory.write(0xa0000 + 54321, &[1, 2, 3, 4, 5]).unwrap();
    assert_eq!([board.byte(54321), board.byte(54325)], [1, 5]);
    // Each of these makes more of a byte than a byte.
    for (port, index, value, back) in [
        (0x3ce, 1, 0x01, 0x00),
        (0x3ce, 3, 0x08, 0x00),
        (0x3ce, 8, 0x7f, 0xff),
        (0x3ce, 5, 0x42, 0x40),
        (0x3ce, 5, 0x48, 0x40),
        (0x3c4, 2, 0x07, 0x0f),
        (0x3c4, 4, 0x06, 0x0e),
    ] {
        board.out(port, index, value);
        assert!(!board.is_direct(0xa0000), "{port:#x} {index} {value:#x}");
        board.out(port, index, back);
        assert!(board.is_direct(0xa0000));
    }
    // The window moves.
    board.out(0x3ce, 6, 0x0d);
    assert!(!board.is_direct(0xa0000) && board.is_direct(0xb8000) && board.is_direct(0xbffff));
    board.memory.write(0xb8001, &[9]).unwrap();
    assert_eq!(board.byte(1), 9);
    // It stays where it is when the device is gone from all but the map.
    let Board { vga, map, memory, .. } = board;
    drop(vga);
    memory.write(0xb8001, &[8]).unwrap();
    drop(map);
}

#[test]
fn the_text_mode_is_there_without_a_driver() {
    let board = Board::new(1 << 20);
    board.vga.set_text_mode().unwrap();
    let mode = board.vga.mode().unwrap().unwrap();
    assert_eq!(mode.to_string(), "text 80x25, 720x400");
    board.memory.write(0xb8000 + 160, b"H\x07i\x07\x01\x07").unwrap();
    let text = board.vga.text().unwrap().unwrap();
    assert_eq!((text.len(), text[1].trim_end(), text[0].trim_end()), (25, "Hi☺", ""));
    // A guest can read the glyphs that are shown.
    board.out(0x3c4, 4, 6);
    board.out(0x3ce, 4, 2);
    board.out(0x3ce, 5, 0);
    board.out(0x3ce, 6, 4);
    let mut glyph = [0; 16];
    board.memory.read(0xa0000 + 32 * u64::from(b'A'), &mut glyph).unwrap();
    assert_eq!(glyph, crate::font::glyph(b'A'));
}

#[test]
fn the_registers_are_memory_too() {
    let board = Board::new(2 << 20);
    let read = |at: u64, size: usize| {
        let mut bytes = [0; 4];
        board.memory.read(MMIO + at, &mut bytes[..size]).unwrap();
        u32::from_le_bytes(bytes)
    };
    let write = |at: u64, bytes: &[u8]| board.memory.write(MMIO + at, bytes).unwrap();
    // A driver as Linux's: the identity, a mode, and the screen switched on.
    assert_eq!((read(0x500, 2), read(0x514, 2)), (0xb0c5, 32));
    board.ports.write(0x3c0, &[0]).unwrap();
    for (register, value) in [
        (ENABLE, 0u16),
        (BITS_PER_PIXEL, 32),
        (X_RESOLUTION, 640),
        (Y_RESOLUTION, 480),
        (ENABLE, 0x41),
    ] {
        write(0x500 + 2 * u64::from(register), &value.to_le_bytes());
    }
    assert_eq!(board.vga.mode(), Ok(None));
    write(0x402, &[1]);
    read(0x41a, 1);
    write(0x400, &[0x20]);
    let mode = || board.vga.mode().unwrap().unwrap().to_string();
    assert_eq!(mode(), "32-bit graphics, 640x480");
    assert_eq!(board.get(X_RESOLUTION), 640);
    // Two registers at a time, a byte of one, and an index with its data.
    write(0x502, &[0x40, 1, 200, 0]);
    assert_eq!((mode().as_str(), read(0x502, 2)), ("32-bit graphics, 320x200", 320));
    write(0x504, &[200, 0, 16, 0]);
    assert_eq!((mode().as_str(), read(0x504, 4)), ("16-bit graphics, 320x200", 200 | 16 << 16));
    assert_eq!((read(0x503, 1), read(0x516, 2), read(0x600, 4)), (1, 0xffff, u32::MAX));
    write(0x504, &[7]);
    assert_eq!(read(0x504, 2), 200);
    write(0x404, &[2, 0xf]);
    board.ports.write(0x3c4, &[2]).unwrap();
    assert_eq!((read(0x405, 1), read(0x404, 2)), (0xf, 0xf02));
    // The bank is written as through the ports.
    write(0x50a, &[3, 0]);
    board.memory.write(0xa0001, &[9]).unwrap();
    assert_eq!(board.byte((3 << 16) + 1), 9);
}

#[test]
fn the_monitor_tells_its_size() {
    let board = Board::new(16 << 20);
    let edid = || {
        let mut block = [0; 130];
        board.memory.read(MMIO, &mut block).unwrap();
        board.memory.write(MMIO, &[1, 2, 3]).unwrap(); // the EDID is read-only
        block
    };
    let width = |block: [u8; 130]| u16::from(block[56]) | u16::from(block[58] >> 4) << 8;
    assert_eq!(
        (edid()[..2].to_vec(), width(edid()), edid()[128..].to_vec()),
        (vec![0, 0xff], 1280, vec![0; 2])
    );
    board.vga.set_preferred_size(1920, 1080).unwrap();
    board.vga.reset();
    assert_eq!(width(edid()), 1920);
    let refused = board.vga.set_preferred_size(5000, 1080).unwrap_err();
    assert_eq!(refused, EdidError { width: 5000, height: 1080 });
    assert_eq!(
        refused.to_string(),
        "A monitor of 5000x1080 pixels was asked for; it can have from 64 to 4095 a side"
    );
    assert_eq!(width(edid()), 1920);
}

#[test]
fn a_state_is_carried_with_its_window() {
    let board = Board::new(1 << 20);
    board.vga.set_mode(320, 200, 8).unwrap();
    board.set(BANK, 2);
    board.out(0x3c6, 0xff, 0);
    let twin = Board::new(1 << 20);
    let before = twin.vga.save();
    assert!(matches!(twin.vga.restore(&[1, 2, 3]), Err(StateError::Length { .. })));
    assert_eq!(twin.vga.save(), before);
    twin.vga.restore(&board.vga.save()).unwrap();
    assert_eq!(twin.vga.save(), board.vga.save());
    twin.memory.write(0xa0000, &[5]).unwrap();
    assert_eq!(twin.byte(2 << 16), 5);
    twin.vga.reset();
    assert_eq!(twin.vga.mode(), Ok(None));
}

proptest! {
    /// Any access to any port and byte of the window: no panic, never a byte outside of
    /// video memory shown, and a state that can be carried.
    #[test]
    fn no_sequence_of_accesses_does_harm(
        accesses in prop::collection::vec(
            (0..7u8, any::<u64>(), prop::sample::select(vec![1usize, 2, 4, 8]),
                prop_oneof![0..16u64, any::<u64>(), Just(640), Just(32), Just(1)]),
            0..120),
        pages in 1..9u64,
    ) {
        let board = Board::new(pages * (256 << 10));
        for (kind, at, size, value) in accesses {
            let data = value.to_le_bytes();
            let mut back = [0; 8];
            let (space, address) = match kind {
                0 => (&board.memory, 0xa0000 + at % 0x1fff8),
                6 => (&board.memory, MMIO + at % 0xff9),
                1 | 2 => (&board.ports, 0x1ce + at % 3),
                _ => (&board.ports, 0x3b0 + at % 0x30),
            };
            let _ = space.write(address, &data[..size]);
            let _ = space.read(address, &mut back[..size]);
            if let Ok(Some(mode)) = board.vga.mode() {
                prop_assert!(mode.bytes().end <= board.vga.vram().len());
            }
        }
        board.vga.screenshot().unwrap();
        board.vga.text().unwrap();
        let saved = board.vga.save();
        board.vga.restore(&saved).unwrap();
        prop_assert_eq!(board.vga.save(), saved);
    }
}
