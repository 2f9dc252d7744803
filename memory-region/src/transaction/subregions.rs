//! The edits of a transaction: where regions are, and how large.

use crate::error::MapError;
use crate::region_id::RegionId;
use crate::transaction::regions::{Transaction, check_alias};
use crate::tree::topology::{Placement, RegionKind, Topology, check_size};

impl Transaction<'_> {
    /// Places `child` at byte `offset` of the container `parent`, with priority 0 and
    /// where no other region is that was placed so.
    ///
    /// # Errors
    ///
    /// [`MapError::Overlap`], [`MapError::OutsideContainer`], [`MapError::Cycle`],
    /// [`MapError::AlreadyPlaced`], [`MapError::NotAContainer`],
    /// [`MapError::UnknownRegion`].
    pub fn add_subregion(
        &mut self,
        parent: RegionId,
        offset: u64,
        child: RegionId,
    ) -> Result<(), MapError> {
        let size = self.topology.get(child)?.size;
        self.insert(parent, Placement { child, offset, size, priority: 0, may_overlap: false })
    }

    /// Places `child` at byte `offset` of `parent`, whatever else is there.
    ///
    /// Where siblings overlap, the higher `priority` answers, at equal priority the
    /// one placed last.
    ///
    /// # Errors
    ///
    /// As [`add_subregion`](Self::add_subregion), but for [`MapError::Overlap`].
    pub fn add_subregion_overlap(
        &mut self,
        parent: RegionId,
        offset: u64,
        child: RegionId,
        priority: i32,
    ) -> Result<(), MapError> {
        let size = self.topology.get(child)?.size;
        self.insert(parent, Placement { child, offset, size, priority, may_overlap: true })
    }

    /// Moves a placed region to byte `offset` of its container. At equal priority it
    /// answers from now on before its siblings, as if it was placed last.
    ///
    /// # Errors
    ///
    /// [`MapError::NotPlaced`], [`MapError::Overlap`], [`MapError::OutsideContainer`],
    /// [`MapError::UnknownRegion`]; the region is where it was then.
    pub fn set_address(&mut self, child: RegionId, offset: u64) -> Result<(), MapError> {
        self.replace(child, |placement| placement.offset = offset)
    }

    /// Gives a placed region another priority, and lets it overlap its siblings. At
    /// equal priority it answers before them, as if it was placed last.
    ///
    /// # Errors
    ///
    /// [`MapError::NotPlaced`], [`MapError::UnknownRegion`].
    pub fn set_priority(&mut self, child: RegionId, priority: i32) -> Result<(), MapError> {
        self.replace(child, |placement| {
            placement.priority = priority;
            placement.may_overlap = true;
        })
    }

    /// Gives a region another size, in bytes. RAM may show less than its block.
    ///
    /// # Errors
    ///
    /// [`MapError::Size`]; [`MapError::BlockTooSmall`] if RAM would show more than its
    /// block has; [`MapError::OutsideContainer`] and [`MapError::Overlap`] if it does not
    /// fit where it is, or what it holds does not fit in it; [`MapError::AliasOutside`] if
    /// it, or an alias of it, would show what is not there; [`MapError::UnknownRegion`].
    pub fn resize(&mut self, id: RegionId, size: u128) -> Result<(), MapError> {
        let region = self.topology.get(id)?;
        let name = &region.name;
        check_size(name, size)?;
        match &region.kind {
            RegionKind::Container(children) => {
                for placement in children {
                    let child = self.topology.get(placement.child)?;
                    check_inside(&child.name, child.size, placement.offset, name, size)?;
                }
            }
            RegionKind::Alias { target, offset } => {
                let target = self.topology.get(*target)?;
                check_alias(name, offset.get(), size, &target.name, target.size)?;
            }
            RegionKind::Ram(block) | RegionKind::RomDevice { block, .. } => {
                if size > u128::from(block.len()) {
                    let (name, block_len) = (name.to_string(), block.len());
                    return Err(MapError::BlockTooSmall { name, size, block_len });
                }
            }
            RegionKind::Mmio(_)
            | RegionKind::Iommu(_)
            | RegionKind::Reservation
            | RegionKind::Trap(_)
            | RegionKind::OpenBus(_) => {}
        }
        for (alias, offset) in self.topology.aliases_of(id) {
            check_alias(&alias.name, offset, alias.size, name, size)?;
        }
        if let Some(parent) = region.parent {
            let siblings = self.topology.children(parent)?;
            let at = siblings.iter().position(|placement| placement.child == id);
            if let Some(at) = at {
                self.topology.check_fits(parent, &Placement { size, ..siblings[at] })?;
                self.topology.children_mut(parent)?[at].size = size;
            }
        }
        self.topology.get_mut(id)?.size = size;
        Ok(())
    }

    /// Takes `child` out of its container. It can be placed again.
    ///
    /// # Errors
    ///
    /// [`MapError::NotPlaced`], [`MapError::UnknownRegion`].
    pub fn del_subregion(&mut self, child: RegionId) -> Result<(), MapError> {
        let parent = self.topology.parent_of(child)?;
        self.topology.get_mut(child)?.parent = None;
        self.topology.children_mut(parent)?.retain(|sibling| sibling.child != child);
        Ok(())
    }

    fn insert(&mut self, parent: RegionId, placement: Placement) -> Result<(), MapError> {
        let child = placement.child;
        let (region, container) = (self.topology.get(child)?, self.topology.get(parent)?);
        let names = || (region.name.to_string(), container.name.to_string());
        if !matches!(container.kind, RegionKind::Container(_)) {
            let (child, parent) = names();
            return Err(MapError::NotAContainer { parent, child });
        }
        if let Some(current) = region.parent {
            let (child, parent) = names();
            let current = self.topology.name(current);
            return Err(MapError::AlreadyPlaced { child, parent, current });
        }
        if self.topology.reaches(child, parent) {
            let (child, parent) = names();
            return Err(MapError::Cycle { child, parent });
        }
        self.topology.check_fits(parent, &placement)?;
        self.topology.get_mut(child)?.parent = Some(parent);
        put(self.topology.children_mut(parent)?, placement);
        Ok(())
    }

    fn replace(
        &mut self,
        child: RegionId,
        change: impl FnOnce(&mut Placement),
    ) -> Result<(), MapError> {
        let parent = self.topology.parent_of(child)?;
        let siblings = self.topology.children(parent)?;
        let Some(mut placement) = siblings.iter().find(|other| other.child == child).copied()
        else {
            return Err(MapError::NotPlaced { name: self.topology.name(child) });
        };
        change(&mut placement);
        self.topology.check_fits(parent, &placement)?;
        let siblings = self.topology.children_mut(parent)?;
        siblings.retain(|sibling| sibling.child != child);
        put(siblings, placement);
        Ok(())
    }
}

