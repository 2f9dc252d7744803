//! Forecasts the rounds, the time and the downtime of a migration.

use std::fmt;
use std::time::Duration;

use thiserror::Error;

use crate::converge::auto_converge::{AutoConverge, AutoConvergeError, ThrottleSteps};
use crate::converge::dirty_limit::{DirtyLimit, DirtyLimitError, DirtyLimiter};
use crate::forecast::report::DirtyRateReport;
use crate::forecast::working_set::{WorkingSet, float, round};

/// Bytes of a page, of its record in the stream, and of the record of a zero page.
const PAGE: f64 = 4096.0;
const PAGE_RECORD: f64 = 8.0 + PAGE;
const ZERO_RECORD: f64 = 9.0;

/// The most rounds that are simulated.
const MAX_ROUNDS: u32 = 10_000;

/// A precopy migration to be forecast: the memory to send, the bandwidth, and the guest's
/// writes meanwhile. [`forecast`](Self::forecast) is a pure function of it.
///
/// ```
/// use migration_ram::{AutoConverge, DirtyLimit, MigrationPlan, WorkingSet};
///
/// // 1 TiB over 25 Gbit/s, while 2 GiB/s are dirtied within 64 GiB.
/// let mut plan = MigrationPlan::new(1 << 40, 25_000_000_000 / 8);
/// plan.working_sets = vec![WorkingSet { bytes: 64 << 30, rate: 2 << 30 }];
/// let forecast = plan.forecast()?;
/// assert!(forecast.converges());
/// println!("{forecast}");
///
/// plan.bandwidth /= 2; // less than the guest dirties
/// assert!(!plan.forecast()?.converges());
/// plan.throttle = Some(AutoConverge::default());
/// assert!(plan.forecast()?.converges());
/// (plan.throttle, plan.dirty_limit) = (None, Some(DirtyLimit::default()));
/// assert!(plan.forecast()?.converges());
/// # Ok::<(), migration_ram::PlanError>(())
/// ```
///
/// # What it assumes
///
/// - Each round sends the pages that were dirtied during the one before, each page once; the
///   [`WorkingSet`]s say how many bytes are dirtied in the round's time.
///   [`Precopy`](crate::Precopy) sends less: it syncs the log each second of a round, and a page
///   that is dirtied before the round reaches it is sent once.
/// - The bandwidth is that of the slowest step between the two memories. Reading pages and
///   detecting zero pages is one of them: a machine of zero pages is sent at the speed of
///   memory, not of the link.
/// - A throttled guest dirties less in proportion to the time that it is paused, and a guest
///   with a dirty limit dirties as much as without, but no more than the limit. The throttle
///   and the limit are adjusted at the end of each round, and each round counts. `Precopy`
///   adjusts them each second, so that it slows a large guest down within the first round, and
///   does not count rounds while there is a further step: it converges earlier than forecast.
/// - A pause takes no time, nor do syncs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationPlan {
    /// RAM in bytes, of all blocks.
    pub ram: u64,
    /// Bytes of pages that are not zero; each zero page takes 9 bytes of the stream.
    pub nonzero_bytes: u64,
    /// The guest's writes; empty if it is idle.
    pub working_sets: Vec<WorkingSet>,
    /// Bytes of the stream that can be sent per second.
    pub bandwidth: u64,
    /// The machine is paused when the rest can be sent within this time.
    pub downtime: Duration,
    /// The machine is paused after this many rounds, however much is left.
    pub max_rounds: u32,
    /// The throttle of vCPUs, if any.
    pub throttle: Option<AutoConverge>,
    /// The dirty limit, if any, in place of a throttle.
    pub dirty_limit: Option<DirtyLimit>,
}

