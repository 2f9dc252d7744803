//! What is to be measured.

use std::time::Instant;

use clap::{Parser, ValueEnum};
use integration_tests::bench::{Budget, Extent};
use machines::tracking::TrackingMode;
use serde_json::json;

use crate::{frames, live, resets};

#[derive(Parser)]
pub struct Options {
    /// Tables to make
    #[arg(long, value_delimiter = ',', default_value = "resets,live,frames")]
    tables: Vec<Table>,
    #[command(flatten)]
    pub extent: Extent,
    /// Turns of each machine, of a few cases each, at most
    #[arg(long, default_value_t = 50)]
    pub rounds: usize,
    /// Ways of tracking
    #[arg(long, value_delimiter = ',', default_value = "bitmap,manual,ring")]
    pub ways: Vec<TrackingMode>,
    /// Sizes of the guests, in GiB
    #[arg(long, value_delimiter = ',', default_value = "1,64")]
    pub gib: Vec<u64>,
    /// Pages that the guest dirties in a case
    #[arg(long, value_delimiter = ',', default_value = "10,100,1000,10000",
        value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub pages: Vec<u64>,
    /// Pages that the guest dirties in a second, at most, while a checkpoint is taken
    #[arg(long, value_delimiter = ',', default_value = "10000,100000,1000000",
        value_parser = clap::value_parser!(u64).range(64..))]
    pub rates: Vec<u64>,
    /// Frames of the emulator that are measured, at most
    #[arg(long, default_value_t = 600)]
    pub frames: usize,
    /// Pages that are written in each of them, beside those of the emulator's guest
    #[arg(long, value_delimiter = ',', default_value = "0,300,1000",
        value_parser = clap::value_parser!(u64).range(..=10_000))]
    pub further: Vec<u64>,
    /// The largest slot, in GiB, of our machines; as the accelerator has it unless given
    #[arg(long)]
    pub slot_gib: Option<u64>,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Table {
    /// Back to a checkpoint
    Resets,
    /// Taken while the guest runs
    Live,
    /// Taken of an emulator in each frame
    Frames,
}

pub fn main() {
    let options = Options::parse();
    let weight = |table: &Table| match table {
        Table::Resets => resets::weight(&options),
        Table::Live => live::weight(&options),
        Table::Frames => frames::weight(&options),
    };
    let mut budget =
        Budget::new(options.extent, options.tables.iter().map(weight).sum(), Instant::now());
    let mut tables = Vec::new();
    for table in &options.tables {
        tables.push(match table {
            Table::Resets => json!({ "resets": resets::table(&options, &mut budget) }),
            Table::Live => json!({ "live": live::table(&options, &mut budget) }),
            Table::Frames => json!({ "frames": frames::table(&options, &mut budget) }),
        });
    }
    println!("{}", json!({ "rounds": options.rounds, "tables": tables }));
}
