//! The refresh of a screen that a guest draws on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use display_vga::{Rect, Refresh, Screen, Vga, VgaRegions};
use integration_tests::harness::Test;
use machines::demo::{Board, FRAME_BUFFER};
use machines::scene::Scene;

use crate::on_kvm::machine::{Machine, seconds};

pub const TESTS: &[Test] = &[
    (
        "ten_bytes_redraw_ten_pixels_and_read_their_pages",
        ten_bytes_redraw_ten_pixels_and_read_their_pages,
    ),
    (
        "a_shared_surface_is_damaged_where_its_pages_are",
        a_shared_surface_is_damaged_where_its_pages_are,
    ),
    ("the_low_window_is_logged_in_every_mode", the_low_window_is_logged_in_every_mode),
    ("a_scene_drawn_by_a_guest_is_as_defined", a_scene_drawn_by_a_guest_is_as_defined),
    ("a_migrating_guest_keeps_its_picture", a_migrating_guest_keeps_its_picture),
];

const WIDTH: u64 = 640;
const HEIGHT: u64 = 480;
const LINE: u64 = WIDTH * 4;

fn add_vga(machine: &Machine) -> (Arc<Vga>, VgaRegions) {
    let vga = Vga::new("vram", 16 << 20).unwrap();
    let regions = vga.add_to(&machine.memory).unwrap();
    machine
        .memory
        .transaction(|map| {
            map.add_subregion_overlap(machine.system, Vga::WINDOW, regions.window, 1)?;
            map.add_subregion(machine.system, FRAME_BUFFER, regions.vram)?;
            map.add_subregion(machine.ports, Vga::PORTS, regions.ports)?;
            map.add_subregion(machine.ports, Vga::VBE_PORTS, regions.vbe_ports)
        })
        .unwrap();
    (vga, regions)
}

/// The lines that the damage of a refresh touches.
fn drawn(refresh: &Refresh) -> BTreeSet<u64> {
    refresh.damage.iter().flat_map(|area| area.y..area.bottom()).map(u64::from).collect()
}

fn ten_bytes_redraw_ten_pixels_and_read_their_pages() {
    let machine = Machine::new(16 << 20);
    let (vga, regions) = add_vga(&machine);
    vga.set_mode(640, 480, 32).unwrap();
    let page = vga.vram().page_size().bytes();
    let mut screen = Screen::new(machine.memory.clone(), vga.clone(), regions.vram).unwrap();
    assert!(screen.refresh().unwrap().full);
    let idle = screen.refresh().unwrap().clone();
    assert_eq!((idle.lines, idle.pages, idle.bytes_copied, idle.damage.len()), (0, 0, 0, 0));

    let changed = [0, 7, 8, 100, 101, 102, 250, 300, 333, 479];
    machine.store(0x80, &changed.map(|y| FRAME_BUFFER + y * LINE + 40 * 4 + 1));
    // A store past the visible part is none of the screen's business.
    machine.store(0x80, &[FRAME_BUFFER + HEIGHT * LINE + 2 * page]);
    let refresh = screen.refresh().unwrap().clone();

    let pages: BTreeSet<u64> = changed.map(|y| (y * LINE + 161) / page).into();
    assert_eq!(drawn(&refresh), changed.into(), "exactly the lines that changed");
    assert!(refresh.damage.iter().all(|area| (area.x, area.width) == (40, 1)), "{refresh:?}");
    assert_eq!(refresh.lines as usize, changed.len());
    assert_eq!(refresh.pages, pages.len() as u64);
    let visible = |page_number: &u64| page.min(HEIGHT * LINE - page_number * page);
    assert_eq!(refresh.bytes_copied, pages.iter().map(visible).sum::<u64>());
    assert!(!refresh.full);
    assert_eq!(Some(screen.surface()), vga.screenshot().unwrap().as_ref());
    assert_eq!(screen.surface().pixel(40, 333), [0, 0x80, 0]);
    assert_eq!(screen.refresh().unwrap().lines, 0);
}

/// With video memory shared nothing is copied, and the damage is that of pages.
fn a_shared_surface_is_damaged_where_its_pages_are() {
    let machine = Machine::new(16 << 20);
    let (vga, regions) = add_vga(&machine);
    vga.set_mode(640, 480, 32).unwrap();
    let page = vga.vram().page_size().bytes();
    let screen = Screen::new(machine.memory.clone(), vga.clone(), regions.vram).unwrap();
    let mut screen = screen.zero_copy();
    screen.refresh().unwrap();
    let changed = [0, 7, 100, 479];
    machine.store(0x80, &changed.map(|y| FRAME_BUFFER + y * LINE + 40 * 4 + 1));
    let refresh = screen.refresh().unwrap().clone();
    let pages: BTreeSet<u64> = changed.map(|y| (y * LINE + 161) / page).into();
    let sharing: BTreeSet<u64> = (0..HEIGHT)
        .filter(|y| pages.range(y * LINE / page..=(y * LINE + LINE - 1) / page).next().is_some())
        .collect();
    assert_eq!(drawn(&refresh), sharing);
    assert_eq!(refresh.bytes_copied, 0);
    assert_eq!(screen.surface().pixel(40, 479), [0, 0x80, 0]);
    assert_eq!(Some(screen.surface()), vga.screenshot().unwrap().as_ref());
}

