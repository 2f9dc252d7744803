//! Entering and leaving guest code, against a concurrent request to exit.
//!
//! Three words: the *state* of the vCPU, the *request* that it exit (a pause, a kick, a limit), and
//! KVM's *immediate exit* flag, which the kernel reads after KVM_RUN has begun. The vCPU **V** and
//! the thread **W** that wants it to exit do:
//!
//! ```text
//!   V1  immediate exit <- 0        W1  request        <- yes
//!   V2  state          <- guest    W2  immediate exit <- 1
//!       fence                          fence
//!   V3  request? then back out     W3  state = guest? then send the signal
//!   V4  KVM_RUN (reads immediate exit; a signal interrupts it)
//! ```
//!
//! Each side writes a word and then reads the other's, with a full fence between: at least one sees
//! the other. If V3 does not see the request, then W3 sees the guest and sends the signal. That may
//! arrive before V4, where it would interrupt nothing; but W2 comes before it, so the flag is set
//! by then, and KVM_RUN returns at once. V1 must not have cleared it again: V1 and W2 are swaps, so
//! that either W2 comes later and stays, or V1 reads what W2 wrote and with it acquires the
//! request, which V3 then sees.
//!
//! The tests check this with loom, and that loom finds the loss when either fence is missing, or
//! when V1 and W2 are plain stores.

// In tests of this crate the model checker's types stand in for the real ones.
#[cfg(test)]
use loom::sync::atomic::{AtomicU32, Ordering, fence};
#[cfg(not(test))]
use std::sync::atomic::{AtomicU32, Ordering, fence};

/// Where a vCPU's thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum VcpuMode {
    /// Not running the guest, nor acting for it: outside `run`, or waiting in it.
    Parked,
    /// Acting for the guest: handling an exit.
    Host,
    /// In KVM_RUN, or about to be.
    Guest,
}

#[derive(Debug)]
pub(crate) struct RunState(AtomicU32);

impl RunState {
    pub(crate) fn new() -> Self {
        Self(AtomicU32::new(VcpuMode::Parked as u32))
    }

    pub(crate) fn mode(&self) -> VcpuMode {
        match self.0.load(Ordering::Acquire) {
            0 => VcpuMode::Parked,
            1 => VcpuMode::Host,
            _ => VcpuMode::Guest,
        }
    }

    /// V1 to V3: whether KVM_RUN may be called. If not, the state is `Host`.
    ///
    /// To let KVM complete an access without running guest code, set the flag in V1 instead of
    /// clearing it.
    pub(crate) fn enter(
        &self,
        prepare_immediate_exit: impl FnOnce(),
        exit_requested: impl FnOnce() -> bool,
    ) -> bool {
        prepare_immediate_exit();
        self.0.store(VcpuMode::Guest as u32, Ordering::Release);
        fence(Ordering::SeqCst);
        if exit_requested() {
            self.leave(VcpuMode::Host);
            return false;
        }
        true
    }

    /// Leaves the guest, or the exit's handler. Release: a thread that sees this place sees what
    /// the vCPU's thread did before.
    pub(crate) fn leave(&self, place: VcpuMode) {
        self.0.store(place as u32, Ordering::Release);
        // A thread that waits for this state has announced that before it reads the state; see
        // `Gate::announce`.
        fence(Ordering::SeqCst);
    }

