//! Precopy: the algorithm of the source.
//!
//! Order, for each page:
//!
//! 1. sync: the accelerator's log is merged into the block's bitmaps;
//! 2. harvest: the migration's bits move into the send bitmap;
//! 3. the page's bit of the send bitmap is cleared, and the page's log is re-armed;
//! 4. only then the page is read.
//!
//! A store after the read either finds its page clean, and sets its bit, or finds a bit that was
//! set after the sync: in both cases the next sync brings the bit, and the page is sent again.

use std::sync::Arc;
use std::time::Duration;

use memory_region::GlobalLogClaim;
use ram_block::RamBlock;

use crate::converge::trend::is_too_much;
use crate::devices::device::DeviceError;
use crate::error::SendError;
use crate::host::Instant;
use crate::send::devices::encode_first;
use crate::send::multifd::Channels;
use crate::send::pages::Pages;
use crate::send::rate_limit::RateLimit;
use crate::send::return_path::wait_for_the_end;
use crate::send::settings::Precopy;
use crate::send::throttling::Throttler;
use crate::status::progress::{MigrationStatus, Progress};
use crate::status::stats::{DowntimeParts, Laps, MigrationStats, RoundStats, rate};
use crate::wire::format::*;
use crate::wire::transport::ReadTransport;
use crate::wire::writer::SendStream;

/// The number of RAM's section in the stream, an arbitrary one; devices have the next numbers.
const RAM_SECTION: u32 = 2;
/// The time between two calls of the observer within a round.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);
/// The time between two syncs of the log, if a round takes longer.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// The fewest bytes from which the bandwidth is measured: fewer may just fill buffers.
const MIN_SAMPLE_BYTES: u64 = 8 << 20;

/// A migration that its source has completed.
#[derive(Debug)]
#[must_use = "dropping it lets the machine run on, next to its copy"]
#[non_exhaustive]
pub struct Migrated<P> {
    /// Its statistics.
    pub stats: MigrationStats,
    /// The guard that the caller's `pause` returned: the machine is paused as long as it is kept.
    /// Keep it once the destination runs.
    pub paused: P,
}

/// The state of a migration under way.
pub(super) struct Sending<'a> {
    precopy: &'a Precopy,
    stream: SendStream<'a>,
    channels: Option<Channels>,
    pages: Pages<'a>,
    rate_limit: RateLimit,
    observe: &'a mut dyn FnMut(&Progress),
    progress: Progress,
    stats: MigrationStats,
    begin: Instant,
    reported: Instant,
    synced: Instant,
    /// How long the last sync took.
    sync_time: Duration,
    /// Pages of the stream that became pending since the round began.
    dirtied: u64,
    throttler: Throttler,
    /// When the throttler was last adjusted, and the bytes that had been sent by then.
    adjusted: (Instant, u64),
}

impl<'a> Sending<'a> {
    pub(super) fn new(
        precopy: &'a Precopy,
        begin: Instant,
        stream: SendStream<'a>,
        channels: Option<Channels>,
        log: &'a mut GlobalLogClaim,
        blocks: &[Arc<RamBlock>],
        observe: &'a mut dyn FnMut(&Progress),
    ) -> Result<Self, SendError> {
        Ok(Self {
            precopy,
            stream,
            channels,
            pages: Pages::all(log, blocks, precopy.page)?,
            rate_limit: RateLimit::new(precopy.bandwidth),
            observe,
            progress: Progress {
                total: blocks.iter().map(|block| block.len()).sum(),
                page_size: precopy.page.bytes(),
                ..Progress::default()
            },
            stats: MigrationStats::default(),
            begin,
            reported: begin,
            synced: begin,
            sync_time: Duration::ZERO,
            dirtied: 0,
            throttler: Throttler::new(precopy.slowing.as_ref())?,
            adjusted: (begin, 0),
        })
    }

