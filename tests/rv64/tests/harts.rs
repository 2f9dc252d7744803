//! Two harts on two threads: locks of the guest keep a counter exact.

use std::time::Instant;

use rv64::assemble::{Condition::*, reg::*, *};
use rv64::{Machine, Outcome, layout};

#[path = "../../machines/src/deadline.rs"]
mod deadline;

const BASE: u64 = layout::RAM;
const COUNT: u64 = 100_000;

/// How a hart takes the lock at s0, which is 0 if it is free.
#[derive(Clone, Copy, Debug)]
enum Lock {
    Reserved,
    Swap,
    None,
    /// The counter itself is added to atomically.
    Add,
}

fn program(lock: Lock) -> Vec<u8> {
    let mut p = Program::at(BASE);
    p.li(S0, BASE + 0x4000);
    p.li(S1, BASE + 0x5000); // the counter
    p.li(S2, BASE + 0x6000); // how many harts are done
    p.li(S3, COUNT);
    p.put(addi(T1, ZERO, 1));
    let again = p.here();
    if matches!(lock, Lock::Reserved) {
        let take = p.here();
        p.put(lr_w(T0, S0));
        p.branch(Ne, T0, ZERO, take);
        p.put(sc_w(T0, T1, S0));
        p.branch(Ne, T0, ZERO, take);
    } else if matches!(lock, Lock::Swap) {
        let take = p.here();
        p.put(amoswap_w(T0, T1, S0));
        p.branch(Ne, T0, ZERO, take);
    }
    if matches!(lock, Lock::Add) {
        p.put(amoadd_d(ZERO, T1, S1));
    } else {
        p.put(ld(T0, 0, S1));
        p.put(addi(T0, T0, 1));
        p.put(sd(T0, 0, S1));
    }
    match lock {
        Lock::Reserved => {
            p.put(FENCE);
            p.put(sw(ZERO, 0, S0));
        }
        Lock::Swap => p.put(amoswap_w(ZERO, ZERO, S0)),
        Lock::None | Lock::Add => {}
    }
    p.put(addi(S3, S3, -1));
    p.branch(Ne, S3, ZERO, again);
    p.put(addi(T1, ZERO, 1));
    p.put(amoadd_w(T0, T1, S2));
    let wait = p.here();
    let sleep = p.label();
    // The second one ends the machine.
    p.branch(Ne, T0, T1, sleep);
    p.li(T2, layout::FINISHER);
    p.li(T3, 0x5555);
    p.put(sw(T3, 0, T2));
    p.bind(sleep);
    p.put(WFI);
    p.jump(ZERO, wait);
    p.finish()
}

fn counted(lock: Lock) -> u64 {
    let mut machine = Machine::new(1 << 20, 2).unwrap();
    machine.load(0, &program(lock)).unwrap();
    let deadline = Instant::now() + deadline::seconds(120);
    assert_eq!(machine.run_on_threads(u64::MAX, deadline), Outcome::Finished(0), "{lock:?}");
    let mut bytes = [0; 8];
    machine.space().read(BASE + 0x5000, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

#[test]
fn a_lock_by_lr_and_sc_is_one() {
    assert_eq!(counted(Lock::Reserved), 2 * COUNT);
}

#[test]
fn a_lock_by_amoswap_is_one() {
    assert_eq!(counted(Lock::Swap), 2 * COUNT);
}

#[test]
fn amoadd_adds_once() {
    assert_eq!(counted(Lock::Add), 2 * COUNT);
}

/// The tests above can see a lock that is none.
#[test]
fn without_a_lock_additions_are_lost() {
    let lost = (0..50).any(|_| counted(Lock::None) < 2 * COUNT);
    assert!(lost, "two threads never ran beside each other");
}
