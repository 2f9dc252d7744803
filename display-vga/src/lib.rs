//! A VGA display that redraws only what changed.
//!
//! [`Vga`] is the device: video memory, the registers of a PC's VGA with its text, planar
//! and 256-colour modes, and the Bochs VBE registers with their linear ones. [`Screen`] draws
//! it: each [`refresh`](Screen::refresh) harvests the display's own dirty bits of the
//! *visible* bytes, draws their pixels into a [`Surface`], and reports the damage.
//! [`RefreshTimer`] computes when to refresh next. A surface can be written to a PNG file, or
//! shown in a terminal, in a window (feature `window`), or to VNC viewers (`VncServer`, feature
//! `vnc`).
//!
//! The invariant: **after a refresh the surface equals the result of a full redraw**, as of
//! some moment after the refresh began; and an error loses no damage.
//!
//! ```text
//!   guest --ports--> Vga registers --mode--> Screen --draw--> Surface --> PNG, VNC, ...
//!   guest --stores--> video memory --dirty pages--^    \--> damage
//! ```
//!
//! # Hosts
//!
//! The device, the screen and PNG files are there on every host, in a browser too: there a VGA is
//! given its clock ([`Vga::with_clock`]). `TerminalView` (feature `terminal`, a default) needs Unix
//! or Windows, and is left out elsewhere. `window` and `vnc`, which are asked for by name, are
//! refused by the compiler where they cannot be had: WebAssembly, and all hosts but Linux.
//!
//! # Example
//!
//! ```
//! use display_vga::{Screen, Vga};
//! use memory_region::MemoryMap;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let memory = MemoryMap::new();
//! let vga = Vga::new("vga.vram", 16 << 20)?;
//! let regions = vga.add_to(&memory)?;
//! let system = memory.transaction(|map| {
//!     let system = map.container("system", 1 << 64)?;
//!     let ports = map.container("ports", 1 << 16)?;
//!     map.add_subregion(system, Vga::WINDOW, regions.window)?;
//!     map.add_subregion(system, 0xe000_0000, regions.vram)?;
//!     map.add_subregion(ports, Vga::PORTS, regions.ports)?;
//!     map.add_subregion(ports, Vga::VBE_PORTS, regions.vbe_ports)?;
//!     Ok(system)
//! })?;
//! let space = memory.address_space("memory", system)?;
//! let mut screen = Screen::new(memory.clone(), vga.clone(), regions.vram)?;
//!
//! vga.set_mode(640, 480, 32)?; // a guest does this through the ports
//! screen.refresh()?;
//! space.write(0xe000_0000 + (100 * 640 + 3) * 4, &[0xff, 0x80, 0x00, 0])?;
//! let refresh = screen.refresh()?;
//! assert!(refresh.damage.iter().any(|area| area.contains(3, 100)));
//! assert_eq!(refresh.lines, 1);
//! assert_eq!(screen.surface().pixel(3, 100), [0x00, 0x80, 0xff]);
//! # Ok(())
//! # }
//! ```
//!
//! # What is modelled, and what is not
//!
//! The registers affect the picture, and the bytes that are written to the planes, as described
//! in the manuals. Not modelled are: the CRTC's choice of byte, word or doubleword
//! addresses (planes are addressed as the mode's accesses are), counting by two or four, a
//! skewed cursor, borders, sequencer resets, vertical interrupts, and blinking in graphics.
//! The start-of-blanking registers (CRTC 0x02 and 0x15, with their bits in 0x07 and 0x09) are
//! stored and have no effect: display enable gives the size of the picture, and a guest that
//! starts blanking earlier, to hide a line or the last columns, shows them all the same, as it
//! does on QEMU. The whole picture has one state: a register that is written within a frame (a
//! palette, start address, panning or mode, for raster effects) changes either all of the
//! picture or none of it.
//! Where the low window is an alias of video memory, reads do not load the latches; CGA's
//! interleave replaces the bit of a line's first address only; and in 256-colour modes the
//! attribute controller's palette and plane enable have no effect.
//! A picture has at most 2^26 pixels (8192x8192), whatever their depth; for a larger mode the
//! screen is blank.
//! The vertical retrace lasts until the next frame begins: a guest whose port reads exit to the
//! VMM would miss one of the real length.

// docs.rs, which builds with a nightly compiler, says which feature an item needs.
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(all(feature = "vnc", not(target_os = "linux")))]
compile_error!("the feature `vnc` of display-vga needs Linux: its poll and its TCP timeouts");
#[cfg(all(feature = "window", target_family = "wasm"))]
compile_error!("the feature `window` of display-vga needs an operating system with windows");

mod clock;
mod device;
mod draw;
mod font;
mod locks;
mod modes;
mod output;
mod picture;
mod rare_log;
mod refresh;
mod registers;

pub use device::edid::EdidError;
pub use device::regions::VgaRegions;
pub use device::state::StateError;
pub use device::vga::{Vga, VgaError};
pub use modes::limits::VbeError;
pub use modes::mode::Mode;
pub use output::input::InputEvent;
#[cfg(feature = "png")]
pub use output::png::{PngError, write_png};
#[cfg(all(feature = "terminal", any(unix, windows)))]
pub use output::terminal::TerminalView;
#[cfg(all(feature = "vnc", target_os = "linux"))]
pub use output::vnc::{VncBuilder, VncError, VncEvent, VncListener, VncServer};
#[cfg(all(feature = "window", not(target_family = "wasm")))]
pub use output::window::{WindowError, WindowView};
pub use picture::surface::{Rect, Surface, SurfaceError};
pub use picture::text_screen::{TextCell, TextCursor, TextScreen};
pub use refresh::refresh_timer::{RefreshTimer, ViewerState};
pub use refresh::screen::{Refresh, RefreshError, Screen};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
