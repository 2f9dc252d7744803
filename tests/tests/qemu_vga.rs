//! The same programs on our VGA and on QEMU's: the same pictures, where QEMU is right.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use integration_tests::qtest::{Picture, Qtest};
use integration_tests::{harness, qemu};
use machines::deadline::seconds;

#[path = "../../display-vga/tests/common/mod.rs"]
mod common;

use common::modes::{self, Mode};
use common::programs::{self, noise};
use common::{BASE, Board, MMIO, Pc};

fn main() -> ExitCode {
    harness::run(
        &qemu::need(),
        harness::named(&[
            ("text_looks_as_on_qemu", text_looks_as_on_qemu),
            ("graphics_look_as_on_qemu", graphics_look_as_on_qemu),
            ("linear_modes_look_as_on_qemu", linear_modes_look_as_on_qemu),
            ("planes_are_written_and_read_as_on_qemu", planes_are_written_and_read_as_on_qemu),
            ("registers_read_back_as_on_qemu", registers_read_back_as_on_qemu),
            ("registers_as_memory_are_as_on_qemu", registers_as_memory_are_as_on_qemu),
            ("banks_and_wide_colours_are_as_on_qemu", banks_and_wide_colours_are_as_on_qemu),
            ("what_a_bios_leaves_looks_as_on_qemu", what_a_bios_leaves_looks_as_on_qemu),
        ]),
    )
}

impl Pc for Qtest {
    fn out(&self, port: u16, value: u8) {
        self.command(&format!("outb {port:#x} {value:#x}")).unwrap();
    }

    fn out16(&self, port: u16, value: u16) {
        self.command(&format!("outw {port:#x} {value:#x}")).unwrap();
    }

    fn input(&self, port: u16) -> u8 {
        u8::try_from(self.read(&format!("inb {port:#x}")).unwrap()).unwrap()
    }

    fn poke(&self, address: u64, bytes: &[u8]) {
        self.write(address, bytes).unwrap();
    }

    fn peek(&self, address: u64) -> u8 {
        u8::try_from(self.read(&format!("readb {address:#x}")).unwrap()).unwrap()
    }
}

/// Both machines, with video memory at [`BASE`] and registers at [`MMIO`].
fn machines(name: &str) -> (Board, Qtest) {
    let theirs = Qtest::start(name, &["-machine", "pc", "-vga", "std", "-m", "64"]).unwrap();
    // The VGA is at slot 2 of bus 0: its first and third BAR, and memory and ports on.
    assert_eq!((BASE, MMIO), (0xe000_0000, 0xf000_0000));
    for (register, command) in
        [(0x10, "outl 0xcfc 0xe0000000"), (0x18, "outl 0xcfc 0xf0000000"), (4, "outw 0xcfc 3")]
    {
        theirs.command(&format!("outl 0xcf8 {:#x}", 0x8000_1000u32 + register)).unwrap();
        theirs.command(command).unwrap();
    }
    (Board::new(16 << 20), theirs)
}

fn both((ours, theirs): &(Board, Qtest), what: impl Fn(&dyn DynPc)) {
    what(ours);
    what(theirs);
}

/// [`Pc`] with what of it is generic.
trait DynPc: Pc {
    fn set_mode(&self, mode: &Mode);
    fn draw_text(&self, mode: &Mode);
}

impl<P: Pc> DynPc for P {
    fn set_mode(&self, mode: &Mode) {
        modes::set_mode(self, mode);
    }

    fn draw_text(&self, mode: &Mode) {
        programs::text(self, mode);
    }
}

fn assert_same_picture(machines: &(Board, Qtest), what: &str) {
    assert_same_colours(machines, what, [0xff; 3]);
}

/// Compares the bits of red, green and blue that `mask` names.
fn assert_same_colours((ours, theirs): &(Board, Qtest), what: &str, mask: [u8; 3]) {
    let surface = ours.vga.screenshot().unwrap().expect("a picture");
    let rgb = surface.bytes().chunks_exact(4).flat_map(|p| [p[2], p[1], p[0]]).collect();
    let mine = Picture { width: surface.width(), height: surface.height(), rgb };
    let other = theirs.screendump().unwrap();
    assert_eq!((mine.width, mine.height), (other.width, other.height), "{what}");
    let pairs = mine.rgb.chunks(3).zip(other.rgb.chunks(3));
    let differs = |(a, b): (&[u8], &[u8])| (0..3).any(|n| (a[n] ^ b[n]) & mask[n] != 0);
    let differing: Vec<usize> =
        pairs.enumerate().filter(|(_, pair)| differs(*pair)).map(|(at, _)| at).collect();
    if let Some(at) = differing.first() {
        let (x, y) = (at % mine.width as usize, at / mine.width as usize);
        let pixel = |picture: &Picture| picture.rgb[at * 3..][..3].to_vec();
        panic!(
            "{what}: {} pixels differ, the first at ({x}, {y}): {:02x?}, QEMU has {:02x?}",
            differing.len(),
            pixel(&mine),
            pixel(&other)
        );
    }
}

