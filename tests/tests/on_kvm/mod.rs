mod checkpoints;
mod converge;
mod dirty_log;
mod display;
mod flash;
mod forecast;
mod io_events;
mod lifetimes;
mod limits;
mod log_start;
mod machine;
mod mini_pc;
mod mini_pc_checkpoints;
mod newcomers;
mod overruns;
mod own_loop;
mod own_loop_faults;
mod own_machine;
mod pam;
mod panics;
mod precopy;
mod sets;
mod slots;
mod states;
mod tracking;
mod vcpus;

use integration_tests::harness::{Named, Test, named};
use kvm_accel::DirtyTracking;

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
        own_loop::TESTS,
        own_loop_faults::TESTS,
        panics::TESTS,
        states::TESTS,
        precopy::TESTS,
        limits::TESTS,
        checkpoints::TESTS,
    ]
    .concat();
    let in_each = MODES.iter().flat_map(|&(name, tracking)| {
        let in_mode = move |&(test, body): &Test| -> Named {
            (format!("{name}::{test}"), Box::new(move || machine::tracked_by(tracking, body)))
        };
        in_all.iter().map(in_mode).collect::<Vec<_>>()
    });
    in_each
        .chain(named(
            &[
                tracking::RINGS,
                overruns::TESTS,
                limits::ONCE,
                own_loop::ONCE,
                own_loop_faults::ONCE,
                sets::TESTS,
                lifetimes::ONCE,
                converge::TESTS,
                forecast::TESTS,
                io_events::TESTS,
                pam::TESTS,
                flash::TESTS,
                display::TESTS,
                mini_pc::TESTS,
            ]
            .concat(),
        ))
        .collect()
}

/// Tests that run firmware and programs of others.
pub fn tests_of_firmware() -> Vec<Named> {
    mini_pc::firmware_tests().into_iter().chain(mini_pc_checkpoints::firmware_tests()).collect()
}
