//! What people do at a view.

/// What somebody did at a view of the picture, for the guest's keyboard and mouse.
///
/// The numbers are those of the RFB protocol (RFC 6143, 7.5.4 and 7.5.5), so that one
/// translator serves every kind of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputEvent {
    /// A key went down or up. One that is held may go down again and again.
    Key {
        /// What it is, as an X Window System keysym: 0x61 for A, 0xff0d for Return.
        keysym: u32,
        /// Whether it went down.
        down: bool,
    },
    /// The pointer moved, or a button went down or up.
    Pointer {
        /// The column of the picture, in pixels.
        x: u32,
        /// The line of the picture.
        y: u32,
        /// The buttons that are down: bit 0 the left one, 1 the middle, 2 the right one; 3 to 6
        /// are a step of the wheel up, down, left and right.
        buttons: u8,
    },
}
