//! The refresh: redraws the pixels of dirty pages.
//!
//! The order matters: first the registers are read, then the dirty bits are harvested, and last
//! video memory is read. A store after that sets its bit again and is drawn by the next refresh;
//! a register that is written later changes the generation, and is drawn by the next refresh,
//! too. A full redraw also takes the bits, or they would cause a second redraw. The harvest is
//! committed only when its pixels are drawn; on any error before that, the bits are given back.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use memory_region::{LogClaim, MapError, MemoryMap, RegionId};
use ram_block::{DirtyClient, DirtySnapshot, RamBlockError};
use thiserror::Error;

use crate::clock::Instant;
use crate::device::vga::{Shown, Vga};
use crate::draw::linear;
use crate::draw::painter::Painter;
use crate::draw::part::DrawnPart;
use crate::modes::mode::{Mode, ModeKind};
use crate::picture::damage::Damage;
use crate::picture::surface::{Rect, Surface};
use crate::picture::text_screen::TextScreen;
use crate::registers::retrace::Timing;

/// Why a refresh failed. The next refresh draws its changes.
#[derive(Debug, Error)]
#[non_exhaustive]
#[allow(missing_docs)] // of fields: the messages say what they are
pub enum RefreshError {
    /// The dirty log cannot be read.
    #[error("The dirty log of video memory cannot be read")]
    Log(#[from] MapError),
    /// Video memory cannot be read.
    #[error("Video memory cannot be read")]
    Memory(#[from] RamBlockError),
    /// The region is not the video memory.
    #[error("The region shows block \"{found}\", the display's video memory is \"{vram}\"")]
    WrongRegion { found: String, vram: String },
}

/// The result of a refresh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refresh {
    /// The areas of the surface that changed, from the top; they may overlap. If the surface is a
    /// view of video memory, the areas that may have changed.
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
    /// Bytes of the whole picture, at four per pixel.
    pub bytes_total: u64,
    /// Whether the surface was replaced, possibly by one of another size: all of it is damage.
    pub full: bool,
    /// Whether the guest stored to the memory that the mode can show, or changed the mode, its
    /// colours or its cursor.
    pub active: bool,
    /// The time until something on the screen blinks; `None` if nothing does.
    pub next_blink: Option<Duration>,
    /// The time to sync the log and harvest the bits.
    pub sync_time: Duration,
    /// The time to draw.
    pub draw_time: Duration,
}

/// What the surface shows.
#[derive(Debug, PartialEq, Eq)]
enum Drawn {
    /// Unknown: never drawn, or only in part.
    Unknown,
    /// Black, as there is no mode.
    Blank,
    /// All of a mode's picture, in this phase of blinking.
    Mode(Mode, [bool; 2]),
}

/// The screen of a [`Vga`]: draws its picture into a [`Surface`].
///
/// Logs video memory for [`DirtyClient::VGA`] as long as it lives. A VGA can have only one
/// screen: each of two would take dirty bits that the other one needs.
pub struct Screen {
    vga: Arc<Vga>,
    /// The claim of video memory's log: nothing else can harvest it.
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
    /// A screen for `vga`, whose video memory is region `vram` of `memory`, with a surface that has
    /// its own memory.
    ///
    /// # Errors
    ///
    /// [`RefreshError::Log`] if the region cannot be logged, or another screen logs it,
    /// [`RefreshError::WrongRegion`] if it is not the VGA's video memory.
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

    /// Makes the surface a view of video memory in modes of 32 bits per pixel. Refreshes then copy
    /// nothing, and the damage covers whole dirty pages: more pixels than have changed. For
    /// callers that copy the pixels anyway.
    #[must_use]
    pub fn zero_copy(mut self) -> Self {
        self.shares = true;
        self
    }

    /// The picture as of the last refresh; empty before the first mode.
    pub fn surface(&self) -> &Surface {
        &self.surface
    }

    /// The characters of the picture as of the last refresh; `None` if it is not a text mode, or
    /// blank. Reads every cell. The text is unchanged if the last refresh's damage is empty.
    pub fn text(&self) -> Option<TextScreen> {
        match &self.drawn {
            Drawn::Mode(mode, _) => self.painter.characters(mode),
            Drawn::Blank | Drawn::Unknown => None,
        }
    }

    /// The result of the last refresh.
    pub fn last(&self) -> &Refresh {
        &self.report
    }

    /// Updates the surface and returns the damage.
    ///
    /// Costs a sync of video memory's log, and drawing the pixels of dirty pages; in a text mode,
    /// the cells that changed. After a change of the mode, palette or start address everything
    /// is drawn. If the screen is off the picture turns black and keeps its size.
    ///
    /// # Errors
    ///
    /// [`RefreshError`]; no damage is lost, the next refresh draws it.
    pub fn refresh(&mut self) -> Result<&Refresh, RefreshError> {
        let known = self.shown.take();
        let new = self.vga.shown(known.as_ref().map(|shown| shown.generation));
        // Another generation alone is not activity: guests also write index registers to read.
        let active = match (&new, &known) {
            (Some(new), Some(known)) => new.mode != known.mode,
            (new, _) => new.is_some(),
        };
        let shown = new.or(known);
        let damage = Damage::reusing(std::mem::take(&mut self.report.damage));
        self.report = Refresh { active, ..Refresh::default() };
        // `Unknown` in case of an error: the next refresh then draws everything.
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
        // full: a new surface; all: draw everything; changed: draw even without dirty pages.
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
        let harvest = self.log.snapshot_and_clear_into(mode.bytes(), buffer)?;
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
                (true, _) => DrawnPart::Fresh,
                (false, true) => DrawnPart::All,
                (false, false) => DrawnPart::Dirty(&harvest, vram.page_size()),
            };
            if full {
                let new = || Surface::new(mode.width(), mode.height());
                self.surface = shared.unwrap_or_else(new);
            }
            match &mode.kind {
                ModeKind::Linear(mode) if self.surface.is_shared() => {
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
