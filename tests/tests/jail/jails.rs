//! Machines in jails of every kind.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::Duration;

use integration_tests::harness::{self, Named, Test, named};
use integration_tests::needs;
use kvm_accel::DirtyTracking;
use migration_ram::{Address, Listener, Socket};

use super::filter::{Otherwise, jail};
use super::list::{self, PHASES, Phase};
use super::machine::Machine;

const JAIL: &str = "JAIL";
const MODES: [(&str, DirtyTracking); 3] = [
    ("bitmap", DirtyTracking::Bitmap),
    ("manual", DirtyTracking::ManualProtect),
    ("ring", DirtyTracking::Ring { entries: 4096 }),
];
const PATIENCE: Duration = Duration::from_secs(60);

pub fn main() -> ExitCode {
    if let Ok(jail) = std::env::var(JAIL) {
        inmate(&jail);
        return ExitCode::SUCCESS;
    }
    let in_modes = MODES.iter().flat_map(|(mode, _)| {
        [Otherwise::Kill, Otherwise::Refuse].map(|otherwise| -> Named {
            let body = move || {
                runs(mode, otherwise);
                moves(mode, otherwise);
            };
            (format!("{mode}::a_machine_lives_where_others_calls_{otherwise:?}"), Box::new(body))
        })
    });
    let others: [Test; 2] = [
        ("no_call_is_listed_that_is_not_made", no_call_is_listed_that_is_not_made),
        ("a_jail_without_the_barrier_is_told_so", a_jail_without_the_barrier_is_told_so),
    ];
    harness::run(&needs::kvm(), in_modes.chain(named(&others)).collect())
}

/// What a process is told: a mode, a phase, what its filter does, a call that the filter lacks, and
/// a socket.
struct Sentence<'s> {
    mode: &'s str,
    phase: Phase,
    otherwise: Otherwise,
    without: &'s str,
    socket: &'s Path,
}

fn word(phase: Phase) -> String {
    format!("{phase:?}")
}

impl Sentence<'_> {
    fn serve(&self) -> Child {
        let Self { mode, phase, otherwise, without, socket } = self;
        let words = format!("{mode},{phase:?},{otherwise:?},{without},{}", socket.display());
        let mut program = Command::new(std::env::current_exe().unwrap());
        program.env(JAIL, words).spawn().unwrap()
    }
}

/// The process in its jail.
fn inmate(sentence: &str) {
    let [mode, phase, otherwise, without, socket] =
        sentence.split(',').collect::<Vec<_>>().try_into().unwrap();
    let (_, tracking) = MODES.iter().find(|(name, _)| *name == mode).unwrap();
    let phase = PHASES.into_iter().find(|known| word(*known) == phase).unwrap();
    let otherwise = [Otherwise::Kill, Otherwise::Refuse]
        .into_iter()
        .find(|known| format!("{known:?}") == otherwise)
        .unwrap();
    let list = list::read();
    let without_one = |name: &&str| *name != without;
    if without == "membarrier" {
        // A filter that kills for it: it is said before, and not tried.
        assert!(ram_block::forbid_membarrier());
    }
    let address = Address::Unix(PathBuf::from(socket));
    let mut socket = match phase {
        Phase::Restore => {
            let listener = Listener::bind(&address).unwrap();
            Some(listener.accept(PATIENCE).unwrap())
        }
        Phase::Migrate => Some(Socket::connect(&address, PATIENCE).unwrap()),
        _ => None,
    };
    // All that is to come, and then what is left of it.
    jail(list::of(&list, &PHASES).filter(without_one), otherwise);
    let mut machine = Machine::start(*tracking);
    if phase != Phase::Restore {
        machine.boot();
    }
    let phases = if phase == Phase::Run { vec![phase] } else { vec![Phase::Run, phase] };
    jail(list::of(&list, &phases).filter(without_one), otherwise);
    match (phase, &mut socket) {
        (Phase::Migrate, Some(socket)) => machine.migrate(socket),
        (Phase::Restore, Some(socket)) => machine.restore(socket),
        _ => machine.run(),
    }
}

fn run_without(mode: &str, otherwise: Otherwise, without: &str) -> ExitStatus {
    let sentence =
        Sentence { mode, phase: Phase::Run, otherwise, without, socket: Path::new("none") };
    sentence.serve().wait().unwrap()
}

/// A machine runs in its jail.
fn runs(mode: &str, otherwise: Otherwise) {
    let status = run_without(mode, otherwise, "");
    assert!(status.success(), "{status}");
}

/// A machine moves from one jail to another.
fn moves(mode: &str, otherwise: Otherwise) {
    let name = format!("jail-{}-{mode}-{otherwise:?}", std::process::id());
    let socket = std::env::temp_dir().join(name);
    let sentence = |phase| Sentence { mode, phase, otherwise, without: "", socket: &socket };
    let mut destination = sentence(Phase::Restore).serve();
    let mut source = sentence(Phase::Migrate).serve();
    let (source, destination) = (source.wait().unwrap(), destination.wait().unwrap());
    let _ = std::fs::remove_file(&socket);
    assert!(source.success() && destination.success(), "{source}, {destination}");
}

/// Each call of the list that is made always: without it, the machine is killed.
fn no_call_is_listed_that_is_not_made() {
    let list = list::read();
    let always = |name: &&str| {
        // The first has a test of its own; the others are what this test calls itself.
        list[*name].get(&Phase::Run) == Some(&true)
            && !["membarrier", "exit", "prctl"].contains(name)
    };
    let mut survived = Vec::new();
    for name in list::of(&list, &[Phase::Run]).filter(always) {
        let status = run_without("ring", Otherwise::Kill, name);
        if status.signal() != Some(libc::SIGSYS) {
            survived.push((name, status));
        }
    }
    assert!(survived.is_empty(), "made at times alone, or never: {survived:?}");
}

/// A filter that refuses the barrier, and one that kills for it, of which the process says so.
fn a_jail_without_the_barrier_is_told_so() {
    for otherwise in [Otherwise::Kill, Otherwise::Refuse] {
        let status = run_without("manual", otherwise, "membarrier");
        assert!(status.success(), "{otherwise:?}: {status}");
    }
}
