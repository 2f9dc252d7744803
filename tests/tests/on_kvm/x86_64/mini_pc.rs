//! The small PC: firmware and programs of others, a boot sector, resets, a state that moves,
//! and guests that mean harm.

use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use display_vga::{Screen, TerminalView};
use iced_x86::code_asm::*;
use integration_tests::harness::{Named, Test};
use kvm_accel::DirtyTracking;
use machines::deadline::seconds;
use machines::guest::boot_sector::BootSector;
use migration_ram::{Precopy, Receiver};
use mini_pc::firmware::{BOCHS_VGABIOS, MEMTEST, SEABIOS, STDVGA};
use mini_pc::keys::Key;
use mini_pc::screen_text::Font;
use mini_pc::{Boot, Config, Machine};

use crate::on_kvm::MODES;

pub const TESTS: &[Test] =
    &[("anything_may_be_written_to_ports", anything_may_be_written_to_ports)];

/// Tests that need the files.
pub fn firmware_tests() -> Vec<Named> {
    let in_modes = MODES.iter().map(|&(name, tracking)| -> Named {
        let body = move || seabios_finds_nothing_to_boot(tracking);
        (format!("{name}::seabios_finds_nothing_to_boot"), Box::new(body))
    });
    let others: [Test; 4] = [
        ("a_boot_sector_draws_by_banks", a_boot_sector_draws_by_banks),
        ("a_boot_sector_calls_the_firmware", a_boot_sector_calls_the_firmware),
        ("a_machine_is_reset_in_every_way", a_machine_is_reset_in_every_way),
        ("memtest_finds_no_error_here_nor_there", memtest_finds_no_error_here_nor_there),
    ];
    in_modes.chain(integration_tests::harness::named(&others)).collect()
}

/// A guest that is emulated takes seconds to start; under load more.
pub(super) fn patience() -> Duration {
    seconds(120)
}

pub(super) fn firmware() -> Config {
    let (bios, vga_bios) = (std::fs::read(SEABIOS).unwrap(), std::fs::read(STDVGA).unwrap());
    Config::new(Boot::Firmware { bios, vga_bios: Some(vga_bios) })
}

/// A machine with somebody who reads its screen.
pub(super) struct Watched {
    pub(super) machine: Machine,
    pub(super) screen: Screen,
}

impl Watched {
    fn new(config: Config) -> Self {
        let machine = Machine::new(config).unwrap();
        let screen = machine.screen().unwrap();
        Self { machine, screen }
    }

    pub(super) fn start(config: Config) -> Self {
        let mut watched = Self::new(config);
        watched.machine.start().unwrap();
        watched
    }

    /// What the picture's cells show.
    pub(super) fn text(&mut self) -> Vec<String> {
        self.screen.refresh().unwrap();
        let font = Font::from_vram(self.machine.vga().vram()).unwrap();
        font.read(self.screen.surface()).unwrap_or_default()
    }

