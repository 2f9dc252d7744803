//! What the refreshes did, as a table for people and as JSON.

use std::fmt;
use std::time::Duration;

use display_vga::Refresh;
use serde_json::{Value, json};

use crate::migrate::Outcome;

#[derive(Default)]
pub struct Table {
    accelerator: &'static str,
    size: (u16, u16),
    frames: u64,
    lines: u64,
    lines_total: u64,
    pages: u64,
    bytes_copied: u64,
    bytes_total: u64,
    syncs: Vec<Duration>,
    draws: Vec<Duration>,
    pub migration: Option<Outcome>,
}

/// The value below which `percent` of `times` lie.
fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

fn microseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e7).round() / 10.0
}

impl Table {
    pub fn new(accelerator: &'static str, size: (u16, u16)) -> Self {
        Self { accelerator, size, ..Self::default() }
    }

    pub fn add(&mut self, refresh: &Refresh) {
        self.frames += 1;
        self.lines += u64::from(refresh.lines);
        self.lines_total += u64::from(refresh.lines_total);
        self.pages += refresh.pages;
        self.bytes_copied += refresh.bytes_copied;
        self.bytes_total += refresh.bytes_total;
        self.syncs.push(refresh.sync_time);
        self.draws.push(refresh.draw_time);
    }

    fn bytes_not_copied(&self) -> u64 {
        self.bytes_total.saturating_sub(self.bytes_copied)
    }

    pub fn json(&self) -> Value {
        let migration = self.migration.as_ref().map(|migration| {
            let rounds = migration.stats.rounds.iter().map(|round| {
                json!({
                    "pages": round.pages,
                    "zero_pages": round.zero_pages,
                    "bytes": round.bytes,
                    "time_us": microseconds(round.time),
                    "dirtied": round.dirtied,
                    "dirty_rate": round.dirty_rate().round(),
                    "paused": round.paused,
                })
            });
            json!({
                "rounds": rounds.collect::<Vec<_>>(),
                "bytes": migration.stats.bytes,
                "time_us": microseconds(migration.stats.total_time),
                "downtime_us": microseconds(migration.stats.downtime),
                "equal_memory": migration.equal_memory,
                "equal_picture": migration.equal_picture,
            })
        });
        json!({
            "accel": self.accelerator,
            "width": self.size.0,
            "height": self.size.1,
            "frames": self.frames,
            "lines_redrawn": self.lines,
            "lines_total": self.lines_total,
            "pages_harvested": self.pages,
            "sync_us_median": microseconds(percentile(&self.syncs, 50)),
            "sync_us_p99": microseconds(percentile(&self.syncs, 99)),
            "draw_us_median": microseconds(percentile(&self.draws, 50)),
            "bytes_copied": self.bytes_copied,
            "bytes_not_copied": self.bytes_not_copied(),
            "migration": migration,
        })
    }
}

impl fmt::Display for Table {
    #[allow(clippy::cast_precision_loss)] // percentages for people
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let (width, height) = self.size;
        writeln!(f, "accelerator       {} ({width}x{height})", self.accelerator)?;
        writeln!(f, "frames            {}", self.frames)?;
        writeln!(
            f,
            "lines redrawn     {} of {} ({:.1} %)",
            self.lines,
            self.lines_total,
            percent(self.lines, self.lines_total)
        )?;
        writeln!(f, "pages harvested   {}", self.pages)?;
        writeln!(
            f,
            "sync time         {:.1?} median, {:.1?} 99th percentile",
            percentile(&self.syncs, 50),
            percentile(&self.syncs, 99)
        )?;
        writeln!(f, "draw time         {:.1?} median", percentile(&self.draws, 50))?;
        write!(
            f,
            "bytes not copied  {} ({:.1} of {:.1} MiB, {:.1} %)",
            self.bytes_not_copied(),
            mib(self.bytes_not_copied()),
            mib(self.bytes_total),
            percent(self.bytes_not_copied(), self.bytes_total)
        )?;
        if let Some(migration) = &self.migration {
            let stats = &migration.stats;
            let equal = |equal| if equal { "equal" } else { "DIFFERENT" };
            write!(
                f,
                "\nmigration         {} bytes in {:.1?}, {:.1?} down; memory {}, picture {}",
                stats.bytes,
                stats.total_time,
                stats.downtime,
                equal(migration.equal_memory),
                equal(migration.equal_picture)
            )?;
            for round in &stats.rounds {
                write!(f, "\n  {round}")?;
            }
        }
        Ok(())
    }
}
