//! What is to be measured.

use clap::{Parser, ValueEnum};
use kvm_accel::DirtyTracking;
use serde_json::json;

use crate::{chunks, logs, reapers};

#[derive(Parser)]
pub struct Options {
    /// Tables to make
    #[arg(long, value_delimiter = ',', default_value = "logs")]
    tables: Vec<Table>,
    /// Rounds of which the median is taken
    #[arg(long, default_value_t = 20)]
    pub rounds: usize,
    /// Ways of tracking: bitmap, manual, ring
    #[arg(long, value_delimiter = ',', default_value = "bitmap,manual,ring")]
    ways: Vec<String>,
    /// Sizes of the guests, in GiB
    #[arg(long, value_delimiter = ',', default_value = "1,64,1024")]
    pub gib: Vec<u64>,
    /// Pages that the guest writes in each round: up to 10 % of a gibibyte
    #[arg(long, value_delimiter = ',', default_value = "0,26,262,2621,26214")]
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
    let options = Options::parse();
    let mut tables = Vec::new();
    for table in &options.tables {
        tables.push(match table {
            Table::Logs => json!({ "logs": logs::table(&options) }),
            Table::Chunks => json!({ "chunks": chunks::table(&options) }),
            Table::Reapers => json!({ "reapers": reapers::table(&options) }),
        });
    }
    println!("{}", json!({ "rounds": options.rounds, "tables": tables }));
}
