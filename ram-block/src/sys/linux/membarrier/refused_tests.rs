//! A sandbox that begins to refuse the barrier when the process has relied on it already.
#![allow(unsafe_code)]

use std::thread;

use super::*;

/// From now on, and for this thread alone, `membarrier` fails with EPERM (seccomp(2)).
fn refuse_membarrier() {
    let statement =
        |code: u32, jt, jf, k| libc::sock_filter { code: code.try_into().unwrap(), jt, jf, k };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let answer = libc::BPF_RET | libc::BPF_K;
    // `struct seccomp_data`: the call's number is at 0.
    let mut filter = [
        statement(load, 0, 0, 0),
        statement(equal, 0, 1, u32::try_from(libc::SYS_membarrier).unwrap()),
        statement(answer, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs()),
        statement(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program =
        libc::sock_fprog { len: filter.len().try_into().unwrap(), filter: filter.as_mut_ptr() };
    // SAFETY: takes numbers only.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: the kernel reads the program, which lives during the call.
    let result =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Calls `body` on a thread whose barriers are refused. Returns whether it did: not where there
/// never is a barrier.
pub(crate) fn where_it_is_refused(body: impl FnOnce() + Send) -> bool {
    if !available() {
        println!("skipped: there is no membarrier");
        return false;
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            assert!(every_thread());
            refuse_membarrier();
            assert!(available() && !every_thread());
            body();
        });
    });
    true
}

#[test]
fn a_thread_is_told_that_its_barrier_is_refused() {
    if where_it_is_refused(|| assert!(!every_thread())) {
        assert!(every_thread(), "other threads pass theirs");
    }
}