    /// W2 and W3: whether the signal must be sent. The request has been stored before.
    pub(crate) fn request_exit(&self, set_immediate_exit: impl FnOnce()) -> bool {
        set_immediate_exit();
        fence(Ordering::SeqCst);
        self.mode() == VcpuMode::Guest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    struct Words {
        state: RunState,
        request: AtomicU32,
        immediate_exit: AtomicU32,
        signal: AtomicU32,
    }

    fn words() -> Arc<Words> {
        Arc::new(Words {
            state: RunState::new(),
            request: AtomicU32::new(0),
            immediate_exit: AtomicU32::new(0),
            signal: AtomicU32::new(0),
        })
    }

    /// The guest is entered while `ring` forces it to exit: it must not stay there.
    fn check(enter: fn(&Words) -> bool, ring: fn(&Words) -> bool) {
        let words = words();
        let wants = {
            let words = words.clone();
            thread::spawn(move || {
                words.request.store(1, Ordering::Relaxed);
                if ring(&words) {
                    words.signal.store(1, Ordering::Release);
                }
            })
        };
        // The kernel reads the flag once KVM_RUN has begun; a later request needs the signal.
        let entered = enter(&words);
        wants.join().unwrap();
        if entered {
            let flag = words.immediate_exit.load(Ordering::Relaxed) == 1;
            let signal = words.signal.load(Ordering::Relaxed) == 1;
            assert!(signal && flag, "the guest stays in: flag {flag}, signal {signal}");
        }
    }

    fn enter(words: &Words) -> bool {
        words.state.enter(
            || {
                let _ = words.immediate_exit.swap(0, Ordering::AcqRel);
            },
            || words.request.load(Ordering::Relaxed) == 1,
        )
    }

    fn ring(words: &Words) -> bool {
        words.state.request_exit(|| {
            let _ = words.immediate_exit.swap(1, Ordering::AcqRel);
        })
    }

    #[test]
    fn a_guest_that_is_wanted_out_leaves() {
        loom::model(|| check(enter, ring));
    }

    fn is_caught(enter: fn(&Words) -> bool, ring: fn(&Words) -> bool) -> bool {
        std::panic::catch_unwind(|| loom::model(move || check(enter, ring))).is_err()
    }

    #[test]
    fn the_model_sees_a_missing_fence_on_either_side() {
        fn enter_without(words: &Words) -> bool {
            let _ = words.immediate_exit.swap(0, Ordering::AcqRel);
            words.state.0.store(VcpuMode::Guest as u32, Ordering::Release);
            words.request.load(Ordering::Relaxed) == 0
        }
        fn ring_without(words: &Words) -> bool {
            {
                let _ = words.immediate_exit.swap(1, Ordering::AcqRel);
            };
            words.state.mode() == VcpuMode::Guest
        }
        assert!(is_caught(enter_without, ring));
        assert!(is_caught(enter, ring_without));
    }

    /// A guest that pushes a page each time that it is entered, beside a thread that keeps guests
    /// out, counts what was pushed, and lets none in again: the dirty bound. `exclusions` stands
    /// for the gate's count.
    struct Bounded {
        state: RunState,
        exclusions: AtomicU32,
        reached: AtomicU32,
        pushed: AtomicU32,
    }

    /// Whether the vCPU must not enter: the gate first, and then what was decided behind it.
    fn gate_then_bound(words: &Bounded) -> bool {
        words.exclusions.load(Ordering::Acquire) > 0 || words.reached.load(Ordering::Acquire) > 0
    }

    fn check_bound(wanted_out: fn(&Bounded) -> bool) {
        let words = Arc::new(Bounded {
            state: RunState::new(),
            exclusions: AtomicU32::new(0),
            reached: AtomicU32::new(0),
            pushed: AtomicU32::new(0),
        });
        let vcpu = {
            let words = words.clone();
            thread::spawn(move || {
                for _ in 0..2 {
                    if words.state.enter(|| (), || wanted_out(&words)) {
                        words.pushed.fetch_add(1, Ordering::Relaxed);
                        words.state.leave(VcpuMode::Host);
                    }
                }
            })
        };
        // `Gate::exclude`.
        words.exclusions.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        while words.state.mode() == VcpuMode::Guest {
            thread::yield_now();
        }
        let counted = words.pushed.load(Ordering::Relaxed);
        words.reached.store(1, Ordering::Release);
        words.exclusions.fetch_sub(1, Ordering::Release);
        vcpu.join().unwrap();
        let pushed = words.pushed.load(Ordering::Relaxed);
        assert_eq!(pushed, counted, "a guest is entered after the bound");
    }

    #[test]
    fn no_guest_is_entered_once_the_bound_is_reached() {
        loom::model(|| check_bound(gate_then_bound));
    }

    #[test]
    fn the_model_sees_a_bound_that_is_read_too_early_or_not_at_all() {
        fn bound_then_gate(words: &Bounded) -> bool {
            words.reached.load(Ordering::Acquire) > 0
                || words.exclusions.load(Ordering::Acquire) > 0
        }
        fn gate_alone(words: &Bounded) -> bool {
            words.exclusions.load(Ordering::Acquire) > 0
        }
        fn gate_without_acquire(words: &Bounded) -> bool {
            words.exclusions.load(Ordering::Relaxed) > 0
                || words.reached.load(Ordering::Relaxed) > 0
        }
        let is_caught = |wanted_out: fn(&Bounded) -> bool| {
            std::panic::catch_unwind(|| loom::model(move || check_bound(wanted_out))).is_err()
        };
        assert!(is_caught(bound_then_gate), "the bound first");
        assert!(is_caught(gate_alone), "the bound not at all");
        assert!(is_caught(gate_without_acquire), "the gate without acquire");
    }

    #[test]
    fn the_model_sees_a_flag_that_is_cleared_without_a_look() {
        fn enter_storing(words: &Words) -> bool {
            words.state.enter(
                || words.immediate_exit.store(0, Ordering::Relaxed),
                || words.request.load(Ordering::Relaxed) == 1,
            )
        }
        fn ring_storing(words: &Words) -> bool {
            words.state.request_exit(|| words.immediate_exit.store(1, Ordering::Relaxed))
        }
        assert!(is_caught(enter_storing, ring_storing));
    }

    #[test]
    fn the_model_sees_a_flag_that_is_cleared_too_late() {
        fn enter_clearing_late(words: &Words) -> bool {
            let entered = words.state.enter(|| (), || words.request.load(Ordering::Relaxed) == 1);
            {
                let _ = words.immediate_exit.swap(0, Ordering::AcqRel);
            };
            entered
        }
        assert!(is_caught(enter_clearing_late, ring));
    }
}
