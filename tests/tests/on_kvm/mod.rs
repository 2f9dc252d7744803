mod dirty_log;
mod machine;

use integration_tests::kvm::KvmTest;

pub fn tests() -> Vec<KvmTest> {
    [dirty_log::TESTS].concat()
}
