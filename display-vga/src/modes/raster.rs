//! The raster: the addresses of scan lines in video memory in the VGA's own modes.

/// The parameters of the CRT controller's address counter and row scan counter, from which the
/// start of each scan line is computed.
///
/// An address counts units of four bytes of video memory, one of each plane. The CRTC's counter
/// counts these units in every mode in which the processor and the CRTC agree on byte, word or
/// doubleword addresses: `graphics_controller` translates the processor's addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Raster {
    /// The address of the first line.
    pub(crate) start: u32,
    /// Addresses from a row to the next.
    pub(crate) step: u32,
    /// Addresses wrap here; one less than a power of two.
    pub(crate) mask: u32,
    /// Row scans per row, at least one.
    pub(crate) row_scans: u32,
    /// Whether each row scan is shown on two lines.
    pub(crate) doubled: bool,
    /// The row scan of the first line.
    pub(crate) preset: u32,
    /// Dots by which the picture is shifted to the left.
    pub(crate) pan: u32,
    /// The first line of the lower part of a split screen (line compare).
    pub(crate) split: u32,
    /// As `start`, below the split: 0, or the byte panning.
    pub(crate) split_start: u32,
    /// As `pan`, below the split.
    pub(crate) split_pan: u32,
    /// The address bits that bits 0 and 1 of the row scan replace; 0 if none.
    pub(crate) interleave: [u32; 2],
}

/// The start of a scan line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ScanLine {
    pub(crate) address: u32,
    pub(crate) row_scan: u32,
    pub(crate) pan: u32,
}

/// Scan lines that show the same row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// The first line.
    pub(crate) y: u32,
    /// How many lines.
    pub(crate) lines: u32,
    /// Lines of the row above the first one, which are not shown.
    pub(crate) skipped: u32,
    pub(crate) address: u32,
    pub(crate) pan: u32,
}

impl Raster {
    /// Lines of a row.
    fn row_lines(&self) -> u32 {
        self.row_scans << u32::from(self.doubled)
    }

    /// The row that line `y` belongs to, from that line on.
    fn row(&self, y: u32) -> Row {
        let doubled = u32::from(self.doubled);
        let (from, base, preset, pan) = if y >= self.split {
            (self.split, self.split_start, 0, self.split_pan)
        } else {
            (0, self.start, self.preset.min(self.row_scans - 1) << doubled, self.pan)
        };
        let (row, skipped) =
            ((y - from + preset) / self.row_lines(), (y - from + preset) % self.row_lines());
        let address = base.wrapping_add(row.wrapping_mul(self.step)) & self.mask;
        Row { y, lines: self.row_lines() - skipped, skipped, address, pan }
    }

    /// The start of line `y`.
    pub(crate) fn line(&self, y: u32) -> ScanLine {
        let row = self.row(y);
        let row_scan = row.skipped >> u32::from(self.doubled);
        let mut address = row.address;
        for (scan_bit, bit) in self.interleave.into_iter().enumerate() {
            address = address & !bit | if row_scan >> scan_bit & 1 != 0 { bit } else { 0 };
        }
        ScanLine { address: address & self.mask, row_scan, pan: row.pan }
    }

    /// The rows of a picture of `height` lines.
    pub(crate) fn rows(&self, height: u32) -> impl Iterator<Item = Row> + '_ {
        let mut y = 0;
        std::iter::from_fn(move || {
            if y >= height {
                return None;
            }
            let mut row = self.row(y);
            let end = if y < self.split { height.min(self.split) } else { height };
            row.lines = row.lines.min(end - y);
            y += row.lines;
            Some(row)
        })
    }
}
