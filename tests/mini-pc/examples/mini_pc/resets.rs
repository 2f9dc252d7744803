//! The machine goes back to a checkpoint, again and again.

use std::time::{Duration, Instant};

use machines::demo::AnyError;
use migration_ram::Checkpoints;
use mini_pc::Machine;

use crate::options::Options;
use crate::run::{End, watch};
use crate::view::View;

/// Takes a checkpoint when `text` is on the screen; from then on, each time that the text of
/// `--until` is there, puts the machine back, and prints at the end what that cost.
pub fn run(
    options: &Options,
    machine: &Machine,
    view: &mut View<'_>,
    text: &str,
) -> Result<End, AnyError> {
    let mut end = watch(options, machine, view, Some(text))?;
    if end != End::AsWished {
        return Ok(end);
    }
    let mut checkpoints = Checkpoints::new(machine.memory(), machine.devices().to_vec())?;
    let paused = machine.pause();
    checkpoints.take()?;
    drop(paused);
    end = watch(options, machine, view, options.until.as_deref())?;
    let (start, mut resets, mut pages, mut time) = (Instant::now(), 0, 0, Duration::ZERO);
    while end == End::AsWished && resets < options.resets {
        let paused = machine.pause();
        let before = Instant::now();
        pages += checkpoints.reset()?.pages;
        time += before.elapsed();
        drop(paused);
        resets += 1;
        end = watch(options, machine, view, options.until.as_deref())?;
    }
    if resets > 0 {
        let (all, each) = (start.elapsed().as_secs_f64(), time / resets);
        let (rate, pages) = (f64::from(resets) / all, pages / u64::from(resets));
        eprintln!("{resets} resets: {rate:.1} a second, {pages} pages and {each:.1?} each");
    }
    Ok(end)
}
