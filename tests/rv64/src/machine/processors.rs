//! What a machine has beside memory: harts and devices, as bytes.

use crate::devices::device::{Device, Reader};
use crate::hart::state::State;
use crate::machine::board::Board;
use crate::machine::machine::{INSTRUCTIONS_A_TICK, Machine};

impl Machine {
    /// Harts, clock and devices, but not memory: what goes along with a migration of that.
    pub fn save_processors(&self) -> Vec<u8> {
        let mut into = Vec::new();
        into.extend((self.cores.len() as u64).to_le_bytes());
        into.extend(self.since_tick.to_le_bytes());
        for core in &self.cores {
            into.extend(u64::from(core.waits).to_le_bytes());
            let words = core.hart.state.to_words();
            into.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        }
        let board = self.board();
        let devices: [&dyn Device; 3] = [&board.clint, &board.uart, &board.finisher];
        devices.iter().for_each(|device| device.save(&mut into));
        drop(board);
        into
    }

    /// Takes what [`save_processors`](Self::save_processors) gave for a machine with as many harts;
    /// None if it is not that: nothing is changed then.
    pub fn restore_processors(&mut self, from: &[u8]) -> Option<()> {
        let from = &mut Reader(from);
        let harts = from.number()?;
        if harts != self.cores.len() as u64 {
            return None;
        }
        let since_tick = from.number().filter(|n| *n < INSTRUCTIONS_A_TICK)?;
        let mut state = |_| {
            let waits = from.number()? != 0;
            let mut words = [0; State::WORDS];
            for word in &mut words {
                *word = from.number()?;
            }
            Some((waits, State::from_words(&words)))
        };
        let states: Vec<_> = (0..harts).map(&mut state).collect::<Option<_>>()?;
        // On another board first, so that what is damaged changes nothing here.
        let devices = from.0;
        let restore = |board: &mut Board| {
            let from = &mut Reader(devices);
            board.clint.restore(from)?;
            board.uart.restore(from)?;
            board.finisher.restore(from)?;
            from.0.is_empty().then_some(())
        };
        restore(&mut Board::new(self.cores.len()))?;
        restore(&mut self.board())?;
        self.since_tick = since_tick;
        for (core, (waits, state)) in self.cores.iter_mut().zip(states) {
            (core.waits, core.hart.state) = (waits, state);
            core.clear_reservation();
        }
        Some(())
    }
}
