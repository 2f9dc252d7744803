//! The region tree, and the edits that a transaction makes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ram_block::{ClientSet, DirtyClient, RamBlock};

use crate::error::MapError;
use crate::mmio::MmioDevice;

/// A region of one [`MemoryMap`](crate::MemoryMap). No other region of the process, of
/// any map, ever has the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionId(u64);

impl RegionId {
    fn fresh() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

#[derive(Clone)]
pub(crate) enum Kind {
    Container(Vec<Placement>),
    Ram { block: Arc<RamBlock>, readonly: bool },
    Mmio(Arc<dyn MmioDevice>),
    Alias { target: RegionId, offset: u64 },
}

#[derive(Clone, Copy)]
pub(crate) struct Placement {
    pub(crate) child: RegionId,
    /// Bytes from the container's start.
    pub(crate) offset: u64,
    priority: i32,
    may_overlap: bool,
}

#[derive(Clone)]
pub(crate) struct Region {
    pub(crate) name: Arc<str>,
    /// In bytes, up to and including 2^64.
    pub(crate) size: u128,
    pub(crate) enabled: bool,
    pub(crate) kind: Kind,
    /// The clients that log this region in particular.
    pub(crate) log: ClientSet,
    parent: Option<RegionId>,
}

impl Region {
    /// The block, if the region is RAM.
    pub(crate) fn block(&self) -> Option<&Arc<RamBlock>> {
        match &self.kind {
            Kind::Ram { block, .. } => Some(block),
            _ => None,
        }
    }
}

/// The clients that log each block, by its address (blocks are shared by `Arc`).
pub(crate) type Logged = BTreeMap<*const RamBlock, (Arc<RamBlock>, ClientSet)>;

/// The tree: a value that a transaction copies, edits and then commits or drops.
#[derive(Clone, Default)]
pub(crate) struct Topology {
    regions: BTreeMap<RegionId, Region>,
    /// The clients that log all RAM.
    pub(crate) global_log: ClientSet,
}

impl Topology {
    pub(crate) fn get(&self, id: RegionId) -> Result<&Region, MapError> {
        self.regions.get(&id).ok_or(MapError::UnknownRegion { id: id.0 })
    }

    fn get_mut(&mut self, id: RegionId) -> Result<&mut Region, MapError> {
        self.regions.get_mut(&id).ok_or(MapError::UnknownRegion { id: id.0 })
    }

    fn name(&self, id: RegionId) -> String {
        self.get(id).map_or_else(|_| format!("region {}", id.0), |region| region.name.to_string())
    }

    fn add(&mut self, name: &str, size: u128, kind: Kind) -> Result<RegionId, MapError> {
        if size == 0 || size > 1 << 64 {
            return Err(MapError::Size { name: name.to_owned(), size });
        }
        let id = RegionId::fresh();
        let region = Region {
            name: name.into(),
            size,
            enabled: true,
            kind,
            log: ClientSet::EMPTY,
            parent: None,
        };
        self.regions.insert(id, region);
        Ok(id)
    }

    /// The block of every RAM region; once for each region that shows it.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = &Arc<RamBlock>> {
        self.regions.values().filter_map(Region::block)
    }

    /// The clients that log each block. Several regions may show one block; who logs
    /// one of them wants the stores through all of them.
    pub(crate) fn logged(&self) -> Logged {
        let mut logged = Logged::new();
        for region in self.regions.values() {
            if let Some(block) = region.block() {
                let none = || (block.clone(), ClientSet::EMPTY);
                let entry = logged.entry(Arc::as_ptr(block)).or_insert_with(none);
                entry.1 = entry.1.union(region.log).union(self.global_log);
            }
        }
        logged
    }

    /// Whether `from` shows `target`, as a child or through an alias.
    fn reaches(&self, from: RegionId, target: RegionId) -> bool {
        let mut seen = BTreeSet::new();
        let mut open = vec![from];
        while let Some(id) = open.pop() {
            if id == target {
                return true;
            }
            if !seen.insert(id) {
                continue;
            }
            match self.regions.get(&id).map(|region| &region.kind) {
                Some(Kind::Container(children)) => open.extend(children.iter().map(|c| c.child)),
                Some(Kind::Alias { target, .. }) => open.push(*target),
                _ => {}
            }
        }
        false
    }
}

