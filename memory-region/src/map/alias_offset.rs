//! Bank switching: an alias that begins somewhere else in its target.
//!
//! A machine with banked memory does it thousands of times a second. A commit copies the tree and
//! renders it, which takes as long as the map is large. What an alias of one region shows is known
//! from the view, though: its sections, at whose addresses other bytes of the same region answer
//! from now on. So the view is copied with other offsets, and the tree is changed in place, where
//! that is all that changes; otherwise it is a commit like any other.

use std::sync::Arc;

use ram_block::Reclaimed;

use crate::error::MapError;
use crate::map::commit::MapState;
use crate::map::memory_map::MemoryMap;
use crate::region_id::RegionId;
use crate::tree::topology::RegionKind;
use crate::view::address_space::AddressSpace;
use crate::view::flat_view::FlatView;
use crate::view::generation::Extent;

/// A view that a space had, the one that it gets, and the addresses at which they differ.
struct Moved {
    space: usize,
    view: Arc<FlatView>,
    ranges: Vec<(u64, u64)>,
}

impl MemoryMap {
    /// Lets an alias begin at byte `offset` of its target: another bank. The same as a transaction
    /// with a [`set_alias_offset`](crate::Transaction::set_alias_offset) alone, at a tenth of its
    /// cost where the alias is one of a region, not of a container or of another alias, and no
    /// listener follows a space that shows it. Entries of a [`Tlb`](crate::Tlb) for other pages
    /// stay.
    ///
    /// ```
    /// # use memory_region::MemoryMap;
    /// # use ram_block::RamBlock;
    /// let map = MemoryMap::new();
    /// let (root, bank) = map.transaction(|map| {
    ///     let root = map.container("cpu", 1 << 16)?;
    ///     let cartridge = map.rom("cartridge", RamBlock::anonymous("rom", 512 << 10)?)?;
    ///     let bank = map.alias("bank", cartridge, 0, 0x4000)?;
    ///     map.add_subregion(root, 0x8000, bank)?;
    ///     Ok((root, bank))
    /// })?;
    /// let space = map.address_space("cpu", root)?;
    /// map.set_alias_offset(bank, 5 * 0x4000)?;
    /// assert_eq!(space.view().sections()[0].offset(), 0x14000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`MapError::NotAnAlias`], [`MapError::AliasOutside`] if it would show what is not there,
    /// [`MapError::UnknownRegion`], and as [`transaction`](Self::transaction); the alias begins
    /// where it did then.
    pub fn set_alias_offset(&self, alias: RegionId, offset: u64) -> Result<(), MapError> {
        let lock = self.lock_for_update()?;
        let current = self.current();
        current.topology.check_alias_offset(alias, offset)?;
        let moved = current.move_alias(alias, offset);
        drop(lock);
        // Here, after the lock: the last holders of views may drop devices, which may use the map.
        drop(current);
        match moved {
            Some(former_views) => {
                drop(former_views);
                Ok(())
            }
            None => self.transaction(|map| map.set_alias_offset(alias, offset)),
        }
    }
}

impl MapState {
    /// Moves an alias to an offset that its target has, if nothing else changes by that; returns
    /// what is to be dropped after the update lock. For the holder of that.
    fn move_alias(&self, alias: RegionId, to: u64) -> Option<Reclaimed> {
        let region = self.topology.get(alias).ok()?;
        let RegionKind::Alias { target, offset } = &region.kind else { return None };
        let from = offset.get();
        if matches!(
            self.topology.get(*target).ok()?.kind,
            RegionKind::Container(_) | RegionKind::Alias { .. }
        ) {
            return None;
        }
        // A root may show its target's own view, without the alias; but only if the alias is as
        // large as the target, and so cannot move.
        let mut moves: Vec<Moved> = Vec::with_capacity(self.spaces.len());
        for (number, entry) in self.spaces.iter().enumerate() {
            let former = entry.space.view();
            let shared = moves
                .iter()
                .find(|other| Arc::ptr_eq(&self.spaces[other.space].space.view(), &former));
            let (view, ranges) = match shared {
                Some(Moved { view, ranges, .. }) => (view.clone(), ranges.clone()),
                None => {
                    let (view, ranges) = former.with_alias_moved(alias, *target, (from, to))?;
                    (Arc::new(view), ranges)
                }
            };
            if !ranges.is_empty() {
                if !entry.listeners.is_empty() {
                    return None;
                }
                moves.push(Moved { space: number, view, ranges });
            }
        }
        offset.set(to);
        let mut are_many = false;
        for Moved { space, view, ranges } in moves {
            are_many |= self.spaces[space].space.publish(view, Extent::Ranges(&ranges));
        }
        // Otherwise they are kept: the new views have all that they have.
        let spaces = self.spaces.iter().filter(|_| are_many);
        Some(AddressSpace::reclaim(spaces.map(|entry| &*entry.space)))
    }
}
