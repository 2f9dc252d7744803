//! The refresh: from dirty pages to redrawn lines.
//!
//! The order matters. The bits are taken first and video memory is read after: a
//! store that comes later sets its bit again and is drawn by the next refresh. A
//! full redraw takes the bits too, or they would cause a second one. The harvest is
//! committed only when its lines are drawn; until then any error gives it back.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memory_region::{LogClaim, MapError, MemoryMap, RegionId};
use ram_block::{DirtyClient, DirtySnapshot, RamBlockError};
use thiserror::Error;

use crate::mode::Mode;
use crate::surface::{Rect, Surface};
use crate::vga::Vga;

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
    /// The areas of the surface that were redrawn, from the top, not touching.
    pub damage: Vec<Rect>,
    /// Lines redrawn.
    pub lines: u32,
    /// Lines of the picture.
    pub lines_total: u32,
    /// Dirty pages found in the visible part of video memory.
    pub pages: u64,
    /// Bytes copied from video memory.
    pub bytes_copied: u64,
    /// Bytes of the whole picture.
    pub bytes_total: u64,
    /// Whether everything was redrawn because the mode changed.
    pub full: bool,
    /// Time to bring the accelerator's log and take the bits.
    pub sync_time: Duration,
    /// Time to draw.
    pub draw_time: Duration,
}

/// What the surface shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drawn {
    /// Nothing that can be relied on: drawn never, or in part.
    Unknown,
    /// Black, as no mode is shown.
    Blank,
    /// All of a mode's picture.
    Mode(Mode),
}

/// A look at a [`Vga`]: keeps a [`Surface`] equal to what it shows.
///
/// Logs video memory for [`DirtyClient::VGA`] as long as it lives. A VGA has one screen:
/// two would eat each other's bits.
pub struct Screen {
    memory: Arc<MemoryMap>,
    vga: Arc<Vga>,
    vram: RegionId,
    /// Logs video memory, and keeps others from harvesting it.
    _log: LogClaim,
    drawn: Drawn,
    surface: Surface,
    buffer: DirtySnapshot,
    report: Refresh,
}

impl Screen {
    /// A screen for `vga`, whose video memory is region `vram` of `memory`.
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
            memory,
            vga,
            vram,
            _log: log,
            drawn: Drawn::Unknown,
            surface: Surface::default(),
            buffer: DirtySnapshot::default(),
            report: Refresh::default(),
        })
    }

    /// The picture as of the last refresh; empty before the first mode.
    pub fn surface(&self) -> &Surface {
        &self.surface
    }

    /// What the last refresh did.
    pub fn last(&self) -> &Refresh {
        &self.report
    }

    /// Brings the surface up to date and says what changed.
    ///
    /// Costs a sync of video memory's log, and the copy of the lines that share a page
    /// with a store. Lines are copied whole; with a new mode all are, and when none is
    /// shown the picture turns black, keeping its size.
    ///
    /// # Errors
    ///
    /// [`RefreshError`]; nothing is lost, the next refresh draws it.
    pub fn refresh(&mut self) -> Result<&Refresh, RefreshError> {
        // What cannot be shown is a blank screen; the guest may still mend it.
        let mode = self.vga.mode().ok().flatten();
        let wanted = mode.map_or(Drawn::Blank, Drawn::Mode);
        let full = wanted != self.drawn;
        let damage = std::mem::take(&mut self.report.damage);
        self.report = Refresh { damage, full, ..Refresh::default() };
        self.report.damage.clear();
        // If this fails half-way, the next refresh draws everything.
        self.drawn = Drawn::Unknown;
        match mode {
            None => self.blank(full),
            Some(mode) => {
                if full {
                    self.surface = Surface::new(mode.width(), mode.height());
                }
                self.draw(&mode, full)?;
            }
        }
        self.drawn = wanted;
        Ok(&self.report)
    }

    fn blank(&mut self, full: bool) {
        let (width, height) = (self.surface.width(), self.surface.height());
        self.report.lines_total = height;
        if full {
            self.surface = Surface::new(width, height);
            self.report.lines = height;
            if height > 0 {
                self.report.damage.push(self.surface.area());
            }
        }
    }

    fn draw(&mut self, mode: &Mode, full: bool) -> Result<(), RefreshError> {
        let begin = Instant::now();
        let buffer = std::mem::take(&mut self.buffer);
        let harvest = self.memory.snapshot_and_clear_into(
            self.vram,
            DirtyClient::VGA,
            mode.visible(),
            buffer,
        )?;
        let synced = Instant::now();
        self.report.sync_time = synced - begin;
        self.report.pages = harvest.count();
        self.report.lines_total = mode.height();
        self.report.bytes_total = mode.picture_bytes();
        if full {
            self.copy_lines(mode, 0, mode.height())?;
        } else {
            let page = self.vga.vram().page_size().bytes();
            // Runs come in ascending order: each line is drawn once.
            let mut next = 0;
            for run in harvest.runs() {
                let lines = mode.lines_in(run.start * page..run.end * page);
                let first = lines.start.max(next);
                if first < lines.end {
                    self.copy_lines(mode, first, lines.end)?;
                    next = lines.end;
                }
            }
        }
        self.buffer = harvest.commit();
        self.report.draw_time = synced.elapsed();
        Ok(())
    }

    fn copy_lines(&mut self, mode: &Mode, first: u32, end: u32) -> Result<(), RefreshError> {
        let vram = self.vga.vram();
        let lines = end - first;
        let bytes = mode.line(first).start..mode.line(end - 1).end;
        let copied = u64::from(lines) * mode.line_bytes();
        if bytes.end - bytes.start == copied {
            vram.read(bytes.start, self.surface.lines_mut(first, lines))?;
        } else {
            for y in first..end {
                vram.read(mode.line(y).start, self.surface.lines_mut(y, 1))?;
            }
        }
        self.report.lines += lines;
        self.report.bytes_copied += copied;
        match self.report.damage.last_mut() {
            Some(last) if last.y + last.height == first => last.height += lines,
            _ => {
                self.report.damage.push(Rect { x: 0, y: first, width: mode.width(), height: lines })
            }
        }
        Ok(())
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