fn text_looks_as_on_qemu() {
    let machines = machines("text");
    for mode in [&modes::TEXT_80X25, &modes::TEXT_80X50, &programs::NARROW_TEXT] {
        both(&machines, |pc| pc.draw_text(mode));
        assert_same_picture(&machines, mode.name);
        both(&machines, |pc| {
            pc.set(0x3c4, 3, 0x24);
            pc.set(0x3d4, 0xd, 80);
        });
        assert_same_picture(&machines, "two maps, scrolled");
    }
}

fn graphics_look_as_on_qemu() {
    let machines = machines("graphics");
    for mode in modes::ALL.into_iter().filter(|mode| mode.graphics[6] & 1 != 0) {
        both(&machines, |pc| {
            pc.set_mode(mode);
            pc.poke(BASE, &noise(256 << 10, 5));
        });
        assert_same_picture(&machines, mode.name);
        both(&machines, |pc| {
            pc.set(0x3d4, 0xc, 0x12);
            pc.set(0x3d4, 0xd, 0x34);
        });
        assert_same_picture(&machines, "scrolled");
        both(&machines, |pc| {
            // Between two rows: QEMU does not begin a new one where the VGA does.
            pc.set(0x3d4, 0x18, 0x4f);
            pc.set(0x3d4, 7, mode.crtc[7] & !0x10);
            pc.set(0x3d4, 9, mode.crtc[9] & !0x40);
        });
        assert_same_picture(&machines, "split");
    }
}

fn linear_modes_look_as_on_qemu() {
    let machines = machines("linear");
    for depth in [4, 8, 15, 16, 24, 32] {
        both(&machines, |pc| {
            pc.set_mode(&modes::PLANAR_640X480); // for the palette
            for (register, value) in [(1, 320), (2, 200), (3, depth), (4, 0x41)] {
                pc.vbe(register, value);
            }
            pc.poke(BASE, &noise(600 << 10, 3));
        });
        // QEMU leaves the low bits of 5 and 6 zero, so that white is not white.
        let mask = match depth {
            15 => [0xf8; 3],
            16 => [0xf8, 0xfc, 0xf8],
            _ => [0xff; 3],
        };
        assert_same_colours(&machines, &format!("{depth} bits"), mask);
        both(&machines, |pc| {
            pc.vbe(6, 400);
            pc.vbe(8, 16);
            pc.vbe(9, 3);
        });
        assert_same_colours(&machines, &format!("{depth} bits, panned"), mask);
        both(&machines, |pc| pc.vbe(4, 0));
    }
}

/// Random writes and reads through the window, by all rules; then video memory. With
/// odd/even addresses QEMU leaves out the latches and what comes after them, and knows two
/// planes: there it is only these that are compared.
fn planes_are_written_and_read_as_on_qemu() {
    let machines = machines("planes");
    let mut seed = 0x1234_5678u32;
    let mut random = |below: u32| {
        seed ^= seed << 13;
        seed ^= seed >> 17;
        seed ^= seed << 5;
        seed % below
    };
    let byte = |value: u32| value.to_le_bytes()[0];
    for (mode, base) in [(&modes::PLANAR_640X480, 0xa0000), (&modes::TEXT_80X25, 0xb8000)] {
        both(&machines, |pc| pc.set_mode(mode));
        both(&machines, |pc| pc.poke(BASE, &noise(128 << 10, 1)));
        for step in 0..3000 {
            let odd_even = mode.graphics[5] & 0x10 != 0;
            let (register, value) = (random(9), byte(random(256)));
            let value = match register {
                4 if odd_even => value & 1,
                4 => value & 3,
                5 => value & 0x0b,
                _ => value,
            };
            if register == 4 || register != 6 && !odd_even {
                both(&machines, |pc| pc.set(0x3ce, byte(register), value));
            }
            let map_mask = byte(random(if odd_even { 4 } else { 16 }));
            both(&machines, |pc| pc.set(0x3c4, 2, map_mask));
            let (read, write) = (u64::from(random(0x8000)), u64::from(random(0x8000)));
            let [ours, theirs] = [machines.0.peek(base + read), machines.1.peek(base + read)];
            assert_eq!(ours, theirs, "{}, step {step}", mode.name);
            let data = byte(random(256));
            both(&machines, |pc| pc.poke(base + write, &[data]));
        }
        let theirs = machines.1.read_memory(BASE, 256 << 10).unwrap();
        let difference = theirs.iter().zip(machines.0.vram()).position(|(a, b)| *a != b);
        assert_eq!(difference, None, "{}", mode.name);
    }
}

