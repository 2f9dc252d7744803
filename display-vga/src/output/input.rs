//! Keyboard and pointer events.

/// A keyboard or pointer event at a viewer or window, for the guest's keyboard and mouse.
///
/// The numbers are those of the RFB protocol (RFC 6143, 7.5.4 and 7.5.5), so that the caller
/// needs one translation for all outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InputEvent {
    /// A key was pressed or released. Auto-repeat presses a held key again; a key that is held when
    /// a viewer disconnects, or a window loses the focus, is released.
    Key {
        /// The key's symbol: an X11 keysym, 0x61 for an `a`, 0xff0d for Return.
        keysym: u32,
        /// The key's position, if the viewer sends it: a PC's scan code (set 1), with 0x80 added
        /// if that begins with E0 (the community's rfbproto, "QEMU Extended Key Event").
        keycode: Option<u32>,
        /// Whether it was pressed.
        down: bool,
    },
    /// The pointer was moved, or a button was pressed or released.
    Pointer {
        /// The column of the picture, in pixels. Not checked: it may lie outside the picture while
        /// the mode changes, or if a VNC viewer does not support resizing.
        x: u32,
        /// The line of the picture.
        y: u32,
        /// A bit for each pressed button: 0 left, 1 middle, 2 right, 3 and 4 a step of the wheel up
        /// and down, 5 and 6 left and right.
        buttons: u8,
    },
}
