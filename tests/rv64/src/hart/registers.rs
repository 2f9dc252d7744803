//! The integer registers.

use std::fmt;

/// x0 to x31, and places that are written and never read.
///
/// There are 64, so that six bits of a number need no bounds check.
#[derive(Clone)]
pub struct Registers([u64; 64]);

impl Default for Registers {
    fn default() -> Self {
        Self([0; 64])
    }
}

impl Registers {
    /// The value of a register, 0 to 31.
    #[inline(always)]
    pub fn get(&self, number: u8) -> u64 {
        self.0[usize::from(number & 63)]
    }

    /// Sets a register, 1 to 31, or [`SINK`](crate::SINK); as x0 it is ignored.
    #[inline(always)]
    pub fn set(&mut self, number: u8, value: u64) {
        debug_assert_ne!(number, 0, "decoded as SINK");
        self.0[usize::from(number & 63)] = value;
    }

    /// x0 to x31.
    pub fn all(&self) -> &[u64] {
        &self.0[..32]
    }

    /// Sets x1 to x31 from values for x0 to x31.
    pub fn set_all(&mut self, values: &[u64; 32]) {
        self.0[1..32].copy_from_slice(&values[1..]);
    }
}

impl PartialEq for Registers {
    fn eq(&self, other: &Self) -> bool {
        self.all() == other.all()
    }
}

impl Eq for Registers {}

impl fmt::Debug for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = self.all().iter().enumerate().map(|(n, value)| (format!("x{n}"), value));
        f.debug_map().entries(named.map(|(name, value)| (name, format!("{value:#x}")))).finish()
    }
}
