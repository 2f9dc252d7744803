#[cfg(target_arch = "aarch64")]
mod aarch64;
mod checkpoints;
mod converge;
mod dirty_log;
mod flash;
mod forecast;
mod lifetimes;
mod limits;
mod log_start;
mod machine;
mod newcomers;
mod panics;
mod precopy;
mod sets;
mod slots;
mod states;
mod tracking;
mod vcpus;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use integration_tests::harness::{Named, Test, named};
use kvm_accel::DirtyTracking;

#[cfg(target_arch = "aarch64")]
use aarch64::{in_all, once};
#[cfg(target_arch = "x86_64")]
use x86_64::{in_all, once};
#[cfg(target_arch = "x86_64")]
pub use x86_64::{tests_of_firmware, tests_of_nested};

/// Every way in which KVM tracks written pages.
const MODES: [(&str, DirtyTracking); 3] = [
    ("bitmap", DirtyTracking::Bitmap),
    ("manual", DirtyTracking::ManualProtect),
    ("ring", DirtyTracking::Ring { entries: 65_536 }),
];

/// Tests in every way in which KVM tracks written pages, and those for which the way is
/// all one.
pub fn tests() -> Vec<Named> {
    let in_all = [
        dirty_log::TESTS,
        log_start::TESTS,
        newcomers::TESTS,
        tracking::TESTS,
        slots::TESTS,
        lifetimes::TESTS,
        vcpus::TESTS,
        panics::TESTS,
        states::TESTS,
        precopy::TESTS,
        limits::TESTS,
        checkpoints::TESTS,
        &in_all(),
    ]
    .concat();
    in_each_mode(&in_all)
        .chain(named(
            &[
                tracking::RINGS,
                limits::ONCE,
                sets::TESTS,
                lifetimes::ONCE,
                converge::TESTS,
                forecast::TESTS,
                flash::TESTS,
                &once(),
            ]
            .concat(),
        ))
        .collect()
}

fn in_each_mode(tests: &[Test]) -> impl Iterator<Item = Named> {
    MODES.iter().flat_map(move |&(name, tracking)| {
        let in_mode = move |&(test, body): &Test| -> Named {
            (format!("{name}::{test}"), Box::new(move || machine::tracked_by(tracking, body)))
        };
        tests.iter().map(in_mode)
    })
}
