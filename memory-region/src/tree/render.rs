//! From the region tree to a flat view.
//!
//! The renderer visits regions in the order in which they answer: the highest priority first,
//! at equal priority the one added last. Each region gets only those addresses of its range
//! that no earlier region has. So the first one stays on top, and a hole shows what lies below.
//!
//! # What it costs
//!
//! A tree of containers is visited once. Aliases make it a graph, in which there are more ways
//! to a region than regions, in the worst case exponentially more. So what may be visited more
//! than once remembers where it was: at the same address, a second visit finds everything covered
//! by the first. At other addresses, it is cut to the part of a region in which there is
//! anything (its *hull*), skipped where all of that is covered, and a container finds the
//! children in its part by a search. What remains is limited: a tree that takes many more steps
//! than it has regions and sections is refused.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ram_block::{ClientSet, RamBlock};

use crate::error::MapError;
use crate::region_id::RegionId;
use crate::tree::hulls::{AddrRange, Children, Hulls};
use crate::tree::log::{Logged, address_of};
use crate::tree::topology::{Placement, RegionKind, Topology};
use crate::view::flat_view::FlatView;
use crate::view::section::{Route, Section, SectionTarget};

/// How deep regions may be nested, aliases counted.
const MAX_DEPTH: usize = 128;

/// The most sections of a view: four times the number of KVM's slots (KVM_CAP_NR_MEMSLOTS).
const MAX_SECTIONS: usize = 1 << 17;

/// Steps that any tree may take, and so many more for each region and section.
const STEPS: (u64, u64) = (1 << 16, 1 << 8);

/// The most steps, whatever the sections: about a second. Each region may take some more.
const MAX_STEPS: u64 = 1 << 22;

/// What a region inherits from the containers and aliases that lead to it.
#[derive(Clone, Copy)]
struct Inherited {
    /// The address of the region's first byte, which may lie outside the space where an
    /// alias shows only a part.
    base: i128,
    clip: AddrRange,
    readonly: bool,
    priority: i32,
    depth: usize,
    /// Whether an alias may lead here as well.
    shared: bool,
    /// The alias that leads here last.
    via: Route,
}

struct Renderer<'a> {
    topology: &'a Topology,
    root: RegionId,
    logged: &'a Logged,
    /// In the order in which they were found; no two overlap.
    sections: Vec<Section>,
    covered: CoveredRanges,
    /// How many regions were visited so far, each time they were.
    steps: u64,
    /// Where aliased containers were visited: by the addresses of their first bytes.
    visited: HashMap<(RegionId, i128), CoveredRanges>,
    /// The containers that may be visited again, with their children from the second visit on.
    containers: HashMap<RegionId, Option<Arc<Children>>>,
    hulls: Hulls,
}

/// Where something answers already: ranges from the key to the value, inclusive, with a gap
/// between any two.
#[derive(Default)]
struct CoveredRanges(BTreeMap<u64, u64>);

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
            RegionKind::Alias { target, offset } if offset.get() == 0 => *target,
            RegionKind::Container(children) => match children[..] {
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
    render_counted(topology, root, logged).map(|(view, _)| view)
}

/// The view, and how many steps it took.
fn render_counted(
    topology: &Topology,
    root: RegionId,
    logged: &Logged,
) -> Result<(FlatView, u64), MapError> {
    let mut renderer = Renderer {
        topology,
        root,
        logged,
        sections: Vec::new(),
        covered: CoveredRanges::default(),
        steps: 0,
        visited: HashMap::new(),
        containers: HashMap::new(),
        hulls: Hulls::default(),
    };
    let clip = (0, i128::from(u64::MAX));
    let inherited = Inherited {
        base: 0,
        clip,
        readonly: false,
        priority: 0,
        depth: 0,
        shared: false,
        via: Route::Direct,
    };
    renderer.visit(root, inherited)?;
    let Renderer { mut sections, steps, .. } = renderer;
    // Sections are large: what is sorted is their starts.
    sections.sort_by_cached_key(|section| section.start);
    sections.dedup_by(|next, last| last.absorb(next));
    Ok((FlatView::new(sections), steps))
}

