//! What the calling thread is in the middle of: a device's handler, a change of a map.

use std::cell::RefCell;

thread_local! {
    /// The addresses of what this thread is in, the innermost last.
    static ENTERED: RefCell<Vec<*const ()>> = const { RefCell::new(Vec::new()) };
}

/// Holding one, the thread is in what it has entered; no other of the thread is.
#[derive(Debug)]
pub(crate) struct ReentrancyGuard {
    /// It stays on its thread.
    entered: *const (),
}

impl ReentrancyGuard {
    /// Enters what has this address, unless this thread is in it already.
    pub(crate) fn enter(what: *const ()) -> Option<Self> {
        // A thread that is about to end has no list any more, nor frames above that
        // could have entered anything.
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
