//! How fast a machine writes its memory, without migrating it.

use std::fmt;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::{Duration, Instant};

use memory_region::{LogClaim, MapError, MemoryMap, RegisteredClient};
use ram_block::{DirtyClient, DirtyError, RamBlock};
use thiserror::Error;

use crate::forecast::report::{BlockDirtyRate, DirtyRateReport, DirtySample};

/// The shortest time after which [`DirtyRate::measure`] looks.
const SHORTEST: Duration = Duration::from_millis(10);

/// How long a measurement sleeps at most before it asks whether it is still wanted.
const NAP: Duration = Duration::from_millis(10);

/// Pages that are watched again with one call, and clean pages that are taken along rather
/// than left out.
const CLEARED: u64 = 1 << 18;
const GAP: u64 = 1 << 13;

/// A measurement that did not come to its end. The log is off again.
#[derive(Debug, Error)]
pub enum DirtyRateError {
    /// The dirty log cannot be switched or read, or there is no number for another client.
    #[error(transparent)]
    Log(#[from] MapError),
    /// A block's bitmap cannot be read.
    #[error(transparent)]
    Dirty(#[from] DirtyError),
    /// A block was resized or taken off the map, if only for a moment.
    #[error("Block \"{block}\" was not logged all the time: it was resized or off the map")]
    Interrupted {
        /// The block's id.
        block: String,
    },
    /// Nobody wanted the result any more.
    #[error("The measurement of {duration:?} was cancelled after {after:?}")]
    Cancelled {
        /// How long it should have taken.
        duration: Duration,
        /// How long it took.
        after: Duration,
    },
}

/// A measurement of dirty pages that is under way; dropped, it is cancelled.
///
/// It is a client of its own: a migration that is under way, or another measurement, is
/// not disturbed, nor does it disturb.
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
/// A bit of memory for each page. When it begins, all RAM is watched for writes: with 16 TiB
/// of it this takes a while, which is not measured. Then each page is found at its first
/// write and not watched again, so that a guest pays once for each page of its working set;
/// where the accelerator reports by clearing, or another client has pages watched again, for
/// each sync.
///
/// # What it finds
///
/// Writes of guests and devices, as dirty logs have them. An accelerator that takes all
/// pages as written because it lost track of some (small dirty rings) makes the result too
/// large. The clock runs also while the machine stands still.
pub struct DirtyRate {
    memory: Arc<MemoryMap>,
    blocks: Vec<Seen>,
    begin: Instant,
    times: Vec<Duration>,
    /// Dropped in this order: the log is off before its client is gone.
    log: LogClaim,
    client: RegisteredClient,
}

/// A block, and which of its pages were written.
struct Seen {
    block: Arc<RamBlock>,
    pages: Vec<u64>,
    count: u64,
    /// The count at each sample.
    curve: Vec<u64>,
    epoch: u64,
}

impl DirtyRate {
    /// Measures for `duration`, with looks after 10 to 20 ms, twice this, and so on to the
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

    /// As [`measure`](Self::measure), for as long as `wanted` says, which is asked every
    /// 10 ms.
    ///
    /// # Errors
    ///
    /// [`DirtyRateError`].
    pub fn measure_while(
        memory: &Arc<MemoryMap>,
        duration: Duration,
        mut wanted: impl FnMut() -> bool,
    ) -> Result<DirtyRateReport, DirtyRateError> {
        let mut rate = Self::begin(memory)?;
        for until in looks(duration) {
            loop {
                if !wanted() {
                    let after = rate.begin.elapsed();
                    return Err(DirtyRateError::Cancelled { duration, after });
                }
                let left = until.saturating_sub(rate.begin.elapsed());
                if left.is_zero() {
                    break;
                }
                std::thread::sleep(left.min(NAP));
            }
            rate.sample()?;
        }
        Ok(rate.report())
    }

    /// Begins to measure: what is written from the return of this call on counts.
    ///
    /// # Errors
    ///
    /// [`DirtyRateError::Log`], also if all numbers of clients are given out.
    pub fn begin(memory: &Arc<MemoryMap>) -> Result<Self, DirtyRateError> {
        let client = register(memory)?;
        let log = memory.claim_global_log(client.client())?;
        let blocks = memory.ram_blocks().into_iter().map(|block| Seen::new(block, &client));
        let mut rate = Self {
            memory: memory.clone(),
            blocks: blocks.collect(),
            begin: Instant::now(),
            times: Vec::new(),
            log,
            client,
        };
        // A log may begin with all pages, and to watch them takes a while: those that are
        // written meanwhile are no part of the result either.
        for _ in 0..2 {
            rate.begin = Instant::now();
            rate.forget()?;
        }
        Ok(rate)
    }

    /// Drops what was written so far, and has it watched again.
    fn forget(&self) -> Result<(), DirtyRateError> {
        self.memory.sync_all_dirty_logs()?;
        for seen in &self.blocks {
            let block = &seen.block;
            let watch = |run: Range<u64>| self.watch(block, run);
            let visited = self.log.visit_runs(block, 0..block.pages(), GAP, watch);
            seen.check(self.client.client(), &visited)?;
            if let ControlFlow::Break(error) = visited? {
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Has pages watched again, so many at a time that others get in between.
    fn watch(&self, block: &Arc<RamBlock>, run: Range<u64>) -> ControlFlow<MapError> {
        let page = block.page_size().bytes();
        let mut first = run.start;
        while first < run.end {
            let end = first.saturating_add(CLEARED).min(run.end);
            if let Err(error) = self.memory.log_clear(block, first * page..end * page) {
                return ControlFlow::Break(error);
            }
            first = end;
        }
        ControlFlow::Continue(())
    }

    /// Looks which pages were written up to now: another point of the curve.
    ///
    /// # Errors
    ///
    /// [`DirtyRateError`].
    pub fn sample(&mut self) -> Result<DirtySample, DirtyRateError> {
        let time = self.begin.elapsed();
        self.memory.sync_all_dirty_logs()?;
        self.blocks.iter_mut().try_for_each(|seen| seen.harvest(&self.log))?;
        for seen in &mut self.blocks {
            seen.curve.push(seen.count);
        }
        self.times.push(time);
        Ok(self.sample_at(self.times.len() - 1))
    }

    /// Looks once more, and says what was found.
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
        let block = |seen: &Seen| BlockDirtyRate {
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
        let client = self.client.client();
        f.debug_struct("DirtyRate").field("client", &client).field("times", &self.times).finish()
    }
}

/// A number for a measurement: names are given once, and there may be others.
fn register(memory: &Arc<MemoryMap>) -> Result<RegisteredClient, MapError> {
    let mut n = 1;
    loop {
        match memory.register_client(&format!("dirty rate {n}")) {
            Err(MapError::Dirty(DirtyError::ClientTaken { .. })) if n < DirtyClient::COUNT => {
                n += 1;
            }
            result => return result,
        }
    }
}

/// When to look: after `duration`, half of it, a quarter, and so on, in ascending order.
fn looks(duration: Duration) -> Vec<Duration> {
    let halves = std::iter::successors(Some(duration), |time| Some(*time / 2));
    let mut looks: Vec<_> = halves.take_while(|time| *time >= SHORTEST).collect();
    if looks.is_empty() {
        looks.push(duration);
    }
    looks.reverse();
    looks
}

impl Seen {
    fn new(block: Arc<RamBlock>, client: &RegisteredClient) -> Self {
        // Before the length: a change of it since is noticed.
        let epoch = block.dirty().epoch(client.client());
        let words = usize::try_from(block.pages().div_ceil(64)).unwrap_or(usize::MAX);
        Self { block, pages: vec![0; words], count: 0, curve: Vec::new(), epoch }
    }

    fn harvest(&mut self, log: &LogClaim) -> Result<(), DirtyRateError> {
        let moved = log.move_into(&self.block, 0..self.block.pages(), &mut self.pages);
        self.check(log.client(), &moved)?;
        self.count += moved?;
        Ok(())
    }

    /// Whether the block was logged all the time, and had one length.
    fn check<T>(
        &self,
        client: DirtyClient,
        result: &Result<T, MapError>,
    ) -> Result<(), DirtyRateError> {
        let is_off = matches!(
            result,
            Err(MapError::NotClaimed { .. } | MapError::Dirty(DirtyError::ClientOff { .. }))
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
        assert_eq!(looks(Duration::from_millis(80)), ms(&[10, 20, 40, 80]));
        assert_eq!(looks(Duration::from_millis(79)).len(), 3);
        assert_eq!(looks(Duration::from_millis(3)), ms(&[3]));
        assert_eq!(looks(Duration::ZERO), ms(&[0]));
        assert!(looks(Duration::MAX).len() < 100);
    }
}
