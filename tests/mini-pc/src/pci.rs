//! PCI configuration space, by the ports of configuration mechanism #1 (PCI Local Bus
//! Specification 2.1, section 3.7.4.1), with the reset control of Intel's chipsets among them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memory_region::{AccessSizes, MmioAccess, MmioDevice};
use serde::{Deserialize, Serialize};

use super::wires::ResetLine;
use migration_ram::{Device, DeviceError};

/// The command register; its bit [`MEMORY`] lets memory BARs answer.
pub const COMMAND: u8 = 0x04;
/// Memory space is enabled.
pub const MEMORY: u16 = 1 << 1;
/// The register of the expansion ROM's address.
pub const ROM_BAR: u8 = 0x30;

const CONFIG_BYTES: usize = 256;

/// The registers of a function, as bytes.
#[derive(Clone)]
pub struct Config([u8; CONFIG_BYTES]);

impl Config {
    /// The byte at `register`.
    pub fn u8(&self, register: u8) -> u8 {
        self.0[usize::from(register)]
    }

    /// The 16 bits from `register` on.
    pub fn u16(&self, register: u8) -> u16 {
        u16::from_le_bytes([self.u8(register), self.u8(register.wrapping_add(1))])
    }

    /// The 32 bits from `register` on.
    pub fn u32(&self, register: u8) -> u32 {
        u32::from(self.u16(register)) | u32::from(self.u16(register.wrapping_add(2))) << 16
    }

    fn set(&mut self, register: u8, bytes: &[u8]) {
        let at = usize::from(register);
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// What identifies a function.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The maker and his number for the device.
    pub vendor: u16,
    /// The device.
    pub device: u16,
    /// Class, subclass and programming interface, as 24 bits.
    pub class: u32,
    /// Whether there are further functions of the device.
    pub multifunction: bool,
}

/// The subsystem that guests know QEMU's machines by, for which the firmware looks.
const SUBSYSTEM: [u16; 2] = [0x1af4, 0x1100];

type Follow = Box<dyn Fn(&Config) + Send + Sync>;

/// A function of a device: its registers, which of their bits a guest may write, and who
/// follows when it has.
pub struct Function {
    config: Mutex<Config>,
    writable: Config,
    follow: Follow,
}

impl Function {
    /// A function with no BARs.
    pub fn new(identity: Identity) -> Self {
        let Identity { vendor, device, class, multifunction } = identity;
        let mut config = Config([0; CONFIG_BYTES]);
        config.set(0x00, &vendor.to_le_bytes());
        config.set(0x02, &device.to_le_bytes());
        config.set(0x09, &class.to_le_bytes()[..3]);
        config.set(0x0e, &[u8::from(multifunction) << 7]);
        config.set(0x2c, &SUBSYSTEM[0].to_le_bytes());
        config.set(0x2e, &SUBSYSTEM[1].to_le_bytes());
        let writable = Config([0; CONFIG_BYTES]);
        let function = Self { config: Mutex::new(config), writable, follow: Box::new(|_| ()) };
        // The interrupt line is a note of the firmware's for itself.
        function.register(COMMAND, &[0, 0], &[0x07, 0x01]).register(0x3c, &[0], &[0xff])
    }

    /// Gives the register a value after reset, and the bits that can be written.
    #[must_use]
    pub fn register(mut self, register: u8, value: &[u8], writable: &[u8]) -> Self {
        self.lock().set(register, value);
        self.writable.set(register, writable);
        self
    }

    /// Gives the function `size` bytes of memory, a power of two from 16 on, whose address
    /// register `register` is; `flags` are its lowest bits.
    #[must_use]
    pub fn memory_bar(self, register: u8, size: u32, flags: u32) -> Self {
        // What cannot be written is the size's: that is how guests find it.
        let mask = !(size - 1) & !0xf;
        self.register(register, &flags.to_le_bytes(), &mask.to_le_bytes())
    }

    /// Gives the function an expansion ROM of `size` bytes, a power of two from 2 KiB on.
    #[must_use]
    pub fn rom_bar(self, size: u32) -> Self {
        let mask = !(size - 1) | 1;
        self.register(ROM_BAR, &[0; 4], &mask.to_le_bytes())
    }

