//! The region tree.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ram_block::{ClientSet, DirtyClient, RamBlock};

use crate::error::MapError;
use crate::registers::Registers;

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
    /// In the reverse of the order in which they answer.
    Container(Vec<Placement>),
    Ram(Arc<RamBlock>),
    RomDevice {
        block: Arc<RamBlock>,
        registers: Arc<Registers>,
        /// Reads come from the block; otherwise they are the device's, as writes
        /// always are.
        direct: bool,
    },
    Mmio(Arc<Registers>),
    Alias {
        target: RegionId,
        offset: u64,
    },
    Reservation,
}

/// Where a region is in its container.
#[derive(Clone, Copy)]
pub(crate) struct Placement {
    pub(crate) child: RegionId,
    /// Bytes from the container's start.
    pub(crate) offset: u64,
    /// The child's size in bytes, so that its siblings need not look for it.
    pub(crate) size: u128,
    pub(crate) priority: i32,
    pub(crate) may_overlap: bool,
}

#[derive(Clone)]
pub(crate) struct Region {
    pub(crate) name: Arc<str>,
    /// In bytes, up to and including 2^64.
    pub(crate) size: u128,
    pub(crate) enabled: bool,
    /// Whether guests cannot write the memory that is shown through this region.
    pub(crate) readonly: bool,
    pub(crate) kind: Kind,
    /// The clients that log this region in particular.
    pub(crate) log: ClientSet,
    pub(crate) parent: Option<RegionId>,
}

impl Region {
    /// The block, if the region has one.
    pub(crate) fn block(&self) -> Option<&Arc<RamBlock>> {
        match &self.kind {
            Kind::Ram(block) | Kind::RomDevice { block, .. } => Some(block),
            _ => None,
        }
    }

    /// The device's registers, if the region has some.
    pub(crate) fn registers_mut(&mut self) -> Option<&mut Arc<Registers>> {
        match &mut self.kind {
            Kind::Mmio(registers) | Kind::RomDevice { registers, .. } => Some(registers),
            _ => None,
        }
    }
}

/// The clients that log each block, by its address (blocks are shared by `Arc`).
pub(crate) type Logged = BTreeMap<*const RamBlock, (Arc<RamBlock>, ClientSet)>;

/// The tree: a value that a transaction copies, edits and then commits or drops.
#[derive(Clone, Default)]
pub(crate) struct Topology {
    /// Shared with the copy as long as neither changes one.
    regions: BTreeMap<RegionId, Arc<Region>>,
    /// The clients that log all RAM.
    pub(crate) global_log: ClientSet,
}

impl Topology {
    pub(crate) fn get(&self, id: RegionId) -> Result<&Region, MapError> {
        match self.regions.get(&id) {
            Some(region) => Ok(region),
            None => Err(MapError::UnknownRegion { id: id.0 }),
        }
    }

    pub(crate) fn get_mut(&mut self, id: RegionId) -> Result<&mut Region, MapError> {
        match self.regions.get_mut(&id) {
            Some(region) => Ok(Arc::make_mut(region)),
            None => Err(MapError::UnknownRegion { id: id.0 }),
        }
    }

    pub(crate) fn name(&self, id: RegionId) -> String {
        self.get(id).map_or_else(|_| format!("region {}", id.0), |region| region.name.to_string())
    }

    pub(crate) fn add(&mut self, name: &str, size: u128, kind: Kind) -> Result<RegionId, MapError> {
        check_size(name, size)?;
        let id = RegionId::fresh();
        let region = Region {
            name: name.into(),
            size,
            enabled: true,
            readonly: false,
            kind,
            log: ClientSet::EMPTY,
            parent: None,
        };
        self.regions.insert(id, Arc::new(region));
        Ok(id)
    }

    pub(crate) fn remove(&mut self, id: RegionId) -> Option<Arc<Region>> {
        self.regions.remove(&id)
    }

    /// All regions, in the order in which they were made.
    pub(crate) fn regions(&self) -> impl Iterator<Item = (RegionId, &Region)> {
        self.regions.iter().map(|(id, region)| (*id, &**region))
    }

    /// Switches the log of each region off for `client`.
    pub(crate) fn forget_log(&mut self, client: DirtyClient) {
        for region in self.regions.values_mut().filter(|region| region.log.contains(client)) {
            let region = Arc::make_mut(region);
            region.log = region.log.without(client);
        }
    }

    /// The aliases of `target`: their ids, and the part that they show.
    pub(crate) fn aliases_of(&self, target: RegionId) -> impl Iterator<Item = (&Region, u64)> {
        self.regions().filter_map(move |(_, region)| match region.kind {
            Kind::Alias { target: of, offset } if of == target => Some((region, offset)),
            _ => None,
        })
    }

    /// The children of a container; none of another region.
    pub(crate) fn children(&self, id: RegionId) -> Result<&[Placement], MapError> {
        match &self.get(id)?.kind {
            Kind::Container(children) => Ok(children),
            _ => Ok(&[]),
        }
    }

    /// The block of every region that has one; once for each region that shows it.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = &Arc<RamBlock>> {
        self.regions.values().filter_map(|region| region.block())
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
    pub(crate) fn reaches(&self, from: RegionId, target: RegionId) -> bool {
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

/// Whether a region can have `size` bytes.
pub(crate) fn check_size(name: &str, size: u128) -> Result<(), MapError> {
    if size == 0 || size > 1 << 64 {
        return Err(MapError::Size { name: name.to_owned(), size });
    }
    Ok(())
}
