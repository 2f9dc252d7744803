//! The memory that is sent.

use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ram_block::{HugePages, RamBlock};

use crate::{AnyError, failed};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contents {
    Random,
    /// Every other page of 4 KiB is random, the others are zero, and are there.
    HalfZero,
    /// Zeros that were written.
    Zeros,
    Untouched,
}

const CONTENTS: [Contents; 4] =
    [Contents::Random, Contents::HalfZero, Contents::Zeros, Contents::Untouched];

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Contents::Random => "random",
            Contents::HalfZero => "half-zero",
            Contents::Zeros => "zeros",
            Contents::Untouched => "untouched",
        })
    }
}

/// The memory of a machine: a file that all sources map, or nothing but a length.
pub(crate) struct Memory {
    pub(crate) contents: Contents,
    pub(crate) len: u64,
    path: Option<PathBuf>,
    ours: bool,
}

impl Memory {
    pub(crate) fn new(contents: Contents, len: u64) -> Result<Self, AnyError> {
        let mut memory = Self { contents, len, path: None, ours: true };
        if contents == Contents::Untouched {
            return Ok(memory);
        }
        let folder = ["/dev/shm".into(), std::env::temp_dir()];
        let folder = folder.into_iter().find(|folder| folder.is_dir()).unwrap_or_default();
        let path = folder.join(format!("migrate-{}", std::process::id()));
        let mut file = BufWriter::with_capacity(1 << 20, File::create(&path)?);
        memory.path = Some(path);
        let mut noise = 0x9e37_79b9_7f4a_7c15u64;
        let mut page = [0; 4096];
        for number in 0..len / 4096 {
            let zero =
                contents == Contents::Zeros || (contents == Contents::HalfZero && number % 2 == 1);
            for word in page.chunks_exact_mut(8) {
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                word.copy_from_slice(&if zero { 0 } else { noise }.to_le_bytes());
            }
            file.write_all(&page)?;
        }
        file.flush()?;
        Ok(memory)
    }

    pub(crate) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Whether the destination's memory is populated before the clock starts.
    pub(crate) fn is_populated(&self) -> bool {
        matches!(self.contents, Contents::Random | Contents::HalfZero)
    }

    /// As words for another process.
    pub(crate) fn words(&self) -> Vec<String> {
        let path = self.path.iter().map(|path| path.display().to_string());
        [self.contents.to_string(), self.len.to_string()].into_iter().chain(path).collect()
    }

    /// Of another process.
    pub(crate) fn parse(words: &[String]) -> Result<Self, AnyError> {
        let [contents, len, path @ ..] = words else { return Err(failed("no memory")) };
        let contents = CONTENTS.into_iter().find(|known| known.to_string() == *contents);
        let contents = contents.ok_or_else(|| failed("unknown contents"))?;
        Ok(Self { contents, len: len.parse()?, path: path.first().map(PathBuf::from), ours: false })
    }

    /// The source's block.
    pub(crate) fn source(&self) -> Result<Arc<RamBlock>, AnyError> {
        let builder = RamBlock::builder("ram", self.len).huge_pages(HugePages::Transparent);
        let Some(path) = &self.path else { return Ok(builder.anonymous()?) };
        let file = File::options().read(true).write(true).open(path)?;
        let block = builder.file(file, 0)?;
        block.populate(0..self.len)?;
        Ok(block)
    }

    /// The destination's block.
    pub(crate) fn destination(&self) -> Result<Arc<RamBlock>, AnyError> {
        let builder = RamBlock::builder("ram", self.len).huge_pages(HugePages::Transparent);
        let block = builder.anonymous()?;
        if self.is_populated() {
            block.populate(0..self.len)?;
        }
        Ok(block)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let (Some(path), true) = (&self.path, self.ours) {
            let _ = std::fs::remove_file(path);
        }
    }
}
