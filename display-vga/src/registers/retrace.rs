//! The frame timing: the retrace bits that a guest can read, and the phases of blinking.

use crate::registers::register_file::{Registers, crtc, sequencer};

/// Frequencies of the dot clocks, in Hz.
const DOT_CLOCKS: [u64; 2] = [25_175_000, 28_322_000];
/// The timing that is used if the registers describe one that no monitor could sync to: that of
/// the text mode, 70 Hz.
const DEFAULT_TIMING: Timing = Timing { line: 31_778, lines: 449, displayed: 400, retrace: 412 };

/// Frames after which the cursor changes between shown and hidden: a period of 16.
const CURSOR_FRAMES: u64 = 8;
/// Frames after which blinking characters change: a period of 32.
const TEXT_FRAMES: u64 = 16;

/// A frame's timing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timing {
    /// Nanoseconds of a scan line.
    line: u64,
    /// Lines of a frame.
    lines: u64,
    /// Displayed lines.
    displayed: u64,
    /// The line at which the retrace begins.
    retrace: u64,
}

/// The phase of the cursor's and of characters' blinking: whether they are shown now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blink {
    pub(crate) cursor: bool,
    pub(crate) text: bool,
    /// Nanoseconds until the cursor's next change.
    pub(crate) next_cursor: u64,
    /// Nanoseconds until the next change of blinking characters.
    pub(crate) next_text: u64,
}

/// Bits of the input status register 1.
const NOT_DISPLAYING: u8 = 1;
const VERTICAL_RETRACE: u8 = 8;

impl Timing {
    pub(crate) fn of(registers: &Registers) -> Self {
        let clocking = registers.sequencer[sequencer::CLOCKING_MODE];
        let dots = if clocking & 1 != 0 { 8 } else { 9 };
        let clock =
            DOT_CLOCKS[usize::from(registers.miscellaneous >> 2 & 1)] >> (clocking >> 3 & 1);
        let characters = u64::from(registers.crtc[crtc::HORIZONTAL_TOTAL]) + 5;
        let doubled = registers.crtc[crtc::MODE_CONTROL] >> 2 & 1;
        let lines = |lines: u32| u64::from(lines << doubled);
        let timing = Self {
            line: characters * dots * 1_000_000_000 / clock,
            lines: lines(registers.vertical_total() + 2),
            displayed: lines(registers.vertical_display_end() + 1),
            retrace: lines(registers.vertical_retrace_start()),
        };
        // From 20 to 200 frames a second.
        let sound = (5_000_000..50_000_000).contains(&timing.frame())
            && timing.displayed <= timing.retrace
            && timing.retrace < timing.lines;
        if sound { timing } else { DEFAULT_TIMING }
    }

    /// Nanoseconds of a frame.
    fn frame(&self) -> u64 {
        self.line * self.lines
    }

    /// The bits of input status register 1, `now` nanoseconds after the start.
    ///
    /// The retrace bit stays set until the next frame begins, about a millisecond; on a real VGA it
    /// lasts two lines. A guest whose port reads exit to the VMM would miss most of those.
    pub(crate) fn status(&self, now: u64) -> u8 {
        let (line, dot) = (now % self.frame() / self.line, now % self.line);
        let retrace = line >= self.retrace;
        // A fifth of a line is blank.
        let blank = line >= self.displayed || dot >= self.line / 5 * 4;
        (u8::from(blank) * NOT_DISPLAYING) | (u8::from(retrace) * VERTICAL_RETRACE)
    }

    /// The phase of blinking, `now` nanoseconds after the start.
    pub(crate) fn blink(&self, now: u64) -> Blink {
        let frames = now / self.frame();
        let until = |frames: u64| {
            let period = frames * self.frame();
            period - now % period
        };
        Blink {
            cursor: frames / CURSOR_FRAMES % 2 == 0,
            text: frames / TEXT_FRAMES % 2 == 0,
            next_cursor: until(CURSOR_FRAMES),
            next_text: until(TEXT_FRAMES),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bits_move_with_time() {
        let registers = crate::registers::text_mode::registers();
        let timing = Timing::of(&registers);
        assert_eq!((timing.lines, timing.displayed, timing.retrace), (449, 400, 412));
        let at = |line: u64, of_line: u64| {
            timing.status(timing.line * line + timing.line * of_line / 100)
        };
        assert_eq!(at(0, 10), 0);
        assert_eq!(at(0, 90), 1);
        assert_eq!(at(399, 10), 0);
        assert_eq!(at(405, 10), 1);
        assert_eq!(at(412, 10), 9);
        assert_eq!(at(448, 10), 9);
        assert_eq!(at(449, 10), 0);
        let hertz = 1_000_000_000 / timing.frame();
        assert_eq!(hertz, 70);
    }

    #[test]
    fn frames_that_no_monitor_follows_are_the_usual_ones() {
        assert_eq!(Timing::of(&Registers::default()), DEFAULT_TIMING);
        let mut registers = Registers::default();
        registers.crtc.fill(0xff);
        assert_eq!(Timing::of(&registers), DEFAULT_TIMING);
    }

    #[test]
    fn the_cursor_blinks_twice_as_fast_as_text() {
        let phases: Vec<_> = (0..5)
            .map(|n| DEFAULT_TIMING.blink(DEFAULT_TIMING.frame() * (8 * n + 1)))
            .map(|blink| (blink.cursor, blink.text))
            .collect();
        let expected = [(true, true), (false, true), (true, false), (false, false), (true, true)];
        assert_eq!(phases, expected);
        let next = |now| {
            let blink = DEFAULT_TIMING.blink(now);
            (blink.next_cursor, blink.next_text)
        };
        let frame = DEFAULT_TIMING.frame();
        assert_eq!(next(0), (8 * frame, 16 * frame));
        assert_eq!(next(9 * frame + 1), (7 * frame - 1, 7 * frame - 1));
        assert_eq!(next(16 * frame - 1), (1, 1));
        // The clock at its end.
        let (cursor, text) = next(u64::MAX);
        assert!((1..=8 * frame).contains(&cursor) && (1..=16 * frame).contains(&text));
    }
}
