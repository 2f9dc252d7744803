//! The sending side: rounds of dirty pages while the machine runs, then the rest.
//!
//! Order, for each page: the accelerator's log is merged into the block's bitmaps,
//! the migration's bits move into a private bitmap, the page's private bit is
//! cleared, and only then the page is read. A store that comes after the read finds
//! its page clean, or its bit set after the sync: either way it is sent again.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memory_region::MemoryMap;
use ram_block::{DirtyClient, PageSize, RamBlock};

use crate::error::SendError;
use crate::format::default_page_size;
use crate::pending::Pending;
use crate::stats::{MigrationStats, RoundStats};
use crate::writer::StreamWriter;

/// A migration that its source has completed.
#[derive(Debug)]
#[must_use = "dropping it lets the machine run on, next to its copy"]
pub struct Migrated<P> {
    /// What it did.
    pub stats: MigrationStats,
    /// What the caller's `pause` returned: as long as it is kept, the machine stands
    /// still. Once the destination runs, the machine must not.
    pub paused: P,
}

/// A live migration of all RAM of one machine, by precopy.
#[derive(Clone, Debug)]
pub struct Precopy {
    memory: Arc<MemoryMap>,
    downtime: Duration,
    max_rounds: u32,
    machine: String,
    page: PageSize,
}

impl Precopy {
    /// A migration of every block of `memory`, with a downtime of 300 ms, at most 30
    /// rounds, machine name "none", and pages of 4 KiB in the stream.
    pub fn new(memory: Arc<MemoryMap>) -> Self {
        let machine = "none".to_owned();
        let downtime = Duration::from_millis(300);
        Self { memory, downtime, max_rounds: 30, machine, page: default_page_size() }
    }

    /// The machine is paused when the rest is expected to be sent within `downtime`.
    #[must_use]
    pub fn downtime(mut self, downtime: Duration) -> Self {
        self.downtime = downtime;
        self
    }

    /// The machine is paused after this many rounds, however much is left; 0 pauses it
    /// before anything is sent.
    #[must_use]
    pub fn max_rounds(mut self, rounds: u32) -> Self {
        self.max_rounds = rounds;
        self
    }

    /// The machine's name in the stream, which QEMU compares with its own; at most
    /// 1,024 bytes, what exceeds them is cut.
    #[must_use]
    pub fn machine(mut self, name: &str) -> Self {
        let end = (0..=name.len().min(1024)).rev().find(|end| name.is_char_boundary(*end));
        self.machine = name[..end.unwrap_or(0)].to_owned();
        self
    }

    /// The page size of the stream: the target's, which divides the host's.
    #[must_use]
    pub fn page_size(mut self, page: PageSize) -> Self {
        self.page = page;
        self
    }

    /// Sends the machine's RAM to `out` while it runs, then calls `pause` and sends the
    /// rest. `observe` is called after each round.
    ///
    /// `pause` stops everything that writes guest memory and returns a guard that
    /// keeps it so, and lets it go on when dropped.
    ///
    /// # Errors
    ///
    /// [`SendError`], also if another migration of this map is under way; the log is off
    /// again then, the guard of a pause is dropped, and a second try can be made. Whether the destination has everything is for it to say.
    pub fn run<P>(
        &self,
        out: &mut impl Write,
        pause: impl FnOnce() -> Result<P, Box<dyn std::error::Error + Send + Sync>>,
        mut observe: impl FnMut(&RoundStats),
    ) -> Result<Migrated<P>, SendError> {
        let begin = Instant::now();
        let host = PageSize::host();
        if self.page > host || self.page < default_page_size() {
            return Err(SendError::PageSize { page: self.page.bytes(), host: host.bytes() });
        }
        // On before the first page is read: what is written from now on comes again.
        // Off again when this ends, however it ends.
        let logging = self.memory.claim_global_log(DirtyClient::MIGRATION)?;
        let blocks = self.memory.ram_blocks();
        let mut pending: Vec<Pending> = blocks.iter().cloned().map(Pending::all).collect();
        // What a log starts with is among what is pending; and pages that were reported can
        // be watched again from the first round on.
        self.sync(&mut pending)?;
        let mut stream = StreamWriter::new(out, &self.machine, self.page);
        stream.setup(&blocks);

        let mut stats = MigrationStats::default();
        let mut synced = Instant::now();
        while stats.rounds.len() < usize::try_from(self.max_rounds).unwrap_or(usize::MAX) {
            let mut round =
                self.send_round(&mut stream, &mut pending, stats.rounds.len(), false)?;
            round.dirtied = self.sync(&mut pending)?;
            round.dirtied_within = synced.elapsed();
            synced = Instant::now();
            log::debug!("{round}");
            observe(&round);
            stats.rounds.push(round);
            if self.fits(&pending, &stats.rounds) {
                stats.converged = true;
                break;
            }
        }

        let pausing = Instant::now();
        let paused = pause().map_err(SendError::Pause)?;
        self.memory.sync_last_dirty_logs()?;
        pending.iter_mut().try_for_each(|pending| pending.harvest().map(drop))?;
        self.check_blocks(&blocks)?;
        let mut round = self.send_round(&mut stream, &mut pending, stats.rounds.len(), true)?;
        round.paused = true;
        log::debug!("{round}");
        stats.bytes = stream.finish()?;
        stats.downtime = pausing.elapsed();
        observe(&round);
        stats.rounds.push(round);
        stats.total_time = begin.elapsed();
        drop(logging);
        Ok(Migrated { stats, paused })
    }

