//! The loop of a fuzzer: run a case, put the machine back.

use std::time::{Duration, Instant};

use machines::demo::AnyError;
use machines::tracking::TrackingMode;
use migration_ram::ResetStats;
use serde_json::{Value, json};

use crate::machine::Machine;
use crate::options::Options;

/// The table's head. Times are means in microseconds.
pub const HEAD: &str =
    "mode     resets/s   pages     run    get  clear   copy  state  picture memory";

/// Runs cases from one checkpoint, and prints a row.
pub fn run(options: &Options, mode: TrackingMode) -> Result<Value, AnyError> {
    let mut machine = Machine::new(mode, options.pages)?;
    machine.checkpoints.take()?;
    let (picture, memory) = (machine.refreshed()?, machine.memory()?);
    machine.write_pages()?;
    if machine.refreshed()? == picture {
        return Err("a case leaves the picture as it is, which it should not".into());
    }
    machine.checkpoints.reset()?;

    let (mut sum, mut running) = (ResetStats::default(), Duration::ZERO);
    let begin = Instant::now();
    for _ in 0..options.resets {
        let start = Instant::now();
        machine.write_pages()?;
        running += start.elapsed();
        let stats = machine.checkpoints.reset()?;
        sum.pages += stats.pages;
        sum.get += stats.get;
        sum.clear += stats.clear;
        sum.copy += stats.copy;
        sum.state += stats.state;
    }
    let time = begin.elapsed();
    let equal_picture = machine.refreshed()? == picture;
    let equal_memory = machine.memory()? == memory;
    if let Some(path) = &options.png {
        machine.write_png(path)?;
    }

    #[allow(clippy::cast_precision_loss)] // for people
    let count = options.resets as f64;
    let mean = |time: Duration| time.as_secs_f64() * 1e6 / count;
    #[allow(clippy::cast_precision_loss)]
    let (rate, pages) = (count / time.as_secs_f64(), sum.pages as f64 / count);
    let word = |equal| if equal { "equal" } else { "DIFFERENT" };
    println!(
        "{:<7} {rate:>9.0} {pages:>7.1} {:>7.1} {:>6.1} {:>6.1} {:>6.1} {:>6.1}  {:>7} {:>6}",
        mode.name(),
        mean(running),
        mean(sum.get),
        mean(sum.clear),
        mean(sum.copy),
        mean(sum.state),
        word(equal_picture),
        word(equal_memory),
    );
    if !(equal_picture && equal_memory) {
        return Err("the machine is not what it was at the checkpoint".into());
    }
    Ok(json!({
        "mode": mode.name(), "resets": options.resets, "resets_per_second": rate,
        "pages_per_reset": pages, "run_us": mean(running), "get_us": mean(sum.get),
        "clear_us": mean(sum.clear), "copy_us": mean(sum.copy), "state_us": mean(sum.state),
        "equal_picture": equal_picture, "equal_memory": equal_memory,
    }))
}
