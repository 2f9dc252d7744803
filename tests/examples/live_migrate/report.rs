//! What both sides say in the end.

use std::fmt;
use std::time::Duration;

use migration_ram::{MigrationStats, Progress};
use serde_json::{Value, json};

/// What the destination found.
pub struct Arrival {
    /// Frames that were shown there.
    pub frames: u64,
    /// Whether the last of them is as it should be.
    pub equal_picture: bool,
    /// Whether memory was the same, if it was compared.
    pub equal_memory: Option<bool>,
    /// The guest's counter, when it went on.
    pub beat: u32,
}

impl Arrival {
    pub fn json(&self) -> Value {
        json!({
            "frames": self.frames,
            "equal_picture": self.equal_picture,
            "equal_memory": self.equal_memory,
            "beat": self.beat,
        })
    }

    pub fn parse(line: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(line).ok()?;
        Some(Self {
            frames: value["frames"].as_u64()?,
            equal_picture: value["equal_picture"].as_bool()?,
            equal_memory: value["equal_memory"].as_bool(),
            beat: u32::try_from(value["beat"].as_u64()?).ok()?,
        })
    }

    pub fn is_equal(&self) -> bool {
        self.equal_picture && self.equal_memory != Some(false)
    }
}

/// What the source knows.
pub struct Departure {
    pub tracking: String,
    pub channels: u16,
    pub stats: MigrationStats,
    /// The last progress, with everything that QEMU's `query-migrate` has.
    pub progress: Progress,
    /// From the guest's last sign of life here to its first one there.
    pub guest_downtime: Duration,
    /// The guest's counter at both ends of that.
    pub beats: (u32, u32),
    pub arrival: Option<Arrival>,
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Departure {
    pub fn json(&self) -> Value {
        let parts = self.stats.downtime_parts;
        let rounds = self.stats.rounds.iter().map(|round| {
            json!({
                "pages": round.pages,
                "zero_pages": round.zero_pages,
                "bytes": round.bytes,
                "time_us": micros(round.time),
                "dirtied": round.dirtied,
                "paused": round.paused,
            })
        });
        json!({
            "tracking": self.tracking,
            "channels": self.channels,
            "rounds": rounds.collect::<Vec<_>>(),
            "bytes": self.stats.bytes,
            "time_us": micros(self.stats.total_time),
            "downtime_us": micros(self.stats.downtime),
            "downtime_parts_us": {
                "pause": micros(parts.pause),
                "sync": micros(parts.sync),
                "pages": micros(parts.pages),
                "devices": micros(parts.devices),
                "answer": micros(parts.answer),
            },
            "guest_downtime_us": micros(self.guest_downtime),
            "beats": [self.beats.0, self.beats.1],
            "throttle": self.stats.throttle,
            "dirty_limit": self.stats.dirty_limit,
            "converged": self.stats.converged,
            "query_migrate": self.progress.query_migrate(),
            "destination": self.arrival.as_ref().map(Arrival::json),
        })
    }
}

impl fmt::Display for Departure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = &self.stats;
        writeln!(f, "tracking        {}", self.tracking)?;
        writeln!(f, "channels        {}", self.channels)?;
        writeln!(
            f,
            "migration       {} bytes in {:.1?}, {}",
            stats.bytes,
            stats.total_time,
            if stats.converged { "converged" } else { "stopped by the limit of rounds" }
        )?;
        if stats.throttle > 0 {
            writeln!(f, "throttle        {} %", stats.throttle)?;
        }
        if let Some(limit) = stats.dirty_limit {
            writeln!(f, "dirty limit     {limit} bytes/s")?;
        }
        writeln!(
            f,
            "downtime        {:.1?} by the migration, {:.1?} by the guest's counter ({} to {})",
            stats.downtime, self.guest_downtime, self.beats.0, self.beats.1
        )?;
        writeln!(f, "                {}", stats.downtime_parts)?;
        if let Some(arrival) = &self.arrival {
            let equal = |equal| if equal { "equal" } else { "DIFFERENT" };
            writeln!(
                f,
                "at destination  {} frames, picture {}, memory {}",
                arrival.frames,
                equal(arrival.equal_picture),
                arrival.equal_memory.map_or("not compared", equal)
            )?;
        }
        for (n, round) in stats.rounds.iter().enumerate() {
            let separator = if n + 1 < stats.rounds.len() { "\n" } else { "" };
            write!(f, "  {round}{separator}")?;
        }
        Ok(())
    }
}
