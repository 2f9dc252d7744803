//! Dirty rate: how fast a machine dirties its memory, measured without a migration (QEMU:
//! `calc-dirty-rate`).

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use memory_region::{GlobalLogClaim, MapError, MemoryMap};
use ram_block::{DirtyClient, DirtyError, PageSet, RamBlock};
use thiserror::Error;

use crate::forecast::report::{BlockDirtyRate, DirtyRateReport, DirtySample};
use crate::host::{HAS_CLOCK, Instant};

/// The earliest sample of [`DirtyRate::measure`].
const MIN_SAMPLE_TIME: Duration = Duration::from_millis(10);

/// The longest sleep between two calls of `wanted`.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The longest gap of clean pages that is re-armed with its neighbours rather than skipped.
const MAX_GAP: u64 = 1 << 13;

/// Why a measurement failed. Its log is off again.
#[derive(Debug, Error)]
#[non_exhaustive]
#[allow(missing_docs)] // of fields: the messages say what they are
pub enum DirtyRateError {
    /// The host has no clock to measure by.
    #[error("This host has no clock, which a rate is measured by")]
    NoClock,
    /// The dirty log cannot be switched on or read, or all client numbers are in use.
    #[error(transparent)]
    Log(#[from] MapError),
    /// A block's bitmap cannot be read.
    #[error(transparent)]
    Dirty(#[from] DirtyError),
    /// A block was resized or unmapped, if only for a moment.
    #[error("Block \"{block}\" was not logged all the time: it was resized or off the map")]
    Interrupted { block: String },
    /// `wanted` returned false.
    #[error("The measurement of {duration:?} was cancelled after {after:?}")]
    Cancelled { duration: Duration, after: Duration },
}

/// A dirty rate measurement that is under way; dropping it cancels it.
///
/// It has a dirty log client of its own, so that a migration or another measurement at
/// the same time does not affect it, nor is affected.
///
/// ```
/// use std::time::Duration;
/// use memory_region::MemoryMap;
/// use migration_ram::DirtyRate;
/// use ram_block::RamBlock;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let memory = MemoryMap::new();
/// let ram = RamBlock::anonymous("pc.ram", 1 << 20)?;
/// memory.transaction(|map| map.ram("ram", ram.clone()))?;
///
/// let report = DirtyRate::measure(&memory, Duration::from_millis(20))?;
/// println!("{report}");
///
/// // Or without a thread that waits:
/// let mut rate = DirtyRate::begin(&memory)?;
/// ram.write(0x3000, b"a page")?;
/// rate.sample()?;
/// ram.write(0x3010, b"the same page")?;
/// let report = rate.finish()?;
/// let pages: Vec<u64> = report.curve.iter().map(|sample| sample.pages).collect();
/// assert_eq!(pages, [1, 1]);
/// # Ok(())
/// # }
/// ```
///
/// # What it costs
///
/// One bit of memory for each page. At the beginning the log of all RAM is armed: with 16 TiB
/// this takes a while, which is not measured. Then each page is reported at its first write and
/// not re-armed, so that the guest pays once for each page of its working set. If the
/// accelerator re-arms pages with each sync (KVM without manual protection), or another client
/// re-arms them, the guest pays once per sync.
///
/// # What it finds
///
/// Writes of guests and devices, as in the dirty logs. If an accelerator marks all pages dirty
/// because it lost entries (an overrun dirty ring), the result is too large. Time counts also
/// while the machine is paused.
pub struct DirtyRate {
    blocks: Vec<SampledBlock>,
    begin: Instant,
    times: Vec<Duration>,
    log: GlobalLogClaim,
}

/// A block, and a bitmap of its pages that were dirtied.
struct SampledBlock {
    block: Arc<RamBlock>,
    pages: PageSet,
    count: u64,
    /// The count at each sample.
    curve: Vec<u64>,
    epoch: u64,
}

impl DirtyRate {
    /// Measures for `duration`, with samples after 10 to 20 ms, twice this, and so on up to the
    /// end. The calling thread sleeps in between.
    ///
    /// # Errors
    ///
    /// [`DirtyRateError`].
    pub fn measure(
        memory: &Arc<MemoryMap>,
        duration: Duration,
    ) -> Result<DirtyRateReport, DirtyRateError> {
        Self::measure_while(memory, duration, || true)
    }

    /// As [`measure`](Self::measure), but calls `wanted` every 10 ms and is cancelled when it
    /// returns false.
    ///
    /// # Errors
    ///
    /// [`DirtyRateError`].
    pub fn measure_while(
        memory: &Arc<MemoryMap>,
        duration: Duration,
        mut wanted: impl FnMut() -> bool,
    ) -> Result<DirtyRateReport, DirtyRateError> {
        if !HAS_CLOCK {
            return Err(DirtyRateError::NoClock);
        }
        let mut rate = Self::begin(memory)?;
        for until in sample_times(duration) {
            loop {
                if !wanted() {
                    let after = rate.begin.elapsed();
                    return Err(DirtyRateError::Cancelled { duration, after });
                }
                let left = until.saturating_sub(rate.begin.elapsed());
                if left.is_zero() {
                    break;
                }
                std::thread::sleep(left.min(POLL_INTERVAL));
            }
            rate.sample()?;
        }
        Ok(rate.report())
    }

    /// Begins to measure: writes count from the return of this call on.
    ///
    /// # Errors
    ///
    /// [`DirtyRateError::Log`], also if all client numbers are in use.
    pub fn begin(memory: &Arc<MemoryMap>) -> Result<Self, DirtyRateError> {
        let log = memory.claim_global_log("dirty rate")?;
        let client = log.client();
        let blocks = memory.ram_blocks().into_iter().map(|block| SampledBlock::new(block, client));
        let blocks = blocks.collect::<Result<_, _>>()?;
        let mut rate = Self { blocks, begin: Instant::now(), times: Vec::new(), log };
        // First pass: a log may begin with all pages set. Re-arming them takes a while; second
        // pass: drop the pages that were written meanwhile, too.
        for _ in 0..2 {
            rate.begin = Instant::now();
            rate.discard_logged()?;
        }
        Ok(rate)
    }

    /// Drops the dirty bits so far, and re-arms their pages.
    fn discard_logged(&mut self) -> Result<(), DirtyRateError> {
        self.log.sync()?;
        for seen in &self.blocks {
            let drop_it = |_| ControlFlow::<()>::Continue(());
            let visited = self.log.visit_runs(&seen.block, MAX_GAP, drop_it);
            seen.check(self.log.client(), &visited)?;
            let _ = visited?;
        }
        Ok(())
    }

    /// Harvests the pages dirtied up to now: another point of the curve.
    ///
    /// # Errors
    ///
    /// [`DirtyRateError`].
    pub fn sample(&mut self) -> Result<DirtySample, DirtyRateError> {
        let time = self.begin.elapsed();
        self.log.sync()?;
        self.blocks.iter_mut().try_for_each(|seen| seen.harvest(&mut self.log))?;
        for seen in &mut self.blocks {
            seen.curve.push(seen.count);
        }
        self.times.push(time);
        Ok(self.sample_at(self.times.len() - 1))
    }

    /// Takes a last sample, and returns the report.
    ///
    /// # Errors
    ///
    /// [`DirtyRateError`].
    pub fn finish(mut self) -> Result<DirtyRateReport, DirtyRateError> {
        self.sample()?;
        Ok(self.report())
    }

    fn sample_at(&self, n: usize) -> DirtySample {
        let zero = DirtySample { time: self.times[n], pages: 0, bytes: 0 };
        self.blocks.iter().fold(zero, |sum, seen| {
            let DirtySample { pages, bytes, .. } = seen.sample(n, self.times[n]);
            DirtySample { pages: sum.pages + pages, bytes: sum.bytes + bytes, ..sum }
        })
    }

    fn report(&self) -> DirtyRateReport {
        let block = |seen: &SampledBlock| BlockDirtyRate {
            id: seen.block.id().to_owned(),
            len: seen.block.len(),
            curve: (self.times.iter().enumerate()).map(|(n, time)| seen.sample(n, *time)).collect(),
        };
        DirtyRateReport {
            len: self.blocks.iter().map(|seen| seen.block.len()).sum(),
            curve: (0..self.times.len()).map(|n| self.sample_at(n)).collect(),
            blocks: self.blocks.iter().map(block).collect(),
        }
    }
}

impl fmt::Debug for DirtyRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let client = self.log.client();
        f.debug_struct("DirtyRate").field("client", &client).field("times", &self.times).finish()
    }
}

