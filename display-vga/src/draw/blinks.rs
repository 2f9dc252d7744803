//! Whether a picture has a blinking cursor or text, and whether that is shown now.

use crate::registers::retrace::Blink;

/// The parts of a picture that change with time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Blinks {
    /// Whether the cursor is on the screen.
    pub(crate) cursor: bool,
    /// Whether a character on the screen blinks.
    pub(crate) text: bool,
}

impl Blinks {
    /// Whether cursor and text are shown now: pictures of the same phase are equal.
    pub(crate) fn phase(self, blink: Blink) -> [bool; 2] {
        [self.cursor && blink.cursor, self.text && blink.text]
    }

    /// Nanoseconds until the phase changes, if anything blinks.
    pub(crate) fn next(self, blink: Blink) -> Option<u64> {
        let cursor = self.cursor.then_some(blink.next_cursor);
        cursor.into_iter().chain(self.text.then_some(blink.next_text)).min()
    }
}
