//! From the region tree to a flat view.
//!
//! Regions are visited in the order in which they answer, and each fills only what
//! is still free in the range that its containers and aliases leave it. So
//! whatever is drawn first stays on top, and a hole shows what lies below.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::MapError;
use crate::flat_view::{FlatView, Section, SectionTarget};
use crate::region::{Kind, Logged, RegionId, Topology};

/// How deep regions may be nested, aliases counted.
const MAX_DEPTH: usize = 128;

/// Addresses from the first to the second, inclusive.
type Clip = (i128, i128);

struct Renderer<'a> {
    topology: &'a Topology,
    root: RegionId,
    logged: Logged,
    /// By start; never overlapping.
    sections: BTreeMap<u64, Section>,
}

pub(crate) fn render(topology: &Topology, root: RegionId) -> Result<FlatView, MapError> {
    let mut renderer =
        Renderer { topology, root, logged: topology.logged(), sections: BTreeMap::new() };
    renderer.visit(root, 0, (0, i128::from(u64::MAX)), 0)?;
    let mut merged: Vec<Section> = Vec::with_capacity(renderer.sections.len());
    for section in renderer.sections.into_values() {
        if !merged.last_mut().is_some_and(|last| last.absorb(&section)) {
            merged.push(section);
        }
    }
    Ok(FlatView::new(merged))
}

impl Renderer<'_> {
    /// Draws region `id`, whose first byte is at address `base` (which may lie outside
    /// the space where an alias shows only a part), as far as `clip` goes.
    fn visit(
        &mut self,
        id: RegionId,
        base: i128,
        clip: Clip,
        depth: usize,
    ) -> Result<(), MapError> {
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
        let (target, readonly) = match &region.kind {
            Kind::Container(children) => {
                for placement in children {
                    self.visit(
                        placement.child,
                        base + i128::from(placement.offset),
                        clip,
                        depth + 1,
                    )?;
                }
                return Ok(());
            }
            Kind::Alias { target, offset } => {
                return self.visit(*target, base - i128::from(*offset), clip, depth + 1);
            }
            Kind::Ram { block, readonly } => (SectionTarget::Ram(block.clone()), *readonly),
            Kind::Mmio(device) => (SectionTarget::Mmio(device.clone()), false),
        };
        let log = match &target {
            SectionTarget::Ram(block) => self.logged.get(&Arc::as_ptr(block)).map(|(_, log)| *log),
            SectionTarget::Mmio(_) => None,
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
                readonly,
                log: log.unwrap_or_default(),
                target: target.clone(),
            };
            self.sections.insert(start, section);
        }
        Ok(())
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