/// A [`MigrationPlan`] that contradicts itself.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)] // of fields: the messages say what they are
pub enum PlanError {
    /// The bandwidth is 0.
    #[error("{ram} bytes of RAM cannot be sent with no bandwidth")]
    NoBandwidth { ram: u64 },
    /// More bytes are said to be filled, or to be written, than there is RAM.
    #[error("{what} is {found} bytes, of {ram} bytes of RAM")]
    NotInRam { what: &'static str, found: u128, ram: u64 },
    /// More rounds than are simulated.
    #[error("{found} rounds are planned, {MAX_ROUNDS} are the most")]
    Rounds { found: u32 },
    /// The throttle's settings are out of range.
    #[error(transparent)]
    Throttle(#[from] AutoConvergeError),
    /// The dirty limit's settings are out of range.
    #[error(transparent)]
    DirtyLimit(#[from] DirtyLimitError),
    /// A migration has a throttle or a dirty limit, not both.
    #[error("A throttle and a dirty limit are planned, a migration has one of them")]
    ThrottleAndLimit,
}

impl MigrationPlan {
    /// A plan for `ram` bytes without zero pages, an idle guest, and the defaults of
    /// [`Precopy`](crate::Precopy): 300 ms of downtime, 30 rounds, no throttle and no dirty
    /// limit.
    pub fn new(ram: u64, bandwidth: u64) -> Self {
        let downtime = Duration::from_millis(300);
        let (nonzero_bytes, working_sets) = (ram, Vec::new());
        let (throttle, dirty_limit) = (None, None);
        Self {
            ram,
            nonzero_bytes,
            working_sets,
            bandwidth,
            downtime,
            max_rounds: 30,
            throttle,
            dirty_limit,
        }
    }

    /// As [`new`](Self::new), with the RAM of a machine that was measured, and a working set
    /// for each of its blocks.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use migration_ram::{DirtyRate, MigrationPlan};
    /// # let memory = memory_region::MemoryMap::new();
    /// let report = DirtyRate::measure(&memory, Duration::from_millis(50))?;
    /// let plan = MigrationPlan::measured(&report, 25_000_000_000 / 8);
    /// println!("{}", plan.forecast()?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn measured(report: &DirtyRateReport, bandwidth: u64) -> Self {
        let sets = report.blocks.iter().map(|block| WorkingSet::fit(&block.curve, block.len));
        let working_sets = sets.filter(|set| set.rate > 0).collect();
        Self { working_sets, ..Self::new(report.len, bandwidth) }
    }

    fn check(&self) -> Result<(), PlanError> {
        let &Self { ram, nonzero_bytes, .. } = self;
        let within = |what, found: u128| match found > ram.into() {
            true => Err(PlanError::NotInRam { what, found, ram }),
            false => Ok(()),
        };
        within("What is filled", nonzero_bytes.into())?;
        within("What is written", self.working_sets.iter().map(|set| u128::from(set.bytes)).sum())?;
        if self.bandwidth == 0 {
            return Err(PlanError::NoBandwidth { ram });
        }
        if self.max_rounds > MAX_ROUNDS {
            return Err(PlanError::Rounds { found: self.max_rounds });
        }
        if self.throttle.is_some() && self.dirty_limit.is_some() {
            return Err(PlanError::ThrottleAndLimit);
        }
        Ok(())
    }

    /// Simulates the migration.
    ///
    /// # Errors
    ///
    /// [`PlanError`], if the plan contradicts itself.
    pub fn forecast(&self) -> Result<Forecast, PlanError> {
        self.check()?;
        let mut simulation = Simulation {
            plan: self,
            throttle: self.throttle.map(AutoConverge::steps).transpose()?,
            limit: self.dirty_limit.map(DirtyLimit::begin).transpose()?,
            pending: stream_bytes(self.nonzero_bytes)
                + float(self.ram - self.nonzero_bytes) / PAGE * ZERO_RECORD,
        };
        let mut rounds = Vec::new();
        let mut fits = false;
        while rounds.len() < self.max_rounds as usize && !fits {
            rounds.push(simulation.round());
            fits = simulation.fits();
        }
        let last = simulation.last();
        let (remaining, downtime) = (simulation.left(), last.time);
        let ahead = MAX_ROUNDS - self.max_rounds;
        let outcome = if fits {
            Outcome::Converges
        } else if let Some(more) = (1..=ahead).find(|_| simulation.round_fits()) {
            Outcome::TooFewRounds { needed: self.max_rounds + more }
        } else {
            let downtime = simulation.last().time;
            Outcome::DirtiesTooFast { remaining: simulation.left(), downtime }
        };
        rounds.push(last);
        let seconds: f64 = rounds.iter().map(|round| round.time.as_secs_f64()).sum();
        Ok(Forecast {
            bytes: rounds.iter().fold(0, |sum, round| round.bytes.saturating_add(sum)),
            total_time: duration(seconds),
            downtime,
            remaining,
            rounds,
            outcome,
        })
    }
}

fn stream_bytes(bytes: u64) -> f64 {
    float(bytes) / PAGE * PAGE_RECORD
}

fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

/// A simulated migration between two rounds.
struct Simulation<'a> {
    plan: &'a MigrationPlan,
    throttle: Option<ThrottleSteps>,
    limit: Option<DirtyLimiter>,
    /// Bytes of the stream to be sent in the next round.
    pending: f64,
}

impl Simulation<'_> {
    fn percent(&self) -> u8 {
        self.throttle.as_ref().map_or(0, ThrottleSteps::percent)
    }

    fn dirty_limit(&self) -> Option<u64> {
        self.limit.as_ref().and_then(DirtyLimiter::limit)
    }

    fn seconds(&self) -> f64 {
        self.pending / float(self.plan.bandwidth)
    }

