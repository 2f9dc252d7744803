//! Where in a region there is anything, so that visits elsewhere can be left out.

use std::collections::HashMap;

use crate::error::MapError;
use crate::region_id::RegionId;
use crate::tree::topology::{Placement, RegionKind, Topology};

/// Addresses from the first to the second, inclusive.
pub(crate) type AddrRange = (i128, i128);

/// The smallest range of each region, by its own offsets, outside of which nothing in it answers;
/// `None` where nothing does at all. Found when first asked for.
#[derive(Default)]
pub(crate) struct Hulls(HashMap<RegionId, Option<AddrRange>>);

impl Hulls {
    /// The hull of a region. Costs a step for each region below it whose hull is not yet known,
    /// however deep they are nested.
    fn of(&mut self, topology: &Topology, id: RegionId) -> Result<Option<AddrRange>, MapError> {
        let mut open = vec![id];
        while let Some(&id) = open.last() {
            if self.0.contains_key(&id) {
                open.pop();
                continue;
            }
            let region = topology.get(id)?;
            let before = open.len();
            if region.enabled {
                let unknown = |id: &RegionId| !self.0.contains_key(id);
                match &region.kind {
                    RegionKind::Container(children) => {
                        open.extend(children.iter().map(|place| place.child).filter(unknown));
                    }
                    RegionKind::Alias { target, .. } => open.extend(Some(*target).filter(unknown)),
                    _ => {}
                }
            }
            if open.len() > before {
                continue; // first those below
            }
            let known = |id: &RegionId| self.0.get(id).copied().flatten();
            let whole = (0, i128::try_from(region.size).unwrap_or(i128::MAX) - 1);
            let hull = match &region.kind {
                _ if !region.enabled => None,
                RegionKind::Container(children) => {
                    let placed = |place: &Placement| {
                        known(&place.child).map(|hull| moved(hull, i128::from(place.offset)))
                    };
                    children.iter().filter_map(placed).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
                }
                RegionKind::Alias { target, offset } => {
                    known(target).map(|hull| moved(hull, -i128::from(offset.get())))
                }
                _ => Some(whole),
            };
            let within = hull.map(|hull| (hull.0.max(0), hull.1.min(whole.1)));
            self.0.insert(id, within.filter(|hull| hull.0 <= hull.1));
            open.pop();
        }
        Ok(self.0.get(&id).copied().flatten())
    }
}

fn moved(hull: AddrRange, by: i128) -> AddrRange {
    (hull.0 + by, hull.1 + by)
}

/// A container's children that have anything, to be found by where they have it.
#[derive(Debug)]
pub(crate) struct Children {
    /// Their hulls in the container, and their numbers in its list; in the order of the hulls.
    by_hull: Vec<(AddrRange, usize)>,
    /// Of each middle of a part of the list that is halved again and again: the highest end of
    /// the hulls in that part.
    ends: Vec<i128>,
}

impl Children {
    pub(crate) fn new(
        topology: &Topology,
        children: &[Placement],
        hulls: &mut Hulls,
    ) -> Result<Self, MapError> {
        let mut by_hull = Vec::new();
        for (number, place) in children.iter().enumerate() {
            if let Some(hull) = hulls.of(topology, place.child)? {
                by_hull.push((moved(hull, i128::from(place.offset)), number));
            }
        }
        by_hull.sort_unstable();
        let mut ends = vec![0; by_hull.len()];
        note_ends(&by_hull, &mut ends);
        Ok(Self { by_hull, ends })
    }

    /// Those with anything in a part of the container, in the order in which they answer: their
    /// numbers and hulls.
    pub(crate) fn within(&self, part: AddrRange) -> Vec<(usize, AddrRange)> {
        let mut found = Vec::new();
        find(&self.by_hull, &self.ends, part, &mut found);
        // The list has them in the reverse of the order in which they answer.
        found.sort_unstable_by_key(|(number, _)| std::cmp::Reverse(*number));
        found
    }
}

fn note_ends(by_hull: &[(AddrRange, usize)], ends: &mut [i128]) -> i128 {
    let middle = by_hull.len() / 2;
    let Some((hull, _)) = by_hull.get(middle) else { return i128::MIN };
    let below = note_ends(&by_hull[..middle], &mut ends[..middle]);
    let above = note_ends(&by_hull[middle + 1..], &mut ends[middle + 1..]);
    ends[middle] = hull.1.max(below).max(above);
    ends[middle]
}

fn find(
    by_hull: &[(AddrRange, usize)],
    ends: &[i128],
    part: AddrRange,
    found: &mut Vec<(usize, AddrRange)>,
) {
    let middle = by_hull.len() / 2;
    let Some((hull, number)) = by_hull.get(middle).copied() else { return };
    if ends[middle] < part.0 {
        return;
    }
    find(&by_hull[..middle], &ends[..middle], part, found);
    if hull.0 <= part.1 {
        if hull.1 >= part.0 {
            found.push((number, hull));
        }
        find(&by_hull[middle + 1..], &ends[middle + 1..], part, found);
    }
}
