//! What memory costs an interpreted processor: single accesses and whole programs, through a TLB
//! and an address space, beside the array that an emulator would have of its own.
//!
//! `cargo bench -p integration-tests --bench emulator [-- --all] [-- --rounds N]`
//!
//! Medians of many short rounds, in which all contestants take turns. `x` is the ratio to the
//! array, in the same run. The last line is JSON.

mod accesses;
mod contestants;
mod interpreter;
mod loops;

use clap::Parser;
use integration_tests::bench::Extent;
use serde_json::json;

#[derive(Parser)]
struct Options {
    /// Rounds of which the median is taken
    #[arg(long, default_value_t = 301)]
    rounds: usize,
    #[command(flatten)]
    extent: Extent,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let mut rows = accesses::run(options.rounds)?;
    rows.extend(loops::run(options.rounds)?);
    println!("{}", json!({ "rounds": options.rounds, "rows": rows }));
    Ok(())
}
