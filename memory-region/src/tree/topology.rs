//! The region tree.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{self, AtomicU64};

use ram_block::{ClientSet, RamBlock};

use crate::device::dispatch::DeviceRegion;
use crate::device::iommu::Iommu;
use crate::error::MapError;
use crate::region_id::RegionId;
use crate::tree::log::{Log, Logged, address_of};

#[derive(Clone)]
pub(crate) enum RegionKind {
    /// In the reverse of the order in which they answer.
    Container(Vec<Placement>),
    Ram(Arc<RamBlock>),
    RomDevice {
        block: Arc<RamBlock>,
        registers: Arc<DeviceRegion>,
        /// Reads come from the block; otherwise they are the device's, as writes
        /// always are.
        direct: bool,
    },
    Mmio(Arc<DeviceRegion>),
    Iommu(Arc<dyn Iommu>),
    Alias {
        target: RegionId,
        offset: AliasOffset,
    },
    Reservation,
    /// With the token.
    Trap(u64),
    /// With what each byte reads as.
    OpenBus(u8),
}

/// Where in its target an alias begins, in bytes.
///
/// A machine that switches banks changes it many times a second, so a commit that does nothing else
/// changes it in place and does not copy the tree (`map/alias_offset`). Only the holder of the
/// update lock changes it, in the tree that is the map; a transaction copies the region before it
/// changes the copy's offset, so that what fails leaves the map's as it was. Who reads the tree
/// without the lock, to print it, finds the offset before the change or after it.
#[derive(Debug)]
pub(crate) struct AliasOffset(AtomicU64);

impl AliasOffset {
    pub(crate) fn new(offset: u64) -> Self {
        Self(AtomicU64::new(offset))
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(atomic::Ordering::Relaxed)
    }

    /// For the holder of the update lock.
    pub(crate) fn set(&self, offset: u64) {
        self.0.store(offset, atomic::Ordering::Relaxed);
    }
}

impl Clone for AliasOffset {
    fn clone(&self) -> Self {
        Self::new(self.get())
    }
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
    pub(crate) kind: RegionKind,
    pub(crate) parent: Option<RegionId>,
}

impl Region {
    /// The block, if the region has one.
    pub(crate) fn block(&self) -> Option<&Arc<RamBlock>> {
        match &self.kind {
            RegionKind::Ram(block) | RegionKind::RomDevice { block, .. } => Some(block),
            _ => None,
        }
    }

    /// The device's registers, if the region has some.
    pub(crate) fn registers_mut(&mut self) -> Option<&mut Arc<DeviceRegion>> {
        match &mut self.kind {
            RegionKind::Mmio(registers) | RegionKind::RomDevice { registers, .. } => {
                Some(registers)
            }
            _ => None,
        }
    }
}

/// A block in the order of ids.
#[derive(Clone)]
struct ById(Arc<RamBlock>);

impl Borrow<str> for ById {
    fn borrow(&self) -> &str {
        self.0.id()
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.id() == other.0.id()
    }
}

impl Eq for ById {}

impl PartialOrd for ById {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ById {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.id().cmp(other.0.id())
    }
}

/// The tree: a value that a transaction copies, edits and then commits or drops.
#[derive(Clone, Default)]
pub(crate) struct Topology {
    /// Shared with the copy as long as neither changes one.
    regions: BTreeMap<RegionId, Arc<Region>>,
    /// The aliases, each behind what it shows.
    aliases: BTreeSet<(RegionId, RegionId)>,
    /// The blocks, and how many regions each has.
    blocks: BTreeMap<ById, usize>,
    /// The dirty logs, in the order in which they were started.
    pub(crate) logs: Vec<Arc<Log>>,
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

    pub(crate) fn add(
        &mut self,
        name: &str,
        size: u128,
        kind: RegionKind,
    ) -> Result<RegionId, MapError> {
        check_size(name, size)?;
        let id = RegionId::fresh();
        let region =
            Region { name: name.into(), size, enabled: true, readonly: false, kind, parent: None };
        if let RegionKind::Alias { target, .. } = region.kind {
            self.aliases.insert((target, id));
        }
        if let Some(block) = region.block() {
            *self.blocks.entry(ById(block.clone())).or_default() += 1;
        }
        self.regions.insert(id, Arc::new(region));
        Ok(id)
    }

    pub(crate) fn remove(&mut self, id: RegionId) {
        let Some(region) = self.regions.remove(&id) else { return };
        if let RegionKind::Alias { target, .. } = region.kind {
            self.aliases.remove(&(target, id));
        }
        let id = region.block().map_or("", |block| block.id());
        if let Some(users) = self.blocks.get_mut(id) {
            *users -= 1;
            if *users == 0 {
                self.blocks.remove(id);
            }
        }
    }

