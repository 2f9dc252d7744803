//! What is to be measured.

use std::time::Instant;

use clap::{Parser, ValueEnum};
use integration_tests::bench::{Budget, Extent};
use kvm_accel::DirtyTracking;
use serde_json::json;

use crate::{chunks, logs, reapers};

#[derive(Parser)]
pub struct Options {
    /// Tables to make; logs unless said, with --all each
    #[arg(long, value_delimiter = ',')]
    tables: Vec<Table>,
    #[command(flatten)]
    pub extent: Extent,
    /// Rounds of which the median is taken, at most
    #[arg(long, default_value_t = 20)]
    pub rounds: usize,
    /// Ways of tracking: bitmap, manual, ring
    #[arg(long, value_delimiter = ',', default_value = "bitmap,manual,ring")]
    ways: Vec<String>,
    /// Sizes of the guests, in GiB
    #[arg(long, value_delimiter = ',', default_value = "1,64,1024")]
    pub gib: Vec<u64>,
    /// Pages that the guest writes in each round, up to 10 % of a gibibyte: 0, 262 and 26214
    /// unless said, with --all 26 and 2621, too
    #[arg(long, value_delimiter = ',')]
    pub pages: Vec<u64>,
    /// The largest slot, in GiB; 0 for any size (as the accelerator has it unless given)
    #[arg(long)]
    pub slot_gib: Option<u64>,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Table {
    /// Start, sync and clear of a log
    Logs,
    /// Clearing in chunks of each size
    Chunks,
    /// Who empties rings, and how often
    Reapers,
}

impl Options {
    /// The ways of tracking that were asked for, by name.
    pub fn ways(&self) -> impl Iterator<Item = (&'static str, DirtyTracking)> {
        let all = [
            ("bitmap", DirtyTracking::Bitmap),
            ("manual", DirtyTracking::ManualProtect),
            ("ring", DirtyTracking::Ring { entries: 65_536 }),
        ];
        all.into_iter().filter(|(name, _)| self.ways.iter().any(|way| way == name))
    }
}

pub fn main() {
    let mut options = Options::parse();
    if options.tables.is_empty() {
        let all = [Table::Logs, Table::Chunks, Table::Reapers];
        options.tables = if options.extent.all { all.to_vec() } else { vec![Table::Logs] };
    }
    if options.pages.is_empty() {
        let all = options.extent.all;
        options.pages = if all { vec![0, 26, 262, 2621, 26_214] } else { vec![0, 262, 26_214] };
    }
    let rows = |table: &Table| match table {
        Table::Logs => logs::rows(&options),
        Table::Chunks => chunks::rows(&options),
        Table::Reapers => reapers::ROWS,
    };
    let rows: usize = options.tables.iter().map(rows).sum();
    let mut budget = Budget::new(options.extent, rows as f64, Instant::now());
    let mut tables = Vec::new();
    for table in &options.tables {
        tables.push(match table {
            Table::Logs => json!({ "logs": logs::table(&options, &mut budget) }),
            Table::Chunks => json!({ "chunks": chunks::table(&options, &mut budget) }),
            Table::Reapers => json!({ "reapers": reapers::table(&mut budget) }),
        });
    }
    println!("{}", json!({ "rounds": options.rounds, "tables": tables }));
}
