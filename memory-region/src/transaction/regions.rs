//! The edits of a transaction: regions made, changed and forgotten.

use std::fmt;
use std::sync::Arc;

use ram_block::RamBlock;

use crate::device::dispatch::DeviceRegion;
use crate::device::iommu::Iommu;
use crate::device::mmio::MmioDevice;
use crate::error::MapError;
use crate::region_id::RegionId;
use crate::tree::topology::{AliasOffset, Region, RegionKind, Topology, check_size};

/// The edits of one transaction; see [`MemoryMap::transaction`](crate::MemoryMap::transaction).
///
/// Sizes are in bytes and of 128 bits, so that a region can have all 2^64.
pub struct Transaction<'a> {
    pub(crate) topology: &'a mut Topology,
    pub(crate) new_objects: &'a mut NewObjects,
    /// Regions that may not be removed: the roots of address spaces, with their names.
    pub(crate) roots: Vec<(RegionId, Arc<str>)>,
}

/// Blocks and devices that a transaction brought, whether they stay or not: dropped after the
/// update lock is released, as their `Drop` may use the map.
#[derive(Default)]
pub(crate) struct NewObjects {
    blocks: Vec<Arc<RamBlock>>,
    devices: Vec<Arc<dyn MmioDevice>>,
    iommus: Vec<Arc<dyn Iommu>>,
}

