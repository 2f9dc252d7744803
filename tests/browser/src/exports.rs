//! What JavaScript calls: numbers in, numbers out.
//!
//! There is one computer, of the thread that calls. Functions that can fail return a number from 0
//! on, or one of the [errors](Failure), which are below 0; they never trap. A page that reads
//! memory at an address does so before its next call: that may move what is there.

#![allow(unsafe_code)] // `no_mangle`: no other function of the program has one of these names

use std::cell::RefCell;

use crate::computer::{Computer, KeyError};

/// What a call returns that has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Failure {
    /// [`boot`] was not called, or has failed.
    NotRunning = -1,
    /// [`boot`] was called before.
    Running = -2,
    /// An argument is out of range.
    Range = -3,
    /// The guest has not read the last keys.
    Full = -4,
    /// There is no memory, or it cannot be drawn.
    Machine = -5,
}

/// The most ticks of one call: ten seconds of the guest's time.
pub const MAX_TICKS: u32 = 100_000_000;

struct Running {
    computer: Computer,
    /// Of the last refresh: column, line, width and height of each rectangle.
    damage: Vec<u32>,
}

thread_local! {
    static RUNNING: RefCell<Option<Running>> = const { RefCell::new(None) };
}

fn change(body: impl FnOnce(&mut Running) -> Result<usize, Failure>) -> i32 {
    let result = RUNNING.with_borrow_mut(|running| match running {
        Some(running) => body(running),
        None => Err(Failure::NotRunning),
    });
    result.map_or_else(|failure| failure as i32, |value| i32::try_from(value).unwrap_or(i32::MAX))
}

fn get<T>(default: T, body: impl FnOnce(&Running) -> T) -> T {
    RUNNING.with_borrow(|running| running.as_ref().map_or(default, body))
}

/// Switches the computer on; returns 0.
#[unsafe(no_mangle)]
pub extern "C" fn boot() -> i32 {
    RUNNING.with_borrow_mut(|running| {
        if running.is_some() {
            return Failure::Running as i32;
        }
        let Ok(computer) = Computer::new() else { return Failure::Machine as i32 };
        *running = Some(Running { computer, damage: Vec::new() });
        0
    })
}

/// Runs the guest for so many ticks of its clock, up to [`MAX_TICKS`]; returns 0.
#[unsafe(no_mangle)]
pub extern "C" fn run(ticks: u32) -> i32 {
    change(|running| {
        if ticks > MAX_TICKS {
            return Err(Failure::Range);
        }
        running.computer.run_for(ticks.into());
        Ok(0)
    })
}

/// Presses a key (`is_down` is 1) or releases it (0), by its scan code; returns 0.
#[unsafe(no_mangle)]
pub extern "C" fn key(code: u32, is_down: u32) -> i32 {
    change(|running| {
        let is_down = match is_down {
            0 => false,
            1 => true,
            _ => return Err(Failure::Range),
        };
        running.computer.key(code, is_down).map_err(|error| match error {
            KeyError::NoKey { .. } => Failure::Range,
            KeyError::Full => Failure::Full,
        })?;
        Ok(0)
    })
}

/// Draws what has changed; returns how many rectangles of [`pixels`] these are, at [`damage`].
#[unsafe(no_mangle)]
pub extern "C" fn refresh() -> i32 {
    change(|Running { computer, damage }| {
        let refresh = computer.refresh().map_err(|_| Failure::Machine)?;
        damage.clear();
        let numbers = refresh.damage.iter().map(|area| [area.x, area.y, area.width, area.height]);
        damage.extend(numbers.flatten());
        Ok(refresh.damage.len())
    })
}

/// The address of the last refresh's rectangles: column, line, width and height, of 32 bits each.
#[unsafe(no_mangle)]
pub extern "C" fn damage() -> *const u32 {
    get(std::ptr::null(), |running| running.damage.as_ptr())
}

/// The address of the pixels, [`width`] by [`height`]: red, green, blue and opacity of each.
#[unsafe(no_mangle)]
pub extern "C" fn pixels() -> *const u8 {
    get(std::ptr::null(), |running| running.computer.canvas().bytes().as_ptr())
}

/// Pixels of a line; 0 before there is a picture.
#[unsafe(no_mangle)]
pub extern "C" fn width() -> u32 {
    get(0, |running| running.computer.canvas().size()[0])
}

/// Lines; 0 before there is a picture.
#[unsafe(no_mangle)]
pub extern "C" fn height() -> u32 {
    get(0, |running| running.computer.canvas().size()[1])
}

/// Pages of video memory that the guest had written when it was last refreshed.
#[unsafe(no_mangle)]
pub extern "C" fn pages() -> u32 {
    get(0, |running| u32::try_from(running.computer.last().pages).unwrap_or(u32::MAX))
}

/// Lines that the last refresh has drawn.
#[unsafe(no_mangle)]
pub extern "C" fn lines() -> u32 {
    get(0, |running| running.computer.last().lines)
}

/// Instructions that the guest has executed: JavaScript's numbers are exact up to 2^53.
#[unsafe(no_mangle)]
pub extern "C" fn instructions() -> f64 {
    get(0.0, |running| running.computer.instructions() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_in_the_wrong_order_are_errors() {
        let not_running = Failure::NotRunning as i32;
        assert_eq!([run(1), key(0x48, 1), refresh()], [not_running; 3]);
        assert_eq!((width(), height(), pages(), lines()), (0, 0, 0, 0));
        assert!(damage().is_null() && pixels().is_null() && instructions() == 0.0);
        assert_eq!((boot(), boot()), (0, Failure::Running as i32));
        // Before the guest has set a mode.
        assert_eq!((refresh(), width(), height()), (0, 0, 0));
        assert_eq!((run(10), refresh(), width(), height()), (0, 1, 640, 480));
        assert_eq!(instructions(), 1000.0);
    }

    #[test]
    fn arguments_out_of_range_are_errors() {
        assert_eq!(boot(), 0);
        let range = Failure::Range as i32;
        assert_eq!([run(u32::MAX), run(MAX_TICKS + 1)], [range; 2]);
        assert_eq!([key(0, 1), key(0x80, 1), key(u32::MAX, 0), key(0x48, 2)], [range; 4]);
        assert_eq!(instructions(), 0.0);
        for _ in 0..Computer::MAX_UNREAD {
            assert_eq!(key(0x48, 1), 0);
        }
        assert_eq!(key(0x48, 0), Failure::Full as i32);
        assert_eq!(run(1_000_000), 0); // in which the guest reads them
        assert_eq!(key(0x48, 0), 0);
    }
}