    /// Sends everything: rounds while the machine runs, then the pause and the last round.
    pub(super) fn run<P>(
        &mut self,
        blocks: &[Arc<RamBlock>],
        pause: impl FnOnce() -> Result<P, DeviceError>,
        back: Option<&mut dyn ReadTransport>,
    ) -> Result<Migrated<P>, SendError> {
        // The bits that a new log starts with (KVM_DIRTY_LOG_INITIALLY_SET) are harvested now: all
        // pages are pending anyway. And pages must be reported before the first round can re-arm
        // them.
        self.sync()?;
        self.stream.begin(&self.precopy.machine, self.precopy.page);
        if back.is_some() {
            self.stream.command(MIG_CMD_OPEN_RETURN_PATH, &[]);
        }
        let sections = &self.precopy.sections;
        let devices = u32::try_from(self.precopy.devices.0.len() + sections.len()).unwrap_or(0);
        // Sections before RAM have numbers above those of all later sections.
        encode_first(&mut self.stream, RAM_SECTION + 1 + devices, sections);
        self.block_list(blocks)?;
        self.progress.setup_time = self.begin.elapsed();
        self.progress.state = MigrationStatus::Active;
        self.rounds()?;
        self.stats.throttle = self.progress.throttle;
        self.stats.dirty_limit = self.progress.dirty_limit;

        // Switchover: the downtime begins.
        let (pausing, mut parts) = (Instant::now(), DowntimeParts::default());
        let sent = self.transferred();
        let mut laps = Laps::since(pausing);
        self.throttler.before_pause();
        let paused = pause().map_err(SendError::Pause)?;
        parts.pause = laps.lap();
        self.progress.state = MigrationStatus::Device;
        // The last sync: nothing writes guest memory any more.
        self.pages.harvest()?;
        self.progress.syncs += 1;
        self.check_blocks(blocks)?;
        parts.sync = laps.lap();
        let mut round = self.round(true)?;
        round.paused = true;
        parts.pages = laps.lap();
        let Precopy { devices, sections, page, .. } = self.precopy;
        let description = devices.encode(&mut self.stream, RAM_SECTION + 1, sections, *page)?;
        self.stream.end(&description);
        self.stream.flush()?;
        parts.devices = laps.lap();
        if let Some(back) = back {
            wait_for_the_end(back, self.precopy.deadlines.answer)?;
            parts.answer = laps.lap();
        }
        self.stats.downtime_parts = parts;
        self.stats.bytes = self.transferred();
        self.stats.downtime = pausing.elapsed();
        self.stats.total_time = self.begin.elapsed();
        self.progress.downtime = self.stats.downtime;
        self.progress.downtime_bytes = self.stats.bytes - sent;
        self.progress.state = MigrationStatus::Completed;
        self.end_round(round);
        Ok(Migrated { stats: std::mem::take(&mut self.stats), paused })
    }

    fn block_list(&mut self, blocks: &[Arc<RamBlock>]) -> Result<(), SendError> {
        let stream = &mut self.stream;
        stream.section_head(SECTION_START, RAM_SECTION, RAM_NAME, RAM_INSTANCE, RAM_VERSION);
        stream.u64(self.progress.total | RAM_SAVE_FLAG_MEM_SIZE);
        for block in blocks {
            stream.name(block.id());
            stream.u64(block.len());
        }
        self.close_section()
    }

    /// Ends a section of RAM, after all channels have sent its pages and a sync.
    fn close_section(&mut self) -> Result<(), SendError> {
        if let Some(channels) = &mut self.channels {
            self.stream.flush()?;
            channels.sync()?;
            if self.precopy.says_flush() {
                self.stream.u64(RAM_SAVE_FLAG_MULTIFD_FLUSH);
            }
        }
        self.stream.u64(RAM_SAVE_FLAG_EOS);
        self.stream.footer(RAM_SECTION);
        self.stream.flush()
    }

    /// Sends rounds until the rest fits the downtime, or `max_rounds` were sent.
    fn rounds(&mut self) -> Result<(), SendError> {
        let mut counted = 0;
        while counted < self.precopy.max_rounds {
            let may_be_slowed = self.throttler.has_more();
            let mut round = self.round(false)?;
            let since = self.synced;
            self.sync()?;
            round.dirtied = std::mem::take(&mut self.dirtied);
            round.dirty_period = since.elapsed().max(round.time);
            // A round does not count while it dirties too much and the guest can be slowed down
            // further. One that dirties little counts: it would never trigger the next step.
            let dirtied = round.dirtied * self.progress.page_size;
            counted += u32::from(!(may_be_slowed && is_too_much(dirtied, round.bytes)));
            self.stats.converged = self.fits();
            self.end_round(round);
            if self.stats.converged {
                return Ok(());
            }
        }
        if self.precopy.must_converge {
            return Err(SendError::NotConverging {
                rounds: self.progress.rounds,
                remaining: self.pages.remaining(),
                dirty_rate: self.progress.dirty_rate * self.precopy.page.bytes() as f64,
                bandwidth: self.progress.bandwidth,
            });
        }
        Ok(())
    }

