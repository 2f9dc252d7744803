//! Reads and writes by address.

use ram_block::RamBlockError;
use thiserror::Error;

use crate::flat_view::{FlatView, Section, SectionTarget};
use crate::mmio::access_size;

/// An access that met something other than memory or a device.
///
/// The rest of the access has been made. A guest is told nothing of this: it reads
/// all ones where nothing answers, and its writes there are dropped.
#[derive(Debug, Error)]
pub enum AccessError {
    /// Nothing answers at an address.
    #[error("Access of {len} bytes at {address:#x}: nothing answers at {unassigned:#x}")]
    Unassigned {
        /// Where the access starts.
        address: u64,
        /// Its length in bytes.
        len: usize,
        /// The first address at which nothing answers.
        unassigned: u64,
    },
    /// The access goes on past the end of the 64-bit space.
    #[error("Access of {len} bytes at {address:#x} passes the end of the address space")]
    PastEnd {
        /// Where the access starts.
        address: u64,
        /// Its length in bytes.
        len: usize,
    },
    /// A write to memory that is read-only; it was dropped.
    #[error("Write of {len} bytes at {address:#x}: \"{name}\" is read-only")]
    ReadOnly {
        /// Where the access starts.
        address: u64,
        /// Its length in bytes.
        len: usize,
        /// The region's name.
        name: String,
    },
    /// A block is smaller than its region.
    #[error(transparent)]
    Block(#[from] RamBlockError),
}

/// One piece of an access: what answers, and which bytes of the buffer it covers.
enum Piece<'a> {
    Section { section: &'a Section, offset: u64 },
    Nothing,
}

/// Calls `each` for the pieces of `len` bytes at `address`; keeps the first error.
fn split(
    view: &FlatView,
    address: u64,
    len: usize,
    mut each: impl FnMut(Piece<'_>, std::ops::Range<usize>) -> Result<(), AccessError>,
) -> Result<(), AccessError> {
    let mut result = Ok(());
    let mut done = 0;
    while done < len {
        let Some(at) = address.checked_add(done as u64) else {
            let error = each(Piece::Nothing, done..len);
            return result.and(error).and(Err(AccessError::PastEnd { address, len }));
        };
        // How far this piece reaches, in bytes less one.
        let (piece, reach) = match view.find(at) {
            Ok(section) => {
                let offset = section.offset() + (at - section.start());
                (Piece::Section { section, offset }, section.last() - at)
            }
            Err(next) => (Piece::Nothing, next.map_or(u64::MAX, |next| next - 1) - at),
        };
        let rest = len - done;
        let size = usize::try_from(reach).map_or(rest, |reach| reach.saturating_add(1).min(rest));
        let unassigned = matches!(piece, Piece::Nothing);
        let outcome = each(piece, done..done + size);
        let outcome = outcome.and(if unassigned {
            Err(AccessError::Unassigned { address, len, unassigned: at })
        } else {
            Ok(())
        });
        result = result.and(outcome);
        done += size;
    }
    result
}

pub(crate) fn read(view: &FlatView, address: u64, data: &mut [u8]) -> Result<(), AccessError> {
    split(view, address, data.len(), |piece, bytes| {
        let data = &mut data[bytes];
        match piece {
            Piece::Nothing => data.fill(0xff),
            Piece::Section { section, offset } => match section.target() {
                SectionTarget::Ram(block) => block.read(offset, data)?,
                SectionTarget::Mmio(device) => {
                    let mut at = 0;
                    while at < data.len() {
                        let offset = offset + at as u64;
                        let size = access_size(offset, data.len() - at);
                        let value = device.read(offset, size).to_le_bytes();
                        data[at..at + size].copy_from_slice(&value[..size]);
                        at += size;
                    }
                }
            },
        }
        Ok(())
    })
}

pub(crate) fn write(view: &FlatView, address: u64, data: &[u8]) -> Result<(), AccessError> {
    split(view, address, data.len(), |piece, bytes| {
        let piece_data = &data[bytes];
        let Piece::Section { section, offset } = piece else { return Ok(()) };
        match section.target() {
            SectionTarget::Ram(_) if section.readonly() => {
                let name = section.name().to_owned();
                return Err(AccessError::ReadOnly { address, len: data.len(), name });
            }
            SectionTarget::Ram(block) => block.write(offset, piece_data)?,
            SectionTarget::Mmio(device) => {
                let mut at = 0;
                while at < piece_data.len() {
                    let offset = offset + at as u64;
                    let size = access_size(offset, piece_data.len() - at);
                    let mut value = [0; 8];
                    value[..size].copy_from_slice(&piece_data[at..at + size]);
                    device.write(offset, size, u64::from_le_bytes(value));
                    at += size;
                }
            }
        }
        Ok(())
    })
}
