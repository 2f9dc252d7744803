//! Events from viewers, for the caller.

use crate::output::input::InputEvent;

/// An event from a viewer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VncEvent {
    /// A viewer connected or disconnected; the number of viewers now. Wake a refresh loop that
    /// sleeps while there are no viewers.
    Viewers(usize),
    /// A key was pressed or released, or the pointer or its buttons changed.
    Input(InputEvent),
    /// The viewer's clipboard text: at most 256 KiB of Latin-1, with lines that end in a line feed.
    CutText(String),
}
