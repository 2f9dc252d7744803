//! From the region tree to a flat view.
//!
//! Regions are visited in the order in which they answer, and each fills only what
//! is still free in the range that its containers and aliases leave it. So
//! whatever is drawn first stays on top, and a hole shows what lies below.

use std::collections::BTreeMap;
use std::sync::Arc;

use ram_block::{ClientSet, RamBlock};

use crate::error::MapError;
use crate::flat_view::FlatView;
use crate::region::{Kind, Logged, RegionId, Topology, address_of};
use crate::section::{Section, SectionTarget};

/// How deep regions may be nested, aliases counted.
const MAX_DEPTH: usize = 128;

/// Addresses from the first to the second, inclusive.
type Clip = (i128, i128);

/// What is inherited on the way down to a region.
#[derive(Clone, Copy)]
struct Way {
    /// The address of the region's first byte, which may lie outside the space where an
    /// alias shows only a part.
    base: i128,
    clip: Clip,
    readonly: bool,
    priority: i32,
    depth: usize,
}

struct Renderer<'a> {
    topology: &'a Topology,
    root: RegionId,
    logged: &'a Logged,
    /// In the order in which they are drawn; never overlapping.
    sections: Vec<Section>,
    filled: Filled,
}

/// Where something answers already: ranges from the key to the value, inclusive, with a gap
/// between any two.
#[derive(Default)]
struct Filled(BTreeMap<u64, u64>);

/// The region that shows the same as `root`: roots that are windows on the same region
/// share a view.
pub(crate) fn canonical(topology: &Topology, root: RegionId) -> Result<RegionId, MapError> {
    let mut id = root;
    for _ in 0..=MAX_DEPTH {
        let region = topology.get(id)?;
        if !region.enabled || region.readonly {
            return Ok(id);
        }
        let only = match &region.kind {
            Kind::Alias { target, offset: 0 } => *target,
            Kind::Container(children) => match children[..] {
                [only] if only.offset == 0 => only.child,
                _ => return Ok(id),
            },
            _ => return Ok(id),
        };
        if topology.get(only)?.size > region.size {
            return Ok(id);
        }
        id = only;
    }
    Err(MapError::TooDeep { root: topology.get(root)?.name.to_string(), limit: MAX_DEPTH })
}

pub(crate) fn render(
    topology: &Topology,
    root: RegionId,
    logged: &Logged,
) -> Result<FlatView, MapError> {
    let (sections, filled) = (Vec::new(), Filled::default());
    let mut renderer = Renderer { topology, root, logged, sections, filled };
    let clip = (0, i128::from(u64::MAX));
    renderer.visit(root, Way { base: 0, clip, readonly: false, priority: 0, depth: 0 })?;
    let mut sections = renderer.sections;
    // Sections are large: what is sorted is their starts.
    sections.sort_by_cached_key(|section| section.start);
    sections.dedup_by(|next, last| last.absorb(next));
    Ok(FlatView::new(sections))
}