/// A guest stores through the low window, which is the device's in one mode and video
/// memory itself in the next.
fn the_low_window_is_logged_in_every_mode() {
    let machine = Machine::new(16 << 20);
    let (vga, regions) = add_vga(&machine);
    let mut screen = Screen::new(machine.memory.clone(), vga.clone(), regions.vram).unwrap();

    vga.set_text_mode().unwrap();
    screen.refresh().unwrap();
    machine.store(b'!', &[0xb8000 + 2 * (80 * 3 + 5)]);
    let refresh = screen.refresh().unwrap().clone();
    let cell = |area: &Rect| (area.x, area.y, area.width, area.height) == (5 * 9, 3 * 16, 9, 16);
    // Beside the cursor, which blinks.
    assert!(refresh.damage.iter().any(cell), "{refresh:?}");
    assert!(refresh.damage.iter().all(|area| cell(area) || (area.x, area.y) == (0, 0)));
    assert_eq!(vga.text().unwrap().unwrap()[3].trim(), "!");

    vga.set_mode(640, 480, 8).unwrap();
    machine.port_space.write(0x3c8, &[0]).unwrap();
    for entry in 0..=255u8 {
        for level in [entry & 0x3f, 0, 0] {
            machine.port_space.write(0x3c9, &[level]).unwrap();
        }
    }
    screen.refresh().unwrap();
    for bank in [0u16, 2, 4] {
        machine.port_space.write(0x1ce, &5u16.to_le_bytes()).unwrap();
        machine.port_space.write(0x1cf, &bank.to_le_bytes()).unwrap();
        screen.refresh().unwrap();
        machine.store(0x3f, &[0xa0000 + 640 * 10 + 7]);
        let refresh = screen.refresh().unwrap().clone();
        let at = u32::from(bank) * 65536 + 640 * 10 + 7;
        let pixel = Rect { x: at % 640, y: at / 640, width: 1, height: 1 };
        assert_eq!(refresh.damage, [pixel], "bank {bank}");
        assert_eq!(screen.surface().pixel(pixel.x, pixel.y), [0xff, 0, 0]);
    }
}

fn patience() -> Duration {
    seconds(30)
}

fn a_scene_drawn_by_a_guest_is_as_defined() {
    for (width, height) in [(640, 480), (800, 600), (333, 217)] {
        let scene = Scene::new(width, height);
        let board = Board::new().unwrap();
        let guest = board.start_on_kvm(&scene).unwrap();
        let mut screen = Screen::new(board.memory.clone(), board.vga.clone(), board.vram).unwrap();
        assert!(board.frames.wait_done(0, patience()));
        for frame in 0..80 {
            board.frames.allow(frame);
            if frame % 8 == 7 {
                assert!(board.frames.wait_done(frame, patience()), "frame {frame} was not drawn");
            }
            screen.refresh().unwrap();
            if frame % 8 == 7 {
                let surface = screen.surface();
                let pixel = |x: u64, y: u64| {
                    surface.pixel(u32::try_from(x).unwrap(), u32::try_from(y).unwrap())
                };
                assert_eq!(scene.first_difference(frame, pixel), None, "{width}x{height}");
                assert_eq!(Some(surface), board.vga.screenshot().unwrap().as_ref());
            }
        }
        drop(guest);
    }
}

/// A refresh and a migration at the same time: neither eats the other's bits.
fn a_migrating_guest_keeps_its_picture() {
    let scene = Scene::new(WIDTH, HEIGHT);
    let board = Board::new().unwrap();
    let guest = board.start_on_kvm(&scene).unwrap();
    let mut screen = Screen::new(board.memory.clone(), board.vga.clone(), board.vram).unwrap();
    assert!(board.frames.wait_done(0, patience()));
    for round in 0..10 {
        let twin = Board::new().unwrap();
        std::thread::scope(|scope| {
            let migration = scope.spawn(|| {
                let mut stream = Vec::new();
                let precopy = migration_ram::Precopy::new(board.memory.clone())
                    .downtime(Duration::ZERO)
                    .max_rounds(4);
                let done = precopy.run(&mut stream, || guest.pause(), |_| ()).unwrap();
                migration_ram::receive(&mut stream.as_slice(), &twin.memory.ram_blocks()).unwrap();
                twin.vga.restore(&board.vga.save()).unwrap();
                assert_eq!(board.vga.screenshot().unwrap(), twin.vga.screenshot().unwrap());
                drop(done);
            });
            let mut frame = round * 1000;
            while !migration.is_finished() {
                frame += 1;
                board.frames.allow(frame);
                screen.refresh().unwrap();
            }
            migration.join().unwrap();
        });
        let paused = guest.pause().unwrap();
        screen.refresh().unwrap();
        assert_eq!(
            Some(screen.surface()),
            board.vga.screenshot().unwrap().as_ref(),
            "round {round}"
        );
        drop(paused);
    }
}
