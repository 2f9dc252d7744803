//! All vCPUs of a machine together.

use std::time::Duration;

use integration_tests::harness::Test;
use kvm_accel::{KvmError, RollBack, VcpuEvent, VcpuSet};
use machines::guest::{DATA, ENDED, boot, boot_at, programs};

use super::machine::{Machine, wait_until};

pub const TESTS: &[Test] = &[
    ("a_set_starts_stops_and_runs_on", a_set_starts_stops_and_runs_on),
    ("a_set_is_saved_restored_and_put_back", a_set_is_saved_restored_and_put_back),
    ("a_set_tells_who_ended", a_set_tells_who_ended),
    ("a_kick_that_comes_too_late_ends_no_later_run", a_kick_that_comes_too_late_ends_no_later_run),
];

const RAM: u64 = 16 << 20;
/// What each vCPU counts, and where its code is.
const COUNTERS: [u64; 3] = [DATA, DATA + 0x1000, DATA + 0x2000];
const CODES: u64 = 0x2_0000;

/// vCPUs of which each counts passes, in registers and in memory, over a page of its own.
fn counting(machine: &Machine) -> VcpuSet {
    let set = VcpuSet::new(COUNTERS.map(|_| machine.vcpu()));
    set.each(|index, vcpu| {
        let at = CODES + 0x1000 * index as u64;
        let (counter, page) = (COUNTERS[index], DATA + 0x10_0000 + 0x1000 * index as u64);
        let program = programs::store_and_copy_back(at);
        boot_at(vcpu, &machine.block, at, &program, &[page, counter]);
        Ok::<_, KvmError>(())
    })
    .unwrap();
    set
}

fn counts(machine: &Machine) -> [u64; 3] {
    COUNTERS.map(|at| machine.words::<1>(at)[0])
}

fn wait_for_all(machine: &Machine) {
    let before = counts(machine);
    wait_until("all vCPUs to count", || {
        counts(machine).iter().zip(before).all(|(now, before)| *now > before)
    });
}

fn a_set_starts_stops_and_runs_on() {
    let machine = Machine::new(RAM);
    let set = counting(&machine);
    assert_eq!(set.count(), 3);
    set.start().unwrap();
    set.start().unwrap(); // those that run go on
    for _ in 0..20 {
        wait_for_all(&machine);
        let refused = set.save().unwrap_err();
        assert!(matches!(refused, KvmError::VcpuRuns { index: 0 }), "{refused}");
        assert!(!set.is_finished());
        let stopped = set.stop().unwrap();
        let again = set.clone().stop().unwrap();
        let before = counts(&machine);
        assert_eq!(set.save().unwrap().len(), 3);
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(counts(&machine), before, "a stopped vCPU counts");
        assert!(!set.is_finished() && set.events().is_empty());
        drop(stopped);
        set.start().unwrap();
        assert_eq!(counts(&machine), before, "a vCPU counts before the last stop ends");
        set.save().unwrap();
        drop(again);
    }
    wait_for_all(&machine);
    set.stop().unwrap().for_good();
    assert_eq!(set.count(), 0);
    set.start().unwrap();
}

fn a_set_is_saved_restored_and_put_back() {
    let machine = Machine::new(RAM);
    let set = counting(&machine);
    set.start().unwrap();
    wait_for_all(&machine);
    let stopped = set.stop().unwrap();
    let states = set.save().unwrap();
    let (mut bytes, at_save) = (vec![0; usize::try_from(RAM).unwrap()], counts(&machine));
    machine.block.read(0, &mut bytes).unwrap();
    drop(stopped);
    wait_for_all(&machine);
    // Back, with the memory of then: each goes on with the next number.
    let stopped = set.stop().unwrap();
    machine.block.write(0, &bytes).unwrap();
    set.roll_back(&states, RollBack::Now).unwrap();
    let addresses = |set: &VcpuSet| -> Vec<u64> {
        set.save().unwrap().iter().map(kvm_accel::VcpuState::instruction_pointer).collect()
    };
    let expected: Vec<u64> = states.iter().map(kvm_accel::VcpuState::instruction_pointer).collect();
    assert_eq!(addresses(&set), expected);
    drop(stopped);
    wait_for_all(&machine);
    set.stop().unwrap().for_good();
    // And in another machine.
    let there = Machine::new(RAM);
    there.block.write(0, &bytes).unwrap();
    let other = VcpuSet::new(COUNTERS.map(|_| there.vcpu()));
    let refused = other.restore(&states[1..]).unwrap_err();
    assert!(matches!(refused, KvmError::VcpuCount { found: 2, expected: 3 }), "{refused}");
    other.restore(&states).unwrap();
    assert_eq!(addresses(&other), expected);
    assert_eq!(counts(&there), at_save);
    other.start().unwrap();
    wait_for_all(&there);
    other.stop().unwrap().for_good();
}

fn a_set_tells_who_ended() {
    let machine = Machine::new(RAM);
    let (one, other) = (machine.vcpu(), machine.vcpu());
    boot(
        &one,
        &machine.block,
        &programs::increment_pages(),
        &[DATA, DATA + 0x1000, 0x1000, DATA + 0x2000],
    );
    // Of a triple fault.
    boot_at(&other, &machine.block, CODES, &programs::end(CODES), &[]);
    let set = VcpuSet::new([one, other]);
    set.start().unwrap();
    wait_until("one to end", || set.is_finished());
    let stopped = set.stop().unwrap();
    assert_eq!(set.events(), [(1, ENDED)]);
    assert!(set.is_finished());
    stopped.for_good();
    assert!(set.events().is_empty());
}

/// A thread that is stopped has ended already.
fn a_kick_that_comes_too_late_ends_no_later_run() {
    let machine = Machine::new(RAM);
    let arguments = [DATA + 0x1000, DATA + 0x2000, 0x1000, DATA];
    let mut guest = machine.start(&programs::increment_pages(), &arguments);
    for _ in 0..20 {
        guest.kicker().kick();
        wait_until("the run to end", || guest.is_finished());
        let (vcpu, event) = guest.stop().unwrap();
        assert_eq!(event, VcpuEvent::Kicked);
        guest = vcpu.spawn("vcpu").unwrap();
        let before = machine.counter();
        wait_until("the next run", || machine.counter() > before);
        assert!(!guest.is_finished());
    }
    guest.stop().unwrap();
}
