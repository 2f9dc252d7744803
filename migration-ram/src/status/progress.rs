//! The progress of a migration.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::status::stats::RoundStats;

/// The state of a migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum MigrationStatus {
    /// It is being set up.
    #[default]
    Setup,
    /// The machine runs, and pages are sent.
    Active,
    /// The machine is paused; the rest of the pages and the devices are sent.
    Device,
    /// The source has sent everything, and received the acknowledgement if there is a return path.
    Completed,
}

/// A migration under way, as its observer sees it: at the end of each round, and every
/// tenth of a second in between.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Progress {
    /// The state.
    pub state: MigrationStatus,
    /// The round that just ended, if one did.
    pub round_ended: Option<RoundStats>,
    /// Rounds that ended.
    pub rounds: u32,
    /// Time since the migration began.
    pub elapsed: Duration,
    /// Time until the first page was sent.
    pub setup_time: Duration,
    /// RAM, in bytes.
    pub total: u64,
    /// Pending pages as of the last sync, in bytes.
    pub remaining: u64,
    /// Bytes sent so far, on all connections.
    pub transferred: u64,
    /// The part of them that was sent on channels.
    pub channel_bytes: u64,
    /// Pages of the stream that were sent with their contents.
    pub normal_pages: u64,
    /// Pages of the stream that were sent as zeros.
    pub zero_pages: u64,
    /// Bytes of a page of the stream.
    pub page_size: u64,
    /// Bytes sent per second, as last measured.
    pub bandwidth: f64,
    /// Pages of the stream dirtied per second, between the last two syncs.
    pub dirty_rate: f64,
    /// The downtime if the machine were paused now; `None` if there is no estimate, or the
    /// migration is completed.
    pub expected_downtime: Option<Duration>,
    /// The downtime of a completed migration.
    pub downtime: Duration,
    /// Bytes sent during the downtime.
    pub downtime_bytes: u64,
    /// Syncs of the dirty log.
    pub syncs: u64,
    /// Percent of the time for which the vCPUs are throttled.
    pub throttle: u8,
    /// The guest's dirty limit in bytes per second, if one is set.
    pub dirty_limit: Option<u64>,
}

impl Progress {
    /// The part of RAM that is not pending, in percent. It falls as pages are dirtied.
    pub fn percent(&self) -> u8 {
        let done = u128::from(self.total.saturating_sub(self.remaining)) * 100;
        u8::try_from(done / u128::from(self.total.max(1))).unwrap_or(100)
    }

    /// The progress in the fields of QEMU's `query-migrate`, to be serialized.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // rates fit
    pub fn query_migrate(&self) -> QueryMigrate {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        QueryMigrate {
            status: self.state,
            total_time: millis(self.elapsed),
            setup_time: millis(self.setup_time),
            downtime: (self.state == MigrationStatus::Completed).then(|| millis(self.downtime)),
            expected_downtime: self.expected_downtime.map(millis),
            cpu_throttle_percentage: (self.throttle > 0).then_some(self.throttle),
            ram: QueryMigrateRam {
                transferred: self.transferred,
                remaining: self.remaining,
                total: self.total,
                duplicate: self.zero_pages,
                skipped: 0,
                normal: self.normal_pages,
                normal_bytes: self.normal_pages * self.page_size,
                dirty_pages_rate: self.dirty_rate as u64,
                mbps: self.bandwidth * 8.0 / 1e6,
                dirty_sync_count: self.syncs,
                page_size: self.page_size,
                multifd_bytes: self.channel_bytes,
                precopy_bytes: self.transferred - self.downtime_bytes,
                downtime_bytes: self.downtime_bytes,
                postcopy_bytes: 0,
                postcopy_requests: 0,
                dirty_sync_missed_zero_copy: 0,
                pages_per_second: (self.bandwidth / self.page_size.max(1) as f64) as u64,
            },
        }
    }
}

/// A [`Progress`] in the names and units of QEMU's `query-migrate` (QAPI
/// `MigrationInfo`): bytes, milliseconds, pages, megabits per second.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)] // QEMU's names
#[non_exhaustive]
pub struct QueryMigrate {
    pub status: MigrationStatus,
    pub total_time: u64,
    pub setup_time: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downtime: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_downtime: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_percentage: Option<u8>,
    pub ram: QueryMigrateRam,
}

/// The part of [`QueryMigrate`] about RAM (QAPI `MigrationStats`).
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)] // QEMU's names
#[non_exhaustive]
pub struct QueryMigrateRam {
    pub transferred: u64,
    pub remaining: u64,
    pub total: u64,
    pub duplicate: u64,
    pub skipped: u64,
    pub normal: u64,
    pub normal_bytes: u64,
    pub dirty_pages_rate: u64,
    pub mbps: f64,
    pub dirty_sync_count: u64,
    pub page_size: u64,
    pub multifd_bytes: u64,
    pub precopy_bytes: u64,
    pub downtime_bytes: u64,
    pub postcopy_bytes: u64,
    pub postcopy_requests: u64,
    pub dirty_sync_missed_zero_copy: u64,
    pub pages_per_second: u64,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?}, round {}: {} %, {} of {} MiB left, {:.0} MiB/s, {:.0} pages/s written",
            self.state,
            self.rounds,
            self.percent(),
            self.remaining >> 20,
            self.total >> 20,
            self.bandwidth / f64::from(1 << 20),
            self.dirty_rate,
        )?;
        if let Some(downtime) = self.expected_downtime {
            write!(f, ", {downtime:.0?} down if paused now")?;
        }
        if self.throttle > 0 {
            write!(f, ", vCPUs throttled by {} %", self.throttle)?;
        }
        if let Some(limit) = self.dirty_limit {
            write!(f, ", limited to dirty {} MiB/s", limit >> 20)?;
        }
        Ok(())
    }
}