    /// Calls `follow` with the registers whenever one may have changed, one call at a time.
    #[must_use]
    pub fn followed_by(mut self, follow: impl Fn(&Config) + Send + Sync + 'static) -> Self {
        self.follow = Box::new(follow);
        self
    }

    fn lock(&self) -> MutexGuard<'_, Config> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, register: u8) -> u8 {
        self.lock().u8(register)
    }

    fn write(&self, register: u8, bytes: &[u8]) {
        let mut config = self.lock();
        for (register, byte) in (register..=u8::MAX).zip(bytes) {
            let (at, mask) = (usize::from(register), self.writable.u8(register));
            config.0[at] = config.0[at] & !mask | byte & mask;
        }
        (self.follow)(&config);
    }

    /// Takes over those registers that can be written.
    fn restore(&self, saved: &Config) {
        let mut config = self.lock();
        for (at, mask) in self.writable.0.iter().enumerate() {
            config.0[at] = config.0[at] & !mask | saved.0[at] & mask;
        }
        (self.follow)(&config);
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = self.lock();
        write!(f, "Function({:04x}:{:04x})", config.u16(0), config.u16(2))
    }
}

/// The bus, and the ports by which its configuration space is reached.
#[derive(Debug)]
pub struct PciBus {
    /// By device number times eight plus function number.
    functions: BTreeMap<u8, Function>,
    address: Mutex<u32>,
    reset: ResetLine,
}

const ENABLED: u32 = 1 << 31;
/// Where the reset control is among the ports, and which of its bits resets.
const RESET_CONTROL: (u64, u64) = (1, 1 << 2);

impl PciBus {
    /// The first of its ports.
    pub const PORT: u64 = 0xcf8;
    /// How many there are.
    pub const PORTS: u128 = 8;

    /// A bus with these functions, by device and function number.
    pub fn new(
        functions: impl IntoIterator<Item = ((u8, u8), Function)>,
        reset: ResetLine,
    ) -> Arc<Self> {
        let functions = functions.into_iter();
        let functions =
            functions.map(|((device, number), function)| (device << 3 | number & 7, function));
        Arc::new(Self { functions: functions.collect(), address: Mutex::new(0), reset })
    }

    fn address(&self) -> MutexGuard<'_, u32> {
        self.address.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The function and the register that the data ports show now, from their byte `at` on.
    fn selected(&self, at: u64) -> Option<(&Function, u8)> {
        let address = *self.address();
        let [register, function, bus, _] = address.to_le_bytes();
        let here = address & ENABLED != 0 && bus == 0;
        let function = self.functions.get(&function).filter(|_| here)?;
        Some((function, register & 0xfc | u8::try_from(at & 3).unwrap_or(0)))
    }
}

impl MmioDevice for PciBus {
    fn read(&self, offset: u64, size: usize) -> u64 {
        match (offset, size) {
            (0, 4) => u64::from(*self.address()),
            (4.., _) => {
                let Some((function, register)) = self.selected(offset) else { return u64::MAX };
                (register..=u8::MAX).take(size).enumerate().fold(0, |value, (n, register)| {
                    value | u64::from(function.read(register)) << (8 * n)
                })
            }
            _ => u64::MAX,
        }
    }

    fn write(&self, offset: u64, size: usize, value: u64) {
        let bytes = value.to_le_bytes();
        match (offset, size) {
            (0, 4) => {
                let [a, b, c, d, ..] = bytes;
                *self.address() = u32::from_le_bytes([a & 0xfc, b, c, d & 0x80]);
            }
            (4.., _) => {
                if let Some((function, register)) = self.selected(offset) {
                    function.write(register, &bytes[..size.min(4)]);
                }
            }
            (at, 1) if at == RESET_CONTROL.0 && value & RESET_CONTROL.1 != 0 => self.reset.pull(),
            _ => {}
        }
    }

    fn access(&self) -> MmioAccess {
        let sizes = AccessSizes::aligned(1, 4);
        MmioAccess { valid: sizes, implemented: sizes, ..MmioAccess::default() }
    }
}

