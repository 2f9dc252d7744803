//! Each hart on a thread of its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::devices::clint::TICKS_A_SECOND;
use crate::machine::machine::{Machine, Outcome};

/// Instructions after which a hart's thread looks at the machine.
const SLICE: u64 = 20_000;
/// How long a thread sleeps whose hart waits.
const NAP: Duration = Duration::from_micros(50);
const NANOSECONDS_A_TICK: u128 = 1_000_000_000 / TICKS_A_SECOND as u128;

impl Machine {
    /// Runs each hart on a thread of its own, for up to `steps` instructions and until `deadline`;
    /// the clock follows the host's meanwhile.
    pub fn run_on_threads(&mut self, steps: u64, deadline: Instant) -> Outcome {
        let mut cores = std::mem::take(&mut self.cores);
        let board = &self.board;
        let stop = AtomicBool::new(false);
        let begin = Instant::now();
        thread::scope(|scope| {
            for (number, core) in cores.iter_mut().enumerate() {
                let stop = &stop;
                scope.spawn(move || {
                    let (mut left, mut ticks) = (steps, 0);
                    while left > 0 && !stop.load(Ordering::Relaxed) {
                        if core.is_ready() {
                            left -= core.run(left.min(SLICE));
                        } else {
                            thread::sleep(NAP);
                        }
                        // The first one's thread drives the clock.
                        if number == 0 {
                            let now = begin.elapsed().as_nanos() / NANOSECONDS_A_TICK;
                            let now = u64::try_from(now).unwrap_or(u64::MAX);
                            board.lock().clint.advance(now - ticks);
                            ticks = now;
                        }
                        if board.lock().finisher.code().is_some() || Instant::now() >= deadline {
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        self.cores = cores;
        self.board().finisher.code().map_or(Outcome::Steps, Outcome::Finished)
    }
}
