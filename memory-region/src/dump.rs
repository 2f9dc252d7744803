//! The map to look at, in the manner of QEMU's `info mtree` and `info mtree -f`.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use ram_block::ClientSet;

use crate::commit::{Current, Space};
use crate::flat_view::FlatView;
use crate::map::MemoryMap;
use crate::region::{Kind, Region, RegionId, Topology};
use crate::section::Section;

/// A map's regions as trees, one for each address space, then one for each region that
/// is shown through aliases only; see [`MemoryMap::tree`].
pub struct MapTree(Arc<Current>);

/// A map's flat views, each once, with the address spaces that share it; see
/// [`MemoryMap::flat_views`].
#[derive(Debug)]
pub struct FlatViews(Vec<SharedView>);

#[derive(Debug)]
struct SharedView {
    view: Arc<FlatView>,
    /// The names of the spaces that have it, and of their roots.
    spaces: Vec<(Arc<str>, String)>,
}

impl MemoryMap {
    /// The regions as they are now, to be printed.
    ///
    /// ```
    /// # let memory = memory_region::MemoryMap::new();
    /// println!("{}\n{}", memory.tree(), memory.flat_views());
    /// ```
    pub fn tree(&self) -> MapTree {
        MapTree(self.current())
    }

    /// The flat views as they are now, to be printed.
    pub fn flat_views(&self) -> FlatViews {
        let current = self.current();
        let mut views: Vec<SharedView> = Vec::new();
        for entry in &current.spaces {
            let view = entry.space.view();
            let user = (entry.space.shared_name(), current.topology.name(entry.space.root()));
            match views.iter_mut().find(|other| Arc::ptr_eq(&other.view, &view)) {
                Some(shared) => shared.spaces.push(user),
                None => views.push(SharedView { view, spaces: vec![user] }),
            }
        }
        FlatViews(views)
    }
}

/// The addresses from `base` on, 16 digits each, or more if there are more.
fn range(f: &mut fmt::Formatter<'_>, base: u128, size: u128) -> fmt::Result {
    write!(f, "{base:016x}-{:016x}", base + size - 1)
}

/// A size in the largest unit that leaves no rest.
struct Size(u128);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let unit = (self.0.trailing_zeros() / 10).min(6);
        write!(f, "{} {}", self.0 >> (10 * unit), units[unit as usize])
    }
}

fn log(f: &mut fmt::Formatter<'_>, log: ClientSet) -> fmt::Result {
    if log.is_empty() { Ok(()) } else { write!(f, " log {log}") }
}

/// What kind of region it is, in QEMU's words; an alias is of the kind of its target.
fn kind(topology: &Topology, region: &Region) -> &'static str {
    let mut shown = region;
    let mut readonly = region.readonly;
    while let Kind::Alias { target, .. } = &shown.kind {
        let Ok(next) = topology.get(*target) else { break };
        shown = next;
        readonly |= next.readonly;
    }
    match &shown.kind {
        Kind::Container(_) => "container",
        Kind::Ram(_) if readonly => "rom",
        Kind::Ram(_) => "ram",
        Kind::RomDevice { .. } => "romd",
        Kind::Mmio(_) | Kind::Alias { .. } => "i/o",
        Kind::Iommu(_) => "iommu",
        Kind::Reservation => "reserved",
    }
}

impl MapTree {
    fn region(
        &self,
        f: &mut fmt::Formatter<'_>,
        id: RegionId,
        (base, priority, depth): (u128, i32, usize),
        aliased: &mut BTreeSet<RegionId>,
    ) -> fmt::Result {
        let topology = &self.0.topology;
        let Ok(region) = topology.get(id) else { return Ok(()) };
        write!(f, "{:1$}", "", 2 * depth)?;
        range(f, base, region.size)?;
        write!(f, " (prio {priority}, {}): ", kind(topology, region))?;
        if let Kind::Alias { target, offset } = region.kind {
            write!(f, "alias {} @{} ", region.name, topology.name(target))?;
            range(f, offset.into(), region.size)?;
            aliased.insert(target);
        } else {
            write!(f, "{}", region.name)?;
        }
        write!(f, " [{}]", Size(region.size))?;
        if region.block().is_some() {
            log(f, region.log.union(topology.global_log))?;
        }
        writeln!(f, "{}", if region.enabled { "" } else { " [disabled]" })?;
        if let Kind::Container(children) = &region.kind {
            // By address; where they overlap, in the order in which they answer.
            let mut children: Vec<_> = children.iter().rev().collect();
            children.sort_by_key(|child| (child.offset, std::cmp::Reverse(child.priority)));
            for child in children {
                let place = (base + u128::from(child.offset), child.priority, depth + 1);
                self.region(f, child.child, place, aliased)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for MapTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut aliased = BTreeSet::new();
        for Space { space, .. } in &self.0.spaces {
            writeln!(f, "address-space: {}", space.name())?;
            self.region(f, space.root(), (0, 0, 1), &mut aliased)?;
            writeln!(f)?;
        }
        // Targets of aliases, of which some have aliases in them.
        let mut shown = BTreeSet::new();
        while let Some(id) = aliased.iter().find(|id| !shown.contains(*id)).copied() {
            shown.insert(id);
            writeln!(f, "memory-region: {}", self.0.topology.name(id))?;
            self.region(f, id, (0, 0, 1), &mut aliased)?;
            writeln!(f)?;
        }
        Ok(())
    }
}

impl fmt::Debug for MapTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Section {
    /// One line, as in QEMU's `info mtree -f`, with the size and the logging clients.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        range(f, self.start.into(), self.size())?;
        write!(f, " (prio {}, {}): {}", self.priority, self.kind(), self.name)?;
        if self.offset != 0 {
            write!(f, " @{:016x}", self.offset)?;
        }
        write!(f, " [{}]", Size(self.size()))?;
        log(f, self.log)
    }
}

impl fmt::Display for FlatView {
    /// A line for each section, eventfd and gathered range.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for section in self.sections() {
            writeln!(f, "  {section}")?;
        }
        for event in self.event_fds() {
            write!(f, "  {:016x} eventfd, {} bytes", event.address, event.size)?;
            match event.datamatch {
                Some(value) => writeln!(f, " of {value:#x}")?,
                None => writeln!(f)?,
            }
        }
        for gathered in self.coalesced() {
            writeln!(f, "  {:016x}-{:016x} gathered writes", gathered.start, gathered.last)?;
        }
        if self.sections().is_empty() { writeln!(f, "  No rendered FlatView") } else { Ok(()) }
    }
}

impl fmt::Display for FlatViews {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, SharedView { view, spaces }) in self.0.iter().enumerate() {
            writeln!(f, "FlatView #{number}")?;
            for (space, root) in spaces {
                writeln!(f, " AS \"{space}\", root: {root}")?;
            }
            writeln!(f, "{view}")?;
        }
        Ok(())
    }
}
