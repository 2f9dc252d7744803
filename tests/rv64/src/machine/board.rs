//! The devices of a machine, as its harts reach them: the one place where devices meet the bus.
//!
//! Their regions are traps, so a device is a plain struct. One lock has all of them, as harts may
//! run on threads of their own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::bus::tlb_bus::Devices;
use crate::devices::clint::Clint;
use crate::devices::device::Device;
use crate::devices::finisher::Finisher;
use crate::devices::uart::Uart;

/// The devices, each behind the token of its region.
#[derive(Debug)]
pub struct Board {
    /// The clock: [`CLINT`](Self::CLINT).
    pub clint: Clint,
    /// The serial port: [`UART`](Self::UART).
    pub uart: Uart,
    /// The way out: [`FINISHER`](Self::FINISHER).
    pub finisher: Finisher,
}

impl Board {
    /// The token of the clock.
    pub const CLINT: u64 = 0;
    /// The token of the serial port.
    pub const UART: u64 = 1;
    /// The token of the test finisher.
    pub const FINISHER: u64 = 2;

    /// The devices of a machine with so many harts; the serial port interrupts the first.
    pub(super) fn new(harts: usize) -> Self {
        let clint = Clint::new(harts);
        let uart = if harts > 0 { Uart::new(clint.lines(0)) } else { Uart::new(&Arc::default()) };
        Self { clint, uart, finisher: Finisher::default() }
    }

    fn device(&mut self, token: u64) -> Option<&mut dyn Device> {
        Some(match token {
            Self::CLINT => &mut self.clint,
            Self::UART => &mut self.uart,
            Self::FINISHER => &mut self.finisher,
            _ => return None,
        })
    }
}

impl Devices for Board {
    fn load(&mut self, token: u64, offset: u64, size: usize) -> u64 {
        self.device(token).map_or(0, |device| device.load(offset, size))
    }

    fn store(&mut self, token: u64, offset: u64, size: usize, value: u64) {
        if let Some(device) = self.device(token) {
            device.store(offset, size, value);
        }
    }
}

/// A board that harts share.
#[derive(Clone, Debug)]
pub(super) struct Shared(Arc<Mutex<Board>>);

impl Shared {
    pub(super) fn new(board: Board) -> Self {
        Self(Arc::new(Mutex::new(board)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Board> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Devices for Shared {
    fn load(&mut self, token: u64, offset: u64, size: usize) -> u64 {
        self.lock().load(token, offset, size)
    }

    fn store(&mut self, token: u64, offset: u64, size: usize, value: u64) {
        self.lock().store(token, offset, size, value);
    }
}
