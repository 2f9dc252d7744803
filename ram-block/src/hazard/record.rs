//! What one thread reads.

use std::sync::atomic::{AtomicUsize, Ordering};

/// How many values a thread can read at once: accesses from within handlers of devices. Others
/// count as owners.
const SLOTS: usize = 8;

/// In a slot's state: the value that the thread reads there waits for it to leave.
const WAITED_FOR: usize = 1;

/// In a slot's state: there is no barrier, and the thread has to pass fences of its own.
const FENCES: usize = 2;

/// An atomic address, or a model's. Methods are named by the order that they give.
pub(super) trait Address: Send + Sync + 'static {
    fn new(value: usize) -> Self;
    fn load_relaxed(&self) -> usize;
    fn load_acquire(&self) -> usize;
    fn store_relaxed(&self, value: usize);
    fn store_release(&self, value: usize);
}

impl Address for AtomicUsize {
    fn new(value: usize) -> Self {
        Self::new(value)
    }

    #[inline(always)]
    fn load_relaxed(&self) -> usize {
        self.load(Ordering::Relaxed)
    }

    #[inline(always)]
    fn load_acquire(&self) -> usize {
        self.load(Ordering::Acquire)
    }

    #[inline(always)]
    fn store_relaxed(&self, value: usize) {
        self.store(value, Ordering::Relaxed);
    }

    #[inline(always)]
    fn store_release(&self, value: usize) {
        self.store(value, Ordering::Release);
    }
}

/// The place for a value that one thread reads, which alone writes the address, and what others
/// have to tell it.
pub(super) struct Slot<A = AtomicUsize> {
    /// The address of the value; 0 if there is none.
    address: A,
    /// 0 if leaving is all that there is to do. Changed under the lock of the readers.
    state: A,
}

impl<A: Address> Slot<A> {
    /// Whether the thread reads nothing here. For the thread itself.
    #[inline(always)]
    pub(super) fn is_free(&self) -> bool {
        self.address.load_relaxed() == 0
    }

    /// R1 to R3: announces what `current` returns, and returns it if it still does, or else what
    /// was announced in vain, to be [taken back](Self::leave). `fence` is passed between R2 and R3.
    #[inline(always)]
    pub(super) fn announce<T>(
        &self,
        current: impl Fn() -> *mut T,
        fence: impl FnOnce(),
    ) -> Result<*mut T, *mut T> {
        let found = current(); // R1
        self.address.store_release(found.addr()); // R2
        fence();
        let value = current(); // R3
        if value == found { Ok(value) } else { Err(found) }
    }

    /// R4 and R5: returns whether there is more to do. `fence` is passed between the two.
    #[inline(always)]
    pub(super) fn leave(&self, fence: impl FnOnce()) -> bool {
        self.address.store_release(0); // R4
        fence();
        self.state.load_relaxed() != 0 // R5
    }

    /// Whether the thread has to pass fences of its own.
    pub(super) fn fences(&self) -> bool {
        self.state.load_relaxed() & FENCES != 0
    }

    /// The rest of R5, after [`leave`](Self::leave) has returned true: whether the value that was
    /// here waits for the thread. `fence` is passed first, by a thread that has to.
    pub(super) fn is_waited_for_after(&self, fence: impl FnOnce()) -> bool {
        fence();
        self.is_waited_for()
    }

    /// Whether the value that is or was here waits for the thread.
    pub(super) fn is_waited_for(&self) -> bool {
        self.state.load_relaxed() & WAITED_FOR != 0
    }

    /// Sets whether the value waits for the thread; returns whether that is a change. Under the
    /// lock of the readers.
    pub(super) fn set_waited_for(&self, waited_for: bool) -> bool {
        let state = self.state.load_relaxed();
        let new = if waited_for { state | WAITED_FOR } else { state & !WAITED_FOR };
        self.state.store_relaxed(new);
        state != new
    }

    /// Whether the value at `address` is read here: if not, all that was read of it before is done.
    pub(super) fn has(&self, address: usize) -> bool {
        self.address.load_acquire() == address
    }
}

/// The values that one thread reads, the outermost one first.
///
/// Two lines of the cache, as the processor fetches them in pairs.
#[repr(align(128))]
pub(super) struct Record<A = AtomicUsize>([Slot<A>; SLOTS]);

impl<A: Address> Record<A> {
    /// The record of a thread that reads nothing.
    pub(super) fn new(fences: bool) -> Self {
        let state = if fences { FENCES } else { 0 };
        Self(std::array::from_fn(|_| Slot { address: A::new(0), state: A::new(state) }))
    }

    pub(super) fn slots(&self) -> &[Slot<A>; SLOTS] {
        &self.0
    }

    /// Where the thread reads nothing. For the thread itself.
    pub(super) fn free_slot(&self) -> Option<&Slot<A>> {
        self.0.iter().find(|slot| slot.is_free())
    }
}