impl Renderer<'_> {
    /// Adds the sections of region `id`, where `inherited.clip` leaves room and nothing answers
    /// yet.
    fn visit(&mut self, id: RegionId, inherited: Inherited) -> Result<(), MapError> {
        let Inherited { base, clip, depth, .. } = inherited;
        let topology = self.topology;
        let region = topology.get(id)?;
        self.count_step()?;
        if depth > MAX_DEPTH {
            let root = self.topology.get(self.root)?.name.to_string();
            return Err(MapError::TooDeep { root, limit: MAX_DEPTH });
        }
        let size = i128::try_from(region.size).unwrap_or(i128::MAX);
        let clip = (clip.0.max(base), clip.1.min(base + size - 1));
        if !region.enabled || clip.0 > clip.1 {
            return Ok(());
        }
        let readonly = inherited.readonly || region.readonly;
        let below = Inherited { clip, readonly, priority: 0, depth: depth + 1, ..inherited };
        let target = match &region.kind {
            RegionKind::Container(children) => {
                return self.visit_container(id, children, below);
            }
            RegionKind::Alias { target, offset } => {
                let base = base - i128::from(offset.get());
                return self.visit(*target, Inherited { base, via: Route::Alias(id), ..below });
            }
            RegionKind::Ram(block) => SectionTarget::Ram(block.clone()),
            RegionKind::RomDevice { block, registers, direct: true } => {
                SectionTarget::RomDevice { block: block.clone(), registers: registers.clone() }
            }
            RegionKind::RomDevice { registers, .. } | RegionKind::Mmio(registers) => {
                SectionTarget::Mmio(registers.clone())
            }
            RegionKind::Iommu(iommu) => SectionTarget::Iommu(iommu.clone()),
            RegionKind::Reservation => SectionTarget::Reserved,
            RegionKind::Trap(token) => SectionTarget::Trap(*token),
            RegionKind::OpenBus(value) => SectionTarget::OpenBus(*value),
        };
        let (log, readonly) = match &target {
            SectionTarget::Ram(block) => (self.log_of(block), readonly),
            SectionTarget::RomDevice { block, .. } => (self.log_of(block), true),
            _ => (ClientSet::EMPTY, false),
        };
        let (Ok(first), Ok(last)) = (u64::try_from(clip.0), u64::try_from(clip.1)) else {
            return Ok(()); // clipped to the 64-bit space above
        };
        let Self { covered, sections, .. } = self;
        covered.fill(first, last, |start, last| {
            let Ok(offset) = u64::try_from(i128::from(start) - base) else { return };
            sections.push(Section {
                start,
                last,
                region: id,
                name: region.name.clone(),
                offset,
                priority: inherited.priority,
                readonly,
                log,
                via: inherited.via,
                target: target.clone(),
            });
        });
        Ok(())
    }

    /// Visits the children of a container; where an alias leads to it, only the parts of it that
    /// no earlier visit at the same address has covered.
    fn visit_container(
        &mut self,
        id: RegionId,
        children: &[Placement],
        inherited: Inherited,
    ) -> Result<(), MapError> {
        let aliased = self.topology.is_aliased(id);
        let inherited = Inherited { shared: inherited.shared || aliased, ..inherited };
        if !inherited.shared {
            return self.visit_children(children.iter().rev(), inherited);
        }
        let mut parts = vec![inherited.clip];
        if aliased {
            // A visit at this very address has added all that the container has there.
            let visited = self.visited.entry((id, inherited.base)).or_default();
            parts.clear();
            if let (Ok(first), Ok(last)) =
                (u64::try_from(inherited.clip.0), u64::try_from(inherited.clip.1))
            {
                visited.fill(first, last, |first, last| parts.push((first.into(), last.into())));
            }
        }
        for clip in parts {
            let inherited = Inherited { clip, ..inherited };
            match self.containers.get(&id) {
                None => {
                    self.containers.insert(id, None);
                    self.visit_children(children.iter().rev(), inherited)?;
                }
                Some(_) => self.visit_again(id, children, inherited)?,
            }
        }
        Ok(())
    }

    fn visit_children<'a>(
        &mut self,
        children: impl Iterator<Item = &'a Placement>,
        inherited: Inherited,
    ) -> Result<(), MapError> {
        for Placement { child, offset, priority, .. } in children {
            let base = inherited.base + i128::from(*offset);
            self.visit(*child, Inherited { base, priority: *priority, ..inherited })?;
        }
        Ok(())
    }

    /// Visits a container again, at another address: only the children with anything in the
    /// part that `inherited.clip` leaves, and of them only those that are not covered yet.
    fn visit_again(
        &mut self,
        id: RegionId,
        children: &[Placement],
        inherited: Inherited,
    ) -> Result<(), MapError> {
        let known = self.containers.get(&id).cloned().flatten();
        let known = match known {
            Some(known) => known,
            None => {
                let known = Arc::new(Children::new(self.topology, children, &mut self.hulls)?);
                self.containers.insert(id, Some(known.clone()));
                known
            }
        };
        let part = (inherited.clip.0 - inherited.base, inherited.clip.1 - inherited.base);
        for (number, hull) in known.within(part) {
            let hull = (hull.0 + inherited.base, hull.1 + inherited.base);
            let clip = (inherited.clip.0.max(hull.0), inherited.clip.1.min(hull.1));
            if self.covered.has_all(clip) {
                self.count_step()?;
                continue;
            }
            self.visit_children(children.get(number).into_iter(), Inherited { clip, ..inherited })?;
        }
        Ok(())
    }

    /// Counts a visit. Fails when there were many more than regions and sections: aliases of
    /// aliases can show a region in exponentially many ways.
    fn count_step(&mut self) -> Result<(), MapError> {
        self.steps += 1;
        let (regions, sections) = (self.topology.len() as u64, self.sections.len());
        let steps = STEPS.0 + STEPS.1 * (regions + sections as u64);
        let most = steps.min(MAX_STEPS + 4 * regions);
        if self.steps <= most && sections <= MAX_SECTIONS {
            return Ok(());
        }
        let (root, steps) = (self.topology.name(self.root), self.steps);
        Err(MapError::TooComplex { root, steps, sections })
    }

    fn log_of(&self, block: &Arc<RamBlock>) -> ClientSet {
        self.logged.get(&address_of(block)).map_or(ClientSet::EMPTY, |(_, log)| *log)
    }
}

