mod dirty_log;
mod display;
mod machine;
mod precopy;
mod slots;
mod vcpus;

use integration_tests::kvm::KvmTest;

pub fn tests() -> Vec<KvmTest> {
    [dirty_log::TESTS, slots::TESTS, vcpus::TESTS, precopy::TESTS, display::TESTS].concat()
}
