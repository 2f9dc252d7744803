//! The keyboard and its controller (Intel 8042): a status and a data port, and a queue of
//! bytes for the guest.
//!
//! Nothing is at the controller's port for a mouse; what is sent there has no answer.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memory_region::MmioDevice;
use serde::{Deserialize, Serialize};

use super::keys::Key;
use super::wires::{IrqLine, ResetLine};
use migration_ram::{Device, DeviceError};

// The status register.
const OUTPUT_FULL: u8 = 1;
const SYSTEM: u8 = 1 << 2;
const WAS_COMMAND: u8 = 1 << 3;
const UNLOCKED: u8 = 1 << 4;

// The controller's command byte.
const INTERRUPTS: u8 = 1;
const SYSTEM_FLAG: u8 = 1 << 2;
const DISABLED: u8 = 1 << 4;
const MOUSE_DISABLED: u8 = 1 << 5;
const TRANSLATE: u8 = 1 << 6;

/// The output port: the processor is not in reset, line 20 open.
const OUTPUT_PORT: u8 = 0x03;
const OUTPUT_PORT_RUNS: u8 = 1;

/// The keyboard's answers.
const ACKNOWLEDGE: u8 = 0xfa;
const SELF_TEST_PASSED: u8 = 0xaa;
const RESEND: u8 = 0xfe;

/// How many bytes wait at most: more keys than these are lost.
const QUEUE: usize = 64;

#[derive(Clone, Serialize, Deserialize)]
struct State {
    /// The controller's command byte.
    mode: u8,
    /// A command to the controller whose data byte is to come.
    pending: Option<u8>,
    /// A command to the keyboard whose data byte is to come.
    keyboard_pending: Option<u8>,
    was_command: bool,
    /// Whether the keyboard reports keys.
    scanning: bool,
    /// Its scan code set.
    set: u8,
    /// What the guest is to read.
    queue: VecDeque<u8>,
    /// What it has read last, and reads again if there is nothing new.
    last: u8,
}

impl Default for State {
    fn default() -> Self {
        Self {
            mode: INTERRUPTS | SYSTEM_FLAG | TRANSLATE,
            pending: None,
            keyboard_pending: None,
            was_command: false,
            scanning: true,
            set: 2,
            queue: VecDeque::new(),
            last: 0,
        }
    }
}

/// The keyboard.
pub struct Keyboard {
    state: Mutex<State>,
    irq: IrqLine,
    reset: ResetLine,
}

impl Keyboard {
    /// The port of its data; that of commands and status is four further.
    pub const PORT: u64 = 0x60;
    /// From the first port to the last.
    pub const DATA_AND_STATUS: [u64; 2] = [0x60, 0x64];
    /// Its interrupt.
    pub const IRQ: u32 = 1;

