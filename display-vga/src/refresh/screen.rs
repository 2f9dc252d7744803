//! The refresh: from dirty pages to redrawn pixels.
//!
//! The order matters. Registers are looked at first, the bits are taken next and video
//! memory is read last: a store that comes later sets its bit again and is drawn by the
//! next refresh, and so is a register that is written later. A full redraw takes the bits
//! too, or they would cause a second one. The harvest is committed only when its pixels
//! are drawn; until then any error gives it back.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memory_region::{LogClaim, MapError, MemoryMap, RegionId};
use ram_block::{DirtyClient, DirtySnapshot, RamBlockError};
use thiserror::Error;

use crate::device::vga::{Shown, Vga};
use crate::draw::linear;
use crate::draw::painter::Painter;
use crate::draw::part::Part;
use crate::modes::mode::{Kind, Mode};
use crate::picture::damage::Damage;
use crate::picture::surface::{Rect, Surface};
use crate::picture::text_screen::TextScreen;
use crate::registers::retrace::Timing;

/// A refresh that could not be made; the next one draws what it would have.
#[derive(Debug, Error)]
pub enum RefreshError {
    /// The dirty log cannot be read.
    #[error("The dirty log of video memory cannot be read")]
    Log(#[from] MapError),
    /// Video memory cannot be read.
    #[error("Video memory cannot be read")]
    Memory(#[from] RamBlockError),
    /// The region is not the video memory.
    #[error("The region shows block \"{found}\", the display's video memory is \"{vram}\"")]
    WrongRegion {
        /// The id of the region's block.
        found: String,
        /// The id of the video memory.
        vram: String,
    },
}

/// What a refresh did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refresh {
    /// The areas of the surface that changed, from the top; they may overlap. With video
    /// memory shared, those that may have changed.
    pub damage: Vec<Rect>,
    /// Scan lines that the damage touches.
    pub lines: u32,
    /// Lines of the picture.
    pub lines_total: u32,
    /// Dirty pages found in the part of video memory that the mode can show: all four planes
    /// in the VGA's own modes.
    pub pages: u64,
    /// Bytes read from video memory.
    pub bytes_copied: u64,
    /// Bytes of the whole picture, at four a pixel.
    pub bytes_total: u64,
    /// Whether the surface is another one, of another size perhaps: all of it is damage.
    pub full: bool,
    /// Whether the guest stored to what the mode can show, or changed the mode, its colours
    /// or its cursor.
    pub active: bool,
    /// Until something that blinks on the screen changes by itself; none if nothing does.
    pub next_blink: Option<Duration>,
    /// Time to bring the accelerator's log and take the bits.
    pub sync_time: Duration,
    /// Time to draw.
    pub draw_time: Duration,
}

/// What the surface shows.
#[derive(Debug, PartialEq, Eq)]
enum Drawn {
    /// Nothing that can be relied on: drawn never, or in part.
    Unknown,
    /// Black, as no mode is shown.
    Blank,
    /// All of a mode's picture, with what blinks in one of its phases.
    Mode(Mode, [bool; 2]),
}

/// A look at a [`Vga`]: keeps a [`Surface`] equal to what it shows.
///
/// Logs video memory for [`DirtyClient::VGA`] as long as it lives. A VGA has one screen:
/// two would eat each other's bits.
pub struct Screen {
    vga: Arc<Vga>,
    vram: RegionId,
    /// Logs video memory, and keeps others from harvesting it.
    log: LogClaim,
    shares: bool,
    shown: Option<Shown>,
    drawn: Drawn,
    painter: Painter,
    surface: Surface,
    buffer: DirtySnapshot,
    report: Refresh,
}

impl Screen {
    /// A screen for `vga`, whose video memory is region `vram` of `memory`, with a surface
    /// of its own.
    ///
    /// # Errors
    ///
    /// [`RefreshError::Log`] if the region cannot be logged, or another screen logs it,
    /// [`RefreshError::WrongRegion`] if it shows something else.
    pub fn new(
        memory: Arc<MemoryMap>,
        vga: Arc<Vga>,
        vram: RegionId,
    ) -> Result<Self, RefreshError> {
        let block = memory.ram_block(vram)?;
        if !Arc::ptr_eq(&block, vga.vram()) {
            let (found, vram) = (block.id().to_owned(), vga.vram().id().to_owned());
            return Err(RefreshError::WrongRegion { found, vram });
        }
        let log = memory.claim_log(vram, DirtyClient::VGA)?;
        Ok(Self {
            vga,
            vram,
            log,
            shares: false,
            shown: None,
            drawn: Drawn::Unknown,
            painter: Painter::default(),
            surface: Surface::default(),
            buffer: DirtySnapshot::default(),
            report: Refresh::default(),
        })
    }

    /// Lets the surface be video memory itself where the format allows it: 32 bits per
    /// pixel. Refreshes copy nothing then, and the damage is that of pages: more pixels
    /// than have changed. For those who copy what they are shown anyway.
    #[must_use]
    pub fn zero_copy(mut self) -> Self {
        self.shares = true;
        self
    }

    /// The picture as of the last refresh; empty before the first mode.
    pub fn surface(&self) -> &Surface {
        &self.surface
    }

