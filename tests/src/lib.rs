//! What the tests and benchmarks of the whole stack share: a harness for tests that need
//! something of the machine, QEMU and VNC viewers as peers, and the benchmarks' measurements.

#![forbid(unsafe_code)]

/// The guide, whose code is compiled and run.
#[cfg(all(doctest, target_arch = "x86_64"))]
#[doc = include_str!("../../docs/guide.md")]
mod guide {}

pub mod bench;
pub mod harness;
pub mod needs;
pub mod qemu;
pub mod qtest;
pub mod viewers;