    /// Sends every pending page once, as one section; ends early if a sync within the round finds
    /// that the rest fits the downtime.
    fn round(&mut self, last: bool) -> Result<RoundStats, SendError> {
        let begin = Instant::now();
        let start = self.transferred();
        let (mut measured, mut measured_at) = (start, begin);
        let mut round = RoundStats { round: self.progress.rounds, ..RoundStats::default() };
        let (normal, zero) = (self.progress.normal_pages, self.progress.zero_pages);
        self.stream.u8(if last { SECTION_END } else { SECTION_PART });
        self.stream.u32(RAM_SECTION);
        self.pages.rewind();
        loop {
            let more = self.pages.part(&mut self.stream, &mut self.channels, last, &mut round)?;
            if self.stream.is_full() {
                self.stream.flush()?;
            }
            self.progress.normal_pages = normal + round.pages - round.zero_pages;
            self.progress.zero_pages = zero + round.zero_pages;
            if !more {
                break;
            }
            let sent = self.transferred();
            if last {
                continue; // as fast as possible, and no syncs: the machine is paused
            }
            self.rate_limit.wait(sent, &self.precopy.cancel)?;
            if self.reported.elapsed() >= REPORT_INTERVAL {
                self.measure(sent - measured, measured_at.elapsed());
                self.report(None);
            }
            if self.synced.elapsed().min(begin.elapsed()) >= SYNC_INTERVAL {
                self.sync()?;
                if self.fits() {
                    break;
                }
                // The time of the sync is not part of the bandwidth.
                (measured, measured_at) = (self.transferred(), Instant::now());
            }
        }
        self.close_section()?;
        round.bytes = self.transferred() - start;
        round.time = begin.elapsed();
        self.measure(self.transferred() - measured, measured_at.elapsed());
        Ok(round)
    }

    fn transferred(&self) -> u64 {
        let channels = self.channels.as_ref().map_or(0, Channels::sent);
        self.stream.position() + channels
    }

    /// Syncs the log and moves the migration's bits into the send bitmaps.
    fn sync(&mut self) -> Result<(), SendError> {
        self.precopy.cancel.check()?;
        let (begin, since) = (Instant::now(), self.synced);
        let new = self.pages.harvest()?;
        self.synced = Instant::now();
        self.sync_time = begin.elapsed();
        self.progress.syncs += 1;
        self.dirtied += new;
        if self.progress.state == MigrationStatus::Active {
            self.progress.dirty_rate = rate(new, self.synced - since);
            self.adjust_throttler(new)?;
        }
        Ok(())
    }

    /// Slows the guest down if it dirtied too much since the last call.
    fn adjust_throttler(&mut self, new: u64) -> Result<(), SendError> {
        let (sent, now) = (self.transferred(), Instant::now());
        let (since, before) = std::mem::replace(&mut self.adjusted, (now, sent));
        let (time, dirtied) = (now - since, new * self.progress.page_size);
        self.throttler.observe(time, dirtied, sent - before, &mut self.progress)
    }

    /// Updates the bandwidth, if `bytes` or `time` is enough for a measurement. Few bytes in a
    /// long time count: the connection has become slow, and the downtime must not be estimated
    /// from its former bandwidth.
    fn measure(&mut self, bytes: u64, time: Duration) {
        if bytes >= MIN_SAMPLE_BYTES || time >= SYNC_INTERVAL / 2 || self.progress.bandwidth == 0.0
        {
            self.progress.bandwidth = rate(bytes, time);
        }
    }

    /// The downtime if the machine were paused now: the time to send the pending pages, and that
    /// of the last sync.
    #[allow(clippy::cast_precision_loss)] // an estimate
    fn expected_downtime(&self) -> Option<Duration> {
        let seconds = match self.pages.remaining() {
            0 => 0.0,
            bytes => bytes as f64 / self.progress.bandwidth,
        };
        Duration::try_from_secs_f64(seconds).ok().map(|time| time + self.sync_time)
    }

    /// Whether the pending pages can be sent within the allowed downtime.
    fn fits(&self) -> bool {
        self.pages.remaining() == 0
            || self.expected_downtime().is_some_and(|time| time <= self.precopy.downtime)
    }

    fn end_round(&mut self, round: RoundStats) {
        log::debug!("{round}");
        self.progress.rounds += 1;
        self.stats.rounds.push(round);
        self.report(Some(round));
    }

    fn report(&mut self, round_ended: Option<RoundStats>) {
        self.progress.round_ended = round_ended;
        self.progress.elapsed = self.begin.elapsed();
        self.progress.remaining = self.pages.remaining();
        self.progress.transferred = self.transferred();
        self.progress.channel_bytes = self.channels.as_ref().map_or(0, Channels::sent);
        let is_over = self.progress.state == MigrationStatus::Completed;
        self.progress.expected_downtime = self.expected_downtime().filter(|_| !is_over);
        (self.observe)(&self.progress);
        self.reported = Instant::now();
    }

    fn check_blocks(&self, before: &[Arc<RamBlock>]) -> Result<(), SendError> {
        let after = self.precopy.memory.ram_blocks();
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
}
