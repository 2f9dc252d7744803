//! A display mode of any kind.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use ram_block::RamBlock;

use crate::modes::limits::LEGACY_BYTES;
use crate::modes::linear::{Format, Linear};
use crate::modes::planes::Planes;
use crate::modes::text::Text;
use crate::picture::surface::Surface;

/// A display mode, with everything that a picture depends on except video memory.
///
/// Holding one proves that every visible byte lies in video memory. The VGA's own modes have
/// the size of its raster: one pixel per dot of the full clock and one line per scan line, so
/// that 320x200 pixels of 256 colours are a picture of 640x400.
#[derive(Clone, PartialEq, Eq)]
pub struct Mode {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) kind: ModeKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ModeKind {
    Text(Text),
    Planes(Planes),
    Linear(Linear),
}

impl Mode {
    /// The width of the picture in pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// The height of the picture in lines.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The bytes of video memory that may be visible.
    pub(crate) fn bytes(&self) -> Range<u64> {
        match &self.kind {
            ModeKind::Text(_) => 0..LEGACY_BYTES,
            ModeKind::Planes(planes) => planes.bytes.clone(),
            ModeKind::Linear(linear) => linear.visible(),
        }
    }

    /// Whether a change to `other` needs no full redraw: true for text modes of the same size,
    /// whose cells are compared.
    pub(crate) fn continues_as(&self, other: &Self) -> bool {
        let same_size = (self.width, self.height) == (other.width, other.height);
        same_size && self.is_text() && other.is_text()
    }

    /// A surface that is video memory itself, if the mode has the surface's format.
    pub(crate) fn shared(&self, vram: &Arc<RamBlock>) -> Option<Surface> {
        match &self.kind {
            ModeKind::Linear(linear) if linear.format == Format::Bgrx => {
                let size = (self.width, self.height);
                Some(Surface::shared(size, vram.clone(), linear.start, linear.stride))
            }
            _ => None,
        }
    }

    /// Whether it shows characters.
    pub fn is_text(&self) -> bool {
        matches!(self.kind, ModeKind::Text(_))
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { width, height, kind } = self;
        match kind {
            ModeKind::Text(text) => {
                write!(f, "text {}x{}", text.columns, text.rows(*height).count())?
            }
            ModeKind::Planes(planes) => write!(f, "{} graphics", planes.shift)?,
            ModeKind::Linear(linear) => write!(f, "{} graphics", linear.format)?,
        }
        write!(f, ", {width}x{height}")
    }
}

impl fmt::Debug for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mode({self})")
    }
}
