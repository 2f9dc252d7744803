mod dirty_log;
mod display;
mod machine;
mod precopy;
mod slots;
mod vcpus;

use integration_tests::harness::Test;

pub fn tests() -> Vec<Test> {
    [dirty_log::TESTS, slots::TESTS, vcpus::TESTS, precopy::TESTS, display::TESTS].concat()
}
