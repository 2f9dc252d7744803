//! The result of a dirty rate measurement.

use std::fmt;
use std::time::Duration;

/// The pages that were dirtied within a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirtySample {
    /// Since the measurement began.
    pub time: Duration,
    /// Distinct host pages that were dirtied in this time; each counts once.
    pub pages: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The result of a measurement of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyRateReport {
    /// Bytes of all blocks.
    pub len: u64,
    /// All blocks together, in the order of time.
    pub curve: Vec<DirtySample>,
    /// Each block, in the order of their ids.
    pub blocks: Vec<BlockDirtyRate>,
}

/// The result of a measurement for one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockDirtyRate {
    /// The block's id.
    pub id: String,
    /// Its length in bytes.
    pub len: u64,
    /// Samples at the times of the whole machine's curve.
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
    /// Bytes dirtied per second, over the shortest time that was measured: over a longer time
    /// the rate is lower, as pages that are dirtied again count once.
    pub fn bytes_per_second(&self) -> f64 {
        self.curve.first().map_or(0.0, DirtySample::bytes_per_second)
    }

    /// Pages dirtied per second, over the shortest time that was measured.
    pub fn pages_per_second(&self) -> f64 {
        self.curve.first().map_or(0.0, DirtySample::pages_per_second)
    }

    /// The pages dirtied in the whole time: a lower bound of the working set.
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
