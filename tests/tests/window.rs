//! A picture in a window, seen by another program: the pixels are the surface's, and what
//! is done at the window is told.
//!
//! `cargo test -p integration-tests --features window --test window`; needs an X server of
//! its own (Debian: `xvfb`) and programs that look and act (`x11-apps`, `xdotool`).

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use display_vga::{InputEvent, Screen, Surface, Vga, WindowView};
use integration_tests::harness::{self, Need};
use machines::deadline::seconds;
use memory_region::MemoryMap;

fn patience() -> Duration {
    seconds(30)
}
const TITLE: &str = "what a window shows";
/// Set for the process that runs the tests, which has the server's display.
const INSIDE: &str = "WINDOW_TEST_INSIDE";

fn main() -> ExitCode {
    let missing = ["Xvfb", "xwd", "xdotool"].into_iter().find(|program| {
        let here = Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
        !here.is_ok_and(|found| found.status.success())
    });
    let need = Need {
        name: "an X server",
        required_by: "REQUIRE_X",
        missing: missing.map(|program| format!("{program} is not installed")),
    };
    if need.missing.is_none() && std::env::var_os(INSIDE).is_none() {
        return with_server();
    }
    harness::run(&need, harness::named(&[("a_window_shows_and_tells", a_window_shows_and_tells)]))
}

