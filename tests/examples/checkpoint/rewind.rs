//! The machine played backwards: a checkpoint at each frame, and back through all of them.

use std::io::{self, BufWriter, IsTerminal};
use std::thread::sleep;
use std::time::{Duration, Instant};

use display_vga::TerminalView;
use machines::demo::AnyError;
use machines::tracking::TrackingMode;
use serde_json::{Value, json};

use crate::machine::{MAX_PAGES, Machine};
use crate::options::Options;

/// The table's head. Times are means in microseconds.
pub const HEAD: &str = "mode     frames  KiB/frame    take  restore   pages  pictures";

/// From one frame to the next, where they are shown.
const FRAME_TIME: Duration = Duration::from_nanos(1_000_000_000 / 30);

/// Draws frames, goes back through them, and prints a row.
pub fn run(options: &Options, mode: TrackingMode) -> Result<Value, AnyError> {
    let mut machine = Machine::new(mode, MAX_PAGES)?;
    let mut view = View::new(options.show)?;
    let (mut frames, mut taking) = (Vec::new(), Duration::ZERO);
    for frame in 1..=options.frames {
        machine.draw(frame)?;
        let start = Instant::now();
        let checkpoint = machine.checkpoints.take()?;
        taking += start.elapsed();
        frames.push((checkpoint, machine.refreshed()?));
        view.show(&machine)?;
    }
    let (mut restoring, mut pages, mut equal) = (Duration::ZERO, 0, 0);
    for (checkpoint, picture) in frames.iter().rev() {
        let start = Instant::now();
        pages += machine.checkpoints.restore(*checkpoint)?.pages;
        restoring += start.elapsed();
        equal += u64::from(machine.refreshed()? == *picture);
        view.show(&machine)?;
    }
    drop(view);
    if let Some(path) = &options.png {
        machine.write_png(path)?;
    }

    #[allow(clippy::cast_precision_loss)] // for people
    let [count, pages, kept] =
        [options.frames, pages, machine.checkpoints.bytes_kept()].map(|number| number as f64);
    let mean = |time: Duration| time.as_secs_f64() * 1e6 / count;
    println!(
        "{:<7} {:>7} {:>10.1} {:>7.1} {:>8.1} {:>7.1}  {}",
        mode.name(),
        options.frames,
        kept / 1024.0 / count,
        mean(taking),
        mean(restoring),
        pages / count,
        if equal == options.frames { "equal" } else { "DIFFERENT" },
    );
    if equal != options.frames {
        return Err(format!("{equal} of {} pictures are equal", options.frames).into());
    }
    Ok(json!({
        "mode": mode.name(), "frames": options.frames, "bytes_kept": kept,
        "take_us": mean(taking), "restore_us": mean(restoring), "pages_per_restore": pages / count,
        "equal_pictures": true,
    }))
}

/// The terminal, if it is one and was asked for.
struct View(Option<TerminalView<BufWriter<io::Stdout>>>);

impl View {
    fn new(wanted: bool) -> Result<Self, AnyError> {
        let size = TerminalView::<io::Stdout>::terminal_size();
        let size = size.filter(|_| wanted && io::stdout().is_terminal());
        let out = || BufWriter::with_capacity(1 << 16, io::stdout());
        Ok(Self(size.map(|(w, h)| TerminalView::new(out(), w, h)).transpose()?))
    }

    fn show(&mut self, machine: &Machine) -> Result<(), AnyError> {
        if let Some(view) = &mut self.0 {
            view.show_screen(&machine.screen)?;
            sleep(FRAME_TIME);
        }
        Ok(())
    }
}