/// What is read of a register after a write.
fn registers_read_back_as_on_qemu() {
    let machines = machines("registers");
    both(&machines, |pc| pc.set_mode(&modes::TEXT_80X25));
    for (port, count) in [(0x3d4, 0x19u8), (0x3c4, 5), (0x3ce, 9)] {
        for index in 0..count {
            for value in [0xff, 0x5a, 0xa5, 0] {
                both(&machines, |pc| pc.set(port, index, value));
                let [ours, theirs] = [machines.0.input(port + 1), machines.1.input(port + 1)];
                assert_eq!(ours, theirs, "{port:#x}, register {index:#x}, {value:#x} written");
            }
        }
    }
    for index in 0..0x15 {
        for value in [0xff, 0x5a, 0] {
            both(&machines, |pc| {
                pc.input(0x3da);
                pc.out(0x3c0, index);
                pc.out(0x3c0, value);
                pc.out(0x3c0, index);
            });
            let [ours, theirs] = [machines.0.input(0x3c1), machines.1.input(0x3c1)];
            assert_eq!(ours, theirs, "attribute register {index:#x}, {value:#x} written");
        }
    }
    both(&machines, |pc| {
        pc.out(0x3c6, 0xa5);
        pc.out(0x3c8, 200);
        [1, 2, 3, 4].into_iter().for_each(|level| pc.out(0x3c9, level));
        pc.out(0x3c7, 200);
    });
    // QEMU has no mask.
    assert_eq!(machines.0.input(0x3c6), 0xa5);
    for port in [0x3c7, 0x3c9, 0x3c9, 0x3c9, 0x3c9, 0x3cc, 0x3b4, 0x3b5] {
        assert_eq!(machines.0.input(port), machines.1.input(port), "{port:#x}");
    }
}