    /// A keyboard.
    pub fn new(irq: IrqLine, reset: ResetLine) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), irq, reset })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Presses or releases a key.
    pub fn press(&self, key: Key, down: bool) {
        let mut state = self.lock();
        if !state.scanning || state.mode & DISABLED != 0 {
            return;
        }
        let bytes: Vec<u8> = if state.set == 1 || state.mode & TRANSLATE != 0 {
            key.set_1(down).collect()
        } else {
            key.set_2(down).collect()
        };
        if state.queue.len() + bytes.len() <= QUEUE {
            self.answer(&mut state, &bytes);
        }
    }

    /// The device at one of [`DATA_AND_STATUS`](Self::DATA_AND_STATUS), a port wide.
    pub fn port(self: &Arc<Self>, number: usize) -> Arc<dyn MmioDevice> {
        Arc::new(Port { keyboard: self.clone(), is_status: number != 0 })
    }

    /// Queues bytes for the guest.
    fn answer(&self, state: &mut State, bytes: &[u8]) {
        let room = QUEUE.saturating_sub(state.queue.len());
        state.queue.extend(bytes.iter().take(room));
        self.interrupt(state);
    }

    fn interrupt(&self, state: &State) {
        self.irq.set(state.mode & INTERRUPTS != 0 && !state.queue.is_empty());
    }

    fn read_data(&self) -> u8 {
        let mut state = self.lock();
        state.last = state.queue.pop_front().unwrap_or(state.last);
        // The next byte is the next edge.
        self.irq.set(false);
        self.interrupt(&state);
        state.last
    }

    fn status(&self) -> u8 {
        let state = self.lock();
        let full = if state.queue.is_empty() { 0 } else { OUTPUT_FULL };
        let command = if state.was_command { WAS_COMMAND } else { 0 };
        let system = if state.mode & SYSTEM_FLAG != 0 { SYSTEM } else { 0 };
        full | system | command | UNLOCKED
    }

    /// A command to the controller.
    fn command(&self, command: u8) {
        let mut state = self.lock();
        state.was_command = true;
        state.pending = None;
        match command {
            0x20 => {
                let mode = state.mode;
                self.answer(&mut state, &[mode]);
            }
            0x60 | 0xd1..=0xd4 => state.pending = Some(command),
            0xa7 => state.mode |= MOUSE_DISABLED,
            0xa8 => state.mode &= !MOUSE_DISABLED,
            0xa9 => self.answer(&mut state, &[0x02]), // the mouse's clock line is stuck
            0xaa => self.answer(&mut state, &[0x55]),
            0xab => self.answer(&mut state, &[0x00]),
            0xad => state.mode |= DISABLED,
            0xae => state.mode &= !DISABLED,
            0xc0 => self.answer(&mut state, &[0x80]), // the keyboard is not locked
            0xd0 => self.answer(&mut state, &[OUTPUT_PORT]),
            // Pulses lines of the output port, of which the lowest is the reset's.
            0xf0..=0xff if command & OUTPUT_PORT_RUNS == 0 => {
                drop(state);
                self.reset.pull();
            }
            _ => log::debug!("keyboard: no command {command:#x} of the controller"),
        }
    }

    fn write_data(&self, value: u8) {
        let mut state = self.lock();
        state.was_command = false;
        match state.pending.take() {
            Some(0x60) => {
                state.mode = value;
                self.irq.set(false);
                self.interrupt(&state);
            }
            Some(0xd1) if value & OUTPUT_PORT_RUNS == 0 => {
                drop(state);
                self.reset.pull();
            }
            Some(0xd2) => self.answer(&mut state, &[value]),
            Some(_) => {} // of the mouse
            None => self.keyboard_command(&mut state, value),
        }
    }

    /// A command to the keyboard, or the data byte of one.
    fn keyboard_command(&self, state: &mut State, value: u8) {
        // A command enables the keyboard's line again.
        state.mode &= !DISABLED;
        match (state.keyboard_pending.take(), value) {
            (Some(0xf0), 0) => {
                let set = state.set;
                self.answer(state, &[ACKNOWLEDGE, set]);
            }
            (Some(0xf0), set @ 1..=2) => {
                state.set = set;
                self.answer(state, &[ACKNOWLEDGE]);
            }
            // Lights and repetition.
            (Some(0xed | 0xf3), _) => self.answer(state, &[ACKNOWLEDGE]),
            (None, 0xed | 0xf0 | 0xf3) => {
                state.keyboard_pending = Some(value);
                self.answer(state, &[ACKNOWLEDGE]);
            }
            (None, 0xee) => self.answer(state, &[0xee]),
            (None, 0xf2) => {
                let id = if state.mode & TRANSLATE != 0 { [0xab, 0x41] } else { [0xab, 0x83] };
                self.answer(state, &[ACKNOWLEDGE, id[0], id[1]]);
            }
            (None, 0xf4) => {
                state.scanning = true;
                self.answer(state, &[ACKNOWLEDGE]);
            }
            (None, 0xf5 | 0xf6) => {
                (state.scanning, state.set) = (value == 0xf6, 2);
                self.answer(state, &[ACKNOWLEDGE]);
            }
            (None, 0xff) => {
                (state.scanning, state.set) = (true, 2);
                self.answer(state, &[ACKNOWLEDGE, SELF_TEST_PASSED]);
            }
            _ => self.answer(state, &[RESEND]),
        }
    }
}

