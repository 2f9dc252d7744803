//! The first serial port: rust-vmm's 16550A (`vm-superio`), as a device and a part.

use std::convert::Infallible;
use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memory_region::{AccessSizes, MmioAccess, MmioDevice};
use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};

use super::wires::IrqLine;
use migration_ram::{Device, DeviceError};

/// Where the port's output goes.
pub type Output = Box<dyn Write + Send>;

struct Interrupt(IrqLine);

impl Trigger for Interrupt {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.pulse();
        Ok(())
    }
}

/// Output that fails is dropped: a guest cannot help a closed pipe.
#[derive(Clone)]
struct Sink(Arc<Mutex<Output>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut output = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = output.write_all(bytes).and_then(|()| output.flush()) {
            log::debug!("serial: {error}");
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Uart = Serial<Interrupt, NoEvents, Sink>;

/// The port.
pub struct SerialPort {
    uart: Mutex<Uart>,
}

impl SerialPort {
    /// The first of its ports.
    pub const PORT: u64 = 0x3f8;
    /// How many there are.
    pub const PORTS: u128 = 8;
    /// Its interrupt.
    pub const IRQ: u32 = 4;

    /// A port that writes to `output`.
    pub fn new(irq: IrqLine, output: Output) -> Self {
        let sink = Sink(Arc::new(Mutex::new(output)));
        Self { uart: Mutex::new(Serial::new(Interrupt(irq), sink)) }
    }

    fn lock(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the guest receive `bytes`; returns how many the port has room for now.
    pub fn receive(&self, bytes: &[u8]) -> usize {
        let mut uart = self.lock();
        let room = uart.fifo_capacity().min(bytes.len());
        uart.enqueue_raw_bytes(&bytes[..room]).unwrap_or(0)
    }
}

impl MmioDevice for SerialPort {
    fn read(&self, offset: u64, _: usize) -> u64 {
        u8::try_from(offset).map_or(u64::MAX, |offset| self.lock().read(offset).into())
    }

    fn write(&self, offset: u64, _: usize, value: u64) {
        let [value, ..] = value.to_le_bytes();
        let Ok(offset) = u8::try_from(offset) else { return };
        if let Err(error) = self.lock().write(offset, value) {
            log::debug!("serial: {error}");
        }
    }

    fn access(&self) -> MmioAccess {
        let implemented = AccessSizes::aligned(1, 1);
        MmioAccess { implemented, ..MmioAccess::default() }
    }
}

#[derive(Serialize, Deserialize)]
struct Saved {
    divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    received: Vec<u8>,
}

impl Device for SerialPort {
    fn name(&self) -> &str {
        "serial"
    }

    fn version(&self) -> u32 {
        1
    }

    fn save(&self) -> Result<Vec<u8>, DeviceError> {
        let state = self.lock().state();
        let saved = Saved {
            divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            received: state.in_buffer,
        };
        Ok(serde_json::to_vec(&saved)?)
    }

    fn restore(&self, _: u32, state: &[u8]) -> Result<(), DeviceError> {
        let saved: Saved = serde_json::from_slice(state)?;
        let registers = SerialState {
            baud_divisor_low: saved.divisor[0],
            baud_divisor_high: saved.divisor[1],
            interrupt_enable: saved.interrupt_enable,
            interrupt_identification: saved.interrupt_identification,
            line_control: saved.line_control,
            line_status: saved.line_status,
            modem_control: saved.modem_control,
            modem_status: saved.modem_status,
            scratch: saved.scratch,
            in_buffer: saved.received,
        };
        let mut uart = self.lock();
        let (irq, sink) = (uart.interrupt_evt().0.clone(), uart.writer().clone());
        let restored = Serial::from_state(&registers, Interrupt(irq), NoEvents, sink);
        *uart = restored.map_err(|error| error.to_string())?;
        Ok(())
    }
}

impl fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SerialPort")
    }
}
