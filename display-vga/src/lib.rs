//! A VGA display that redraws only what changed.
//!
//! [`Vga`] is the device: video memory, and the Bochs VBE registers that choose a
//! mode. [`Screen`] looks at it: each [`refresh`](Screen::refresh) takes the display's
//! own dirty bits of the *visible* bytes, copies the touched scan lines into a
//! [`Surface`], and reports the damage. A surface goes to a PNG file or a terminal.
//!
//! The invariant: **after a refresh the surface is what a full redraw would give**,
//! as of some moment after the refresh began; and an error loses no damage.
//!
//! ```text
//!   guest --ports--> Vga registers --mode--> Screen --draw--> Surface --> PNG, terminal
//!   guest --stores--> video memory --dirty lines--^    \--> damage
//! ```
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
//! let (system, ports, vram) = memory.update(|map| {
//!     let system = map.container("system", 1 << 64)?;
//!     let ports = map.container("ports", 1 << 16)?;
//!     let vram = map.ram("vga.vram", vga.vram().clone())?;
//!     let registers = map.mmio("vbe", Vga::PORTS, vga.clone())?;
//!     map.place(system, 0xe000_0000, vram)?;
//!     map.place(ports, Vga::FIRST_PORT, registers)?;
//!     Ok((system, ports, vram))
//! })?;
//! let space = memory.address_space("memory", system)?;
//! let mut screen = Screen::new(memory.clone(), vga.clone(), vram)?;
//!
//! vga.set_mode(640, 480, 32)?; // a guest does this through the ports
//! screen.refresh()?;
//! space.write(0xe000_0000 + (100 * 640 + 3) * 4, &[0xff, 0x80, 0x00, 0])?;
//! let refresh = screen.refresh()?;
//! assert!(refresh.damage.iter().any(|area| area.contains(3, 100)));
//! assert!(refresh.lines < 10);
//! assert_eq!(screen.surface().pixel(3, 100), [0x00, 0x80, 0xff]);
//! # Ok(())
//! # }
//! ```

mod mode;
mod output;
mod refresh;
mod surface;
mod vga;

pub use mode::{Mode, VbeError};
#[cfg(feature = "png")]
pub use output::png::{PngError, write_png};
#[cfg(feature = "terminal")]
pub use output::terminal::TerminalView;
pub use refresh::{Refresh, RefreshError, Screen};
pub use surface::{Rect, Surface};
pub use vga::{Vga, VgaState};
