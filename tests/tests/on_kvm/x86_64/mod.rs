//! What only machines of x86-64 have: ports, chips of a PC, its firmware; and tests whose programs
//! are for it alone.

mod chips;
mod display;
mod exits;
mod io_events;
mod mini_pc;
mod mini_pc_checkpoints;
mod nested;
mod overruns;
mod own_loop;
mod own_loop_faults;
mod own_machine;
mod pam;
pub mod registers;
mod strays;

use integration_tests::harness::{Named, Test};

use crate::on_kvm::in_each_mode;

/// In every way of tracking.
pub fn in_all() -> Vec<Test> {
    [exits::TESTS, own_loop::TESTS, own_loop_faults::TESTS].concat()
}

/// For which the way is all one.
pub fn once() -> Vec<Test> {
    [
        overruns::TESTS,
        own_loop::ONCE,
        own_loop_faults::ONCE,
        strays::TESTS,
        chips::TESTS,
        io_events::TESTS,
        pam::TESTS,
        display::TESTS,
        mini_pc::TESTS,
    ]
    .concat()
}

/// Tests that run firmware and programs of others.
pub fn tests_of_firmware() -> Vec<Named> {
    mini_pc::firmware_tests().into_iter().chain(mini_pc_checkpoints::firmware_tests()).collect()
}

/// Tests of guests that run guests of their own.
pub fn tests_of_nested() -> Vec<Named> {
    in_each_mode(nested::TESTS).collect()
}
