//! Forecasts compared with a page-by-page simulation, and the table of the documentation.

use std::time::Duration;

use migration_ram::{
    AutoConverge, BlockDirtyRate, DirtyLimit, DirtyRateReport, DirtySample, Forecast,
    MigrationPlan, Outcome, PlanError, WorkingSet,
};
use proptest::prelude::*;

/// A page as the stream has it, and as it is in memory.
const RECORD: u64 = 4104;
const PAGE: u64 = 4096;

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn times(number: u64, by: f64) -> u64 {
    (number as f64 * by) as u64
}

fn forecast(plan: &MigrationPlan) -> Forecast {
    plan.forecast().unwrap()
}

fn any_set(ram: u64) -> impl Strategy<Value = WorkingSet> {
    (1..=ram / 4, 0u64..40 << 30).prop_map(|(bytes, rate)| WorkingSet { bytes, rate })
}

fn any_plan() -> impl Strategy<Value = MigrationPlan> {
    let throttle = (1u8..=99, 1u8..=99, 1u8..=99).prop_map(|(a, increment, b)| {
        let (initial, max) = (a.min(b), a.max(b));
        (Some(AutoConverge { initial, increment, max }), None)
    });
    let limit = (1u8..=99, 1u64..1 << 30)
        .prop_map(|(percent, floor)| (None, Some(DirtyLimit { percent, floor })));
    let slowing = prop_oneof![Just((None, None)), throttle, limit];
    let numbers = (30u32..45, 0.0f64..=1.0, 20u32..36, 0u64..5000, 0u32..60);
    (numbers, slowing).prop_flat_map(|(numbers, (throttle, dirty_limit))| {
        let (size, filled, bandwidth, downtime, max_rounds) = numbers;
        let ram = 1 << size;
        prop::collection::vec(any_set(ram), 0..4).prop_map(move |working_sets| MigrationPlan {
            ram,
            nonzero_bytes: times(ram, filled),
            working_sets,
            bandwidth: 1 << bandwidth,
            downtime: Duration::from_millis(downtime),
            max_rounds,
            throttle,
            dirty_limit,
        })
    })
}

/// Equal but for a rounding.
fn near(a: u64, b: u64) -> bool {
    a.abs_diff(b) <= 2 + a.max(b) / 1_000_000_000
}

proptest! {
    /// Each round sends the pages that were dirtied in the one before; bytes, times and the
    /// downtime add up.
    #[test]
    fn nothing_comes_from_nowhere(plan in any_plan()) {
        let found = forecast(&plan);
        let (last, rounds) = found.rounds.split_last().unwrap();
        prop_assert!(last.paused && rounds.iter().all(|round| !round.paused));
        prop_assert!(rounds.len() <= plan.max_rounds as usize);
        let zeros = (plan.ram - plan.nonzero_bytes) / PAGE * 9;
        let all = plan.nonzero_bytes / PAGE * RECORD + zeros;
        prop_assert!(found.rounds[0].bytes.abs_diff(all) <= 2 * RECORD);
        for pair in found.rounds.windows(2) {
            prop_assert!(pair[1].bytes.abs_diff(pair[0].dirtied / PAGE * RECORD) <= 2 * RECORD);
        }
        let sets: u64 = plan.working_sets.iter().map(|set| set.bytes).sum();
        prop_assert!(rounds.iter().all(|round| round.dirtied <= sets + 1));
        for round in rounds {
            let allowed = round.dirty_limit.map(|limit| limit as f64 * round.time.as_secs_f64());
            let dirtied = round.dirtied as f64;
            prop_assert!(allowed.is_none_or(|allowed| dirtied <= allowed * (1.0 + 1e-6) + 2.0));
        }
        prop_assert!(near(found.bytes, found.rounds.iter().map(|round| round.bytes).sum()));
        let time: f64 = found.rounds.iter().map(|round| round.time.as_secs_f64()).sum();
        prop_assert!((found.total_time.as_secs_f64() - time).abs() <= 1e-6 * (1.0 + time));
        prop_assert_eq!(found.downtime, last.time);
        let fits = found.downtime <= plan.downtime + Duration::from_nanos(1);
        match found.outcome {
            Outcome::Converges => prop_assert!(fits),
            Outcome::TooFewRounds { needed } => prop_assert!(needed > plan.max_rounds),
            Outcome::DirtiesTooFast { downtime, .. } => prop_assert!(downtime > plan.downtime),
            other => prop_assert!(false, "{other:?}"),
        }
    }

    /// For a guest that is not slowed down, more bandwidth, more downtime and fewer writes never
    /// make the result worse.
    #[test]
    fn more_is_never_worse(plan in any_plan(), more in 1.0f64..3.0) {
        let plan = MigrationPlan { throttle: None, dirty_limit: None, ..plan };
        let faster = |set: &WorkingSet| WorkingSet { rate: times(set.rate, more), ..*set };
        let better = [
            (plan.clone(),
                MigrationPlan { bandwidth: times(plan.bandwidth, more), ..plan.clone() }),
            (plan.clone(), MigrationPlan { downtime: plan.downtime.mul_f64(more), ..plan.clone() }),
            (
                {
                    let working_sets = plan.working_sets.iter().map(faster).collect();
                    MigrationPlan { working_sets, ..plan.clone() }
                },
                plan,
            ),
        ];
        for (worse, better) in better {
            let (before, after) = (forecast(&worse), forecast(&better));
            prop_assert!(after.converges() || !before.converges(), "{}\n{}", before, after);
            prop_assert!(after.rounds.len() <= before.rounds.len(), "{}\n{}", before, after);
            let slack = before.total_time.mul_f64(1e-6) + Duration::from_nanos(100);
            prop_assert!(after.total_time <= before.total_time + slack, "{}\n{}", before, after);
        }
    }
}

