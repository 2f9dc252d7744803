//! What only machines of arm64 have.

pub mod states;
mod vgic;

use integration_tests::harness::Test;

/// In every way of tracking.
pub fn in_all() -> Vec<Test> {
    vgic::TESTS.to_vec()
}

/// For which the way is all one.
pub fn once() -> Vec<Test> {
    [states::TESTS, vgic::ONCE].concat()
}
