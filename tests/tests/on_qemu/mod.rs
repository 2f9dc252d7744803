//! Tests whose peer is a QEMU, and what they share.

use machines::deadline::seconds;
use std::time::{Duration, Instant};

use integration_tests::qemu::Program;

pub(crate) mod from_qemu;
pub(crate) mod to_qemu;
pub(crate) mod unknown;

#[path = "../../examples/qemu_stream/describe.rs"]
mod describe;
#[path = "../../examples/qemu_stream/fill.rs"]
#[allow(dead_code)] // some of it is for the example alone
mod fill;

/// A test of any version of QEMU, and its name.
pub(crate) type TestOf = (&'static str, fn(&Program));

/// Waits until something is so.
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + seconds(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not within a minute");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Fails unless both are equal; says where they differ, and not in what.
fn assert_same(what: &str, found: &[u8], expected: &[u8]) {
    let difference = found.iter().zip(expected).position(|(found, expected)| found != expected);
    assert_eq!((found.len(), difference), (expected.len(), None), "{what}");
}