/// A guest that writes random pages, sent page by page.
struct Guest {
    dirty: Vec<bool>,
    random: u64,
    /// Writes that are due, in parts of one.
    due: f64,
    /// Pages that it may still dirty, in parts of one.
    allowed: f64,
}

impl Guest {
    fn write(&mut self, writes: f64, allowed: f64) {
        self.due += writes;
        self.allowed += allowed;
        while self.due >= 1.0 {
            self.due -= 1.0;
            // SplitMix64.
            self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.random;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let pages = self.dirty.len() as u64;
            let dirty = &mut self.dirty[usize::try_from((z ^ (z >> 31)) % pages).unwrap()];
            if !*dirty && self.allowed >= 1.0 {
                *dirty = true;
                self.allowed -= 1.0;
            }
        }
    }
}

/// Pages, and pages per second.
#[derive(Clone, Copy, Debug)]
struct Small {
    ram: usize,
    set: usize,
    rate: f64,
    bandwidth: f64,
    allowed: f64,
    rounds: u32,
    slowing: Slowing,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Slowing {
    None,
    Throttle,
    Limit,
}

impl Small {
    fn plan(self) -> MigrationPlan {
        let mut plan = MigrationPlan::new(self.ram as u64 * PAGE, times(RECORD, self.bandwidth));
        let (size, rate) = (self.set as u64 * PAGE, times(PAGE, self.rate));
        plan.working_sets = vec![WorkingSet { bytes: size, rate }];
        plan.downtime = Duration::from_secs_f64(self.allowed / self.bandwidth);
        plan.max_rounds = self.rounds;
        plan.throttle = (self.slowing == Slowing::Throttle).then(AutoConverge::default);
        let half = DirtyLimit { percent: 50, floor: PAGE };
        plan.dirty_limit = (self.slowing == Slowing::Limit).then_some(half);
        plan
    }

