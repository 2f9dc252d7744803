//! Reads and writes by address.

use std::ops::Range;

use ram_block::RamBlockError;
use thiserror::Error;

use crate::flat_view::FlatView;
use crate::registers::Refusal;
use crate::section::{Section, SectionTarget};

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
    /// A device does not take pieces of this size; it was not asked.
    #[error("Access of {len} bytes at {address:#x}: \"{name}\" takes no {size} bytes")]
    TooSmall {
        /// Where the access starts.
        address: u64,
        /// Its length in bytes.
        len: usize,
        /// The region's name.
        name: String,
        /// The piece's size in bytes.
        size: usize,
    },
    /// A device's own handler made the access; the device was not asked.
    #[error("Access of {len} bytes at {address:#x} from within \"{name}\"'s own handler")]
    Reentered {
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

/// An access as a whole, for its errors.
#[derive(Clone, Copy)]
struct Access {
    address: u64,
    len: usize,
}

impl Access {
    fn unassigned(self, at: u64) -> AccessError {
        AccessError::Unassigned { address: self.address, len: self.len, unassigned: at }
    }

    fn refused(self, section: &Section, refusal: Refusal) -> AccessError {
        let (Self { address, len }, name) = (self, section.name().to_owned());
        match refusal {
            Refusal::TooSmall(size) => AccessError::TooSmall { address, len, name, size },
            Refusal::Reentered => AccessError::Reentered { address, len, name },
        }
    }

    fn read(self, section: &Section, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        match &section.target {
            SectionTarget::Ram(block) | SectionTarget::RomDevice { block, .. } => {
                Ok(block.read(offset, data)?)
            }
            SectionTarget::Mmio(registers) => {
                let read = registers.read(section.name(), offset, data);
                read.map_err(|refusal| self.refused(section, refusal))
            }
            SectionTarget::Reserved => {
                data.fill(0xff);
                Err(self.unassigned(section.start + (offset - section.offset)))
            }
        }
    }

    fn write(self, section: &Section, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        match &section.target {
            SectionTarget::Ram(_) if section.readonly => {
                let name = section.name().to_owned();
                Err(AccessError::ReadOnly { address: self.address, len: self.len, name })
            }
            SectionTarget::Ram(block) => Ok(block.write(offset, data)?),
            SectionTarget::Mmio(registers) | SectionTarget::RomDevice { registers, .. } => {
                let written = registers.write(section.name(), offset, data);
                written.map_err(|refusal| self.refused(section, refusal))
            }
            SectionTarget::Reserved => {
                Err(self.unassigned(section.start + (offset - section.offset)))
            }
        }
    }
}

/// Calls `each` for the pieces of an access: what answers if something does, and which
/// bytes of the buffer it covers. Keeps the first error.
fn split(
    view: &FlatView,
    access: Access,
    mut each: impl FnMut(Option<(&Section, u64)>, Range<usize>) -> Result<(), AccessError>,
) -> Result<(), AccessError> {
    let Access { address, len } = access;
    let mut result = Ok(());
    let mut done = 0;
    while done < len {
        let Some(at) = address.checked_add(done as u64) else {
            let error = each(None, done..len);
            return result.and(error).and(Err(AccessError::PastEnd { address, len }));
        };
        // How far this piece reaches, in bytes less one.
        let (piece, reach) = match view.find(at) {
            Ok(section) => {
                let offset = section.offset + (at - section.start);
                (Some((section, offset)), section.last - at)
            }
            Err(next) => (None, next.map_or(u64::MAX, |next| next - 1) - at),
        };
        let rest = len - done;
        let size = usize::try_from(reach).map_or(rest, |reach| reach.saturating_add(1).min(rest));
        let outcome = each(piece, done..done + size);
        let unassigned = if piece.is_none() { Err(access.unassigned(at)) } else { Ok(()) };
        result = result.and(outcome).and(unassigned);
        done += size;
    }
    result
}

/// What answers all of an access, as nearly always one section does.
#[inline]
fn whole(view: &FlatView, address: u64, len: usize) -> Option<(&Section, u64)> {
    let section = view.find(address).ok()?;
    let from_start = address - section.start;
    let fits = (len as u64).wrapping_sub(1) <= section.last - address;
    fits.then(|| (section, section.offset + from_start))
}

#[inline]
pub(crate) fn read(view: &FlatView, address: u64, data: &mut [u8]) -> Result<(), AccessError> {
    let access = Access { address, len: data.len() };
    if let Some((section, offset)) = whole(view, address, data.len()) {
        return access.read(section, offset, data);
    }
    split(view, access, |piece, bytes| {
        let data = &mut data[bytes];
        match piece {
            Some((section, offset)) => access.read(section, offset, data),
            None => {
                data.fill(0xff);
                Ok(())
            }
        }
    })
}

#[inline]
pub(crate) fn write(view: &FlatView, address: u64, data: &[u8]) -> Result<(), AccessError> {
    let access = Access { address, len: data.len() };
    if let Some((section, offset)) = whole(view, address, data.len()) {
        return access.write(section, offset, data);
    }
    split(view, access, |piece, bytes| match piece {
        Some((section, offset)) => access.write(section, offset, &data[bytes]),
        None => Ok(()),
    })
}