    /// Brings the log and moves it into the private bitmaps.
    fn sync(&self, pending: &mut [Pending]) -> Result<u64, SendError> {
        self.memory.sync_all_dirty_logs()?;
        pending.iter_mut().map(Pending::harvest).sum()
    }

    /// Whether what is pending can be sent within the downtime, at the speed of the
    /// last round that sent enough to tell.
    #[allow(clippy::cast_precision_loss)] // an estimate
    fn fits(&self, pending: &[Pending], rounds: &[RoundStats]) -> bool {
        let pages: u64 = pending.iter().map(Pending::count).sum();
        let bytes = pages * PageSize::host().bytes();
        let telling = rounds.iter().rev().find(|round| round.bytes >= 1 << 20);
        let bandwidth = telling.or(rounds.last()).map_or(0.0, RoundStats::bandwidth);
        bytes as f64 <= bandwidth * self.downtime.as_secs_f64()
    }

    fn check_blocks(&self, before: &[Arc<RamBlock>]) -> Result<(), SendError> {
        let after = self.memory.ram_blocks();
        let same = before.len() == after.len()
            && before.iter().zip(&after).all(|(a, b)| Arc::ptr_eq(a, b));
        if same {
            return Ok(());
        }
        let ids = |blocks: &[Arc<RamBlock>]| {
            blocks.iter().map(|block| block.id()).collect::<Vec<_>>().join(", ")
        };
        Err(SendError::BlocksChanged { before: ids(before), after: ids(&after) })
    }

    /// Sends every pending page once, as one section.
    ///
    /// Each part of memory is watched again just before its pages are read, but for the
    /// `last` time: nobody writes any more then.
    fn send_round(
        &self,
        stream: &mut StreamWriter<'_, impl Write>,
        pending: &mut [Pending],
        number: usize,
        last: bool,
    ) -> Result<RoundStats, SendError> {
        let begin = Instant::now();
        let start = stream.position();
        let mut round =
            RoundStats { round: u32::try_from(number).unwrap_or(u32::MAX), ..Default::default() };
        stream.open_section(last);
        for pending in pending {
            let size = pending.block.page_size().bytes();
            let (mut next, mut watched) = (0, 0);
            while let Some(page) = pending.take_next(next) {
                let at = page * size;
                if !last && at >= watched {
                    watched = at.saturating_add(CLEARED);
                    self.memory.log_clear(&pending.block, at..watched)?;
                }
                let zero = stream.pages(&pending.block, at, size)?;
                round.pages += 1;
                round.zero_pages += u64::from(zero);
                next = page + 1;
            }
        }
        stream.close_section();
        stream.flush()?;
        round.bytes = stream.position() - start;
        round.time = begin.elapsed();
        Ok(round)
    }
}

/// Bytes that are watched again at once: as many as cost little more than fewer.
const CLEARED: u64 = 32 << 20;
