//! The side where the guest goes on.

use std::fs::File;
use std::io::BufWriter;
use std::time::{Duration, Instant};

use display_vga::{Screen, write_png};
use machines::demo::AnyError;
use machines::link::{Address, Link, Listener};
use machines::live::Live;
use machines::scene::Scene;
use migration_ram::Receiver;

use crate::options::Options;
use crate::report::Arrival;
use crate::source::{FRAME_TIME, SIZE};

/// A guest draws a frame within milliseconds; a machine under load may take longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Listens at `address`, takes one machine, and lets it run for a while.
pub fn run(options: &Options, address: &Address) -> Result<(), AnyError> {
    let listener = Listener::bind(address)?;
    // For who started this, and waits for it.
    println!("{}", listener.address()?);
    let live = Live::new(&options.shape())?;
    let mut link = Link::accept(&listener, options.channels.into())?;
    drop(listener);
    let mut receiver = Receiver::new(&live.board.memory.ram_blocks());
    for device in live.devices() {
        receiver = receiver.device(device);
    }
    let received = receiver.run(link.incoming())?;
    log::info!("{} bytes from machine \"{}\"", received.bytes, received.machine);
    let word = link.hear().map_err(|error| {
        format!("everything came, but the source did not let go of the machine: {error}")
    })?;
    let equal_memory = match word.strip_prefix("go ") {
        Some(sum) => Some(sum.parse::<u32>()? == live.checksum()?),
        None => None,
    };
    live.start()?;
    let beat = live.beats.wait(PATIENCE).ok_or("the guest does not go on")?;
    link.say(&format!("alive {beat}"))?;

    let board = &live.board;
    let mut screen = Screen::new(board.memory.clone(), board.vga.clone(), board.vram)?;
    let (first, _) = board.frames.state();
    let begin = Instant::now();
    let last = first + options.frames;
    for frame in first + 1..=last {
        board.frames.allow(frame);
        let next = begin + FRAME_TIME * u32::try_from(frame - first)?;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        if live.is_finished() {
            return Err("the guest ended, which it should not".into());
        }
        screen.refresh()?;
    }
    if !board.frames.wait_done(last, PATIENCE) {
        return Err(format!("the guest did not draw frame {last} in time").into());
    }
    screen.refresh()?;
    let scene = Scene::new(SIZE.0, SIZE.1);
    let surface = screen.surface();
    let difference = scene.first_difference(last, |x, y| {
        let (x, y) = (u32::try_from(x).unwrap_or(0), u32::try_from(y).unwrap_or(0));
        surface.pixel(x, y)
    });
    if let Some(difference) = &difference {
        log::error!("{difference}");
    }
    if let Some(path) = &options.png {
        let write = || write_png(surface, BufWriter::new(File::create(path)?));
        write().map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let equal_picture = difference.is_none();
    let arrival = Arrival { frames: options.frames, equal_picture, equal_memory, beat };
    println!("{}", arrival.json());
    if arrival.is_equal() { Ok(()) } else { Err("the machines differ".into()) }
}
