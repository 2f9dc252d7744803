//! The picture in the frame buffer, drawn where it has changed.

use memory_region::LogClaim;
use ram_block::DirtyClient;

use crate::machine::layout::{HEIGHT, PIXEL, WIDTH};
use crate::machine::machine::{Machine, MachineError};

/// A screen of a machine; a machine has one at a time.
#[derive(Debug)]
pub struct Screen {
    log: LogClaim,
    pixels: Vec<u32>,
}

impl Screen {
    /// A screen that shows what the frame buffer has.
    ///
    /// # Errors
    ///
    /// [`MachineError::Map`] if there is another screen.
    pub fn new(machine: &Machine) -> Result<Self, MachineError> {
        let [_, region] = machine.regions();
        let log = machine.memory().claim_log(region, DirtyClient::VGA)?;
        let mut screen = Self { log, pixels: Vec::new() };
        // After the log has begun.
        screen.pixels = vec![0; usize::try_from(WIDTH * HEIGHT).unwrap_or(0)];
        (0..HEIGHT).try_for_each(|line| screen.draw(line))?;
        Ok(screen)
    }

    /// Draws the lines of pages that were written since the last call; returns how many.
    ///
    /// # Errors
    ///
    /// [`MachineError`] if the log cannot be harvested; the next call draws these lines then.
    pub fn refresh(&mut self) -> Result<u64, MachineError> {
        let line = WIDTH * PIXEL;
        let page = self.log.block().page_size().bytes();
        let harvest = self.log.snapshot_and_clear(0..HEIGHT * line)?;
        let (mut drawn, mut next) = (0, 0);
        for pages in harvest.runs() {
            let start = (pages.start * page / line).max(next);
            // Two runs may have parts of one line, which is drawn once.
            next = (pages.end * page).div_ceil(line).min(HEIGHT);
            (start..next).try_for_each(|line| self.draw(line))?;
            drawn += next.saturating_sub(start);
        }
        harvest.commit();
        Ok(drawn)
    }

    fn draw(&mut self, line: u64) -> Result<(), MachineError> {
        let mut bytes = vec![0; usize::try_from(WIDTH * PIXEL).unwrap_or(0)];
        self.log.block().read(line * WIDTH * PIXEL, &mut bytes)?;
        let line = usize::try_from(line).unwrap_or(0);
        let pixels = self.pixels.chunks_exact_mut(bytes.len() / 4).nth(line);
        for (pixel, bytes) in pixels.into_iter().flatten().zip(bytes.chunks_exact(4)) {
            *pixel = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0]);
        }
        Ok(())
    }

    /// The pixels, line by line: 0xrrggbb.
    pub fn pixels(&self) -> &[u32] {
        &self.pixels
    }
}
