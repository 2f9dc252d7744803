//! The firmware configuration device ("fw_cfg" in QEMU's documents): items of bytes that the
//! firmware selects by number, and a directory of those that are files.
//!
//! Ports: a 16-bit selector, the data byte by byte, and an address to which, or rather by
//! way of a structure at which, data is copied (docs/specs/fw_cfg.rst of QEMU describes
//! the interface).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memory_region::{AddressSpace, MmioDevice};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use migration_ram::{Device, DeviceError};

/// The number of CPUs, 16 bits.
pub const CPUS: u16 = 0x05;
/// The highest number of CPUs, 16 bits.
pub const MAX_CPUS: u16 = 0x0f;

const SIGNATURE: u16 = 0x00;
const INTERFACES: u16 = 0x01;
const DIRECTORY: u16 = 0x19;
const FIRST_FILE: u16 = 0x20;
/// The interfaces that there are: ports, and copies.
const PORTS_AND_COPIES: u32 = 1 | 2;
/// The most bytes that are copied at once: the processor stands still for as long.
const MOST_AT_ONCE: u32 = 16 << 20;
/// A file's name in the directory, with its terminating zero.
const NAME_BYTES: usize = 56;

// Bits of a copy's control field, whose upper half is the item for SELECT.
const ERROR: u32 = 1;
const READ: u32 = 1 << 1;
const SKIP: u32 = 1 << 2;
const SELECT: u32 = 1 << 3;
const WRITE: u32 = 1 << 4;

/// The items.
#[derive(Debug, Default)]
pub struct Items {
    items: BTreeMap<u16, Vec<u8>>,
    files: Vec<(String, Vec<u8>)>,
}

impl Items {
    /// Adds an item.
    #[must_use]
    pub fn item(mut self, number: u16, bytes: &[u8]) -> Self {
        self.items.insert(number, bytes.to_vec());
        self
    }

    /// Adds a file.
    #[must_use]
    pub fn file(mut self, name: &str, bytes: &[u8]) -> Self {
        self.files.push((name.to_owned(), bytes.to_vec()));
        self
    }
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct Cursor {
    item: u16,
    /// The next byte of it.
    at: u64,
    /// The upper half of a copy's address.
    address_high: u32,
}

/// The device.
pub struct FwCfg {
    items: BTreeMap<u16, Vec<u8>>,
    /// What copies go to.
    space: Arc<AddressSpace>,
    cursor: Mutex<Cursor>,
}

impl FwCfg {
    /// The first of its ports.
    pub const PORT: u64 = 0x510;
    /// How many there are.
    pub const PORTS: u128 = 12;