    /// Sends the pending bytes, while the guest writes.
    fn round(&mut self) -> ForecastRound {
        let (seconds, throttle, dirty_limit) = (self.seconds(), self.percent(), self.dirty_limit());
        let runs = f64::from(100 - throttle) / 100.0;
        let wanted: f64 = self.plan.working_sets.iter().map(|set| set.expect(seconds, runs)).sum();
        let expected = dirty_limit.map_or(wanted, |limit| wanted.min(float(limit) * seconds));
        let (bytes, time, dirtied) = (round(self.pending), duration(seconds), round(expected));
        if let Some(steps) = &mut self.throttle {
            steps.observe(time, dirtied, bytes);
        }
        if let Some(limit) = &mut self.limit {
            limit.observe(time, dirtied, bytes);
        }
        self.pending = expected / PAGE * PAGE_RECORD;
        ForecastRound { bytes, time, dirtied, throttle, dirty_limit, paused: false }
    }

    fn fits(&self) -> bool {
        self.seconds() <= self.plan.downtime.as_secs_f64()
    }

    fn round_fits(&mut self) -> bool {
        self.round();
        self.fits()
    }

    /// The round for which the machine is paused.
    fn last(&self) -> ForecastRound {
        let (bytes, time) = (round(self.pending), duration(self.seconds()));
        let (throttle, dirty_limit) = (self.percent(), self.dirty_limit());
        ForecastRound { bytes, time, dirtied: 0, throttle, dirty_limit, paused: true }
    }

    /// Bytes of the pages that are pending.
    fn left(&self) -> u64 {
        round(self.pending / PAGE_RECORD * PAGE)
    }
}

/// A simulated round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ForecastRound {
    /// Bytes of the stream.
    pub bytes: u64,
    /// From the first page to the last.
    pub time: Duration,
    /// Bytes of distinct pages that the guest dirties meanwhile.
    pub dirtied: u64,
    /// Percent of the time for which the vCPUs are paused in it.
    pub throttle: u8,
    /// The dirty limit in bytes per second, if one is in force.
    pub dirty_limit: Option<u64>,
    /// Whether the machine is paused.
    pub paused: bool,
}

/// Whether precopy converges, and if not, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The rest fits the allowed downtime.
    Converges,
    /// The rest would fit the downtime after more rounds than are allowed.
    TooFewRounds {
        /// Rounds after which the rest would fit.
        needed: u32,
    },
    /// The guest dirties so much, even with the largest throttle or the dirty limit, that the
    /// rest never fits the downtime.
    DirtiesTooFast {
        /// Bytes of pages left after each round, in the long run.
        remaining: u64,
        /// The downtime that would have to be allowed for them.
        downtime: Duration,
    },
}

/// The forecast of a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Forecast {
    /// The rounds; the last one with the machine paused.
    pub rounds: Vec<ForecastRound>,
    /// Bytes of the stream.
    pub bytes: u64,
    /// From the first byte to the last.
    pub total_time: Duration,
    /// For how long the machine is paused at the end.
    pub downtime: Duration,
    /// Bytes of pages that are sent in that time.
    pub remaining: u64,
    /// Whether the downtime is within the allowed one, and if not, why.
    pub outcome: Outcome,
}

impl Forecast {
    /// Whether the downtime is within the allowed one.
    pub fn converges(&self) -> bool {
        self.outcome == Outcome::Converges
    }

    /// The percentage of time for which vCPUs are paused at the end of the last round in which
    /// they run.
    pub fn throttle(&self) -> u8 {
        self.rounds.last().map_or(0, |round| round.throttle)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Converges => write!(f, "converges"),
            Self::TooFewRounds { needed } => write!(f, "converges in {needed} rounds only"),
            Self::DirtiesTooFast { remaining, downtime } => {
                write!(f, "dirties too fast: {remaining} bytes are left each time, {downtime:.1?}")
            }
        }
    }
}

impl fmt::Display for Forecast {
    /// A line, and one for each round.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { total_time, downtime, outcome, .. } = self;
        let rounds = self.rounds.len().saturating_sub(1);
        write!(f, "{outcome}: {rounds} rounds in {total_time:.1?}, {downtime:.1?} down")?;
        for (n, round) in self.rounds.iter().enumerate() {
            let ForecastRound { bytes, time, dirtied, throttle, dirty_limit, paused } = round;
            let paused = if *paused { " (paused)" } else { "" };
            write!(
                f,
                "\n  round {n}{paused}: {bytes} bytes in {time:.1?}, {dirtied} bytes dirtied"
            )?;
            if *throttle > 0 {
                write!(f, " at {throttle} %")?;
            }
            if let Some(limit) = dirty_limit {
                write!(f, " of {limit} a second at most")?;
            }
        }
        Ok(())
    }
}
