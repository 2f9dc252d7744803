//! A processor: blocks are executed one after the other, and interrupts taken between them.

use std::sync::Arc;

use crate::bus::bus::Bus;
use crate::hart::blocks::Blocks;
use crate::hart::csr::Environment;
use crate::hart::execute::{Bounds, End, execute};
use crate::hart::lines::Lines;
use crate::hart::state::State;

/// Why a hart returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It has executed as many instructions as it was told to.
    Steps,
    /// It waits for an interrupt (`wfi`), and none is pending that is enabled in `mie`.
    Wait,
}

/// One hart of RV64IMAC, with machine and user mode.
///
/// ```
/// use rv64::{Bus, Exit, Hart, VecBus};
///
/// let mut bus = VecBus::new(0x8000_0000, 1 << 16);
/// bus.store(0x8000_0000, 0x0010_0513_u32).unwrap(); // li a0, 1
/// bus.store(0x8000_0004, 0x1050_0073_u32).unwrap(); // wfi
/// let mut hart = Hart::new(0, 0x8000_0000);
/// assert_eq!(hart.run(&mut bus, 100), (Exit::Wait, 2));
/// assert_eq!(hart.state.x.get(10), 1);
/// ```
#[derive(Debug)]
pub struct Hart {
    /// Its registers.
    pub state: State,
    id: u64,
    lines: Arc<Lines>,
    blocks: Blocks,
}

impl Hart {
    /// Hart `id` (`mhartid`) after a reset, at `pc`, with no device.
    pub fn new(id: u64, pc: u64) -> Self {
        Self::with_lines(id, pc, Arc::default())
    }

    /// As [`new`](Self::new), with interrupts.
    pub fn with_lines(id: u64, pc: u64, lines: Arc<Lines>) -> Self {
        Self { state: State::new(pc), id, lines, blocks: Blocks::new() }
    }

    /// What devices tell it.
    pub fn lines(&self) -> &Arc<Lines> {
        &self.lines
    }

    /// How many blocks were decoded to be kept.
    pub fn blocks_decoded(&self) -> u64 {
        self.blocks.decoded()
    }

    /// Forgets all decoded code: for a hart that goes on with another bus.
    pub fn forget_code(&mut self) {
        self.blocks.forget_all();
    }

    /// Executes up to `steps` instructions; returns why it stopped and how many there were. An
    /// instruction that ends in an exception is one of them, though it does not retire.
    pub fn run<B: Bus>(&mut self, bus: &mut B, steps: u64) -> (Exit, u64) {
        let mut left = steps;
        while left > 0 {
            let pending = self.lines.pending();
            if let Some(interrupt) = self.state.interrupt(pending) {
                self.state.enter_interrupt(interrupt);
                bus.clear_reservation();
            }
            let epoch = bus.epoch();
            let (retired, end) = match self.blocks.at(bus, self.state.pc, epoch) {
                Ok(range) => {
                    let ops = self.blocks.ops(range);
                    let count = usize::try_from(left).map_or(ops.len(), |left| left.min(ops.len()));
                    let environment = Environment { hart: self.id, lines: &self.lines, retired: 0 };
                    let bounds = Bounds { epoch, left, pending };
                    let blocks = (&self.blocks, &ops[..count]);
                    execute(&mut self.state, bus, blocks, bounds, environment)
                }
                Err(trap) => (0, End::Trap(trap)),
            };
            self.state.instret = self.state.instret.wrapping_add(retired);
            left -= retired;
            match end {
                End::Next => {}
                End::Trap(trap) => {
                    left -= 1;
                    self.state.enter_trap(trap);
                    bus.clear_reservation();
                }
                End::Wait if self.lines.pending() & self.state.mie == 0 => {
                    return (Exit::Wait, steps - left);
                }
                End::Wait => {}
            }
        }
        (Exit::Steps, steps)
    }

    /// Whether an interrupt ends its [`Exit::Wait`].
    pub fn is_awake(&self) -> bool {
        self.lines.pending() & self.state.mie != 0
    }
}