/// The times of the samples: `duration`, half of it, a quarter, and so on, in ascending order.
fn sample_times(duration: Duration) -> Vec<Duration> {
    let halves = std::iter::successors(Some(duration), |time| Some(*time / 2));
    let mut sample_times: Vec<_> = halves.take_while(|time| *time >= MIN_SAMPLE_TIME).collect();
    if sample_times.is_empty() {
        sample_times.push(duration);
    }
    sample_times.reverse();
    sample_times
}

impl SampledBlock {
    fn new(block: Arc<RamBlock>, client: DirtyClient) -> Result<Self, DirtyRateError> {
        // Read before the length: a resize after this changes the epoch.
        let epoch = block.dirty().epoch(client);
        let pages = block.dirty().page_set()?;
        Ok(Self { block, pages, count: 0, curve: Vec::new(), epoch })
    }

    fn harvest(&mut self, log: &mut GlobalLogClaim) -> Result<(), DirtyRateError> {
        let moved = log.move_to(&self.block, &mut self.pages);
        self.check(log.client(), &moved)?;
        self.count += moved?;
        Ok(())
    }

    /// An error unless the block was logged all the time and was not resized.
    fn check<T>(
        &self,
        client: DirtyClient,
        result: &Result<T, MapError>,
    ) -> Result<(), DirtyRateError> {
        let is_off = matches!(
            result,
            Err(MapError::NotLogged { .. } | MapError::Dirty(DirtyError::ClientOff { .. }))
        );
        if is_off || self.block.dirty().epoch(client) != self.epoch {
            return Err(DirtyRateError::Interrupted { block: self.block.id().to_owned() });
        }
        Ok(())
    }

    fn sample(&self, n: usize, time: Duration) -> DirtySample {
        let pages = self.curve[n];
        DirtySample { time, pages, bytes: pages * self.block.page_size().bytes() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_halved_down_to_the_shortest() {
        let ms = |ms: &[u64]| ms.iter().map(|ms| Duration::from_millis(*ms)).collect::<Vec<_>>();
        assert_eq!(sample_times(Duration::from_millis(80)), ms(&[10, 20, 40, 80]));
        assert_eq!(sample_times(Duration::from_millis(79)).len(), 3);
        assert_eq!(sample_times(Duration::from_millis(3)), ms(&[3]));
        assert_eq!(sample_times(Duration::ZERO), ms(&[0]));
        assert!(sample_times(Duration::MAX).len() < 100);
    }
}
