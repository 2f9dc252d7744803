//! Tests that need a program of the machine: counted as ignored where it is missing, or failed
//! where a variable says that it is required.

use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Trial};

/// A test: its name and body. It fails by panicking.
pub type Test = (&'static str, fn());

/// What tests need.
pub struct Need {
    /// Why it cannot be had here, if so.
    pub missing: Option<String>,
    /// The variable that, set to 1, makes the tests fail then.
    pub required_by: &'static str,
}

/// Why a program of the machine cannot be run, if so.
pub fn cannot_run(program: &str) -> Option<String> {
    let found = Command::new(program).arg("--version").output();
    found.err().map(|error| format!("{program} cannot be run: {error}"))
}

/// Runs `always`, and `tests` if what they need is there.
pub fn run(always: &[Test], need: &Need, tests: &[Test]) -> ExitCode {
    let arguments = Arguments::from_args();
    let missing = &need.missing;
    let required = std::env::var(need.required_by).is_ok_and(|value| value == "1");
    if let Some(reason) = missing.as_ref().filter(|_| !required && !arguments.list) {
        println!("skipped: {} tests: {reason}", tests.len());
    }
    let passes = |&(name, body): &Test| {
        Trial::test(name, move || {
            body();
            Ok(())
        })
    };
    let needing = |test: &Test| match missing.clone() {
        None => passes(test),
        Some(reason) if required => Trial::test(test.0, move || Err(reason.into())),
        Some(_) => Trial::test(test.0, || Ok(())).with_ignored_flag(true),
    };
    let trials = always.iter().map(passes).chain(tests.iter().map(needing));
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
