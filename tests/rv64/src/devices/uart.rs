//! A serial port: the registers of a 16550A that programs need to print, and to read what is typed.
//!
//! Source: PC16550D data sheet (Texas Instruments), table "Summary of Registers". Registers are
//! bytes, one after the other. Bytes that are written are transmitted at once.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::devices::device::{Device, Reader};
use crate::hart::lines::{Interrupt, Lines};

/// Received data available, transmitter empty (twice: holding and shift register).
const RECEIVED: u8 = 1;
const EMPTY: u8 = 0x60;
/// Bytes that wait to be taken, from which on the transmitter is not empty.
const MAX_OUTPUT: usize = 1 << 16;
/// Divisor latch access bit of the line control register.
const DLAB: u8 = 0x80;

/// The port.
#[derive(Debug)]
pub struct Uart {
    line: Arc<Lines>,
    received: VecDeque<u8>,
    /// What the guest has transmitted since it was last [taken](Self::take_output).
    output: Vec<u8>,
    interrupt_enable: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: [u8; 2],
}

impl Uart {
    /// A port that raises the external interrupt of a hart.
    pub fn new(line: &Arc<Lines>) -> Self {
        Self {
            line: line.clone(),
            received: VecDeque::new(),
            output: Vec::new(),
            interrupt_enable: 0,
            line_control: 0,
            modem_control: 0,
            scratch: 0,
            divisor: [0; 2],
        }
    }

    /// What the guest has transmitted since the last call: up to 64 KiB, after which the guest
    /// waits.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// Lets the guest receive `bytes`.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.received.extend(bytes);
        self.update();
    }

    /// How many received bytes the guest has not read yet: there is no limit but the caller's.
    pub fn unread(&self) -> usize {
        self.received.len()
    }

    fn interrupts(&self) -> bool {
        self.interrupt_enable & RECEIVED != 0 && !self.received.is_empty()
    }

    fn update(&self) {
        self.line.set(Interrupt::External, self.interrupts());
    }

    fn is_latched(&self) -> bool {
        self.line_control & DLAB != 0
    }
}

impl Device for Uart {
    fn load(&mut self, offset: u64, _: usize) -> u64 {
        let value = match offset {
            0 | 1 if self.is_latched() => self.divisor[usize::from(offset == 1)],
            0 => {
                let byte = self.received.pop_front().unwrap_or(0);
                self.update();
                byte
            }
            1 => self.interrupt_enable,
            // No interrupt is pending, or received data is available.
            2 => {
                if self.interrupts() {
                    4
                } else {
                    1
                }
            }
            3 => self.line_control,
            4 => self.modem_control,
            5 => {
                let received = if self.received.is_empty() { 0 } else { RECEIVED };
                received | if self.output.len() < MAX_OUTPUT { EMPTY } else { 0 }
            }
            7 => self.scratch,
            _ => 0,
        };
        value.into()
    }

    fn store(&mut self, offset: u64, _: usize, value: u64) {
        let [value, ..] = value.to_le_bytes();
        match offset {
            0 | 1 if self.is_latched() => self.divisor[usize::from(offset == 1)] = value,
            // A full one loses what a program writes that does not wait.
            0 if self.output.len() >= MAX_OUTPUT => {}
            0 => self.output.push(value),
            1 => {
                self.interrupt_enable = value & 0xf;
                self.update();
            }
            3 => self.line_control = value,
            4 => self.modem_control = value,
            7 => self.scratch = value,
            _ => {}
        }
    }

    fn save(&self, into: &mut Vec<u8>) {
        into.extend([self.interrupt_enable, self.line_control, self.modem_control, self.scratch]);
        into.extend(self.divisor);
        into.extend((self.received.len() as u64).to_le_bytes());
        into.extend(&self.received);
    }

    /// Bytes that were transmitted and not taken stay: they have left the machine.
    fn restore(&mut self, from: &mut Reader<'_>) -> Option<()> {
        let registers: [u8; 6] = from.bytes(6)?.try_into().ok()?;
        let len = from.number()?;
        let received = from.bytes(len)?;
        let [enable, line, modem, scratch, low, high] = registers;
        self.received = received.iter().copied().collect();
        (self.interrupt_enable, self.line_control) = (enable, line);
        (self.modem_control, self.scratch, self.divisor) = (modem, scratch, [low, high]);
        self.update();
        Some(())
    }
}