    /// Whether it converges, and the pages of each round.
    fn simulate(self, seed: u64) -> (bool, Vec<usize>) {
        let dirty = vec![false; self.set];
        let mut guest = Guest { dirty, random: seed, due: 0.0, allowed: 0.0 };
        let (mut pending, mut sent) = (self.ram, Vec::new());
        let (mut percent, mut row, mut limited) = (0.0, 0, false);
        for _ in 0..self.rounds {
            guest.allowed = 0.0;
            for _ in 0..pending {
                // Half of what is sent.
                let allowed = if limited { 0.5 } else { 1.0 / f64::EPSILON };
                guest.write(self.rate / self.bandwidth * (1.0 - percent / 100.0), allowed);
            }
            sent.push(pending);
            let dirtied = guest.dirty.iter_mut().map(std::mem::take).filter(|dirty| *dirty).count();
            // Rounds are longer than a second here.
            row = if 2 * dirtied > pending { row + 1 } else { 0 };
            limited |= self.slowing == Slowing::Limit && row == 2;
            if self.slowing == Slowing::Throttle && row == 2 {
                row = 0;
                percent = if percent == 0.0 { 20.0 } else { f64::min(percent + 10.0, 99.0) };
            }
            pending = dirtied;
            if pending as f64 <= self.allowed {
                sent.push(pending);
                return (true, sent);
            }
        }
        sent.push(pending);
        (false, sent)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// A migration that converges by a margin in the forecast converges in a simulation of every
    /// page and every write.
    #[test]
    fn a_simulation_page_by_page_says_the_same(
        set in 4_000usize..20_000, rate in 1.0f64..400.0, allowed in 800.0f64..4_000.0,
        rounds in 1u32..40, seed in any::<u64>(),
        slowing in prop::sample::select(vec![Slowing::None, Slowing::Throttle, Slowing::Limit]),
    ) {
        let small =
            Small { ram: 20_000, set, rate, bandwidth: 100.0, allowed, rounds, slowing };
        let margins = [0.85, 1.0, 1.15];
        let varied = margins.iter().flat_map(|rate| margins.map(|allowed| (*rate, allowed)));
        let outcomes: Vec<bool> = varied.map(|(rate, allowed)| {
            let (rate, allowed) = (small.rate * rate, small.allowed * allowed);
            forecast(&Small { rate, allowed, ..small }.plan()).converges()
        }).collect();
        let sure = outcomes.iter().all(|converges| *converges == outcomes[0]);
        let (converges, sent) = small.simulate(seed);
        let expected = forecast(&small.plan());
        if sure {
            prop_assert_eq!(converges, expected.converges(), "{}\n{:?}", expected, sent);
        }
        // The first rounds, before chance adds up.
        for (round, pages) in expected.rounds.iter().zip(&sent).take(3) {
            let (there, here) = (round.bytes as f64 / RECORD as f64, *pages as f64);
            prop_assert!((there - here).abs() <= 0.15 * there + 60.0, "{}\n{:?}", expected, sent);
        }
    }
}

#[test]
fn what_is_in_the_way_is_said() {
    let mut plan = MigrationPlan::new(100 << 30, 1 << 30);
    assert!(forecast(&plan).converges());
    assert_eq!(forecast(&plan).rounds.len(), 2);
    // Twice what is sent, within 10 GiB: 10 s for all of it, and it is dirty again.
    plan.working_sets = vec![WorkingSet { bytes: 10 << 30, rate: 2 << 30 }];
    let Outcome::DirtiesTooFast { remaining: left, downtime } = forecast(&plan).outcome else {
        panic!()
    };
    assert_eq!((left >> 28, downtime.as_secs()), (31, 7)); // x = 1 - e^-2x: 0.797
    plan.downtime = Duration::from_secs(8);
    assert!(forecast(&plan).converges());
    // Nearly as much as is sent: each round is a little shorter.
    plan = MigrationPlan { downtime: Duration::from_millis(300), ..plan };
    plan.working_sets[0].rate = 1000 << 20;
    let Outcome::TooFewRounds { needed } = forecast(&plan).outcome else { panic!() };
    plan.max_rounds = needed - 1;
    assert!(!forecast(&plan).converges());
    plan.max_rounds = needed;
    assert!(forecast(&plan).converges());
    assert_eq!(forecast(&plan).rounds.len(), needed as usize + 1);
    plan.max_rounds = 0;
    let stopped = forecast(&plan);
    assert_eq!((stopped.rounds.len(), stopped.total_time), (1, stopped.downtime));
}

/// Each round leaves half as much as the one before, from the third on.
#[test]
fn a_dirty_limit_ends_what_a_link_cannot_follow() {
    let mut plan = MigrationPlan::new(48 << 30, 1 << 30);
    plan.working_sets = vec![WorkingSet { bytes: 32 << 30, rate: 4 << 30 }];
    assert!(matches!(forecast(&plan).outcome, Outcome::DirtiesTooFast { .. }));
    plan.dirty_limit = Some(DirtyLimit::default());
    let found = forecast(&plan);
    assert!(found.converges(), "{found}");
    let limits: Vec<_> = found.rounds.iter().map(|round| round.dirty_limit).collect();
    assert_eq!(limits[..2], [None; 2]);
    assert!(limits[2..].iter().flatten().all(|limit| near(*limit, 1 << 29)), "{found}");
    for pair in found.rounds[2..].windows(2) {
        let half = pair[0].bytes / 2;
        assert!(pair[1].bytes.abs_diff(half) <= half / 100 + RECORD, "{found}");
    }
    assert!(found.to_string().ends_with(&format!(" of {} a second at most", limits[2].unwrap())));
}

#[test]
fn what_was_measured_is_planned_for() {
    let curve = |bytes: &[u64]| {
        let sample = |(n, bytes): (usize, &u64)| DirtySample {
            time: Duration::from_secs(1 << n),
            pages: bytes / PAGE,
            bytes: *bytes,
        };
        bytes.iter().enumerate().map(sample).collect::<Vec<_>>()
    };
    let block = |id: &str, len, curve| BlockDirtyRate { id: id.to_owned(), len, curve };
    let set = WorkingSet { bytes: 1 << 30, rate: 300 << 20 };
    let bends = [1, 2, 4, 8].map(|seconds| set.dirtied(Duration::from_secs(seconds)));
    let blocks = vec![
        block("idle", 1 << 30, curve(&[0; 4])),
        block("ram", 8 << 30, curve(&bends)),
        block("vram", 16 << 20, curve(&[8 << 20; 4])),
    ];
    let report = DirtyRateReport { len: (9 << 30) + (16 << 20), curve: curve(&[0; 4]), blocks };
    let plan = MigrationPlan::measured(&report, 1 << 30);
    assert_eq!((plan.ram, plan.nonzero_bytes), (report.len, report.len));
    let [ram, vram] = &plan.working_sets[..] else { panic!("{plan:?}") };
    assert!(ram.bytes.abs_diff(1 << 30) < 1 << 24 && ram.rate.abs_diff(300 << 20) < 5 << 20);
    // All of the set within the first second.
    assert!(vram.bytes.abs_diff(8 << 20) < 1 << 16 && vram.rate > 8 << 20, "{vram:?}");
    assert!(forecast(&plan).converges());
}

#[test]
fn plans_that_mean_nothing_are_refused() {
    let plan = MigrationPlan::new(1 << 30, 1 << 30);
    let refused = |plan: MigrationPlan| plan.forecast().unwrap_err();
    let error = refused(MigrationPlan { bandwidth: 0, ..plan.clone() });
    assert_eq!(error, PlanError::NoBandwidth { ram: 1 << 30 });
    let error = refused(MigrationPlan { nonzero_bytes: 2 << 30, ..plan.clone() });
    assert!(matches!(error, PlanError::NotInRam { what: "What is filled", .. }));
    let set = WorkingSet { bytes: u64::MAX, rate: u64::MAX };
    let error = refused(MigrationPlan { working_sets: vec![set; 3], ..plan.clone() });
    assert!(matches!(error, PlanError::NotInRam { what: "What is written", .. }));
    let error = refused(MigrationPlan { max_rounds: u32::MAX, ..plan.clone() });
    assert_eq!(error, PlanError::Rounds { found: u32::MAX });
    let steps = AutoConverge { max: 100, ..AutoConverge::default() };
    let error = refused(MigrationPlan { throttle: Some(steps), ..plan.clone() });
    assert!(matches!(error, PlanError::Throttle(_)));
    let limit = DirtyLimit { percent: 100, floor: 1 };
    let error = refused(MigrationPlan { dirty_limit: Some(limit), ..plan.clone() });
    assert!(matches!(error, PlanError::DirtyLimit(_)));
    let (throttle, dirty_limit) = (Some(AutoConverge::default()), Some(DirtyLimit::default()));
    let error = refused(MigrationPlan { throttle, dirty_limit, ..plan });
    assert_eq!(error, PlanError::ThrottleAndLimit);
    // The largest numbers are only slow.
    let mut plan = MigrationPlan::new(u64::MAX, 1);
    plan.working_sets = vec![WorkingSet { bytes: u64::MAX, rate: u64::MAX }];
    plan.downtime = Duration::MAX;
    assert_eq!(forecast(&plan).total_time, Duration::MAX);
}

/// Prints the table of docs/performance.md.
#[test]
fn the_documentations_table_is_what_is_forecast() {
    let documentation = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/performance.md");
    let documentation = std::fs::read_to_string(documentation).unwrap();
    let mut lacks = Vec::new();
    for tebibytes in [1, 4, 16] {
        for gigabits in [10, 25, 100] {
            let ram = tebibytes << 40;
            let mut plan = MigrationPlan::new(ram, gigabits * 1_000_000_000 / 8);
            plan.nonzero_bytes = ram / 2;
            plan.working_sets = vec![
                WorkingSet { bytes: ram / 16, rate: 1 << 30 },
                WorkingSet { bytes: 256 << 20, rate: 1 << 29 },
            ];
            let plain = forecast(&plan);
            plan.throttle = Some(AutoConverge::default());
            let slowed = forecast(&plan);
            let show = |forecast: &Forecast| {
                let rounds = forecast.rounds.len() - 1;
                let minutes = forecast.total_time.as_secs_f64() / 60.0;
                let down = forecast.downtime.as_secs_f64() * 1e3;
                format!("{rounds:6} {minutes:7.0} {down:8.0}")
            };
            let line = format!(
                "{tebibytes:3} {gigabits:7}  {}  {} {:4}",
                show(&plain),
                show(&slowed),
                slowed.throttle()
            );
            lacks.extend(Some(line).filter(|line| !documentation.contains(line)));
        }
    }
    assert!(lacks.is_empty(), "docs/performance.md lacks\n{}", lacks.join("\n"));
}