impl Transaction<'_> {
    /// A region that holds others and is itself a hole where they are not.
    ///
    /// # Errors
    ///
    /// [`MapError::Size`].
    pub fn container(&mut self, name: &str, size: u128) -> Result<RegionId, MapError> {
        self.topology.add(name, size, RegionKind::Container(Vec::new()))
    }

    /// Memory that is read and written directly; as large as `block`.
    ///
    /// Two maps may show one block, but each client's log of it is claimed in one of them, and
    /// **only the listeners of that map log for it**: a claim at a map that the accelerator does
    /// not follow misses what guests write.
    ///
    /// # Errors
    ///
    /// [`MapError::DuplicateBlock`] if another block of the map has this one's id.
    pub fn ram(&mut self, name: &str, block: Arc<RamBlock>) -> Result<RegionId, MapError> {
        self.new_objects.blocks.push(block.clone());
        self.topology.check_block(&block)?;
        let size = u128::from(block.len());
        self.topology.add(name, size, RegionKind::Ram(block))
    }

    /// Memory that is read directly and that guests cannot write; as large as
    /// `block`. Fill it through the block.
    ///
    /// # Errors
    ///
    /// As [`ram`](Self::ram).
    pub fn rom(&mut self, name: &str, block: Arc<RamBlock>) -> Result<RegionId, MapError> {
        let region = self.ram(name, block)?;
        self.topology.get_mut(region)?.readonly = true;
        Ok(region)
    }

    /// Memory that is read directly, and whose writes are always `device`'s: a flash
    /// chip. As large as `block`, which the device fills; see
    /// [`set_romd`](Self::set_romd).
    ///
    /// # Errors
    ///
    /// As [`ram`](Self::ram), and [`MapError::AccessSizes`].
    pub fn rom_device(
        &mut self,
        name: &str,
        block: Arc<RamBlock>,
        device: Arc<dyn MmioDevice>,
    ) -> Result<RegionId, MapError> {
        self.new_objects.blocks.push(block.clone());
        self.new_objects.devices.push(device.clone());
        self.topology.check_block(&block)?;
        let registers = Arc::new(DeviceRegion::new(name, device)?);
        let size = u128::from(block.len());
        self.topology.add(name, size, RegionKind::RomDevice { block, registers, direct: true })
    }

    /// The registers of a device.
    ///
    /// # Errors
    ///
    /// [`MapError::Size`], [`MapError::AccessSizes`].
    pub fn mmio(
        &mut self,
        name: &str,
        size: u128,
        device: Arc<dyn MmioDevice>,
    ) -> Result<RegionId, MapError> {
        self.new_objects.devices.push(device.clone());
        let registers = Arc::new(DeviceRegion::new(name, device)?);
        self.topology.add(name, size, RegionKind::Mmio(registers))
    }

    /// Addresses whose accesses go on where `iommu` says; often all 2^64 bytes of a device's
    /// address space. An accelerator has nothing to map there.
    ///
    /// # Errors
    ///
    /// [`MapError::Size`].
    pub fn iommu(
        &mut self,
        name: &str,
        size: u128,
        iommu: Arc<dyn Iommu>,
    ) -> Result<RegionId, MapError> {
        self.new_objects.iommus.push(iommu.clone());
        self.topology.add(name, size, RegionKind::Iommu(iommu))
    }

    /// Addresses that are served outside of this map, as KVM's interrupt controller serves its
    /// own: regions of lower priority do not show there, and accesses that arrive here fail as
    /// unassigned.
    ///
    /// # Errors
    ///
    /// [`MapError::Size`].
    pub fn reservation(&mut self, name: &str, size: u128) -> Result<RegionId, MapError> {
        self.topology.add(name, size, RegionKind::Reservation)
    }

    /// Addresses whose accesses a [`Tlb`](crate::Tlb) hands to its caller, with `token`
    /// ([`AccessError::Trap`](crate::AccessError::Trap)): a device of an interpreter that needs no
    /// handler. Other accesses, of other devices for example, fail with
    /// [`AccessError::UnhandledTrap`](crate::AccessError::UnhandledTrap).
    ///
    /// # Errors
    ///
    /// [`MapError::Size`].
    pub fn trap(&mut self, name: &str, size: u128, token: u64) -> Result<RegionId, MapError> {
        self.topology.add(name, size, RegionKind::Trap(token))
    }

    /// Addresses at which nothing answers and nothing fails: each byte reads as `value`, and writes
    /// have no effect. What lies below all other regions, at the lowest priority, is an open bus;
    /// where there is no such region, accesses fail
    /// ([`AccessError::Unassigned`](crate::AccessError::Unassigned)), and an interpreter whose bus
    /// keeps the last value answers that error with it.
    ///
    /// # Errors
    ///
    /// [`MapError::Size`].
    pub fn open_bus(&mut self, name: &str, size: u128, value: u8) -> Result<RegionId, MapError> {
        self.topology.add(name, size, RegionKind::OpenBus(value))
    }

    /// A window of `size` bytes on `target` from its byte `offset` on; the target
    /// need not be placed anywhere itself, and may be an alias.
    ///
    /// # Errors
    ///
    /// [`MapError::AliasOutside`] if the target is smaller, [`MapError::Size`],
    /// [`MapError::UnknownRegion`].
    pub fn alias(
        &mut self,
        name: &str,
        target: RegionId,
        offset: u64,
        size: u128,
    ) -> Result<RegionId, MapError> {
        let shown = self.topology.get(target)?;
        check_size(name, size)?;
        check_alias(name, offset, size, &shown.name, shown.size)?;
        self.topology.add(
            name,
            size,
            RegionKind::Alias { target, offset: AliasOffset::new(offset) },
        )
    }

    /// Lets an alias begin at byte `offset` of its target: another bank. A machine that switches
    /// banks often does it by [`MemoryMap::set_alias_offset`](crate::MemoryMap::set_alias_offset),
    /// which costs a tenth.
    ///
    /// # Errors
    ///
    /// [`MapError::NotAnAlias`], [`MapError::AliasOutside`] if it would show what is not there,
    /// [`MapError::UnknownRegion`].
    pub fn set_alias_offset(&mut self, alias: RegionId, offset: u64) -> Result<(), MapError> {
        self.topology.check_alias_offset(alias, offset)?;
        if let RegionKind::Alias { offset: current, .. } = &self.topology.get_mut(alias)?.kind {
            current.set(offset);
        }
        Ok(())
    }

    /// Shows or hides a region with all that is in it.
    ///
    /// # Errors
    ///
    /// [`MapError::UnknownRegion`].
    pub fn set_enabled(&mut self, region: RegionId, enabled: bool) -> Result<(), MapError> {
        self.topology.get_mut(region)?.enabled = enabled;
        Ok(())
    }

    /// Keeps guests from writing the memory that is shown through `region`, or lets
    /// them: RAM, an alias of it, or a container with all that is in it. Devices are
    /// written all the same.
    ///
    /// A read-only alias of writable RAM is a PC's shadow RAM: the bytes are writable
    /// wherever else they are shown.
    ///
    /// # Errors
    ///
    /// [`MapError::UnknownRegion`].
    pub fn set_readonly(&mut self, region: RegionId, readonly: bool) -> Result<(), MapError> {
        self.topology.get_mut(region)?.readonly = readonly;
        Ok(())
    }

    /// Lets reads of a ROM device come directly from its block, or be the device's own:
    /// a flash chip that was given a command answers itself.
    ///
    /// # Errors
    ///
    /// [`MapError::NotARomDevice`], [`MapError::UnknownRegion`].
    pub fn set_romd(&mut self, region: RegionId, on: bool) -> Result<(), MapError> {
        let region = self.topology.get_mut(region)?;
        match &mut region.kind {
            RegionKind::RomDevice { direct, .. } => *direct = on,
            _ => return Err(MapError::NotARomDevice { name: region.name.to_string() }),
        }
        Ok(())
    }

    /// Forgets a region that nothing uses. The children of a container are no longer
    /// placed then.
    ///
    /// # Errors
    ///
    /// [`MapError::InUse`], [`MapError::UnknownRegion`].
    pub fn remove(&mut self, id: RegionId) -> Result<(), MapError> {
        let region = self.topology.get(id)?;
        let name = region.name.to_string();
        let user = (region.parent.map(|parent| self.topology.name(parent)))
            .or_else(|| {
                let alias = self.topology.aliases_of(id).next();
                alias.map(|(region, _)| region.name.to_string())
            })
            .or_else(|| {
                let root = self.roots.iter().find(|(root, _)| *root == id);
                root.map(|(_, space)| space.to_string())
            });
        if let Some(user) = user {
            return Err(MapError::InUse { name, user });
        }
        let children = self.topology.children(id)?.to_vec();
        for placement in children {
            self.topology.get_mut(placement.child)?.parent = None;
        }
        self.topology.remove(id);
        Ok(())
    }
}

impl Topology {
    /// Whether an alias can begin at `offset` of its target; returns the target, and where it
    /// begins now.
    pub(crate) fn check_alias_offset(
        &self,
        alias: RegionId,
        offset: u64,
    ) -> Result<(&Region, u64), MapError> {
        let region = self.get(alias)?;
        let RegionKind::Alias { target, offset: current } = &region.kind else {
            return Err(MapError::NotAnAlias { name: region.name.to_string() });
        };
        let target = self.get(*target)?;
        check_alias(&region.name, offset, region.size, &target.name, target.size)?;
        Ok((target, current.get()))
    }
}

/// Whether an alias shows only what its target has.
pub(crate) fn check_alias(
    name: &str,
    offset: u64,
    size: u128,
    target: &str,
    target_size: u128,
) -> Result<(), MapError> {
    if u128::from(offset) + size > target_size {
        let (name, target) = (name.to_owned(), target.to_owned());
        return Err(MapError::AliasOutside { name, offset, size, target, target_size });
    }
    Ok(())
}

impl fmt::Debug for Transaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.topology.regions().map(|(id, region)| (id, &region.name)))
            .finish()
    }
}
