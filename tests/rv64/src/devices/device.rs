//! What a machine asks of its devices.

/// A device with registers. It belongs to whoever holds it: nothing in it is shared or locked.
pub trait Device: Send {
    /// Reads `size` bytes (1, 2, 4 or 8) at byte `offset` of the registers; what is not there reads
    /// as 0.
    fn load(&mut self, offset: u64, size: usize) -> u64;

    /// Writes the low `size` bytes of `value` at byte `offset`.
    fn store(&mut self, offset: u64, size: usize, value: u64);

    /// Appends its state, for [`restore`](Self::restore).
    fn save(&self, into: &mut Vec<u8>);

    /// Takes a state from the front of `from`; None, and the device is as it was, if it is too
    /// short.
    fn restore(&mut self, from: &mut Reader<'_>) -> Option<()>;
}

/// Takes numbers and bytes off the front of a saved state.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `len` bytes.
    pub fn bytes(&mut self, len: u64) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(usize::try_from(len).ok()?)?;
        self.0 = rest;
        Some(bytes)
    }

    /// The next little-endian number.
    pub fn number(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(8)?.try_into().ok()?))
    }
}
