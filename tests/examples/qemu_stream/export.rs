//! RAM becomes a stream.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use machines::size;
use memory_region::MemoryMap;
use migration_ram::Precopy;
use ram_block::RamBlock;
use serde_json::json;

use crate::create;
use crate::error::Error;
use crate::fill::{Fill, PAGE};

#[derive(Args)]
pub(crate) struct Export {
    /// Where the stream goes, "-" for standard output
    to: String,
    /// The machine's name, which QEMU compares with its own
    #[arg(long, default_value = "none")]
    machine: String,
    /// A block's id; once for each block
    #[arg(long = "block", value_name = "ID", default_value = "ram")]
    blocks: Vec<String>,
    /// Its length, as 64M, a multiple of 4096; once for each block, or the length of its file
    #[arg(long = "size", value_name = "SIZE", value_parser = size::pages)]
    sizes: Vec<u64>,
    /// A file with its contents; once for each block
    #[arg(long = "from", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Its contents, if they come from no file
    #[arg(long, value_enum, default_value_t = Fill::Mixed)]
    fill: Fill,
    /// What random contents are made from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

impl Export {
    pub(crate) fn run(&self) -> Result<(), Error> {
        let memory = MemoryMap::new();
        for (number, id) in self.blocks.iter().enumerate() {
            let block = self.block(number, id)?;
            memory.transaction(|map| map.ram(id, block).map(drop))?;
        }
        let mut stream = create(&self.to)?;
        let precopy = Precopy::new(memory).machine(&self.machine);
        let stats = precopy.run(&mut stream, || Ok(()), |_| ())?.stats;
        let zero: u64 = stats.rounds.iter().map(|round| round.zero_pages).sum();
        let text = if self.json {
            let blocks = &self.blocks;
            json!({
                "machine": self.machine, "blocks": blocks, "bytes": stats.bytes,
                "normal_pages": stats.pages() - zero, "zero_pages": zero,
            })
            .to_string()
        } else {
            format!(
                "{}: {} bytes, {} pages with contents, {zero} zero pages",
                self.to,
                stats.bytes,
                stats.pages() - zero
            )
        };
        // Standard output may be the stream.
        if self.to == "-" {
            eprintln!("{text}");
        } else {
            println!("{text}");
        }
        Ok(())
    }

    fn block(&self, number: usize, id: &str) -> Result<Arc<RamBlock>, Error> {
        let (blocks, sizes, files) = (self.blocks.len(), self.sizes.len(), self.files.len());
        let fits = |count: usize| count == 0 || count == blocks;
        if !fits(sizes) || !fits(files) || sizes + files == 0 {
            return Err(Error::Sizes { blocks, sizes, files });
        }
        let size = self.sizes.get(number).copied();
        match self.files.get(number) {
            Some(path) => from_file(id, path, size),
            None => self.filled(id, size.unwrap_or(0)),
        }
    }

    fn filled(&self, id: &str, size: u64) -> Result<Arc<RamBlock>, Error> {
        let block = RamBlock::anonymous(id, size)?;
        for number in 0..size / PAGE as u64 {
            if let Some(page) = self.fill.page(self.seed, number) {
                block.write(number * PAGE as u64, &page)?;
            }
        }
        Ok(block)
    }
}

/// A block with the contents of a file, and zeros behind them.
fn from_file(id: &str, path: &Path, size: Option<u64>) -> Result<Arc<RamBlock>, Error> {
    let failed = |source| Error::File { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let len = file.metadata().map_err(failed)?.len();
    let size = size.unwrap_or(len.next_multiple_of(PAGE as u64));
    if len > size {
        return Err(Error::FileLength { path: path.to_owned(), len, size });
    }
    let block = RamBlock::anonymous(id, size)?;
    let (mut at, mut buffer) = (0, vec![0; 1 << 20]);
    loop {
        let count = file.read(&mut buffer).map_err(failed)?;
        if count == 0 {
            return Ok(block);
        }
        // Zeros are there already, and holes stay holes.
        for part in buffer[..count].chunks(PAGE) {
            if part.iter().any(|byte| *byte != 0) {
                block.write(at, part)?;
            }
            at += part.len() as u64;
        }
    }
}
