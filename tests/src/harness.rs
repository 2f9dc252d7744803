//! A harness for tests that need something of the machine: it says so where that is
//! missing.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// A test: its name and body. It fails by panicking.
pub type Test = (&'static str, fn());

/// A test that is to be run, by the name under which it is listed.
pub type Named = (String, Box<dyn FnOnce() + Send>);

/// Tests under their own names.
pub fn named(tests: &[Test]) -> Vec<Named> {
    tests.iter().map(|&(name, body)| (name.to_owned(), Box::new(body) as _)).collect()
}

/// What tests need.
#[derive(Clone, Debug)]
pub struct Need {
    /// Its name.
    pub name: &'static str,
    /// The variable that, set to 1, makes the tests fail where it is missing.
    pub required_by: &'static str,
    /// Why it cannot be used here, if so.
    pub missing: Option<String>,
}

/// Runs `tests` with the command line of the standard harness.
///
/// Where what they need is missing they are counted as ignored, with the reason, or
/// fail if it is required.
pub fn run(need: &Need, tests: Vec<Named>) -> ExitCode {
    run_all(vec![(need.clone(), tests)])
}

/// As [`run`], for tests that do not all need the same.
pub fn run_all(groups: Vec<(Need, Vec<Named>)>) -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = groups.into_iter().flat_map(|(need, tests)| trials(&arguments, &need, tests));
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn trials(arguments: &Arguments, need: &Need, tests: Vec<Named>) -> Vec<Trial> {
    let required = std::env::var(need.required_by).is_ok_and(|value| value == "1");
    if let Some(reason) = need.missing.as_ref().filter(|_| !required && !arguments.list) {
        println!("skipped: {} tests that need {}: {reason}", tests.len(), need.name);
    }
    let trials = tests.into_iter().map(|(name, body)| match need.missing.clone() {
        None => Trial::test(name, move || {
            body();
            Ok(())
        }),
        Some(reason) if required => Trial::test(name, move || Err(reason.into())),
        Some(_) => Trial::test(name, || Ok(())).with_ignored_flag(true),
    });
    trials.collect()
}

#[cfg(test)]
mod tests {
    use machines::deadline::factor;

    #[test]
    fn a_scale_of_deadlines_is_a_factor() {
        assert_eq!(factor(None), Ok(1.0));
        assert_eq!(factor(Some("2.5")), Ok(2.5));
        for text in ["", "0", "-1", "x", "inf", "NaN", "1e9"] {
            factor(Some(text)).unwrap_err();
        }
    }
}
