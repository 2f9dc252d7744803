//! Copies between a block and a buffer, also of memory that may vanish.

use crate::block::ram_block::RamBlock;
#[cfg(target_os = "linux")]
use crate::io::vectored;

/// Bytes of the buffer between guest memory and a `Write` or `Read`.
pub(super) const BUFFER: usize = 1 << 18;

/// Copies from `offset` of a block on; the error is the offset of the first byte that is gone.
pub(super) fn copy_out(block: &RamBlock, offset: u64, buffer: &mut [u8]) -> Result<(), u64> {
    let memory = block.reserved(offset..offset + buffer.len() as u64);
    // Files are mapped on Linux alone.
    #[cfg(target_os = "linux")]
    if block.may_vanish() {
        if let Some(count) = vectored::copy_out(&memory, buffer) {
            return if count == buffer.len() { Ok(()) } else { Err(offset + count as u64) };
        }
    }
    memory.copy_to(buffer);
    Ok(())
}

/// Copies to `offset` of a block on and marks it; the error is the offset of the first byte that is
/// gone.
pub(super) fn copy_in(block: &RamBlock, offset: u64, bytes: &[u8]) -> Result<(), u64> {
    let memory = block.reserved(offset..offset + bytes.len() as u64);
    let mut result = Ok(());
    #[cfg(target_os = "linux")]
    let count = block.may_vanish().then(|| vectored::copy_in(bytes, &memory)).flatten();
    #[cfg(not(target_os = "linux"))]
    let count: Option<usize> = None;
    match count {
        Some(count) if count == bytes.len() => {}
        Some(count) => result = Err(offset + count as u64),
        None => memory.copy_from(bytes),
    }
    block.dirty().mark(offset, bytes.len() as u64);
    result
}
