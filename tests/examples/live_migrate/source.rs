//! The side that the guest leaves.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use display_vga::Screen;
use indicatif::{ProgressBar, ProgressStyle};
use machines::demo::AnyError;
use machines::link::{Address, Link};
use machines::live::Live;
use machines::scene::Scene;
use migration_ram::{AutoConverge, Cancel, DirtyLimit, Migrated, Precopy, Progress};
use signal_hook::consts::SIGINT;
use signal_hook::iterator::Signals;

use crate::options::Options;
use crate::report::{Arrival, Departure};

/// From one frame to the next.
pub const FRAME_TIME: Duration = Duration::from_nanos(1_000_000_000 / 30);
/// What the guest draws.
pub const SIZE: (u64, u64) = (640, 480);

/// The destination, started by this process, and ended with it.
struct Destination(Child);

impl Drop for Destination {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a destination here, and migrates to it.
pub fn with_child(options: &Options) -> Result<(), AnyError> {
    let address = options.own_address(&std::env::temp_dir())?;
    let child = Command::new(std::env::current_exe()?)
        .args(options.for_child(&address))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // Who interrupts the migration means its source.
        .process_group(0)
        .spawn()?;
    let mut child = Destination(child);
    let output = child.0.stdout.take().ok_or("the destination has no output")?;
    let mut lines = BufReader::new(output).lines();
    let mut next = || lines.next().ok_or("the destination ended")?.map_err(AnyError::from);
    let address = next()?.parse::<Address>()?;
    run(options, &address, Some(&mut next))?;
    let status = child.0.wait()?;
    if status.success() { Ok(()) } else { Err(format!("the destination: {status}").into()) }
}

/// Lets the guest draw, frame by frame, and looks at it, as a display does.
fn show(live: &Live, screen: &mut Screen, over: &AtomicBool) -> Result<(), AnyError> {
    let begin = Instant::now();
    let (first, _) = live.board.frames.state();
    for frame in first + 1.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        live.board.frames.allow(frame);
        screen.refresh()?;
        let next = begin + FRAME_TIME * u32::try_from(frame - first)?;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

/// Ends the display however the migration ends.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

type NextLine<'a> = &'a mut dyn FnMut() -> Result<String, AnyError>;

/// Migrates to a destination that listens at `address`, and reads what it says in the end
/// from `answer`, if that is ours.
pub fn run(
    options: &Options,
    address: &Address,
    answer: Option<NextLine<'_>>,
) -> Result<(), AnyError> {
    let shape = options.shape();
    let scene = Scene::new(SIZE.0, SIZE.1);
    let live = Live::new(&shape)?;
    live.boot(&scene, &shape)?;
    let board = &live.board;
    let mut screen = Screen::new(board.memory.clone(), board.vga.clone(), board.vram)?;
    live.start()?;
    let patience = Duration::from_secs(30);
    if !board.frames.wait_done(0, patience) || live.beats.wait(patience).is_none() {
        return Err("the guest did not begin to draw in time".into());
    }
    let over = AtomicBool::new(false);
    let mut departure = std::thread::scope(|scope| -> Result<_, AnyError> {
        let display = scope.spawn(|| show(&live, &mut screen, &over));
        let ends = Over(&over);
        while !board.frames.wait_done(options.frames, FRAME_TIME) {
            if live.is_finished() || display.is_finished() {
                return Err("the guest ended, which it should not".into());
            }
        }
        let departure = migrate(options, &live, address)?;
        drop(ends);
        display.join().map_err(|_| "the display panicked")??;
        Ok(departure)
    })?;
    if let Some(next) = answer {
        let line = next()?;
        let arrival = Arrival::parse(&line).ok_or(format!("the destination says {line}"))?;
        let equal = arrival.is_equal();
        departure.arrival = Some(arrival);
        show_report(options, &departure);
        return if equal { Ok(()) } else { Err("the machines differ".into()) };
    }
    show_report(options, &departure);
    Ok(())
}

fn show_report(options: &Options, departure: &Departure) {
    println!("{departure}");
    if options.json {
        println!("{}", departure.json());
    }
}

fn migrate(options: &Options, live: &Live, address: &Address) -> Result<Departure, AnyError> {
    let mut link = Link::connect(address, options.channels.into())?;
    let mut precopy = Precopy::new(live.board.memory.clone())
        .machine("live_migrate")
        .downtime(options.allowed_downtime())
        .max_rounds(options.max_rounds);
    for device in live.devices() {
        precopy = precopy.device(device);
    }
    if let Some(limit) = options.bandwidth {
        precopy = precopy.bandwidth(limit);
    }
    if options.auto_converge {
        precopy = precopy.auto_converge(AutoConverge::default(), live.pause());
    }
    if options.dirty_limit {
        precopy = precopy.dirty_limit(DirtyLimit::default(), live.limit());
    }
    cancel_by_ctrl_c(precopy.cancel())?;
    let bar = progress_bar();
    let mut last = Progress::default();
    let observe = |now: &Progress| {
        bar.set_position(now.percent().into());
        bar.set_message(now.to_string());
        last = now.clone();
    };
    let Migrated { stats, paused, .. } = precopy.run(link.outgoing(), || live.stop(), observe)?;
    let (beat, at) = live.beats.last();
    let sum = match options.verify {
        true => Some(live.checksum()?),
        false => None,
    };
    // From here on the machine is the other side's.
    paused.for_good();
    link.say(&sum.map_or("go".to_owned(), |sum| format!("go {sum}")))?;
    let alive = link.hear()?;
    let guest_downtime = at.map_or(Duration::ZERO, |at| at.elapsed());
    bar.finish_and_clear();
    let beats = (beat, alive.trim_start_matches("alive ").parse()?);
    Ok(Departure {
        tracking: live.tracking(),
        channels: options.channels,
        stats,
        progress: last,
        guest_downtime,
        beats,
        arrival: None,
    })
}

/// Ctrl-C ends the migration, whatever it waits for, and the machine goes on here; a second one
/// ends the process.
fn cancel_by_ctrl_c(cancel: Cancel) -> Result<(), AnyError> {
    let mut signals = Signals::new([SIGINT])?;
    std::thread::spawn(move || {
        let mut signals = signals.forever();
        if signals.next().is_some() {
            cancel.cancel();
        }
        if signals.next().is_some() {
            std::process::exit(130);
        }
    });
    Ok(())
}

fn progress_bar() -> ProgressBar {
    // Shown at standard error, if that is a terminal.
    let bar = ProgressBar::new(100);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {msg}") {
        bar.set_style(style);
    }
    bar
}