/// One of the ports.
struct Port {
    keyboard: Arc<Keyboard>,
    is_status: bool,
}

impl MmioDevice for Port {
    fn read(&self, _: u64, _: usize) -> u64 {
        let Self { keyboard, is_status } = self;
        if *is_status { keyboard.status().into() } else { keyboard.read_data().into() }
    }

    fn write(&self, _: u64, _: usize, value: u64) {
        let [value, ..] = value.to_le_bytes();
        let Self { keyboard, is_status } = self;
        if *is_status { keyboard.command(value) } else { keyboard.write_data(value) }
    }
}

impl Device for Keyboard {
    fn name(&self) -> &str {
        "keyboard"
    }

    fn version(&self) -> u32 {
        1
    }

    fn save(&self) -> Result<Vec<u8>, DeviceError> {
        Ok(serde_json::to_vec(&*self.lock())?)
    }

    fn restore(&self, _: u32, state: &[u8]) -> Result<(), DeviceError> {
        let saved: State = serde_json::from_slice(state)?;
        if saved.queue.len() > QUEUE {
            return Err("More bytes wait than there is room for".into());
        }
        *self.lock() = saved;
        Ok(())
    }
}

impl fmt::Debug for Keyboard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keyboard")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use proptest::prelude::*;

    use super::*;

    fn read_all(keyboard: &Keyboard) -> Vec<u8> {
        let mut bytes = Vec::new();
        while keyboard.status() & OUTPUT_FULL != 0 {
            bytes.push(keyboard.read_data());
        }
        bytes
    }

    fn key(symbol: char) -> Key {
        Key::from_keysym(symbol.into()).unwrap()
    }

    #[test]
    fn firmware_finds_a_keyboard_and_its_keys() {
        let level = Arc::new(AtomicBool::new(false));
        let line = level.clone();
        let irq = IrqLine::new(move |raised| line.store(raised, Ordering::Relaxed));
        let keyboard = Keyboard::new(irq, ResetLine::new(|| ()));
        keyboard.command(0xaa);
        assert_eq!(read_all(&keyboard), [0x55]);
        keyboard.command(0xab);
        assert_eq!(read_all(&keyboard), [0x00]);
        keyboard.write_data(0xff);
        assert_eq!(read_all(&keyboard), [0xfa, 0xaa]);
        keyboard.command(0x60);
        keyboard.write_data(INTERRUPTS | TRANSLATE);
        assert!(!level.load(Ordering::Relaxed));
        keyboard.press(key('a'), true);
        keyboard.press(key('a'), false);
        assert!(level.load(Ordering::Relaxed));
        assert_eq!(read_all(&keyboard), [0x1e, 0x9e]);
        assert!(!level.load(Ordering::Relaxed));
        keyboard.command(0x60);
        keyboard.write_data(0);
        keyboard.press(key('a'), false);
        assert!(!level.load(Ordering::Relaxed));
        assert_eq!(read_all(&keyboard), [0xf0, 0x1c]);
        keyboard.command(0xad);
        keyboard.press(key('a'), true);
        assert_eq!(read_all(&keyboard), [0; 0]);
    }

    #[test]
    fn a_state_holds_what_waits() {
        let keyboard = || Keyboard::new(IrqLine::unconnected(), ResetLine::new(|| ()));
        let (one, other) = (keyboard(), keyboard());
        one.press(key('q'), true);
        one.command(0xd2);
        other.restore(1, &one.save().unwrap()).unwrap();
        other.write_data(7);
        assert_eq!(read_all(&other), [0x10, 7]);
    }

    proptest! {
        #[test]
        fn nothing_that_is_written_makes_the_queue_grow(
            writes in prop::collection::vec((any::<bool>(), any::<u8>()), 0..300),
        ) {
            let keyboard = Keyboard::new(IrqLine::unconnected(), ResetLine::new(|| ()));
            let ports = [keyboard.port(0), keyboard.port(1)];
            for (port, value) in writes {
                ports[usize::from(port)].write(0, 1, value.into());
                keyboard.press(key('x'), value & 1 == 0);
            }
            prop_assert!(read_all(&keyboard).len() <= QUEUE);
        }
    }
}
