//! The filter of a process.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

/// Numbers by names, for each name that the document may list.
const NUMBERS: &[(&str, i64)] = &[
    ("brk", libc::SYS_brk),
    ("clock_gettime", libc::SYS_clock_gettime),
    ("clone3", libc::SYS_clone3),
    ("close", libc::SYS_close),
    ("exit", libc::SYS_exit),
    ("exit_group", libc::SYS_exit_group),
    ("fcntl", libc::SYS_fcntl),
    ("futex", libc::SYS_futex),
    ("getpid", libc::SYS_getpid),
    ("getrandom", libc::SYS_getrandom),
    ("gettid", libc::SYS_gettid),
    ("ioctl", libc::SYS_ioctl),
    ("madvise", libc::SYS_madvise),
    ("membarrier", libc::SYS_membarrier),
    ("mmap", libc::SYS_mmap),
    ("mprotect", libc::SYS_mprotect),
    ("mremap", libc::SYS_mremap),
    ("munmap", libc::SYS_munmap),
    ("openat", libc::SYS_openat),
    ("ppoll", libc::SYS_ppoll),
    ("prctl", libc::SYS_prctl),
    ("pread64", libc::SYS_pread64),
    ("recvmsg", libc::SYS_recvmsg),
    ("rseq", libc::SYS_rseq),
    ("rt_sigaction", libc::SYS_rt_sigaction),
    ("rt_sigprocmask", libc::SYS_rt_sigprocmask),
    ("rt_sigreturn", libc::SYS_rt_sigreturn),
    ("sched_getaffinity", libc::SYS_sched_getaffinity),
    ("sendmsg", libc::SYS_sendmsg),
    ("set_robust_list", libc::SYS_set_robust_list),
    ("sigaltstack", libc::SYS_sigaltstack),
    ("tgkill", libc::SYS_tgkill),
    ("write", libc::SYS_write),
];

fn number(name: &str) -> i64 {
    let found = NUMBERS.iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("the test does not know the system call {name}")).1
}

/// What a filter does about a call that is not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Otherwise {
    Kill,
    Refuse,
}

/// Lets this thread, and those that it starts, make these calls and no others.
pub fn jail<'n>(names: impl Iterator<Item = &'n str>, otherwise: Otherwise) {
    // What the test itself does: it says how it ended, and applies a second filter.
    let own = ["write", "exit_group", "exit"].into_iter();
    let mut rules: BTreeMap<_, _> =
        own.chain(names).map(|name| (number(name), Vec::new())).collect();
    rules.insert(libc::SYS_seccomp, Vec::new());
    rules.insert(libc::SYS_prctl, Vec::new());
    let otherwise = match otherwise {
        Otherwise::Kill => SeccompAction::KillProcess,
        Otherwise::Refuse => SeccompAction::Errno(libc::EPERM.unsigned_abs()),
    };
    let filter =
        SeccompFilter::new(rules, otherwise, SeccompAction::Allow, TargetArch::x86_64).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    apply_filter(&program).unwrap();
}
