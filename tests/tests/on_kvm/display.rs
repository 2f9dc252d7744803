//! The refresh of a screen that a guest draws on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use display_vga::{Screen, Vga};
use integration_tests::demo::{Board, FRAME_BUFFER};
use integration_tests::harness::Test;
use integration_tests::scene::Scene;
use memory_region::RegionId;

use super::machine::Machine;

pub const TESTS: &[Test] = &[
    ("ten_lines_redraw_ten_lines_and_their_pages", ten_lines_redraw_ten_lines_and_their_pages),
    ("a_scene_drawn_by_a_guest_is_as_defined", a_scene_drawn_by_a_guest_is_as_defined),
    ("a_migrating_guest_keeps_its_picture", a_migrating_guest_keeps_its_picture),
];

const WIDTH: u64 = 640;
const HEIGHT: u64 = 480;
const LINE: u64 = WIDTH * 4;

fn add_vga(machine: &Machine) -> (Arc<Vga>, RegionId) {
    let vga = Vga::new("vram", 16 << 20).unwrap();
    let vram = machine
        .memory
        .update(|map| {
            let vram = map.ram("vram", vga.vram().clone())?;
            map.place(machine.system, FRAME_BUFFER, vram)?;
            Ok(vram)
        })
        .unwrap();
    vga.set_mode(640, 480, 32).unwrap();
    (vga, vram)
}

fn ten_lines_redraw_ten_lines_and_their_pages() {
    let machine = Machine::new(16 << 20);
    let (vga, vram) = add_vga(&machine);
    let page = vga.vram().page_size().bytes();
    let mut screen = Screen::new(machine.memory.clone(), vga.clone(), vram).unwrap();
    assert!(screen.refresh().unwrap().full);
    let idle = screen.refresh().unwrap().clone();
    assert_eq!((idle.lines, idle.pages, idle.damage.len()), (0, 0, 0));

    let changed = [0, 7, 8, 100, 101, 102, 250, 300, 333, 479];
    machine.store(0x80, &changed.map(|y| FRAME_BUFFER + y * LINE + 40 * 4 + 1));
    // A store past the visible part is none of the screen's business.
    machine.store(0x80, &[FRAME_BUFFER + HEIGHT * LINE + 2 * page]);
    let refresh = screen.refresh().unwrap().clone();

    let pages: BTreeSet<u64> = changed.map(|y| (y * LINE + 161) / page).into();
    let sharing: BTreeSet<u64> = (0..HEIGHT)
        .filter(|y| pages.range(y * LINE / page..=(y * LINE + LINE - 1) / page).next().is_some())
        .collect();
    let drawn: BTreeSet<u64> = refresh
        .damage
        .iter()
        .flat_map(|area| area.y..area.y + area.height)
        .map(u64::from)
        .collect();
    assert!(changed.iter().all(|y| drawn.contains(y)), "{refresh:?}");
    assert_eq!(drawn, sharing, "exactly the lines that share a page with a changed one");
    assert_eq!(u64::from(refresh.lines), drawn.len() as u64);
    assert_eq!(refresh.pages, pages.len() as u64);
    assert_eq!(refresh.bytes_copied, drawn.len() as u64 * LINE);
    assert!(!refresh.full);
    assert_eq!(Some(screen.surface()), vga.picture().unwrap().as_ref());
    assert_eq!(screen.surface().pixel(40, 333), [0, 0x80, 0]);
    assert_eq!(screen.refresh().unwrap().lines, 0);
}

const PATIENCE: Duration = Duration::from_secs(30);

fn a_scene_drawn_by_a_guest_is_as_defined() {
    for (width, height) in [(640, 480), (800, 600), (333, 217)] {
        let scene = Scene::new(width, height);
        let board = Board::new().unwrap();
        let guest = board.start_on_kvm(&scene).unwrap();
        let mut screen = Screen::new(board.memory.clone(), board.vga.clone(), board.vram).unwrap();
        assert!(board.frames.wait_done(0, PATIENCE));
        for frame in 0..80 {
            board.frames.allow(frame);
            if frame % 8 == 7 {
                assert!(board.frames.wait_done(frame, PATIENCE), "frame {frame} was not drawn");
            }
            screen.refresh().unwrap();
            if frame % 8 == 7 {
                let surface = screen.surface();
                let pixel = |x: u64, y: u64| {
                    surface.pixel(u32::try_from(x).unwrap(), u32::try_from(y).unwrap())
                };
                assert_eq!(scene.first_difference(frame, pixel), None, "{width}x{height}");
                assert_eq!(Some(surface), board.vga.picture().unwrap().as_ref());
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
    assert!(board.frames.wait_done(0, PATIENCE));
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
                twin.vga.set_state(board.vga.state()).unwrap();
                assert_eq!(board.vga.picture().unwrap(), twin.vga.picture().unwrap());
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
        assert_eq!(Some(screen.surface()), board.vga.picture().unwrap().as_ref(), "round {round}");
        drop(paused);
    }
}
