//! Migrations to and from a real QEMU.

use std::process::ExitCode;

use integration_tests::harness::{self, Named, named};
use integration_tests::qemu::{self, Program};

mod on_qemu;

fn main() -> ExitCode {
    let tests: Vec<_> = [on_qemu::from_qemu::TESTS, on_qemu::to_qemu::TESTS].concat();
    let mut tests = named(&tests);
    tests.extend(of("installed", Ok(Program::default())));
    let others = of("other", Program::other()).collect();
    harness::run_all(vec![(qemu::need(), tests), (qemu::need_other(), others)])
}

/// The tests that each version of QEMU has to pass. Without a program they are only listed.
fn of(which: &str, program: Result<Program, String>) -> impl Iterator<Item = Named> {
    let tests = on_qemu::unknown::TESTS.iter().chain(on_qemu::to_qemu::TESTS_OF_ANY);
    tests.map(move |&(name, body)| -> Named {
        let program = program.clone();
        (format!("{name}::{which}"), Box::new(move || body(&program.unwrap())))
    })
}
