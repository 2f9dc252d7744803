//! What a measurement found.

use std::fmt;
use std::time::Duration;

/// How much was written within a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirtySample {
    /// Since the measurement began.
    pub time: Duration,
    /// Distinct pages of the host that were written in this time, however often.
    pub pages: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What a measurement of a machine found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyRateReport {
    /// Bytes of all blocks.
    pub len: u64,
    /// All blocks together, in the order of time.
    pub curve: Vec<DirtySample>,
    /// Each block, in the order of their ids.
    pub blocks: Vec<BlockDirtyRate>,
}

/// What a measurement found in one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockDirtyRate {
    /// The block's id.
    pub id: String,
    /// Its length in bytes.
    pub len: u64,
    /// At the times of the whole machine's curve.
    pub curve: Vec<DirtySample>,
}

impl DirtySample {
    /// Bytes of distinct pages per second of the time.
    pub fn bytes_per_second(&self) -> f64 {
        per_second(self.bytes, self.time)
    }

    /// Distinct pages per second of the time.
    pub fn pages_per_second(&self) -> f64 {
        per_second(self.pages, self.time)
    }
}

#[allow(clippy::cast_precision_loss)] // a rate for people
fn per_second(count: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
}

impl DirtyRateReport {
    /// Bytes that are dirtied per second: over the shortest time that was measured, as in
    /// a longer one fewer pages are new.
    pub fn bytes_per_second(&self) -> f64 {
        self.curve.first().map_or(0.0, DirtySample::bytes_per_second)
    }

    /// Pages that are dirtied per second, over the shortest time that was measured.
    pub fn pages_per_second(&self) -> f64 {
        self.curve.first().map_or(0.0, DirtySample::pages_per_second)
    }

    /// What was written in all the time: the working set, so far as it shows in it.
    pub fn working_set(&self) -> DirtySample {
        self.curve.last().copied().unwrap_or_default()
    }
}

impl BlockDirtyRate {
    /// As [`DirtyRateReport::bytes_per_second`], of this block.
    pub fn bytes_per_second(&self) -> f64 {
        self.curve.first().map_or(0.0, DirtySample::bytes_per_second)
    }

    /// As [`DirtyRateReport::working_set`], of this block.
    pub fn working_set(&self) -> DirtySample {
        self.curve.last().copied().unwrap_or_default()
    }
}

impl fmt::Display for DirtyRateReport {
    /// Several lines: the machine, the curve, and the blocks that were written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.working_set();
        let mib = f64::from(1 << 20);
        write!(
            f,
            "{:.1} MiB/s dirtied; {} pages ({} of {} bytes) within {:.1?}",
            self.bytes_per_second() / mib,
            all.pages,
            all.bytes,
            self.len,
            all.time
        )?;
        for DirtySample { time, pages, .. } in &self.curve {
            write!(f, "\n  within {time:.1?}: {pages} pages")?;
        }
        for block in self.blocks.iter().filter(|block| block.working_set().pages > 0) {
            let DirtySample { pages, .. } = block.working_set();
            let rate = block.bytes_per_second() / mib;
            write!(f, "\n  {}: {rate:.1} MiB/s, {pages} pages", block.id)?;
        }
        Ok(())
    }
}