    /// The characters of the picture as of the last refresh; `None` if it is no text, or
    /// blank. Costs a look at every cell; nothing new is in it if the last refresh's damage is
    /// empty.
    pub fn text(&self) -> Option<TextScreen> {
        match &self.drawn {
            Drawn::Mode(mode, _) => self.painter.characters(mode),
            Drawn::Blank | Drawn::Unknown => None,
        }
    }

    /// What the last refresh did.
    pub fn last(&self) -> &Refresh {
        &self.report
    }

    /// Brings the surface up to date and says what changed.
    ///
    /// Costs a sync of video memory's log, and what the pages show that were stored to; of
    /// a text, the cells that changed. With another mode, palette or start address
    /// everything is drawn, and when no mode is shown the picture turns black, keeping its
    /// size.
    ///
    /// # Errors
    ///
    /// [`RefreshError`]; nothing is lost, the next refresh draws it.
    pub fn refresh(&mut self) -> Result<&Refresh, RefreshError> {
        let known = self.shown.take();
        let new = self.vga.shown(known.as_ref().map(|shown| shown.generation));
        // Registers are also written without effect: to read others, for instance.
        let active = match (&new, &known) {
            (Some(new), Some(known)) => new.mode != known.mode,
            (new, _) => new.is_some(),
        };
        let shown = new.or(known);
        let damage = Damage::reusing(std::mem::take(&mut self.report.damage));
        self.report = Refresh { active, ..Refresh::default() };
        // If this fails half-way, the next refresh draws everything.
        let drawn = std::mem::replace(&mut self.drawn, Drawn::Unknown);
        let result = match &shown {
            Some(Shown { mode: Some(mode), timing, .. }) => self.draw(mode, timing, drawn, damage),
            _ => Ok(self.blank(drawn)),
        };
        self.shown = shown;
        self.drawn = result?;
        Ok(&self.report)
    }

    fn blank(&mut self, drawn: Drawn) -> Drawn {
        let (width, height) = (self.surface.width(), self.surface.height());
        self.report.lines_total = height;
        if drawn != Drawn::Blank {
            self.surface = Surface::new(width, height);
            self.report.full = true;
            self.report.lines = height;
            if height > 0 {
                self.report.damage.push(self.surface.area());
            }
        }
        Drawn::Blank
    }

    fn draw(
        &mut self,
        mode: &Mode,
        timing: &Timing,
        drawn: Drawn,
        mut damage: Damage,
    ) -> Result<Drawn, RefreshError> {
        let begin = Instant::now();
        let blink = timing.blink(self.vga.now());
        let shared = if self.shares { mode.shared(self.vga.vram()) } else { None };
        // Another surface, everything on it, or something that is no store.
        let (full, all, changed) = match &drawn {
            Drawn::Mode(before, _) if before != mode => {
                let full = !self.surface.has_size(mode.width(), mode.height())
                    || shared.is_some()
                    || self.surface.is_shared();
                (full, !before.continues_as(mode), true)
            }
            Drawn::Mode(_, phase) => {
                (false, false, *phase != self.painter.blinks(mode).phase(blink))
            }
            Drawn::Blank | Drawn::Unknown => (true, true, true),
        };
        let buffer = std::mem::take(&mut self.buffer);
        let harvest = self.log.snapshot_and_clear_into(self.vram, mode.bytes(), buffer)?;
        let synced = Instant::now();
        self.report.sync_time = synced - begin;
        self.report.lines_total = mode.height();
        self.report.bytes_total = u64::from(mode.width()) * u64::from(mode.height()) * 4;
        self.report.full = full;
        self.report.active |= !harvest.is_empty();
        if changed || !harvest.is_empty() {
            self.report.pages = harvest.count();
            let vram = self.vga.vram();
            let part = match (full, all) {
                (true, _) => Part::Fresh,
                (false, true) => Part::All,
                (false, false) => Part::Dirty(&harvest, vram.page_size()),
            };
            if full {
                let new = || Surface::new(mode.width(), mode.height());
                self.surface = shared.unwrap_or_else(new);
            }
            match &mode.kind {
                Kind::Linear(mode) if self.surface.is_shared() => {
                    linear::damage_only(mode, part, &mut damage);
                }
                _ => {
                    let (surface, painter) = (&mut self.surface, &mut self.painter);
                    self.report.bytes_copied =
                        painter.draw(vram, mode, blink, part, surface, &mut damage)?;
                }
            }
        }
        if full {
            damage = Damage::default();
            damage.add(self.surface.area());
        }
        (self.report.damage, self.report.lines) = damage.finish();
        let blinks = self.painter.blinks(mode);
        self.report.next_blink = blinks.next(blink).map(Duration::from_nanos);
        self.buffer = harvest.commit();
        self.report.draw_time = synced.elapsed();
        let phase = blinks.phase(blink);
        Ok(match drawn {
            Drawn::Mode(before, _) if before == *mode => Drawn::Mode(before, phase),
            _ => Drawn::Mode(mode.clone(), phase),
        })
    }
}

impl fmt::Debug for Screen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Screen")
            .field("vga", &self.vga)
            .field("last", &self.report)
            .finish_non_exhaustive()
    }
}