#[derive(Serialize, Deserialize)]
struct Saved {
    address: u32,
    /// The registers of each function, by its number.
    functions: BTreeMap<u8, Vec<u8>>,
}

impl Device for PciBus {
    fn name(&self) -> &str {
        "pci"
    }

    fn version(&self) -> u32 {
        1
    }

    fn save(&self) -> Result<Vec<u8>, DeviceError> {
        let functions = self.functions.iter();
        let functions = functions.map(|(&number, function)| (number, function.lock().0.to_vec()));
        let saved = Saved { address: *self.address(), functions: functions.collect() };
        Ok(serde_json::to_vec(&saved)?)
    }

    fn restore(&self, _: u32, state: &[u8]) -> Result<(), DeviceError> {
        let saved: Saved = serde_json::from_slice(state)?;
        if !saved.functions.keys().eq(self.functions.keys()) {
            return Err("The other machine has other devices".into());
        }
        let configs = saved.functions.values().map(|bytes| bytes.as_slice().try_into().ok());
        let configs: Option<Vec<[u8; CONFIG_BYTES]>> = configs.collect();
        let configs = configs.ok_or("A function has 256 bytes of registers")?;
        *self.address() = saved.address & (ENABLED | 0x00ff_fffc);
        for (function, config) in self.functions.values().zip(configs) {
            function.restore(&Config(config));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const IDENTITY: Identity =
        Identity { vendor: 0x1234, device: 0x5678, class: 0x03_0001, multifunction: false };

    fn at(bus: &PciBus, device: u32, register: u32) {
        bus.write(0, 4, u64::from(ENABLED | device << 11 | register));
    }

    #[test]
    fn registers_are_found_sized_and_followed() {
        let (told, resets) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let (seen, pulled) = (told.clone(), resets.clone());
        let function = Function::new(IDENTITY)
            .memory_bar(0x10, 16 << 20, 8)
            .rom_bar(0x1_0000)
            .followed_by(move |config| seen.store(config.u32(0x10), Ordering::Relaxed));
        let reset = ResetLine::new(move || {
            pulled.fetch_add(1, Ordering::Relaxed);
        });
        let bus = PciBus::new([((2, 0), function)], reset);
        at(&bus, 2, 0);
        assert_eq!([bus.read(4, 4), bus.read(6, 2), bus.read(5, 1)], [0x5678_1234, 0x5678, 0x12]);
        bus.write(4, 4, 0);
        assert_eq!(bus.read(4, 2), 0x1234);
        at(&bus, 2, 8);
        assert_eq!(bus.read(4, 4), 0x0300_0100);
        at(&bus, 2, 0x10);
        bus.write(4, 4, u64::from(u32::MAX));
        assert_eq!(bus.read(4, 4), 0xff00_0008);
        bus.write(7, 1, 0xe0);
        assert_eq!(told.load(Ordering::Relaxed), 0xe000_0008);
        at(&bus, 2, 0x30);
        bus.write(4, 4, u64::from(u32::MAX));
        assert_eq!(bus.read(4, 4), 0xffff_0001);
        // Nobody there, and the ports switched off.
        at(&bus, 3, 0);
        assert_eq!(bus.read(4, 4), u64::MAX);
        bus.write(0, 4, 2 << 11);
        assert_eq!(bus.read(4, 4), u64::MAX);
        bus.write(1, 1, 0x06);
        bus.write(1, 2, 0x06);
        assert_eq!(resets.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_state_changes_only_what_can_be_written() {
        let bus = || {
            let function = Function::new(IDENTITY).register(0x59, &[0x11], &[0x0f]);
            PciBus::new([((0, 0), function)], ResetLine::new(|| ()))
        };
        let (one, other) = (bus(), bus());
        at(&one, 0, 0x58);
        one.write(5, 1, 0xff);
        let saved = one.save().unwrap();
        other.restore(1, &saved).unwrap();
        assert_eq!(other.read(5, 1), 0x1f);
        assert_eq!(other.save().unwrap(), saved);
        let alien = PciBus::new([((1, 0), Function::new(IDENTITY))], ResetLine::new(|| ()));
        assert!(alien.restore(1, &saved).is_err());
    }
}