    /// A device with these items, that copies to `space`.
    pub fn new(Items { mut items, mut files }: Items, space: Arc<AddressSpace>) -> Arc<Self> {
        files.sort();
        let mut directory = u32::try_from(files.len()).unwrap_or(0).to_be_bytes().to_vec();
        for (number, (name, bytes)) in (FIRST_FILE..).zip(files) {
            let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            let mut field = name.into_bytes();
            field.truncate(NAME_BYTES - 1);
            field.resize(NAME_BYTES, 0);
            directory.extend(len.to_be_bytes());
            directory.extend(number.to_be_bytes());
            directory.extend([0; 2]);
            directory.extend(field);
            items.insert(number, bytes);
        }
        items.insert(SIGNATURE, b"QEMU".to_vec());
        items.insert(INTERFACES, PORTS_AND_COPIES.to_le_bytes().to_vec());
        items.insert(DIRECTORY, directory);
        Arc::new(Self { items, space, cursor: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Cursor> {
        self.cursor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is left of the selected item.
    fn rest(&self, cursor: &Cursor) -> &[u8] {
        let item = self.items.get(&cursor.item).map_or(&[][..], Vec::as_slice);
        usize::try_from(cursor.at).ok().and_then(|at| item.get(at..)).unwrap_or_default()
    }

    /// Carries out the copy that the structure at `address` asks for: control, length (u32
    /// each) and address (u64), all big-endian. Control is then 0, or [`ERROR`].
    fn copy(&self, cursor: &mut Cursor, address: u64) {
        let view = self.space.memory();
        let memory = view.ram();
        let mut request = [0; 16];
        if let Err(error) = memory.read_slice(&mut request, GuestAddress(address)) {
            log::debug!("fw_cfg: no request at {address:#x}: {error}");
            return;
        }
        let word = |at: usize| -> u32 {
            request[at..at + 4].iter().fold(0, |word, byte| word << 8 | u32::from(*byte))
        };
        let (control, len) = (word(0), word(4));
        let target = u64::from(word(8)) << 32 | u64::from(word(12));
        if control & SELECT != 0 {
            let [_, _, low, high] = control.to_le_bytes();
            (cursor.item, cursor.at) = (u16::from_le_bytes([low, high]), 0);
        }
        let done = if control & READ != 0 {
            self.copy_out(cursor, target, len)
        } else {
            // What is given here cannot be written.
            control & WRITE == 0
        };
        if done && control & (READ | SKIP) != 0 {
            cursor.at = cursor.at.saturating_add(len.into());
        }
        let answer = if done { 0 } else { ERROR };
        if let Err(error) = memory.write_slice(&answer.to_be_bytes(), GuestAddress(address)) {
            log::debug!("fw_cfg: no answer at {address:#x}: {error}");
        }
    }

    /// Copies `len` bytes to `target`, zeros after the item's end. Says whether there is RAM
    /// for them, and no more are wanted than anybody has use for.
    fn copy_out(&self, cursor: &Cursor, target: u64, len: u32) -> bool {
        if len > MOST_AT_ONCE {
            return false;
        }
        const ZEROS: [u8; 4096] = [0; 4096];
        let view = self.space.memory();
        let memory = view.ram();
        let len = u64::from(len);
        let rest = self.rest(cursor);
        let mut done = 0;
        while done < len {
            let rest = usize::try_from(done).ok().and_then(|done| rest.get(done..));
            let from = rest.filter(|rest| !rest.is_empty()).unwrap_or(&ZEROS);
            let size = usize::try_from(len - done).unwrap_or(usize::MAX).min(from.len());
            let Some(at) = target.checked_add(done) else { return false };
            if memory.write_slice(&from[..size], GuestAddress(at)).is_err() {
                return false;
            }
            done += size as u64;
        }
        true
    }
}

impl MmioDevice for FwCfg {
    fn read(&self, offset: u64, size: usize) -> u64 {
        match (offset, size) {
            (1, 1) => {
                let mut cursor = self.lock();
                let byte = self.rest(&cursor).first().copied().unwrap_or(0);
                cursor.at = cursor.at.saturating_add(1);
                byte.into()
            }
            // How the copies make themselves known.
            (4, 4) => u64::from(u32::from_le_bytes(*b"QEMU")),
            (8, 4) => u64::from(u32::from_le_bytes(*b" CFG")),
            _ => u64::MAX,
        }
    }

    fn write(&self, offset: u64, size: usize, value: u64) {
        let [a, b, c, d, ..] = value.to_le_bytes();
        let mut cursor = self.lock();
        match (offset, size) {
            (0, 2) => (cursor.item, cursor.at) = (u16::from_le_bytes([a, b]), 0),
            (4, 4) => cursor.address_high = u32::from_be_bytes([a, b, c, d]),
            (8, 4) => {
                let low = u32::from_be_bytes([a, b, c, d]);
                let address = u64::from(cursor.address_high) << 32 | u64::from(low);
                cursor.address_high = 0;
                self.copy(&mut cursor, address);
            }
            _ => {}
        }
    }
}

impl Device for FwCfg {
    fn name(&self) -> &str {
        "fw_cfg"
    }

    fn version(&self) -> u32 {
        1
    }

    fn save(&self) -> Result<Vec<u8>, DeviceError> {
        Ok(serde_json::to_vec(&*self.lock())?)
    }

    fn restore(&self, _: u32, state: &[u8]) -> Result<(), DeviceError> {
        *self.lock() = serde_json::from_slice(state)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;

    fn device() -> (Layout, Arc<FwCfg>) {
        let layout = Layout::new(2 << 20, None).unwrap();
        let items = Items::default().item(CPUS, &[1, 0]).file("b", &[9; 5000]).file("a", b"abc");
        let device = FwCfg::new(items, layout.space.clone());
        (layout, device)
    }

    #[test]
    fn items_are_read_byte_by_byte() {
        let (_, device) = device();
        let read = |item: u64, len: usize| -> Vec<u8> {
            device.write(0, 2, item);
            (0..len).map(|_| u8::try_from(device.read(1, 1)).unwrap()).collect()
        };
        assert_eq!(read(0, 6), b"QEMU\0\0");
        assert_eq!(read(1, 4), [3, 0, 0, 0]);
        assert_eq!(read(0x19, 4), [0, 0, 0, 2]);
        let first = &read(0x19, 68)[4..];
        assert_eq!(first[..10], [0, 0, 0, 3, 0, 0x20, 0, 0, b'a', 0]);
        assert_eq!(read(0x20, 4), b"abc\0");
        assert_eq!(read(0x7777, 2), [0, 0]);
    }

    #[test]
    fn copies_answer_with_an_error_or_zero() {
        let (layout, device) = device();
        let ask = |control: u32, len: u32, target: u64| -> u32 {
            let mut request = control.to_be_bytes().to_vec();
            request.extend(len.to_be_bytes());
            request.extend(target.to_be_bytes());
            layout.ram.write(0x1000, &request).unwrap();
            device.write(4, 4, 0);
            device.write(8, 4, u64::from(0x1000u32.to_be()));
            let mut answer = [0; 4];
            layout.ram.read(0x1000, &mut answer).unwrap();
            u32::from_be_bytes(answer)
        };
        let bytes = |at: u64, len: usize| {
            let mut bytes = vec![0; len];
            layout.ram.read(at, &mut bytes).unwrap();
            bytes
        };
        layout.ram.write(0x2000, &[0xee; 8]).unwrap();
        assert_eq!(ask(0x20 << 16 | SELECT | READ, 5, 0x2000), 0);
        assert_eq!(bytes(0x2000, 6), b"abc\0\0\xee");
        assert_eq!(ask(0x21 << 16 | SELECT | SKIP, 4998, 0), 0);
        assert_eq!(ask(READ, 4, 0x2000), 0);
        assert_eq!(bytes(0x2000, 4), [9, 9, 0, 0]);
        assert_eq!(ask(WRITE, 4, 0x2000), ERROR);
        // Where no RAM is, or past the end of everything.
        assert_eq!(ask(0x20 << 16 | SELECT | READ, 4, 0xfff0_0000), ERROR);
        assert_eq!(ask(0x20 << 16 | SELECT | READ, u32::MAX, u64::MAX - 2), ERROR);
        assert_eq!(ask(0x20 << 16 | SELECT | READ, u32::MAX, 0x10_0000), ERROR);
        assert_eq!(ask(0x20 << 16 | SELECT | READ, 2 << 20, 0x10_0000), ERROR);
        device.write(8, 4, u64::MAX);
        assert_eq!(device.read(1, 1), u64::from(b'a'));
    }
}
