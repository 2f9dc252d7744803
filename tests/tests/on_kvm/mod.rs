mod dirty_log;
mod display;
mod flash;
mod io_events;
mod machine;
mod pam;
mod precopy;
mod slots;
mod tracking;
mod vcpus;

use integration_tests::harness::{Named, Test, named};
use kvm_accel::DirtyTracking;

/// Tests in every way in which KVM tracks written pages, and those for which the way is
/// all one.
pub fn tests() -> Vec<Named> {
    let modes = [
        ("bitmap", DirtyTracking::Bitmap),
        ("manual", DirtyTracking::ManualProtect),
        ("ring", DirtyTracking::Ring { entries: 65_536 }),
    ];
    let in_all =
        [dirty_log::TESTS, tracking::TESTS, slots::TESTS, vcpus::TESTS, precopy::TESTS].concat();
    let in_each = modes.iter().flat_map(|&(name, tracking)| {
        let in_mode = move |&(test, body): &Test| -> Named {
            (format!("{name}::{test}"), Box::new(move || machine::tracked_by(tracking, body)))
        };
        in_all.iter().map(in_mode).collect::<Vec<_>>()
    });
    in_each
        .chain(named(
            &[tracking::RINGS, io_events::TESTS, pam::TESTS, flash::TESTS, display::TESTS].concat(),
        ))
        .collect()
}
