//! What viewers do, for the caller.

use crate::output::input::InputEvent;

/// What a viewer does.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VncEvent {
    /// A viewer came or went: so many are there now. A refresh loop that rests while nobody
    /// looks is to be woken.
    Viewers(usize),
    /// Somebody typed, moved the pointer, or pressed a button.
    Input(InputEvent),
    /// Somebody cut or copied text: at most 256 KiB of Latin-1, whose lines end in a line
    /// feed.
    CutText(String),
}
