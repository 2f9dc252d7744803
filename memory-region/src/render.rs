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
use crate::region::{Kind, Logged, RegionId, Topology};
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
    /// By start; never overlapping.
    sections: BTreeMap<u64, Section>,
}

/// The region that shows the same as `root`: roots that are windows on the same region
/// share a view.
pub(crate) fn canonical(topology: &Topology, root: RegionId) -> Result<RegionId, MapError> {
    let mut id = root;
    for _ in 0..MAX_DEPTH {
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
    let mut renderer = Renderer { topology, root, logged, sections: BTreeMap::new() };
    let clip = (0, i128::from(u64::MAX));
    renderer.visit(root, Way { base: 0, clip, readonly: false, priority: 0, depth: 0 })?;
    let mut merged: Vec<Section> = Vec::with_capacity(renderer.sections.len());
    for section in renderer.sections.into_values() {
        if !merged.last_mut().is_some_and(|last| last.absorb(&section)) {
            merged.push(section);
        }
    }
    Ok(FlatView::new(merged))
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
            Kind::Reservation => SectionTarget::Reserved,
        };
        let (log, readonly) = match &target {
            SectionTarget::Ram(block) => (self.log_of(block), readonly),
            SectionTarget::RomDevice { block, .. } => (self.log_of(block), true),
            SectionTarget::Mmio(_) | SectionTarget::Reserved => (ClientSet::EMPTY, false),
        };
        let (Ok(first), Ok(last)) = (u64::try_from(clip.0), u64::try_from(clip.1)) else {
            return Ok(()); // clipped to the 64-bit space above
        };
        for (start, last) in self.free(first, last) {
            let Ok(offset) = u64::try_from(i128::from(start) - base) else { continue };
            let section = Section {
                start,
                last,
                region: id,
                name: region.name.clone(),
                offset,
                priority: way.priority,
                readonly,
                log,
                target: target.clone(),
            };
            self.sections.insert(start, section);
        }
        Ok(())
    }

    fn log_of(&self, block: &Arc<RamBlock>) -> ClientSet {
        self.logged.get(&Arc::as_ptr(block)).map_or(ClientSet::EMPTY, |(_, log)| *log)
    }

    /// The parts of `first..=last` at which nothing answers yet.
    fn free(&self, first: u64, last: u64) -> Vec<(u64, u64)> {
        let mut free = Vec::new();
        let mut next = Some(first);
        let before = self.sections.range(..=first).next_back();
        let from =
            before.filter(|(_, section)| section.last >= first).map_or(first, |(start, _)| *start);
        for section in self.sections.range(from..=last).map(|(_, section)| section) {
            let Some(start) = next else { break };
            if start < section.start {
                free.push((start, section.start - 1));
            }
            next = section.last.checked_add(1);
        }
        if let Some(start) = next.filter(|start| *start <= last) {
            free.push((start, last));
        }
        free
    }
}