    /// Waits until the picture's text is as `condition` wants it, and returns that.
    pub(super) fn wait(
        &mut self,
        what: &str,
        condition: impl Fn(&[String]) -> bool,
    ) -> Vec<String> {
        let deadline = Instant::now() + patience();
        loop {
            let rows = self.text();
            if condition(&rows) {
                return rows;
            }
            assert_eq!(self.machine.ended(), None, "waiting for {what}:\n{}", rows.join("\n"));
            assert!(Instant::now() < deadline, "no {what} in time:\n{}", rows.join("\n"));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What a terminal of 80x25 characters shows of the screen as of the last refresh.
    fn in_terminal(&self) -> Vec<String> {
        let [columns, rows] = [80, 25].map(|cells| NonZeroU16::new(cells).unwrap());
        let mut bytes = Vec::new();
        let mut view = TerminalView::new(&mut bytes, columns.get(), rows.get()).unwrap();
        view.show_screen(&self.screen).unwrap();
        // Dropped, it would give the terminal back.
        std::mem::forget(view);
        let mut terminal = vt100::Parser::new(rows, columns, 0);
        terminal.process(&bytes);
        terminal.screen().rows(0, columns.get()).map(|row| format!("{row:80}")).collect()
    }

    pub(super) fn wait_for(&mut self, text: &str) -> Vec<String> {
        self.wait(text, |rows| rows.iter().any(|row| row.contains(text)))
    }
}

/// The number or the time, in seconds, behind `label` on the screen, if it is there by now: a
/// field may still be empty when its label is drawn, and the word behind it is another label.
fn field(rows: &[String], label: &str) -> Option<u32> {
    let (_, rest) = rows.iter().find_map(|row| row.split_once(label))?;
    let parts = rest.split_whitespace().next()?.split(':');
    parts.map(|part| part.parse::<u32>().ok()).try_fold(0, |sum, part| Some(sum * 60 + part?))
}

fn seabios_finds_nothing_to_boot(tracking: DirtyTracking) {
    let mut pc = Watched::start(Config { tracking, ..firmware() });
    pc.wait_for("No bootable device.");
    let paused = pc.machine.pause();
    let rows = pc.text();
    assert!(rows[0].starts_with("SeaBIOS (version "), "{rows:?}");
    assert_eq!(pc.in_terminal(), rows);
    assert_eq!(Some(rows), pc.machine.vga().text().unwrap());
    // A cursor that blinks may do so between the two looks.
    let deadline = Instant::now() + patience();
    loop {
        pc.screen.refresh().unwrap();
        let picture = pc.machine.vga().screenshot().unwrap();
        if Some(pc.screen.surface()) == picture.as_ref() {
            break;
        }
        assert!(Instant::now() < deadline, "the picture is not what video memory shows");
    }
    drop(paused);
}

fn a_boot_sector_calls_the_firmware() {
    const BUFFER: u32 = 0x9000;
    let mut image = BootSector::assemble(|sector| {
        sector.print("Sector 7 says: ")?;
        let a = sector.asm();
        a.mov(ax, 0x0201u32)?; // read one sector
        a.mov(cx, 0x0007u32)?;
        a.mov(dx, 0x0080u32)?;
        a.mov(bx, BUFFER)?;
        a.int(0x13)?;
        a.mov(si, BUFFER)?;
        let (mut next, mut end) = (a.create_label(), a.create_label());
        a.set_label(&mut next)?;
        a.lodsb()?;
        a.test(al, al)?;
        a.jz(end)?;
        sector.print_al()?;
        let a = sector.asm();
        a.jmp(next)?;
        a.set_label(&mut end)?;
        // A pause by the clock's periodic interrupt, of 100 ms.
        a.mov(ah, 0x86u32)?;
        a.mov(cx, 1u32)?;
        a.mov(dx, 0x86a0u32)?;
        a.int(0x15)?;
        sector.print(", key ")?;
        sector.asm().mov(ah, 0)?;
        sector.asm().int(0x16)?;
        sector.print_al()?;
        // Seconds of the clock; then a sector is written, and read back.
        let a = sector.asm();
        a.mov(word_ptr(BUFFER), 0x4b4fu32)?; // "OK"
        a.mov(ax, 0x0301u32)?;
        a.mov(cx, 0x0008u32)?;
        a.mov(dx, 0x0080u32)?;
        a.mov(bx, BUFFER)?;
        a.int(0x13)?;
        a.mov(word_ptr(BUFFER), 0)?;
        a.mov(ax, 0x0201u32)?;
        a.int(0x13)?;
        sector.print(", write ")?;
        for byte in [0, 1] {
            sector.asm().mov(al, byte_ptr(BUFFER + byte))?;
            sector.print_al()?;
        }
        sector.print(" end")
    });
    image.resize(6 * 512, 0);
    image.extend(b"a disk\0");
    image.resize(100 * 512, 0);
    let mut pc = Watched::start(Config { disk: Some(image), ..firmware() });
    pc.wait_for(", key ");
    let key = Key::from_keysym(u32::from('k')).unwrap();
    pc.machine.keyboard().press(key, true);
    pc.machine.keyboard().press(key, false);
    pc.wait_for("Sector 7 says: a disk, key k, write OK end");
}

/// Lets either VGA BIOS set a mode of VESA's, and each bank of it: the guest writes into the
/// bank what it is told of that.
fn a_boot_sector_draws_by_banks() {
    const BANKS: u8 = 5; // 640x480 pixels
    const AT: u16 = 0x1234;
    // Not a register: firmware does not keep all of them.
    const BANK: u32 = 0x9000;
    let image = BootSector::assemble(|sector| {
        let a = sector.asm();
        a.mov(ax, 0x4f02u32)?;
        a.mov(bx, 0x0101u32)?;
        a.int(0x10)?;
        a.mov(word_ptr(BANK), 0)?;
        let mut next = a.create_label();
        a.set_label(&mut next)?;
        a.mov(ax, 0x4f05u32)?;
        a.mov(bx, 0)?;
        a.mov(dx, word_ptr(BANK))?;
        a.int(0x10)?;
        a.push(ax)?; // 0x004f: it is set
        a.mov(ax, 0x4f05u32)?;
        a.mov(bx, 0x0100u32)?;
        a.int(0x10)?;
        a.mov(ax, 0xa000u32)?;
        a.mov(es, ax)?;
        a.mov(word_ptr(u32::from(AT) + 2).es(), dx)?; // which it is
        a.pop(ax)?;
        a.mov(word_ptr(u32::from(AT)).es(), ax)?;
        a.inc(word_ptr(BANK))?;
        a.cmp(word_ptr(BANK), i32::from(BANKS))?;
        a.jb(next)
    });
    for path in [STDVGA, BOCHS_VGABIOS] {
        let bios = std::fs::read(SEABIOS).unwrap();
        let boot = Boot::Firmware { bios, vga_bios: Some(std::fs::read(path).unwrap()) };
        let pc = Watched::start(Config { disk: Some(image.clone()), ..Config::new(boot) });
        let told = |bank: u8| {
            let mut bytes = [0; 4];
            let offset = (u64::from(bank) << 16) + u64::from(AT);
            pc.machine.vga().vram().read(offset, &mut bytes).unwrap();
            bytes
        };
        let deadline = Instant::now() + patience();
        // Nothing else writes to the last one: text is in the first four.
        while told(BANKS - 1)[0] == 0 {
            assert_eq!(pc.machine.ended(), None, "{path}");
            let first = told(0);
            assert!(Instant::now() < deadline, "{path}: the last bank is not drawn on: {first:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        for bank in 0..BANKS {
            assert_eq!(told(bank), [0x4f, 0, bank, 0], "{path}: bank {bank}");
        }
    }
}

/// Each start is counted in the clock's memory, which outlives resets, and resets the machine
/// in another way.
fn a_machine_is_reset_in_every_way() {
    const COUNT: u32 = 0x40;
    let image = BootSector::assemble(|sector| {
        sector.out(0x70, COUNT)?;
        let a = sector.asm();
        a.in_(al, 0x71)?;
        a.inc(al)?;
        a.out(0x71, al)?;
        a.mov(cl, al)?;
        let ways = [(0x64, 0xfe), (0x92, 0x01), (0xcf9, 0x06)];
        for (count, (port, value)) in (1..).zip(ways) {
            let mut other = sector.asm().create_label();
            sector.asm().cmp(cl, count)?;
            sector.asm().jne(other)?;
            sector.out(port, value)?;
            sector.halt()?;
            sector.asm().set_label(&mut other)?;
        }
        sector.print("Start ")?;
        sector.asm().mov(al, cl)?;
        sector.asm().add(al, i32::from(b'0'))?;
        sector.print_al()?;
        sector.print(".")
    });
    let mut pc = Watched::start(Config { disk: Some(image), ..firmware() });
    pc.wait_for("Start 4.");
}

/// memtest86+ tests memory while it moves from one machine to another, where it goes on.
fn memtest_finds_no_error_here_nor_there() {
    let config = || {
        let image = std::fs::read(MEMTEST).unwrap();
        let boot = Boot::Kernel { image, command_line: String::new() };
        Config { ram: 8 << 20, ..Config::new(boot) }
    };
    let mut pc = Watched::start(config());
    pc.wait_for("Memtest86+ v");
    let runs =
        |rows: &[String]| field(rows, "Time:") > Some(0) && field(rows, "Errors:") == Some(0);
    let tests = |rows: &[String]| field(rows, "Test #").is_some() && runs(rows);
    let test = field(&pc.wait("time that advances", tests), "Test #");
    pc.wait("the next test", |rows| field(rows, "Test #") > test && runs(rows));

    let mut stream = Vec::new();
    let mut precopy = Precopy::new(pc.machine.memory().clone());
    let mut twin = Watched::new(config());
    let mut receiver = Receiver::new(&twin.machine.memory().ram_blocks());
    for (here, there) in pc.machine.devices().iter().zip(twin.machine.devices()) {
        assert!(there.restore(1, &[]).is_err(), "{}", here.name());
        precopy = precopy.device(here.clone());
        receiver = receiver.device(there.clone());
    }
    let paused = precopy.run(&mut stream, || Ok(pc.machine.pause()), |_| ()).unwrap().paused;
    receiver.run(&mut stream.as_slice()).unwrap();
    let before = pc.text();
    assert_eq!(twin.text(), before);
    assert_eq!(pc.in_terminal(), before);
    assert_eq!(twin.screen.surface(), pc.screen.surface());
    paused.for_good();
    twin.machine.start().unwrap();
    let time = field(&before, "Time:");
    assert!(time.is_some(), "{}", before.join("\n"));
    let after = twin.wait("time that goes on", |rows| field(rows, "Time:") > time);
    assert_eq!(field(&after, "Errors:"), Some(0), "{}", after.join("\n"));
}

/// No access of a port panics or hangs, whatever it does to the map.
fn anything_may_be_written_to_ports() {
    let boot = Boot::Firmware { bios: vec![0x90; 0x1_0000], vga_bios: Some(vec![0x55; 4096]) };
    let disk = Some(vec![0; 10 * 512]);
    let machine = Machine::new(Config { ram: 8 << 20, disk, ..Config::new(boot) }).unwrap();
    let ports: Vec<u64> = [0x60..=0x71, 0x92..=0x92, 0x1ce..=0x1d0, 0x1f0..=0x1f7, 0x3b0..=0x3ff]
        .into_iter()
        .chain([0x402..=0x402, 0x510..=0x51b, 0xcf8..=0xcff])
        .flatten()
        .collect();
    let mut noise = 0x2545_f491_4f6c_dd1du64;
    let mut random = || {
        // xorshift64
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        noise
    };
    let pick = |random: u64, len: usize| usize::try_from(random >> 8).unwrap() % len;
    let deadline = Instant::now() + patience();
    let (mut slots, mut changes) = (Vec::new(), 0);
    for _ in 0..20_000 {
        // The registers that change the map are worth more than chance would give them.
        let (port, size, value) = match random() % 4 {
            0 => {
                // The attribute map; the graphics card's command, BARs and ROM; any.
                let known = [0x58, 0x5c, 0x1004, 0x1010, 0x1018, 0x1030, random() & 0x18fc];
                (0xcf8, 4, 0x8000_0000 | known[pick(random(), known.len())])
            }
            1 => (0xcfc, 4, random()),
            2 => (0xcfc + random() % 4, 1, random()),
            _ => {
                let value = if random() % 2 == 0 { random() } else { random() & 0xff };
                (ports[pick(random(), ports.len())], [1, 2, 4][pick(random(), 3)], value)
            }
        };
        let mut bytes = value.to_le_bytes();
        // A port at which nothing answers is no failure.
        if port != 0xcf8 && random() % 3 == 0 {
            let _ = machine.ports().read(port, &mut bytes[..size]);
        } else {
            let _ = machine.ports().write(port, &bytes[..size]);
        }
        assert!(Instant::now() < deadline, "accesses of ports take too long");
        let now = machine.vm().slots();
        changes += usize::from(now != slots);
        slots = now;
    }
    assert!(changes > 100, "the map was changed {changes} times only");
    let paused = machine.pause();
    for device in machine.devices() {
        device.restore(1, &device.save().unwrap()).unwrap();
    }
    drop(paused);
}