/// Siblings are kept in the reverse of the order in which they answer: the one placed
/// last is the last of its priority.
fn put(siblings: &mut Vec<Placement>, placement: Placement) {
    let at = siblings.partition_point(|sibling| sibling.priority <= placement.priority);
    siblings.insert(at, placement);
}

fn check_inside(
    child: &str,
    size: u128,
    offset: u64,
    parent: &str,
    parent_size: u128,
) -> Result<(), MapError> {
    if u128::from(offset) + size > parent_size {
        let (child, parent) = (child.to_owned(), parent.to_owned());
        return Err(MapError::OutsideContainer { child, size, offset, parent, parent_size });
    }
    Ok(())
}

impl Topology {
    fn parent_of(&self, child: RegionId) -> Result<RegionId, MapError> {
        let region = self.get(child)?;
        region.parent.ok_or_else(|| MapError::NotPlaced { name: region.name.to_string() })
    }

    fn children_mut(&mut self, parent: RegionId) -> Result<&mut Vec<Placement>, MapError> {
        let region = self.get_mut(parent)?;
        let name = region.name.to_string();
        match &mut region.kind {
            RegionKind::Container(children) => Ok(children),
            _ => Err(MapError::NotAContainer { parent: name, child: String::new() }),
        }
    }

    /// Whether a region can be placed so in `parent`, in which it may be already.
    fn check_fits(&self, parent: RegionId, placement: &Placement) -> Result<(), MapError> {
        let Placement { child, offset, size, may_overlap, .. } = *placement;
        let container = self.get(parent)?;
        check_inside(&self.get(child)?.name, size, offset, &container.name, container.size)?;
        let end = u128::from(offset) + size;
        let hits = |other: &&Placement| {
            !other.may_overlap
                && other.child != child
                && u128::from(other.offset) < end
                && u128::from(offset) < u128::from(other.offset) + other.size
        };
        let others = self.children(parent)?;
        match others.iter().filter(|_| !may_overlap).find(hits) {
            Some(other) => Err(MapError::Overlap {
                child: self.name(child),
                offset,
                size,
                other: self.name(other.child),
                other_offset: other.offset,
                other_size: other.size,
            }),
            None => Ok(()),
        }
    }
}
