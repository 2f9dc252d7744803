//! What people do at a view.

/// What somebody did at a view of the picture, for the guest's keyboard and mouse.
///
/// The numbers are those of the RFB protocol (RFC 6143, 7.5.4 and 7.5.5), so that one
/// translator serves every kind of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputEvent {
    /// A key went down or up. One that is held may go down again and again; one that is held
    /// when nobody is at the view any more goes up.
    Key {
        /// What the key means: an X11 keysym, 0x61 for an `a`, 0xff0d for Return.
        keysym: u32,
        /// Which key it is, if the view knows: a PC's scan code (set 1), with 0x80 added
        /// where that begins with E0 (the community's rfbproto, "QEMU Extended Key Event").
        keycode: Option<u32>,
        /// Whether it went down.
        down: bool,
    },
    /// The pointer moved, or a button went down or up.
    Pointer {
        /// The column of the picture, in pixels. Not checked: while the mode changes, or if a
        /// VNC viewer knows only another size, it may lie outside the picture.
        x: u32,
        /// The line of the picture.
        y: u32,
        /// A bit for each button that is down: 0 left, 1 middle, 2 right, 3 and 4 a step of the
        /// wheel up and down, 5 and 6 left and right.
        buttons: u8,
    },
}
