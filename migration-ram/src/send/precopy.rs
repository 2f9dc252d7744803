//! A migration under way, from its source.
//!
//! Order, for each page: the accelerator's log is merged into the block's bitmaps,
//! the migration's bits move into a private bitmap, the page's private bit is
//! cleared, and only then the page is read. A store that comes after the read finds
//! its page clean, or its bit set after the sync: either way it is sent again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use memory_region::LogClaim;
use ram_block::RamBlock;

use crate::converge::trend::is_too_much;
use crate::devices::device::DeviceError;
use crate::error::SendError;
use crate::send::devices::encode_first;
use crate::send::multifd::Channels;
use crate::send::pages::Pages;
use crate::send::rate_limit::RateLimit;
use crate::send::return_path::wait_for_the_end;
use crate::send::settings::Precopy;
use crate::send::throttling::Brake;
use crate::status::progress::{Progress, State};
use crate::status::stats::{DowntimeParts, Laps, MigrationStats, RoundStats, rate};
use crate::wire::format::*;
use crate::wire::transport::ReadTransport;
use crate::wire::writer::SendStream;

/// The number of RAM's section in the stream; any would do. Devices follow it.
const RAM_SECTION: u32 = 2;
/// From one call of the observer to the next, within a round.
const REPORT: Duration = Duration::from_millis(100);
/// From one sync of the log to the next, if a round takes longer.
const SYNC: Duration = Duration::from_secs(1);
/// Fewer bytes than this say little of the connection: buffers take them.
const TELLING: u64 = 8 << 20;

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

/// A migration under way.
pub(super) struct Sending<'a> {
    precopy: &'a Precopy,
    stream: SendStream<'a>,
    channels: Option<Channels>,
    pages: Pages<'a>,
    pace: RateLimit,
    observe: &'a mut dyn FnMut(&Progress),
    progress: Progress,
    stats: MigrationStats,
    begin: Instant,
    reported: Instant,
    synced: Instant,
    /// What the last sync took.
    sync_time: Duration,
    /// Pages that were newly dirty since the round began.
    dirtied: u64,
    brake: Brake,
    /// When it was last judged whether to slow the guest down, and what was sent until then.
    judged: (Instant, u64),
}

impl<'a> Sending<'a> {
    pub(super) fn new(
        precopy: &'a Precopy,
        begin: Instant,
        stream: SendStream<'a>,
        channels: Option<Channels>,
        log: &'a LogClaim,
        blocks: &[Arc<RamBlock>],
        observe: &'a mut dyn FnMut(&Progress),
    ) -> Result<Self, SendError> {
        Ok(Self {
            precopy,
            stream,
            channels,
            pages: Pages::all(&precopy.memory, log, blocks, precopy.page),
            pace: RateLimit::new(precopy.bandwidth),
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
            brake: Brake::new(precopy.slowing.as_ref())?,
            judged: (begin, 0),
        })
    }

    /// Sends everything, first while the machine runs.
    pub(super) fn run<P>(
        &mut self,
        blocks: &[Arc<RamBlock>],
        pause: impl FnOnce() -> Result<P, DeviceError>,
        back: Option<&mut dyn ReadTransport>,
    ) -> Result<Migrated<P>, SendError> {
        // What a log starts with is among what is pending; and pages that were reported can
        // be watched again from the first round on.
        self.sync()?;
        self.stream.begin(&self.precopy.machine, self.precopy.page);
        if back.is_some() {
            self.stream.command(MIG_CMD_OPEN_RETURN_PATH, &[]);
        }
        let sections = &self.precopy.sections;
        let devices = u32::try_from(self.precopy.devices.0.len() + sections.len()).unwrap_or(0);
        // Numbers that no later section has.
        encode_first(&mut self.stream, RAM_SECTION + 1 + devices, sections);
        self.block_list(blocks)?;
        self.progress.setup_time = self.begin.elapsed();
        self.progress.state = State::Active;
        self.rounds()?;
        self.stats.throttle = self.progress.throttle;
        self.stats.dirty_limit = self.progress.dirty_limit;

        let (pausing, mut parts) = (Instant::now(), DowntimeParts::default());
        let sent = self.transferred();
        let mut laps = Laps::since(pausing);
        self.brake.before_pause();
        let paused = pause().map_err(SendError::Pause)?;
        parts.pause = laps.lap();
        self.progress.state = State::Device;
        self.precopy.memory.sync_all_dirty_logs()?;
        self.progress.syncs += 1;
        self.pages.harvest()?;
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
        self.progress.state = State::Completed;
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

    /// Ends a section of RAM; all channels have sent what belongs to it.
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

    /// Rounds until the rest fits the downtime, or no more are allowed.
    fn rounds(&mut self) -> Result<(), SendError> {
        let mut counted = 0;
        while counted < self.precopy.max_rounds {
            let may_be_slowed = self.brake.has_more();
            let mut round = self.round(false)?;
            let since = self.synced;
            self.sync()?;
            round.dirtied = std::mem::take(&mut self.dirtied);
            round.dirty_period = since.elapsed().max(round.time);
            // A guest that writes little is not slowed down, however long one waits for it.
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

    /// Sends every pending page once, as one section; ends early if a sync meanwhile says
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
                continue;
            }
            self.pace.wait(sent, &self.precopy.cancel)?;
            if self.reported.elapsed() >= REPORT {
                self.measure(sent - measured, measured_at.elapsed());
                self.report(None);
            }
            if self.synced.elapsed().min(begin.elapsed()) >= SYNC {
                self.sync()?;
                if self.fits() {
                    break;
                }
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

    /// Brings the log and moves it into the private bitmaps.
    fn sync(&mut self) -> Result<(), SendError> {
        self.precopy.cancel.check()?;
        let (begin, since) = (Instant::now(), self.synced);
        self.precopy.memory.sync_all_dirty_logs()?;
        let new = self.pages.harvest()?;
        self.synced = Instant::now();
        self.sync_time = begin.elapsed();
        self.progress.syncs += 1;
        self.dirtied += new;
        if self.progress.state == State::Active {
            self.progress.dirty_rate = rate(new, self.synced - since);
            self.judge(new)?;
        }
        Ok(())
    }

    /// Slows the guest down if it writes too much.
    fn judge(&mut self, new: u64) -> Result<(), SendError> {
        let (sent, now) = (self.transferred(), Instant::now());
        let (since, before) = std::mem::replace(&mut self.judged, (now, sent));
        let (time, dirtied) = (now - since, new * self.progress.page_size);
        self.brake.observe(time, dirtied, sent - before, &mut self.progress)
    }

    /// What the connection carries, if that was enough to tell. Little in a long time is a slow
    /// connection, which a machine must not be paused for as if it were still a fast one.
    fn measure(&mut self, bytes: u64, time: Duration) {
        if bytes >= TELLING || time >= SYNC / 2 || self.progress.bandwidth == 0.0 {
            self.progress.bandwidth = rate(bytes, time);
        }
    }

    /// How long the machine will stand still if it is paused now.
    #[allow(clippy::cast_precision_loss)] // an estimate
    fn expected_downtime(&self) -> Option<Duration> {
        let seconds = match self.pages.remaining() {
            0 => 0.0,
            bytes => bytes as f64 / self.progress.bandwidth,
        };
        Duration::try_from_secs_f64(seconds).ok().map(|time| time + self.sync_time)
    }

    /// Whether what is pending can be sent within the downtime.
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
        let is_over = self.progress.state == State::Completed;
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
