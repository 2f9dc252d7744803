//! What is in a stream.

use std::io::{self, Write};

use clap::Args;
use migration_ram::{BlockTarget, Received, Receiver};
use serde_json::{Value, json};

use crate::describe::described_len;
use crate::error::Error;
use crate::open;

#[derive(Args)]
pub(crate) struct Show {
    /// Where the stream comes from, "-" for standard input
    from: String,
    /// Print the sender's description of its devices, too
    #[arg(long)]
    description: bool,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(crate) fn run(&self) -> Result<(), Error> {
        let mut stream = open(&self.from)?;
        let received = Receiver::new(&[])
            .on_unknown_block(|_, _| BlockTarget::Drop)
            .keep_unknown_sections(true)
            .run(&mut stream)?;
        match self.print(&received, &mut io::stdout().lock()) {
            // Who reads it has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            printed => Ok(printed?),
        }
    }

    fn print(&self, received: &Received, out: &mut dyn Write) -> io::Result<()> {
        let description: Value = serde_json::from_slice(&received.description).unwrap_or_default();
        let blocks = received.blocks.iter().map(|block| {
            json!({
                "id": block.id, "bytes": block.len, "normal_pages": block.pages,
                "zero_pages": block.zero_pages, "delta_pages": block.delta_pages,
            })
        });
        let blocks: Vec<_> = blocks.collect();
        let described = |name: &str, instance| described_len(&description, name, instance);
        if self.json {
            let sections = received.sections.iter().map(|section| {
                json!({
                    "name": section.name, "instance": section.instance, "at": section.at,
                    "version": section.version, "bytes": section.len,
                    "early": section.early, "iterable": section.iterable,
                    "described_bytes": described(&section.name, section.instance),
                })
            });
            let sections: Vec<_> = sections.collect();
            writeln!(
                out,
                "{}",
                json!({
                    "machine": received.machine, "page_size": received.page_size,
                    "bytes": received.bytes, "normal_pages": received.pages,
                    "zero_pages": received.zero_pages, "delta_pages": received.delta_pages,
                    "blocks": blocks, "sections": sections,
                    "description": description,
                })
            )?;
            return Ok(());
        }
        writeln!(
            out,
            "machine \"{}\", {} bytes, pages of {}\n",
            received.machine, received.bytes, received.page_size
        )?;
        writeln!(out, "{:>14} {:>10} {:>10} {:>10}  block", "bytes", "normal", "zero", "delta")?;
        for block in &received.blocks {
            writeln!(
                out,
                "{:>14} {:>10} {:>10} {:>10}  {}",
                block.len, block.pages, block.zero_pages, block.delta_pages, block.id
            )?;
        }
        if !received.sections.is_empty() {
            writeln!(out)?;
            let heads = ["at", "version", "bytes", "described"];
            writeln!(
                out,
                "{:>14} {:>10} {:>10} {:>10}  section",
                heads[0], heads[1], heads[2], heads[3]
            )?;
        }
        for section in &received.sections {
            let described = described(&section.name, section.instance);
            writeln!(
                out,
                "{:>14} {:>10} {:>10} {:>10}  {} {}",
                section.at,
                section.version,
                section.len,
                described.map_or_else(|| "-".to_owned(), |len| len.to_string()),
                section.name,
                section.instance
            )?;
        }
        writeln!(out, "\ndescription: {} bytes", received.description.len())?;
        if self.description {
            writeln!(out, "{description:#}")?;
        }
        Ok(())
    }
}
