//! Reads and writes by address.

use std::ops::Range;
use std::sync::Arc;

use ram_block::RamBlock;

use crate::device::dispatch::Refusal;
use crate::device::iommu::{Bus, Iommu, MAX_TRANSLATIONS, Translation};
use crate::error::AccessError;
use crate::fault::trap::Trap;
use crate::view::flat_view::FlatView;
use crate::view::section::{Section, SectionTarget};

/// An access as a whole, for its errors.
#[derive(Clone, Copy)]
pub(crate) struct Access {
    pub(crate) address: u64,
    pub(crate) len: usize,
    /// How often IOMMUs have translated it so far.
    pub(crate) translations: usize,
}

impl Access {
    fn unassigned(self, at: u64) -> AccessError {
        AccessError::Unassigned { address: self.address, len: self.len, unassigned: at }
    }

    fn refused(self, section: &Section, refusal: Refusal) -> AccessError {
        let (Self { address, len, .. }, name) = (self, section.name().to_owned());
        match refusal {
            Refusal::TooSmall(size) => AccessError::TooSmall { address, len, name, size },
            Refusal::Reentered => AccessError::Reentered { address, len, name },
            Refusal::Fault(fault) => AccessError::Fault { address, len, name, fault },
        }
    }

    fn unhandled_trap(self, section: &Section) -> AccessError {
        let (Self { address, len, .. }, name) = (self, section.name().to_owned());
        AccessError::UnhandledTrap { address, len, name }
    }

    /// Calls `each` for the pieces of `bytes` bytes of an IOMMU's region from `offset` on, with
    /// where they go, and keeps the first error.
    fn translate(
        self,
        (section, iommu): (&Section, &Arc<dyn Iommu>),
        offset: u64,
        bytes: usize,
        write: bool,
        mut each: impl FnMut(Option<&(Arc<dyn Bus>, u64)>, Range<usize>) -> Result<(), AccessError>,
    ) -> Result<(), AccessError> {
        let mut result = Ok(());
        let mut done = 0;
        while done < bytes {
            let (at, rest) = (offset + done as u64, bytes - done);
            let Translation { target, len } = match self.translations {
                MAX_TRANSLATIONS.. => Translation::nowhere(u64::MAX),
                _ => iommu.translate(at, write),
            };
            let len = usize::try_from(len).map_or(rest, |len| len.clamp(1, rest));
            done += len;
            let mut outcome = each(target.as_ref(), done - len..done);
            if target.is_none() {
                let (Self { address, len, .. }, name) = (self, section.name().to_owned());
                outcome = Err(AccessError::Untranslated { address, len, name, offset: at });
            }
            result = result.and(outcome);
        }
        result
    }

