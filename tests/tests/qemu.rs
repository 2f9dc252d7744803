//! Migrations to and from a real QEMU.

use std::process::ExitCode;

use integration_tests::{harness, qemu};

mod on_qemu;

fn main() -> ExitCode {
    let tests: Vec<_> = [on_qemu::from_qemu::TESTS, on_qemu::to_qemu::TESTS].concat();
    harness::run(&qemu::need(), harness::named(&tests))
}