impl Renderer<'_> {
    /// Draws region `id` as far as the way to it leaves room.
    fn visit(&mut self, id: RegionId, way: Way) -> Result<(), MapError> {
        let Way { base, clip, depth, .. } = way;
        let region = self.topology.get(id)?;
        if depth > MAX_DEPTH {
            let root = self.topology.get(self.root)?.name.to_string();
            return Err(MapError::TooDeep { root, limit: MAX_DEPTH });
        }
        let size = i128::try_from(region.size).unwrap_or(i128::MAX);
        let clip = (clip.0.max(base), clip.1.min(base + size - 1));
        if !region.enabled || clip.0 > clip.1 {
            return Ok(());
        }
        let readonly = way.readonly || region.readonly;
        let below = Way { clip, readonly, priority: 0, depth: depth + 1, ..way };
        let target = match &region.kind {
            Kind::Container(children) => {
                for placement in children.iter().rev() {
                    let base = base + i128::from(placement.offset);
                    let priority = placement.priority;
                    self.visit(placement.child, Way { base, priority, ..below })?;
                }
                return Ok(());
            }
            Kind::Alias { target, offset } => {
                return self.visit(*target, Way { base: base - i128::from(*offset), ..below });
            }
            Kind::Ram(block) => SectionTarget::Ram(block.clone()),
            Kind::RomDevice { block, registers, direct: true } => {
                SectionTarget::RomDevice { block: block.clone(), registers: registers.clone() }
            }
            Kind::RomDevice { registers, .. } | Kind::Mmio(registers) => {
                SectionTarget::Mmio(registers.clone())
            }
            Kind::Iommu(iommu) => SectionTarget::Iommu(iommu.clone()),
            Kind::Reservation => SectionTarget::Reserved,
        };
        let (log, readonly) = match &target {
            SectionTarget::Ram(block) => (self.log_of(block), readonly),
            SectionTarget::RomDevice { block, .. } => (self.log_of(block), true),
            SectionTarget::Mmio(_) | SectionTarget::Iommu(_) | SectionTarget::Reserved => {
                (ClientSet::EMPTY, false)
            }
        };
        let (Ok(first), Ok(last)) = (u64::try_from(clip.0), u64::try_from(clip.1)) else {
            return Ok(()); // clipped to the 64-bit space above
        };
        let Self { filled, sections, .. } = self;
        filled.fill(first, last, |start, last| {
            let Ok(offset) = u64::try_from(i128::from(start) - base) else { return };
            sections.push(Section {
                start,
                last,
                region: id,
                name: region.name.clone(),
                offset,
                priority: way.priority,
                readonly,
                log,
                target: target.clone(),
            });
        });
        Ok(())
    }

    fn log_of(&self, block: &Arc<RamBlock>) -> ClientSet {
        self.logged.get(&address_of(block)).map_or(ClientSet::EMPTY, |(_, log)| *log)
    }
}

impl Filled {
    /// Fills `first..=last`; calls `each` with the parts of it that were free, downwards.
    fn fill(&mut self, first: u64, last: u64, mut each: impl FnMut(u64, u64)) {
        let (mut start, mut end) = (first, last);
        // How far down it is looked at, and is filled by now.
        let mut rest = Some(last);
        while let Some(top) = rest.filter(|top| *top >= first) {
            let below = self.0.range(..=top).next_back().map(|(from, to)| (*from, *to));
            match below.filter(|(_, to)| *to >= first) {
                Some((from, to)) => {
                    if to < top {
                        each(to + 1, top);
                    }
                    self.0.remove(&from);
                    (start, end) = (start.min(from), end.max(to));
                    rest = from.checked_sub(1);
                }
                None => {
                    each(first, top);
                    rest = None;
                }
            }
        }
        // What touches it is one with it.
        if let Some(to) = end.checked_add(1).and_then(|next| self.0.remove(&next)) {
            end = to;
        }
        let before = start.checked_sub(1).and_then(|last| {
            let (from, to) = self.0.range_mut(..=last).next_back()?;
            (*to == last).then_some((from, to))
        });
        match before {
            Some((_, to)) => *to = end,
            None => {
                self.0.insert(start, end);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a list of all places, at both ends of the space.
        #[test]
        fn what_was_free_is_filled(
            ranges in prop::collection::vec((0..128u64, 0..128u64), 1..40),
            high in any::<bool>(),
        ) {
            let base = if high { u64::MAX - 127 } else { 0 };
            let mut filled = Filled::default();
            let mut places = [false; 128];
            for (a, b) in ranges {
                let (first, last) = (a.min(b), a.max(b));
                let mut free = Vec::new();
                filled.fill(base + first, base + last, |from, to| {
                    free.extend((from - base..=to - base).rev());
                });
                let expected: Vec<u64> =
                    (first..=last).rev().filter(|at| !places[usize::try_from(*at).unwrap()])
                        .collect();
                prop_assert_eq!(free, expected);
                (first..=last).for_each(|at| places[usize::try_from(at).unwrap()] = true);
                let ranges: Vec<_> = filled.0.iter().collect();
                prop_assert!(ranges.windows(2).all(|pair| *pair[0].1 + 1 < *pair[1].0),
                    "{ranges:?}");
            }
        }
    }
}