impl CoveredRanges {
    /// Whether all of a range is covered.
    fn has_all(&self, (first, last): AddrRange) -> bool {
        let (Ok(first), Ok(last)) = (u64::try_from(first), u64::try_from(last)) else {
            return false;
        };
        let below = self.0.range(..=first).next_back();
        below.is_some_and(|(_, to)| *to >= last)
    }

    /// Fills `first..=last`; calls `each` with the parts of it that were free, downwards.
    fn fill(&mut self, first: u64, last: u64, mut each: impl FnMut(u64, u64)) {
        let (mut start, mut end) = (first, last);
        // The highest address that is neither covered nor reported yet.
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
        // Ranges that touch are kept as one.
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
mod cost_tests;

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
            let mut covered = CoveredRanges::default();
            let mut places = [false; 128];
            for (a, b) in ranges {
                let (first, last) = (a.min(b), a.max(b));
                let mut free = Vec::new();
                covered.fill(base + first, base + last, |from, to| {
                    free.extend((from - base..=to - base).rev());
                });
                let expected: Vec<u64> =
                    (first..=last).rev().filter(|at| !places[usize::try_from(*at).unwrap()])
                        .collect();
                prop_assert_eq!(free, expected);
                (first..=last).for_each(|at| places[usize::try_from(at).unwrap()] = true);
                let ranges: Vec<_> = covered.0.iter().collect();
                prop_assert!(ranges.windows(2).all(|pair| *pair[0].1 + 1 < *pair[1].0),
                    "{ranges:?}");
            }
        }
    }
}
