//! What of a picture blinks, and how it looks at the moment.

use crate::registers::retrace::Blink;

/// What of a picture changes by itself, with time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Blinks {
    /// The cursor is on the screen.
    pub(crate) cursor: bool,
    /// A character on the screen blinks.
    pub(crate) text: bool,
}

impl Blinks {
    /// How it looks at the moment: pictures of one phase are the same.
    pub(crate) fn phase(self, blink: Blink) -> [bool; 2] {
        [self.cursor && blink.cursor, self.text && blink.text]
    }

    /// Nanoseconds until something changes, if anything does.
    pub(crate) fn next(self, blink: Blink) -> Option<u64> {
        let cursor = self.cursor.then_some(blink.next_cursor);
        cursor.into_iter().chain(self.text.then_some(blink.next_text)).min()
    }
}
