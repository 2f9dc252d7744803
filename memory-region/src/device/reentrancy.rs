//! The guard against re-entry: what the calling thread is inside of, a device's handler or an
//! update of a map (QEMU: `MemReentrancyGuard`).

use std::cell::RefCell;

thread_local! {
    /// The addresses of the objects that this thread has entered, the innermost last.
    static ENTERED: RefCell<Vec<*const ()>> = const { RefCell::new(Vec::new()) };
}

/// This thread is inside of one object until this is dropped.
#[derive(Debug)]
pub(crate) struct ReentrancyGuard {
    /// A raw pointer, so that the guard stays on its thread.
    entered: *const (),
}

impl ReentrancyGuard {
    /// Enters the object at this address; `None` if this thread is inside of it already.
    pub(crate) fn enter(what: *const ()) -> Option<Self> {
        // A thread that is about to end has dropped its list; it has no frames left that could
        // have entered anything.
        let entered = ENTERED.try_with(|entered| {
            let mut entered = entered.borrow_mut();
            let free = !entered.contains(&what);
            if free {
                entered.push(what);
            }
            free
        });
        entered.unwrap_or(true).then(|| Self { entered: what })
    }
}

impl Drop for ReentrancyGuard {
    fn drop(&mut self) {
        // Also when a handler panics. It is the last one, as these are dropped in the
        // reverse of the order in which they were made.
        let left = |entered: &RefCell<Vec<*const ()>>| {
            let last = entered.borrow_mut().pop();
            debug_assert_eq!(last, Some(self.entered));
        };
        let _ = ENTERED.try_with(left);
    }
}
