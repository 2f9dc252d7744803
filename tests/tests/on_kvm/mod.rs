mod dirty_log;
mod display;
mod flash;
mod io_events;
mod machine;
mod pam;
mod precopy;
mod slots;
mod vcpus;

use integration_tests::harness::Test;

pub fn tests() -> Vec<Test> {
    [
        dirty_log::TESTS,
        slots::TESTS,
        vcpus::TESTS,
        io_events::TESTS,
        pam::TESTS,
        flash::TESTS,
        precopy::TESTS,
        display::TESTS,
    ]
    .concat()
}
