//! Devices on a bus.

/// A device whose registers are accessed through a region.
///
/// Called from whichever thread makes the access, several at once perhaps, with no
/// lock of this crate held: a handler may access the bus, or change the map.
pub trait MmioDevice: Send + Sync {
    /// Reads `size` bytes (1, 2, 4 or 8) at byte `offset` of the region.
    ///
    /// The value is in the low `size` bytes; on the bus it is little-endian. The
    /// offset need not be a multiple of the size. Offsets nobody implements read as
    /// all ones on most buses.
    fn read(&self, offset: u64, size: usize) -> u64;

    /// Writes the low `size` bytes (1, 2, 4 or 8) of `value` at byte `offset`.
    fn write(&self, offset: u64, size: usize, value: u64);
}

/// The sizes in which `len` bytes at `offset` are passed to a device.
///
/// A length that a single access can have is passed whole, aligned or not, as a
/// processor would issue it; others in naturally aligned pieces.
pub(crate) fn access_size(offset: u64, len: usize) -> usize {
    if matches!(len, 1 | 2 | 4 | 8) {
        return len;
    }
    let aligned = if offset == 0 { 8 } else { 1 << offset.trailing_zeros().min(3) };
    let fitting = if len >= 8 { 8 } else { 1 << len.ilog2() };
    fitting.min(aligned)
}

#[cfg(test)]
mod tests {
    use super::access_size;

    #[test]
    fn odd_lengths_are_split_into_aligned_pieces() {
        let pieces = |mut offset: u64, mut len: usize| {
            let mut pieces = Vec::new();
            while len > 0 {
                let size = access_size(offset, len);
                pieces.push(size);
                offset += size as u64;
                len -= size;
            }
            pieces
        };
        assert_eq!(pieces(0, 4), [4]);
        assert_eq!(pieces(1, 2), [2]);
        assert_eq!(pieces(0, 3), [2, 1]);
        assert_eq!(pieces(1, 7), [1, 2, 4]);
        assert_eq!(pieces(0, 20), [8, 8, 4]);
        assert_eq!(pieces(3, 13), [1, 4, 8]);
    }
}