/// Runs this program again, with the display of a server that lives as long.
fn with_server() -> ExitCode {
    let mut server = Command::new("Xvfb")
        .args(["-displayfd", "1", "-screen", "0", "1280x1024x24", "-nolisten", "tcp"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("Xvfb starts");
    let mut number = String::new();
    let output = server.stdout.take().expect("its output");
    BufReader::new(output).read_line(&mut number).expect("the number of its display");
    let status = Command::new(std::env::current_exe().expect("this program"))
        .args(std::env::args_os().skip(1))
        .env("DISPLAY", format!(":{}", number.trim()))
        .env(INSIDE, "1")
        .status();
    server.kill().expect("Xvfb ends");
    server.wait().expect("Xvfb ends");
    match status {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn xdotool(arguments: &[&str]) -> String {
    let output = Command::new("xdotool").args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// What is on the screen: width, and 0x00RRGGBB of each pixel.
fn look() -> (usize, Vec<u32>) {
    let dump = Command::new("xwd").args(["-root", "-silent"]).output().unwrap().stdout;
    // X11/XWDFile.h: numbers of 32 bits, big-endian.
    let number = |n: usize| {
        let bytes = dump[n * 4..n * 4 + 4].try_into().unwrap();
        usize::try_from(u32::from_be_bytes(bytes)).unwrap()
    };
    assert_eq!((number(1), number(7), number(11)), (7, 0, 32), "little-endian, of 32 bits");
    let (width, line) = (number(4), number(12));
    let picture = &dump[number(0) + number(19) * 12..];
    let pixels = picture.chunks_exact(line).take(number(5)).flat_map(|line| {
        let pixels = line.chunks_exact(4).take(width);
        pixels.map(|pixel| u32::from_le_bytes([pixel[0], pixel[1], pixel[2], 0]))
    });
    (width, pixels.collect())
}

/// Where the window is on the screen, and its size.
fn geometry() -> (usize, usize, usize, usize) {
    let shell = xdotool(&["search", "--name", TITLE, "getwindowgeometry", "--shell"]);
    let field = |name: &str| {
        let line = shell.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| value.parse().ok()).unwrap_or(0)
    };
    (field("X="), field("Y="), field("WIDTH="), field("HEIGHT="))
}

/// Whether the screen shows `surface` in the window, stretched by `times`.
fn is_shown(surface: &Surface, times: usize) -> bool {
    let (x, y, width, height) = geometry();
    let (line, screen) = look();
    let size = (surface.width() as usize, surface.height() as usize);
    (width, height) == (size.0 * times, size.1 * times)
        && (0..width * height).all(|n| {
            let (column, row) = (n % width, n / width);
            let at = |n: usize| u32::try_from(n / times).unwrap();
            let [red, green, blue] = surface.pixel(at(column), at(row));
            screen.get((y + row) * line + x + column)
                == Some(&u32::from_be_bytes([0, red, green, blue]))
        })
}

/// Lets the window live until `done`.
fn wait(
    window: &mut WindowView,
    screen: &mut Screen,
    what: &str,
    mut done: impl FnMut(&Screen, Vec<InputEvent>) -> bool,
) {
    let deadline = Instant::now() + patience();
    loop {
        screen.refresh().unwrap();
        let events = window.show(screen.surface(), &screen.last().damage).unwrap();
        if done(screen, events) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn a_window_shows_and_tells() {
    let memory = MemoryMap::new();
    let vga = Vga::new("vga.vram", Vga::DEFAULT_VRAM).unwrap();
    let regions = vga.add_to(&memory).unwrap();
    let mut screen = Screen::new(memory, vga.clone(), regions.vram).unwrap();
    let noise = |from: u32| -> Vec<u8> {
        (from..from + 320 * 240 * 4)
            .map(|n| (n.wrapping_mul(0x9e37_79b9) >> 15).to_le_bytes()[0])
            .collect()
    };
    vga.set_mode(320, 240, 32).unwrap();
    vga.vram().write(0, &noise(1)).unwrap();
    let window = &mut WindowView::new(TITLE, 0, 0).unwrap();
    let screen = &mut screen;
    wait(window, screen, "the first picture", |screen, _| is_shown(screen.surface(), 1));
    // What changes, and only that; a mode of another size.
    vga.vram().write(4 * (320 * 100 + 7), &[1, 2, 3, 0]).unwrap();
    wait(window, screen, "a pixel", |screen, _| is_shown(screen.surface(), 1));
    vga.set_mode(400, 300, 16).unwrap();
    vga.vram().write(0, &noise(2)[..400 * 300 * 2]).unwrap();
    wait(window, screen, "another mode", |screen, _| is_shown(screen.surface(), 1));
    // Somebody resizes it: it keeps its size, with another mode too.
    xdotool(&["search", "--name", TITLE, "windowsize", "800", "600"]);
    wait(window, screen, "stretched", |screen, _| is_shown(screen.surface(), 2));
    vga.set_mode(200, 150, 32).unwrap();
    vga.vram().write(0, &noise(3)[..200 * 150 * 4]).unwrap();
    wait(window, screen, "stretched more", |screen, _| is_shown(screen.surface(), 4));

    // Keys in their order; the pointer in pixels of the picture; the wheel.
    let (x, y, ..) = geometry();
    let at = [x + 41, y + 80].map(|side| side.to_string());
    xdotool(&["mousemove", &at[0], &at[1], "key", "a", "key", "shift+F5"]);
    let key = |keysym, down| InputEvent::Key { keysym, keycode: None, down };
    let pointer = |buttons| InputEvent::Pointer { x: 10, y: 20, buttons };
    let mut events = Vec::new();
    for (what, last) in [
        (&["mousedown", "3"][..], pointer(4)),
        (&["click", "4"], pointer(12)),
        (&["click", "5"], pointer(20)),
        (&["mouseup", "3"], pointer(0)),
    ] {
        xdotool(what);
        let already = events.len();
        wait(window, screen, what[0], |_, new| {
            events.extend(new);
            events[already..].contains(&last)
        });
    }
    let keys: Vec<_> =
        events.iter().filter(|event| matches!(event, InputEvent::Key { .. })).collect();
    let pressed = [(0x61, true), (0x61, false), (0xffe1, true), (0xffc2, true)];
    let expected = pressed.map(|(keysym, down)| key(keysym, down));
    assert_eq!(keys[..4], expected.iter().collect::<Vec<_>>());
    let steps = events.iter().filter(|event| **event == pointer(12)).count();
    assert_eq!(steps, 1, "{events:?}");
    assert!(window.is_open());
}
