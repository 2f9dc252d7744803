//! A guest draws moving balls on a VGA; only the scan lines that it touches are
//! redrawn, thirty times a second.
//!
//! `cargo run --release --example vga_refresh -- --help`

mod migrate;
mod table;

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
#[cfg(feature = "window")]
use display_vga::{InputEvent, WindowView};
use display_vga::{Screen, TerminalView, VncServer, write_png};
use indicatif::{ProgressBar, ProgressStyle};
use machines::demo::{AnyError, Board, Guest, explain};
use machines::kvm;
use machines::scene::Scene;

use table::Table;

/// From one frame to the next.
const FRAME_TIME: Duration = Duration::from_nanos(1_000_000_000 / 30);
/// A guest draws a frame within milliseconds; a machine under load may take longer.
const FRAME_DEADLINE: Duration = Duration::from_secs(30);
/// The frames of two years.
const MOST_FRAMES: u64 = (u32::MAX / 2) as u64;

/// Boots a guest that draws moving balls, and redraws only the lines that it touches.
#[derive(Parser)]
struct Options {
    /// Frames to show, 30 a second; 300 if nothing else is said, with --vnc until interrupted
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=MOST_FRAMES))]
    frames: Option<u64>,
    /// What runs the guest; auto takes KVM where it works
    #[arg(long, value_enum, default_value_t = Accelerator::Auto)]
    accel: Accelerator,
    /// Size of the picture in pixels, at least 64x64
    #[arg(long, default_value = "640x480", value_parser = parse_size)]
    size: (u16, u16),
    /// Write the last frame to this file
    #[arg(long, value_name = "FILE")]
    png: Option<PathBuf>,
    /// Show it to VNC viewers too, at an address like 127.0.0.1:5900, without a password
    #[arg(long, value_name = "ADDRESS")]
    vnc: Option<String>,
    /// Print the table as one JSON object, on the last line
    #[arg(long)]
    json: bool,
    /// While the picture runs, migrate to a second machine in this process and compare
    #[arg(long)]
    migrate_to_self: bool,
    /// Show the picture in a window; Escape ends it
    #[cfg(feature = "window")]
    #[arg(long)]
    window: bool,
}

impl Options {
    fn frames(&self) -> u64 {
        self.frames.unwrap_or(if self.vnc.is_some() { MOST_FRAMES } else { 300 })
    }
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Accelerator {
    Auto,
    Kvm,
    Software,
}

fn parse_size(text: &str) -> Result<(u16, u16), String> {
    let sides = text.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
    match sides {
        Some((width, height)) if width >= 64 && height >= 64 => Ok((width, height)),
        _ => Err("a size is WIDTHxHEIGHT in pixels, both at least 64".to_owned()),
    }
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", explain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn start(board: &Board, scene: &Scene, accelerator: Accelerator) -> Result<Guest, AnyError> {
    match (accelerator, kvm::unavailable()) {
        (Accelerator::Kvm, _) | (Accelerator::Auto, None) if cfg!(target_arch = "x86_64") => {
            board.start_on_kvm(scene)
        }
        (Accelerator::Kvm, _) => board.start_on_kvm(scene),
        (Accelerator::Auto, reason) => {
            let reason = reason.unwrap_or_else(|| "the guest program is for x86-64".to_owned());
            eprintln!("No KVM here ({reason}): the guest is played in software");
            Ok(board.start_in_software(scene))
        }
        (Accelerator::Software, _) => Ok(board.start_in_software(scene)),
    }
}

/// Where the picture is watched while it runs.
enum View {
    Terminal(TerminalView<BufWriter<io::Stdout>>),
    Progress(ProgressBar),
    #[cfg(feature = "window")]
    Window(WindowView),
}

impl View {
    fn new(options: &Options) -> Result<Self, AnyError> {
        #[cfg(feature = "window")]
        if options.window {
            let (width, height) = options.size;
            let window = WindowView::new("vga_refresh", width.into(), height.into())?;
            return Ok(Self::Window(window));
        }
        let size = TerminalView::<io::Stdout>::terminal_size();
        if let Some((columns, rows)) = size.filter(|_| io::stdout().is_terminal()) {
            let out = BufWriter::with_capacity(1 << 16, io::stdout());
            return Ok(Self::Terminal(TerminalView::new(out, columns, rows)?));
        }
        // Shown at standard error, if that is a terminal.
        let bar = ProgressBar::new(options.frames());
        if let Ok(style) = ProgressStyle::with_template("{bar:40} frame {pos} of {len}, {eta} left")
        {
            bar.set_style(style);
        }
        Ok(Self::Progress(bar))
    }

