//! What is to be done.

use std::path::PathBuf;

use clap::Parser;
use machines::demo::AnyError;
use machines::tracking::TrackingMode;
use serde_json::json;

use crate::machine::MAX_PAGES;
use crate::{fuzz, rewind};

/// Puts a KVM guest back to a checkpoint, again and again, or plays its picture backwards.
#[derive(Parser)]
pub struct Options {
    /// How KVM tracks written pages; all ways, one after the other, unless said
    #[arg(long, value_delimiter = ',', default_value = "bitmap,manual,ring")]
    mode: Vec<TrackingMode>,
    /// How often the guest is put back
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub resets: u64,
    /// Pages that the guest writes from one reset to the next, half of them video memory
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(2..=MAX_PAGES))]
    pub pages: u64,
    /// Take a checkpoint at each frame, then show them from the last to the first
    #[arg(long)]
    rewind: bool,
    /// Frames of --rewind
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub frames: u64,
    /// Show --rewind in the terminal
    #[arg(long, requires = "rewind")]
    pub show: bool,
    /// Write the display's last picture to this file
    #[arg(long, value_name = "FILE")]
    pub png: Option<PathBuf>,
    /// Print the table as one JSON object, on the last line
    #[arg(long)]
    json: bool,
}

impl Options {
    /// Does it in each mode.
    pub fn run(&self) -> Result<(), AnyError> {
        println!("{}", if self.rewind { rewind::HEAD } else { fuzz::HEAD });
        let mut rows = Vec::new();
        for mode in &self.mode {
            rows.push(match self.rewind {
                true => rewind::run(self, *mode)?,
                false => fuzz::run(self, *mode)?,
            });
        }
        if self.json {
            println!("{}", json!({ "modes": rows }));
        }
        Ok(())
    }
}
