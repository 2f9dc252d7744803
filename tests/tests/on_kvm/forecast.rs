//! Forecasts beside what a guest does that writes random pages. The clock is the guest's
//! own, its stores: a busy host makes it slow, but not wrong.

use std::time::Duration;

use integration_tests::harness::Test;
use machines::guest::{DATA, programs};
use migration_ram::{DirtyRate, DirtySample, MigrationPlan, WorkingSet};
use ram_block::DirtyClient;

use super::machine::{Machine, wait_until};

pub const TESTS: &[Test] =
    &[("rounds_are_as_forecast_from_a_measurement", rounds_are_as_forecast_from_a_measurement)];

/// Pages of the working set.
const SET: u64 = 4096;

/// Bytes of a page in the stream.
const RECORD: u64 = 4104;

/// A second of the guest's clock has so many stores.
const STORES: u64 = 1000;

fn near(found: u64, expected: u64, part: f64) -> bool {
    found.abs_diff(expected) as f64 <= part * expected as f64
}

fn rounds_are_as_forecast_from_a_measurement() {
    let machine = Machine::new(24 << 20);
    let page = machine.block.page_size().bytes();
    let arguments = [DATA + page, SET - 1, page, DATA, 200_000];
    let guest = machine.start(&programs::increment_random_pages(), &arguments);
    let stores = || machine.words::<1>(DATA)[0];
    wait_until("the guest to store", || stores() > 100);

    let mut rate = DirtyRate::begin(&machine.memory).unwrap();
    let begin = stores();
    let mut curve = Vec::new();
    for target in (6..=13).map(|shift| 1 << shift) {
        wait_until("the next look", || stores() - begin >= target);
        let time = stores() - begin;
        let DirtySample { pages, bytes, .. } = rate.sample().unwrap();
        let time = Duration::from_micros((time + stores() - begin) / 2 * 1_000_000 / STORES);
        curve.push(DirtySample { time, pages, bytes });
    }
    drop(rate);
    let set = WorkingSet::fit(&curve, machine.block.len());
    println!("{curve:?}\n{set:?}");
    assert!(near(set.bytes, SET * page, 0.15), "{set:?}");
    assert!(near(set.rate, STORES * page, 0.15), "{set:?}");

    // Over a link that sends one and a half pages for each store.
    let mut plan = MigrationPlan::new(machine.block.len(), STORES * 3 / 2 * RECORD);
    (plan.working_sets, plan.max_rounds, plan.downtime) = (vec![set], 4, Duration::ZERO);
    let forecast = plan.forecast().unwrap();
    println!("{forecast}");
    let mut log = machine.memory.claim_global_log(DirtyClient::MIGRATION).unwrap();
    let mut harvest = || {
        log.sync().unwrap();
        let harvest = log.snapshot_and_clear(&machine.block, 0..machine.block.len()).unwrap();
        harvest.commit().count()
    };
    // What the log begins with.
    harvest();
    harvest();
    let mut pending = machine.block.pages();
    let mut begin = stores();
    for round in forecast.rounds.iter().filter(|round| !round.paused) {
        wait_until("the round to be sent", || (stores() - begin) * 3 / 2 >= pending);
        let ended = stores();
        pending = harvest();
        println!("{} bytes dirtied by {} stores", pending * page, ended - begin);
        assert!(near(pending * page, round.dirtied, 0.15), "{pending} pages\n{forecast}");
        begin = ended;
    }
    drop(log);
    guest.stop().unwrap();
}
