//! Interrupting a vCPU from another thread.
#![allow(unsafe_code)]

use std::io;
use std::mem::{MaybeUninit, offset_of};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{register_signal_handler, unblock_signal};

use crate::config::KickSignal;
use crate::error::KvmError;
use crate::exclusion::run_state::RunState;
use crate::locks::lock;
use crate::sys::mapping::VcpuMapping;

/// A second mapping of the page that KVM shares with the vCPU's owner, for the one
/// byte that other threads write.
///
/// kvm-ioctls hands out the first mapping as `&mut`; this one has another address,
/// so the two do not alias as far as Rust is concerned.
#[derive(Debug)]
struct SharedPage(VcpuMapping);

impl SharedPage {
    fn new(vcpu: &VcpuFd) -> io::Result<Self> {
        // The kernel maps the vCPU's shared page at offset 0 of its descriptor.
        Ok(Self(VcpuMapping::new(vcpu, 0, size_of::<kvm_run>())?))
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the field lies within the mapping, which holds all of `kvm_run`.
        let byte = unsafe { self.0.start().add(offset_of!(kvm_run, immediate_exit)) };
        // SAFETY: the mapping lives as long as `self`, a byte needs no alignment, and
        // in this process the byte is accessed through here only; the kernel reads it.
        unsafe { AtomicU8::from_ptr(byte.as_ptr()) }
    }
}

/// What other threads see of a vCPU.
#[derive(Debug)]
pub(crate) struct VcpuShared {
    pub(crate) id: u64,
    pub(crate) state: RunState,
    /// Set by [`kick`](Self::kick): `run` has to return.
    kicked: AtomicBool,
    /// Set by the dirty limit: the guest must not run.
    throttled: AtomicBool,
    page: SharedPage,
    /// The number of the signal that interrupts it.
    signal: i32,
    /// The thread in `run`. Locked while a signal is sent, so that the number cannot come to name
    /// another thread meanwhile.
    thread: Mutex<Option<libc::pid_t>>,
}

extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Sees to it that `signal` has a handler; returns its number.
pub(crate) fn prepare_signal(signal: KickSignal) -> Result<i32, KvmError> {
    /// Two threads may find none at the same time: the second finds that of the first.
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _installing = lock(&INSTALLING);
    match signal {
        KickSignal::Install(signal) => match handler(signal)? {
            libc::SIG_DFL => {
                let installed = register_signal_handler(signal, ignore);
                installed.map_err(|error| KvmError::Signal { signal, source: error.into() })?;
                Ok(signal)
            }
            ours if ours == ignore as *const () as libc::sighandler_t => Ok(signal),
            _ => Err(KvmError::SignalTaken { signal }),
        },
        KickSignal::Existing(signal) => match handler(signal)? {
            libc::SIG_DFL | libc::SIG_IGN => Err(KvmError::SignalUnhandled { signal }),
            _ => Ok(signal),
        },
    }
}

/// What the process has done about a signal so far.
fn handler(signal: i32) -> Result<libc::sighandler_t, KvmError> {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action nothing is changed, and the old one is written to `action`.
    let result = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
    if result != 0 {
        return Err(KvmError::Signal { signal, source: io::Error::last_os_error() });
    }
    // SAFETY: the call has succeeded, and written it.
    Ok(unsafe { action.assume_init() }.sa_sigaction)
}

fn current_thread() -> libc::pid_t {
    // SAFETY: gettid reads and writes no memory of ours.
    unsafe { libc::gettid() }
}

impl VcpuShared {
    pub(crate) fn new(id: u64, vcpu: &VcpuFd, signal: KickSignal) -> Result<Arc<Self>, KvmError> {
        // Looked at again: the process may have replaced a handler since.
        let signal = prepare_signal(signal)?;
        let page = SharedPage::new(vcpu).map_err(|source| KvmError::CreateVcpu { id, source })?;
        Ok(Arc::new(Self {
            id,
            state: RunState::new(),
            kicked: AtomicBool::new(false),
            throttled: AtomicBool::new(false),
            page,
            signal,
            thread: Mutex::new(None),
        }))
    }

    /// Makes the calling thread the one that a kick interrupts.
    pub(crate) fn attach_thread(&self) -> Result<(), KvmError> {
        let mut thread = lock(&self.thread);
        if *thread != Some(current_thread()) {
            let signal = self.signal;
            unblock_signal(signal).map_err(|error| KvmError::Signal {
                signal,
                source: io::Error::other(error.to_string()),
            })?;
            *thread = Some(current_thread());
        }
        Ok(())
    }

    pub(crate) fn detach_thread(&self) {
        *lock(&self.thread) = None;
    }

    /// Whether the calling thread is the one in `run`.
    pub(crate) fn is_current_thread(&self) -> bool {
        *lock(&self.thread) == Some(current_thread())
    }

    pub(crate) fn clear_immediate_exit(&self) {
        self.page.immediate_exit().swap(0, Ordering::AcqRel);
    }

    pub(crate) fn set_immediate_exit(&self) {
        self.page.immediate_exit().swap(1, Ordering::AcqRel);
    }

    /// Makes `run` return: the owner's kick.
    pub(crate) fn kick(&self) {
        self.kicked.store(true, Ordering::Release);
        self.interrupt();
    }

    /// Whether a kick is pending; [`take_kick`](Self::take_kick) consumes it.
    pub(crate) fn is_kicked(&self) -> bool {
        self.kicked.load(Ordering::Acquire)
    }

    pub(crate) fn take_kick(&self) -> bool {
        self.is_kicked() && self.kicked.swap(false, Ordering::AcqRel)
    }

    /// Keeps the guest out until [`unthrottle`](Self::unthrottle).
    pub(crate) fn throttle(&self) {
        self.throttled.store(true, Ordering::Release);
        self.interrupt();
    }

    /// The caller has to wake the gate's waiters.
    pub(crate) fn unthrottle(&self) {
        self.throttled.store(false, Ordering::Release);
    }

    pub(crate) fn is_throttled(&self) -> bool {
        self.throttled.load(Ordering::Acquire)
    }

    /// Forces the guest to exit from KVM_RUN. The caller has stored its request before. Returns
    /// whether a signal was sent: a guest that is out needs none.
    pub(crate) fn interrupt(&self) -> bool {
        if self.state.request_exit(|| self.set_immediate_exit()) {
            let thread = lock(&self.thread);
            if let Some(thread) = *thread {
                // SAFETY: getpid reads and writes no memory of ours.
                let process = unsafe { libc::getpid() };
                // SAFETY: tgkill takes numbers only; the thread is in `run` while the
                // lock is held, so the number is its own.
                let result =
                    unsafe { libc::syscall(libc::SYS_tgkill, process, thread, self.signal) };
                if result != 0 {
                    log::warn!(
                        "vCPU {} cannot be signalled: {}",
                        self.id,
                        io::Error::last_os_error()
                    );
                }
                return result == 0;
            }
        }
        false
    }
}