    /// Whether the map may have a region of `block`.
    pub(crate) fn check_block(&self, block: &Arc<RamBlock>) -> Result<(), MapError> {
        match self.blocks.get_key_value(block.id()) {
            Some((ById(other), _)) if !Arc::ptr_eq(other, block) => {
                Err(MapError::DuplicateBlock { id: block.id().to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// All regions, in the order in which they were made.
    pub(crate) fn regions(&self) -> impl Iterator<Item = (RegionId, &Region)> {
        self.regions.iter().map(|(id, region)| (*id, &**region))
    }

    /// How many regions there are.
    pub(crate) fn len(&self) -> usize {
        self.regions.len()
    }

    /// Whether an alias shows a region.
    pub(crate) fn is_aliased(&self, target: RegionId) -> bool {
        let first = self.aliases.range((target, RegionId(0))..).next();
        first.is_some_and(|(shown, _)| *shown == target)
    }

    /// The aliases of `target`: their ids, and the part that they show.
    pub(crate) fn aliases_of(&self, target: RegionId) -> impl Iterator<Item = (&Region, u64)> {
        let aliases = self.aliases.range((target, RegionId(0))..=(target, RegionId(u64::MAX)));
        aliases.filter_map(|(_, alias)| {
            let region = self.regions.get(alias)?;
            match region.kind {
                RegionKind::Alias { ref offset, .. } => Some((&**region, offset.get())),
                _ => None,
            }
        })
    }

    /// The children of a container; none of another region.
    pub(crate) fn children(&self, id: RegionId) -> Result<&[Placement], MapError> {
        match &self.get(id)?.kind {
            RegionKind::Container(children) => Ok(children),
            _ => Ok(&[]),
        }
    }

    /// Every block once, in the order of their ids.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = &Arc<RamBlock>> {
        self.blocks.keys().map(|ById(block)| block)
    }

    /// The clients that log each block. Several regions may show one block: a client that logs
    /// one of them needs the stores through all of them.
    pub(crate) fn logged(&self) -> Logged {
        let all = self.global_clients();
        let blocks = self.blocks().map(|block| (address_of(block), (block.clone(), all)));
        let mut logged: Logged = blocks.collect();
        for log in &self.logs {
            let block = log.region.and_then(|region| self.block_of(region));
            if let Some((_, clients)) = block.and_then(|block| logged.get_mut(&address_of(block))) {
                *clients = clients.with(log.client);
            }
        }
        logged
    }

    /// The clients that log all RAM.
    pub(crate) fn global_clients(&self) -> ClientSet {
        let global = self.logs.iter().filter(|log| log.region.is_none());
        global.map(|log| log.client).collect()
    }

    /// The block of a region, if that is there and has one.
    pub(crate) fn block_of(&self, region: RegionId) -> Option<&Arc<RamBlock>> {
        self.get(region).ok()?.block()
    }

    /// The logs of the block at this address.
    pub(crate) fn logs_of(&self, block: usize) -> impl Iterator<Item = &Arc<Log>> {
        self.logs.iter().filter(move |log| match log.region {
            Some(region) => self.block_of(region).is_some_and(|own| address_of(own) == block),
            None => true,
        })
    }

    /// Whether `from` shows `target`, as a child or through an alias.
    ///
    /// Searches downwards from `from` and upwards from `target` by turns, and ends when either
    /// search has nothing left: a new region has no parents yet, however much it shows, or shows
    /// nothing, wherever it is to be added.
    pub(crate) fn reaches(&self, from: RegionId, target: RegionId) -> bool {
        let (mut down, mut up) = (Search::from(from), Search::from(target));
        loop {
            let Some(id) = down.next() else { return false };
            if id == target {
                return true;
            }
            match self.regions.get(&id).map(|region| &region.kind) {
                Some(RegionKind::Container(children)) => {
                    down.open.extend(children.iter().map(|place| place.child));
                }
                Some(RegionKind::Alias { target, .. }) => down.open.push(*target),
                _ => {}
            }
            let Some(id) = up.next() else { return false };
            if id == from {
                return true;
            }
            up.open.extend(self.regions.get(&id).and_then(|region| region.parent));
            let aliases = self.aliases.range((id, RegionId(0))..=(id, RegionId(u64::MAX)));
            up.open.extend(aliases.map(|(_, alias)| *alias));
        }
    }
}

/// Regions to be looked at, each once.
struct Search {
    seen: BTreeSet<RegionId>,
    open: Vec<RegionId>,
}

impl Search {
    fn from(id: RegionId) -> Self {
        Self { seen: BTreeSet::new(), open: vec![id] }
    }

    fn next(&mut self) -> Option<RegionId> {
        loop {
            let id = self.open.pop()?;
            if self.seen.insert(id) {
                return Some(id);
            }
        }
    }
}

/// Whether a region can have `size` bytes.
pub(crate) fn check_size(name: &str, size: u128) -> Result<(), MapError> {
    if size == 0 || size > 1 << 64 {
        return Err(MapError::Size { name: name.to_owned(), size });
    }
    Ok(())
}
