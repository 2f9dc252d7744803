//! A stream becomes files of RAM.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use machines::size;
use migration_ram::{BlockInfo, BlockTarget, Received, Receiver};
use ram_block::RamBlock;
use serde_json::json;

use crate::error::Error;
use crate::fill::{Fill, PAGE};
use crate::open;

#[derive(Args)]
pub(crate) struct Import {
    /// Where the stream comes from, "-" for standard input
    from: String,
    /// A folder for a file for each block, which has holes where the block is zero
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What all blocks may have together: their lengths are the stream's word
    #[arg(long, value_name = "SIZE", default_value = "1T", value_parser = size::bytes)]
    most: u64,
    /// Fail unless each block holds what `export --fill` puts there
    #[arg(long, value_enum, value_name = "FILL")]
    check: Option<Fill>,
    /// What random contents were made from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

/// A block that is being received, and its file.
struct Incoming {
    block: Arc<RamBlock>,
    partial: PathBuf,
    path: PathBuf,
}

impl Import {
    pub(crate) fn run(&self) -> Result<(), Error> {
        let mut stream = open(&self.from)?;
        std::fs::create_dir_all(&self.out)
            .map_err(|source| Error::File { path: self.out.clone(), source })?;
        let (mut incoming, mut refused) = (Vec::new(), None);
        let received = Receiver::new(&[])
            .on_unknown_block(|id, len| match self.make(&mut incoming, id, len) {
                Ok(block) => BlockTarget::Memory(block),
                Err(error) => {
                    refused = Some(error);
                    BlockTarget::Refuse
                }
            })
            .keep_unknown_sections(true)
            .run(&mut stream);
        // What a closure of ours refused, it knows better.
        let result = refused.map_or(received.map_err(Error::from), Err);
        let result = result.and_then(|received| {
            incoming.iter().try_for_each(|incoming| self.compare(incoming))?;
            Ok(received)
        });
        match result {
            Ok(received) => {
                for Incoming { partial, path, .. } in &incoming {
                    std::fs::rename(partial, path)
                        .map_err(|source| Error::File { path: path.clone(), source })?;
                }
                self.print(&received, &incoming);
                Ok(())
            }
            Err(error) => {
                // A part of RAM is nothing to be used by mistake.
                for Incoming { partial, .. } in &incoming {
                    let _ = std::fs::remove_file(partial);
                }
                Err(error)
            }
        }
    }

    /// A block that is a file.
    fn make(
        &self,
        incoming: &mut Vec<Incoming>,
        id: &str,
        len: u64,
    ) -> Result<Arc<RamBlock>, Error> {
        if len == 0 {
            return Err(Error::NoLength { id: id.to_owned() });
        }
        let before: u64 = incoming.iter().map(|incoming| incoming.block.len()).sum();
        if before.checked_add(len).is_none_or(|all| all > self.most) {
            return Err(Error::TooLarge { id: id.to_owned(), len, most: self.most });
        }
        let path = unused(&self.out, id, incoming);
        let mut partial = path.clone().into_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        let file = options.open(&partial).and_then(|file| file.set_len(len).map(|()| file));
        let file = file.map_err(|source| Error::File { path: partial.clone(), source })?;
        let block = RamBlock::builder(id, len).file(file, 0)?;
        incoming.push(Incoming { block: block.clone(), partial, path });
        Ok(block)
    }

    fn compare(&self, incoming: &Incoming) -> Result<(), Error> {
        let Some(fill) = self.check else { return Ok(()) };
        let block = &incoming.block;
        let mut found = [0; PAGE];
        for number in 0..block.len() / PAGE as u64 {
            let at = number * PAGE as u64;
            block.read(at, &mut found)?;
            if found != fill.page(self.seed, number).unwrap_or([0; PAGE]) {
                return Err(Error::Differs { id: block.id().to_owned(), at });
            }
        }
        Ok(())
    }

    fn print(&self, received: &Received, incoming: &[Incoming]) {
        let path = |info: &BlockInfo| {
            let incoming = incoming.iter().find(|incoming| incoming.block.id() == info.id);
            incoming.map(|incoming| incoming.path.display().to_string()).unwrap_or_default()
        };
        if self.json {
            let blocks = received.blocks.iter().map(|info| {
                json!({
                    "id": info.id, "bytes": info.len, "normal_pages": info.pages,
                    "zero_pages": info.zero_pages, "delta_pages": info.delta_pages,
                    "file": path(info),
                })
            });
            let blocks: Vec<_> = blocks.collect();
            println!("{}", json!({ "machine": received.machine, "blocks": blocks }));
            return;
        }
        println!("{:>14} {:>10} {:>10} {:>10}  file", "bytes", "normal", "zero", "delta");
        for info in &received.blocks {
            println!(
                "{:>14} {:>10} {:>10} {:>10}  {}",
                info.len,
                info.pages,
                info.zero_pages,
                info.delta_pages,
                path(info)
            );
        }
    }
}

/// A file's path for a block, of whose id only letters, digits and some signs are kept.
fn unused(folder: &Path, id: &str, incoming: &[Incoming]) -> PathBuf {
    let keep = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
    let name: String = id.chars().map(|c| if keep(c) { c } else { '_' }).collect();
    let name = name.trim_start_matches('.');
    let names =
        (1..).map(|n| if n == 1 { format!("{name}.ram") } else { format!("{name}.{n}.ram") });
    let mut paths = names.map(|name| folder.join(name));
    let used = |path: &PathBuf| incoming.iter().any(|incoming| incoming.path == *path);
    paths.find(|path| !used(path)).unwrap_or_default()
}
