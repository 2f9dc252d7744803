//! What an access of an interpreted processor costs: through a TLB, an address space and a block,
//! beside the array that an emulator would have of its own.
//!
//! `cargo bench -p integration-tests --bench emulator [-- --all] [-- --rounds N]`
//!
//! Medians of many short rounds, in which all contestants take turns; the time is that of the
//! thread's processor. `x` is the ratio to the array, in the same run. The last line is JSON.

mod accesses;
mod contestants;

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
    let rows = accesses::run(options.rounds)?;
    println!("{}", json!({ "rounds": options.rounds, "rows": rows }));
    Ok(())
}