    /// Shows what the last refresh changed; says whether somebody wants to see more.
    fn show(&mut self, screen: &Screen) -> Result<bool, AnyError> {
        match self {
            Self::Terminal(view) => {
                if let Some((columns, rows)) = TerminalView::<io::Stdout>::terminal_size() {
                    view.resize(columns, rows);
                }
                view.show_screen(screen)?;
                Ok(true)
            }
            Self::Progress(bar) => {
                bar.inc(1);
                Ok(true)
            }
            #[cfg(feature = "window")]
            Self::Window(window) => {
                let escape = |event: &InputEvent| {
                    matches!(event, InputEvent::Key { keysym: 0xff1b, down: true, .. })
                };
                let events = window.show(screen.surface(), &screen.last().damage)?;
                events.iter().for_each(|event| log::info!("{event:?}"));
                Ok(window.is_open() && !events.iter().any(escape))
            }
        }
    }
}

fn run(options: &Options) -> Result<(), AnyError> {
    let (width, height) = (u64::from(options.size.0), u64::from(options.size.1));
    let scene = Scene::new(width, height);
    let board = Board::new()?;
    // A guest is told no more than that its mode was not taken: we ask beforehand.
    board.vga.set_mode(options.size.0, options.size.1, 32)?;
    board.vga.reset();
    let mut screen = Screen::new(board.memory.clone(), board.vga.clone(), board.vram)?;
    let viewers = options.vnc.as_deref().map(serve_vnc).transpose()?;
    let guest = start(&board, &scene, options.accel)?;
    if !board.frames.wait_done(0, FRAME_DEADLINE) {
        return Err("the guest did not draw its first picture in time".into());
    }

    let interrupted = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGINT, interrupted.clone())?;
    let mut table = Table::new(guest.accelerator(), options.size);
    let over = AtomicBool::new(false);
    let migration = std::thread::scope(|scope| -> Result<_, AnyError> {
        let migration = options.migrate_to_self.then(|| {
            let (board, guest, begin) = (&board, &guest, options.frames() / 3);
            let over = &over;
            scope.spawn(move || {
                while !board.frames.wait_done(begin, FRAME_TIME) {
                    if over.load(Ordering::Relaxed) {
                        return Ok(None); // interrupted
                    }
                }
                migrate::to_self(board, guest).map(Some)
            })
        });
        let shown =
            show(options, &board, &guest, &mut screen, viewers.as_ref(), &mut table, &interrupted);
        over.store(true, Ordering::Relaxed);
        shown?;
        match migration {
            Some(thread) => thread.join().map_err(|_| "the migration panicked")?,
            None => Ok(None),
        }
    })?;
    drop(guest);

    if let Some(path) = &options.png {
        let write = || write_png(screen.surface(), BufWriter::new(File::create(path)?));
        write().map_err(|error| format!("{}: {error}", path.display()))?;
    }
    table.migration = migration;
    println!("{table}");
    if options.json {
        println!("{}", table.json());
    }
    match &table.migration {
        Some(migration) if !migration.is_equal() => Err("the migrated machine differs".into()),
        _ => Ok(()),
    }
}

fn serve_vnc(address: &str) -> Result<VncServer, AnyError> {
    let server = VncServer::bind(address)?.name("vga_refresh").start()?;
    if let Some(address) = server.local_addr() {
        eprintln!("VNC viewers can connect to {}::{}", address.ip(), address.port());
    }
    Ok(server)
}

/// Shows frame by frame, until all are shown or somebody interrupts.
fn show(
    options: &Options,
    board: &Board,
    guest: &Guest,
    screen: &mut Screen,
    viewers: Option<&VncServer>,
    table: &mut Table,
    interrupted: &AtomicBool,
) -> Result<(), AnyError> {
    let frames = options.frames();
    let mut view = View::new(options)?;
    let begin = Instant::now();
    for frame in 1..=frames {
        board.frames.allow(frame);
        let next = begin + FRAME_TIME * u32::try_from(frame).unwrap_or(u32::MAX);
        sleep(next.saturating_duration_since(Instant::now()));
        if guest.is_finished() {
            return Err("the guest ended, which it should not".into());
        }
        let last = frame == frames || interrupted.load(Ordering::Relaxed);
        if last && !board.frames.wait_done(frame, FRAME_DEADLINE) {
            return Err(format!("the guest did not draw frame {frame} in time").into());
        }
        table.add(screen.refresh()?);
        if let Some(viewers) = viewers {
            viewers.update(screen.surface(), &screen.last().damage);
        }
        if last {
            view.show(screen)?;
            break;
        }
        if !view.show(screen)? {
            interrupted.store(true, Ordering::Relaxed);
        }
    }
    Ok(())
}
