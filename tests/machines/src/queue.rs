//! The driver's side of a virtqueue, in guest memory (virtio 1.3, section 2.7).

use memory_region::AddressSpace;

/// A split virtqueue of 16 entries: the descriptors at its base, the available ring 4 KiB
/// and the used ring 8 KiB behind them.
#[derive(Debug)]
pub struct Driver<'a> {
    space: &'a AddressSpace,
    base: u64,
    offered: u16,
}

impl<'a> Driver<'a> {
    /// The number of entries.
    pub const SIZE: u16 = 16;

    /// A queue at `base`, which is zero.
    pub fn new(space: &'a AddressSpace, base: u64) -> Self {
        Self { space, base, offered: 0 }
    }

    /// The address of the available ring.
    pub fn available(&self) -> u64 {
        self.base + 0x1000
    }

    /// The address of the used ring.
    pub fn used(&self) -> u64 {
        self.base + 0x2000
    }

    /// Offers `len` bytes at `address` for the device to fill.
    ///
    /// # Panics
    ///
    /// If the queue is not in memory.
    pub fn offer(&mut self, address: u64, len: u32) {
        const WRITABLE: u16 = 2;
        let index = self.offered % Self::SIZE;
        let mut descriptor = [0; 16];
        descriptor[..8].copy_from_slice(&address.to_le_bytes());
        descriptor[8..12].copy_from_slice(&len.to_le_bytes());
        descriptor[12..14].copy_from_slice(&WRITABLE.to_le_bytes());
        let put = |address, data: &[u8]| self.space.write(address, data).unwrap();
        put(self.base + 16 * u64::from(index), &descriptor);
        put(self.available() + 4 + 2 * u64::from(index), &index.to_le_bytes());
        self.offered += 1;
        put(self.available() + 2, &self.offered.to_le_bytes());
    }

    /// How many buffers the device has used.
    ///
    /// # Panics
    ///
    /// If the queue is not in memory.
    pub fn used_count(&self) -> u16 {
        let mut index = [0; 2];
        self.space.read(self.used() + 2, &mut index).unwrap();
        u16::from_le_bytes(index)
    }
}