    fn read(self, section: &Section, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        match &section.target {
            SectionTarget::Ram(block) | SectionTarget::RomDevice { block, .. } => {
                read_block(block, offset, data)
            }
            SectionTarget::Mmio(registers) => {
                let read = registers.read(section.name(), offset, data);
                read.map_err(|refusal| self.refused(section, refusal))
            }
            SectionTarget::Iommu(iommu) => {
                let (len, after) = (data.len(), self.translations + 1);
                self.translate((section, iommu), offset, len, false, |to, bytes| match to {
                    Some((bus, address)) => bus.read_translated(*address, after, &mut data[bytes]),
                    None => {
                        data[bytes].fill(0xff);
                        Ok(())
                    }
                })
            }
            SectionTarget::Reserved => {
                data.fill(0xff);
                Err(self.unassigned(section.start + (offset - section.offset)))
            }
            SectionTarget::Trap(_) => {
                data.fill(0xff);
                Err(self.unhandled_trap(section))
            }
            SectionTarget::OpenBus(value) => {
                data.fill(*value);
                Ok(())
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
            SectionTarget::Iommu(iommu) => {
                let (len, after) = (data.len(), self.translations + 1);
                self.translate((section, iommu), offset, len, true, |to, bytes| match to {
                    Some((bus, address)) => bus.write_translated(*address, after, &data[bytes]),
                    None => Ok(()),
                })
            }
            SectionTarget::Reserved => {
                Err(self.unassigned(section.start + (offset - section.offset)))
            }
            SectionTarget::Trap(_) => Err(self.unhandled_trap(section)),
            SectionTarget::OpenBus(_) => Ok(()),
        }
    }
}

/// Bytes that the block does not have read as all ones, as unassigned addresses do.
#[inline]
fn read_block(block: &RamBlock, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
    Ok(block.read(offset, data).inspect_err(|_| data.fill(0xff))?)
}

/// Calls `each` for the pieces of an access: what answers if something does, and which
/// bytes of the buffer it covers. Keeps the first error.
fn split(
    view: &FlatView,
    access: Access,
    mut each: impl FnMut(Option<(&Section, u64)>, Range<usize>) -> Result<(), AccessError>,
) -> Result<(), AccessError> {
    let Access { address, len, .. } = access;
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

impl Section {
    /// Where in the region an address of the section is.
    #[inline(always)]
    fn offset_of(&self, address: u64) -> u64 {
        self.offset + (address - self.start)
    }
}

/// The trap that has all of an access of `size` bytes, on a bus of which the bits of `mask` count.
pub(crate) fn trap(
    view: &FlatView,
    mask: u64,
    address: u64,
    (size, value): (usize, Option<u64>),
) -> Option<Trap> {
    let address = address & mask;
    let section = view.whole(address, size)?;
    match section.target {
        SectionTarget::Trap(token) if size as u64 - 1 <= mask - address => {
            let offset = section.offset_of(address);
            Some(Trap { token, offset, size, value })
        }
        _ => None,
    }
}

/// Calls `each` for the pieces of an access that passes the end of a bus of 2^n bytes, `mask` being
/// 2^n - 1, and goes on at its start: their addresses, and their bytes.
#[cold]
pub(crate) fn wrap(
    mask: u64,
    address: u64,
    len: usize,
    mut each: impl FnMut(u64, Range<usize>) -> Result<(), AccessError>,
) -> Result<(), AccessError> {
    if mask == u64::MAX {
        return each(address, 0..len);
    }
    let mut result = Ok(());
    let mut done = 0;
    while done < len {
        let at = address.wrapping_add(done as u64) & mask;
        let rest = len - done;
        let size =
            usize::try_from(mask - at).map_or(rest, |reach| reach.saturating_add(1).min(rest));
        result = result.and(each(at, done..done + size));
        done += size;
    }
    result
}

#[inline]
pub(crate) fn read(view: &FlatView, address: u64, data: &mut [u8]) -> Result<(), AccessError> {
    read_from(view, Access { address, len: data.len(), translations: 0 }, data)
}

#[inline]
pub(crate) fn write(view: &FlatView, address: u64, data: &[u8]) -> Result<(), AccessError> {
    write_to(view, Access { address, len: data.len(), translations: 0 }, data)
}

#[inline(always)]
pub(crate) fn read_from(
    view: &FlatView,
    access: Access,
    data: &mut [u8],
) -> Result<(), AccessError> {
    if read_main(view, access.address, data) {
        return Ok(());
    }
    let section = view.whole(access.address, data.len());
    if let Some(section) = section {
        if let SectionTarget::Ram(block) = &section.target {
            if block.read_aligned(section.offset_of(access.address), data) {
                return Ok(());
            }
        }
    }
    read_any(view, section, (access.address, access.translations), data)
}

/// What is read most: returns false, and does nothing, if it is not that.
#[inline(always)]
pub(crate) fn read_main(view: &FlatView, address: u64, data: &mut [u8]) -> bool {
    let ram = view.main_ram(address, data.len());
    ram.is_some_and(|(block, offset)| block.read_aligned(offset, data))
}

/// As [`read_from`], of which it is a part, of the section that has all of it, if one does: apart,
/// so that an access of memory keeps nothing ready for what it hardly ever needs.
#[cold]
#[inline(never)]
fn read_any(
    view: &FlatView,
    section: Option<&Section>,
    (address, translations): (u64, usize),
    data: &mut [u8],
) -> Result<(), AccessError> {
    let access = Access { address, len: data.len(), translations };
    if let Some(section) = section {
        return access.read(section, section.offset_of(address), data);
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

#[inline(always)]
pub(crate) fn write_to(view: &FlatView, access: Access, data: &[u8]) -> Result<(), AccessError> {
    if write_main(view, access.address, data) {
        return Ok(());
    }
    let section = view.whole(access.address, data.len());
    if let Some(section) = section {
        if let (SectionTarget::Ram(block), false) = (&section.target, section.readonly) {
            if block.write_aligned(section.offset_of(access.address), data) {
                return Ok(());
            }
        }
    }
    write_any(view, section, (access.address, access.translations), data)
}

/// What is written most: returns false, and does nothing, if it is not that.
#[inline(always)]
pub(crate) fn write_main(view: &FlatView, address: u64, data: &[u8]) -> bool {
    let ram = view.main_ram(address, data.len());
    ram.is_some_and(|(block, offset)| block.write_aligned(offset, data))
}

/// As [`read_any`].
#[cold]
#[inline(never)]
fn write_any(
    view: &FlatView,
    section: Option<&Section>,
    (address, translations): (u64, usize),
    data: &[u8],
) -> Result<(), AccessError> {
    let access = Access { address, len: data.len(), translations };
    if let Some(section) = section {
        return access.write(section, section.offset_of(address), data);
    }
    split(view, access, |piece, bytes| match piece {
        Some((section, offset)) => access.write(section, offset, &data[bytes]),
        None => Ok(()),
    })
}

impl FlatView {
    /// The memory that an atomic access of `len` bytes, a multiple of which `address` is, writes:
    /// its block, and the offset there. Of the address the bits of `mask` count.
    pub(crate) fn memory_for_atomic(
        &self,
        mask: u64,
        address: u64,
        len: usize,
    ) -> Result<(&Arc<RamBlock>, u64), AccessError> {
        let address = address & mask;
        let access = Access { address, len, translations: 0 };
        let section = self.find(address).map_err(|_| access.unassigned(address))?;
        let last = section.last.min(mask);
        let name = || section.name().to_owned();
        let offset = section.offset + (address - section.start);
        match &section.target {
            SectionTarget::Ram(_) if section.readonly => {
                Err(AccessError::ReadOnly { address, len, name: name() })
            }
            SectionTarget::Ram(_) if offset % len as u64 != 0 => {
                Err(AccessError::Misaligned { address, len })
            }
            SectionTarget::Ram(block) if len as u64 - 1 <= last - address => Ok((block, offset)),
            SectionTarget::Reserved => Err(access.unassigned(address)),
            SectionTarget::Trap(_) => Err(access.unhandled_trap(section)),
            _ => Err(AccessError::NotMemory { address, len, name: name() }),
        }
    }

    /// Reads as [`AddressSpace::read`](crate::AddressSpace::read) does, whatever was
    /// committed since; the view itself does not wrap.
    ///
    /// # Errors
    ///
    /// As there.
    #[inline]
    pub fn bus_read(&self, address: u64, data: &mut [u8]) -> Result<(), AccessError> {
        read(self, address, data)
    }

    /// Writes as [`AddressSpace::write`](crate::AddressSpace::write) does, whatever was
    /// committed since; the view itself does not wrap.
    ///
    /// # Errors
    ///
    /// As there.
    #[inline]
    pub fn bus_write(&self, address: u64, data: &[u8]) -> Result<(), AccessError> {
        write(self, address, data)
    }
}