/// The third BAR: registers written and read there, and a mode set as Linux's `bochs` does.
fn registers_as_memory_are_as_on_qemu() {
    let machines = machines("bar");
    let (ours, theirs) = &machines;
    both(&machines, |pc| {
        pc.set_mode(&modes::PLANAR_640X480);
        pc.poke(MMIO + 0x41a, &[0]); // a write there does not touch the flip-flop
    });
    // The identity, what there is of memory; ports by bytes and by words. Of the VBE registers
    // QEMU gives the low byte twice.
    let bytes = |from: u64, len: u64| {
        for at in (MMIO + from..MMIO + from + len).step_by(if from < 0x500 { 1 } else { 2 }) {
            assert_eq!(ours.peek(at), theirs.peek(at), "{at:#x}");
        }
    };
    bytes(0x500, 2);
    bytes(0x514, 2);
    both(&machines, |pc| pc.poke(MMIO + 0x404, &[2, 5]));
    bytes(0x404, 2);
    both(&machines, |pc| pc.poke(MMIO + 0x40e, &[8, 0xa5]));
    bytes(0x40e, 2);
    both(&machines, |pc| {
        pc.peek(MMIO + 0x41a);
        pc.poke(MMIO + 0x400, &[0x20]);
        for (register, value) in
            [(4u64, 0u16), (3, 32), (1, 320), (2, 200), (5, 0), (6, 320), (8, 0), (9, 0), (4, 0x41)]
        {
            pc.poke(MMIO + 0x500 + 2 * register, &value.to_le_bytes());
        }
        pc.poke(BASE, &noise(320 * 200 * 4, 6));
    });
    assert_same_picture(&machines, "a mode set through the BAR");
    bytes(0x500, 14);
    // A depth that does not exist.
    both(&machines, |pc| pc.poke(MMIO + 0x506, &[7, 0]));
    bytes(0x506, 2);
    assert_same_picture(&machines, "8 bits in place of 7");
    // Both describe monitors.
    for machine in [ours as &dyn DynPc, theirs] {
        let block: Vec<u8> = (0..128).map(|at| machine.peek(MMIO + at)).collect();
        assert_eq!(block[..8], [0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]);
        assert_eq!(block.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        assert_eq!((block[56], block[58] >> 4, block[59], block[61] >> 4), (0, 5, 32, 3));
    }
}

/// A picture drawn through the low window, bank by bank, with colours of eight bits.
fn banks_and_wide_colours_are_as_on_qemu() {
    let machines = machines("banks");
    both(&machines, |pc| {
        pc.set_mode(&modes::MODE_13H);
        for (register, value) in [(1, 640), (2, 400), (3, 8), (4, 0x61)] {
            pc.vbe(register, value);
        }
        pc.out(0x3c8, 0);
        noise(768, 2).into_iter().for_each(|level| pc.out(0x3c9, level));
        for (bank, picture) in (0u16..).zip(noise(640 * 400, 4).chunks(0x10000)) {
            pc.vbe(5, bank);
            pc.poke(0xa0000, picture);
        }
    });
    assert_same_picture(&machines, "banks");
    both(&machines, |pc| {
        pc.out(0x3c7, 9);
        pc.vbe(8, 0); // an offset does not touch the bank
        pc.poke(0xa0010, &[1, 2, 3]);
    });
    for _ in 0..6 {
        assert_eq!(machines.0.input(0x3c9), machines.1.input(0x3c9));
    }
    assert_same_picture(&machines, "the last bank");
}

/// SeaBIOS and its VGA BIOS run on QEMU until nothing can be booted. Their registers and
/// video memory, taken over, show the same picture, and the text that they print.
fn what_a_bios_leaves_looks_as_on_qemu() {
    let theirs = Qtest::start("bios", &["-machine", "pc", "-vga", "std", "-m", "64"]).unwrap();
    let ours = Board::new(16 << 20);
    theirs.run_state("cont").unwrap();
    let deadline = Instant::now() + seconds(60);
    let printed = || {
        let cells = theirs.read_memory(0xb8000, 4000).unwrap();
        String::from_utf8_lossy(&cells.iter().copied().step_by(2).collect::<Vec<_>>()).into_owned()
    };
    while !printed().contains("No bootable device") {
        assert!(Instant::now() < deadline, "the BIOS printed {:?}", printed());
        std::thread::sleep(Duration::from_millis(20));
    }
    theirs.run_state("stop").unwrap();
    theirs.set(0x3d4, 0xa, 0x20); // the cursor blinks

    ours.out(0x3c2, theirs.input(0x3cc));
    for (port, count) in [(0x3c4, 5), (0x3d4, 0x19), (0x3ce, 9)] {
        for index in 0..count {
            theirs.out(port, index);
            // The protection of some of the CRTC comes with register 0x11.
            ours.set(port, index, theirs.input(port + 1));
        }
    }
    theirs.out(0x3c7, 0);
    ours.out(0x3c8, 0);
    // QEMU widens six bits to eight otherwise: levels that it widens alike.
    let levels: Vec<u8> = (0..768).map(|_| theirs.input(0x3c9) & 0x0e).collect();
    levels.iter().for_each(|level| ours.out(0x3c9, *level));
    theirs.out(0x3c8, 0);
    levels.iter().for_each(|level| theirs.out(0x3c9, *level));
    for index in 0..0x15 {
        theirs.input(0x3da);
        theirs.out(0x3c0, index);
        let value = theirs.input(0x3c1);
        ours.input(0x3da);
        ours.out(0x3c0, index);
        ours.out(0x3c0, value);
    }
    theirs.input(0x3da);
    theirs.out(0x3c0, 0x20);
    ours.out(0x3c0, 0x20);
    theirs.command("outl 0xcf8 0x80001010").unwrap();
    let bar = theirs.read("inl 0xcfc").unwrap() & !0xf;
    ours.poke(BASE, &theirs.read_memory(bar, 256 << 10).unwrap());

    let machines = (ours, theirs);
    assert_same_picture(&machines, "SeaBIOS");
    let mode = machines.0.vga.mode().unwrap().unwrap();
    assert_eq!(mode.to_string(), "text 80x25, 720x400");
    let text = machines.0.vga.text().unwrap().unwrap();
    assert!(text.iter().any(|row| row.contains("No bootable device")), "{text:#?}");
}