/// The edits of one transaction; see [`MemoryMap::update`](crate::MemoryMap::update).
///
/// Sizes are in bytes and of 128 bits, so that a region can have all 2^64.
pub struct MapEdit<'a> {
    pub(crate) topology: &'a mut Topology,
    /// Regions that may not be removed: the roots of address spaces, with their names.
    pub(crate) roots: Vec<(RegionId, Arc<str>)>,
}

impl MapEdit<'_> {
    /// A region that holds others and is itself a hole where they are not.
    ///
    /// # Errors
    ///
    /// [`MapError::Size`].
    pub fn container(&mut self, name: &str, size: u128) -> Result<RegionId, MapError> {
        self.topology.add(name, size, Kind::Container(Vec::new()))
    }

    /// Memory that is read and written directly; as large as `block`.
    ///
    /// # Errors
    ///
    /// [`MapError::DuplicateBlock`] if another block of the map has this one's id.
    pub fn ram(&mut self, name: &str, block: Arc<RamBlock>) -> Result<RegionId, MapError> {
        self.memory(name, block, false)
    }

    /// Memory that is read directly and that guests cannot write; as large as
    /// `block`. Fill it through the block.
    ///
    /// # Errors
    ///
    /// As [`ram`](Self::ram).
    pub fn rom(&mut self, name: &str, block: Arc<RamBlock>) -> Result<RegionId, MapError> {
        self.memory(name, block, true)
    }

    fn memory(
        &mut self,
        name: &str,
        block: Arc<RamBlock>,
        readonly: bool,
    ) -> Result<RegionId, MapError> {
        let id = block.id();
        if self.topology.blocks().any(|other| other.id() == id && !Arc::ptr_eq(other, &block)) {
            return Err(MapError::DuplicateBlock { id: id.to_owned() });
        }
        let size = u128::from(block.len());
        self.topology.add(name, size, Kind::Ram { block, readonly })
    }

    /// The registers of a device.
    ///
    /// # Errors
    ///
    /// [`MapError::Size`].
    pub fn mmio(
        &mut self,
        name: &str,
        size: u128,
        device: Arc<dyn MmioDevice>,
    ) -> Result<RegionId, MapError> {
        self.topology.add(name, size, Kind::Mmio(device))
    }

    /// A window of `size` bytes on `target` from its byte `offset` on; the target
    /// need not be placed anywhere itself.
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
        if u128::from(offset) + size > shown.size {
            return Err(MapError::AliasOutside {
                name: name.to_owned(),
                offset,
                size,
                target: shown.name.to_string(),
                target_size: shown.size,
            });
        }
        self.topology.add(name, size, Kind::Alias { target, offset })
    }

    /// Places `child` at byte `offset` of the container `parent`, with priority 0 and
    /// where no other region is that was placed so.
    ///
    /// # Errors
    ///
    /// [`MapError::Overlap`], [`MapError::OutsideContainer`], [`MapError::Cycle`],
    /// [`MapError::AlreadyPlaced`], [`MapError::NotAContainer`],
    /// [`MapError::UnknownRegion`].
    pub fn place(
        &mut self,
        parent: RegionId,
        offset: u64,
        child: RegionId,
    ) -> Result<(), MapError> {
        self.insert(parent, Placement { child, offset, priority: 0, may_overlap: false })
    }

    /// Places `child` at byte `offset` of `parent`, whatever else is there.
    ///
    /// Where siblings overlap, the higher `priority` answers, at equal priority the
    /// one placed last.
    ///
    /// # Errors
    ///
    /// As [`place`](Self::place), but for [`MapError::Overlap`].
    pub fn place_overlapping(
        &mut self,
        parent: RegionId,
        offset: u64,
        child: RegionId,
        priority: i32,
    ) -> Result<(), MapError> {
        self.insert(parent, Placement { child, offset, priority, may_overlap: true })
    }

    fn insert(&mut self, parent: RegionId, placement: Placement) -> Result<(), MapError> {
        let Placement { child, offset, .. } = placement;
        let container = self.topology.get(parent)?;
        let region = self.topology.get(child)?;
        let (parent_name, name) = (container.name.to_string(), region.name.to_string());
        let Kind::Container(siblings) = &container.kind else {
            return Err(MapError::NotAContainer { parent: parent_name, child: name });
        };
        if let Some(current) = region.parent {
            let current = self.topology.name(current);
            return Err(MapError::AlreadyPlaced { child: name, parent: parent_name, current });
        }
        if self.topology.reaches(child, parent) {
            return Err(MapError::Cycle { child: name, parent: parent_name });
        }
        let end = u128::from(offset) + region.size;
        if end > container.size {
            return Err(MapError::OutsideContainer {
                child: name,
                size: region.size,
                offset,
                parent: parent_name,
                parent_size: container.size,
            });
        }
        if !placement.may_overlap {
            for sibling in siblings.iter().filter(|sibling| !sibling.may_overlap) {
                let other = self.topology.get(sibling.child)?;
                if u128::from(sibling.offset) < end
                    && u128::from(offset) < u128::from(sibling.offset) + other.size
                {
                    return Err(MapError::Overlap {
                        child: name,
                        offset,
                        size: region.size,
                        other: other.name.to_string(),
                        other_offset: sibling.offset,
                        other_size: other.size,
                    });
                }
            }
        }
        self.topology.get_mut(child)?.parent = Some(parent);
        if let Kind::Container(siblings) = &mut self.topology.get_mut(parent)?.kind {
            // Kept in the order in which they answer: the one placed last first.
            let at = siblings.partition_point(|sibling| sibling.priority > placement.priority);
            siblings.insert(at, placement);
        }
        Ok(())
    }

    /// Takes `child` out of its container. It can be placed again.
    ///
    /// # Errors
    ///
    /// [`MapError::NotPlaced`], [`MapError::UnknownRegion`].
    pub fn unplace(&mut self, child: RegionId) -> Result<(), MapError> {
        let region = self.topology.get_mut(child)?;
        let Some(parent) = region.parent.take() else {
            return Err(MapError::NotPlaced { name: region.name.to_string() });
        };
        if let Kind::Container(siblings) = &mut self.topology.get_mut(parent)?.kind {
            siblings.retain(|sibling| sibling.child != child);
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

    /// Forgets a region that nothing uses. The children of a container are no longer
    /// placed then.
    ///
    /// # Errors
    ///
    /// [`MapError::InUse`], [`MapError::UnknownRegion`].
    pub fn remove(&mut self, id: RegionId) -> Result<(), MapError> {
        let region = self.topology.get(id)?;
        let name = region.name.to_string();
        let alias_of =
            |region: &Region| matches!(region.kind, Kind::Alias { target, .. } if target == id);
        let user = (region.parent.map(|parent| self.topology.name(parent)))
            .or_else(|| {
                let alias = self.topology.regions.values().find(|region| alias_of(region));
                alias.map(|region| region.name.to_string())
            })
            .or_else(|| {
                let root = self.roots.iter().find(|(root, _)| *root == id);
                root.map(|(_, space)| space.to_string())
            });
        if let Some(user) = user {
            return Err(MapError::InUse { name, user });
        }
        if let Some(Region { kind: Kind::Container(children), .. }) =
            self.topology.regions.remove(&id)
        {
            for placement in children {
                self.topology.get_mut(placement.child)?.parent = None;
            }
        }
        Ok(())
    }

    /// Switches the dirty log of one RAM region on or off for `client`.
    ///
    /// # Errors
    ///
    /// [`MapError::NotRam`], [`MapError::UnknownRegion`].
    pub fn set_log(
        &mut self,
        region: RegionId,
        client: DirtyClient,
        on: bool,
    ) -> Result<(), MapError> {
        let region = self.topology.get_mut(region)?;
        if region.block().is_none() {
            return Err(MapError::NotRam { name: region.name.to_string(), client });
        }
        region.log = if on { region.log.with(client) } else { region.log.without(client) };
        Ok(())
    }

    /// Switches the dirty log of all RAM on or off for `client`.
    pub fn set_global_log(&mut self, client: DirtyClient, on: bool) {
        let log = self.topology.global_log;
        self.topology.global_log = if on { log.with(client) } else { log.without(client) };
    }
}

impl fmt::Debug for MapEdit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.topology.regions.iter().map(|(id, region)| (id.0, &region.name));
        f.debug_map().entries(names).finish()
    }
}
