//! The map to look at, in the manner of QEMU's `info mtree` and `info mtree -f`.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use ram_block::ClientSet;

use crate::map::commit::{MapState, SpaceEntry};
use crate::map::memory_map::MemoryMap;
use crate::region_id::RegionId;
use crate::tree::log::{Logged, address_of};
use crate::tree::topology::{Region, RegionKind, Topology};
use crate::view::flat_view::FlatView;
use crate::view::section::Section;

/// A map's regions as trees, one for each root of address spaces, then one for each region
/// that aliases show, each container's contents once; see [`MemoryMap::mtree`].
pub struct Mtree(Arc<MapState>);

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
    /// println!("{}\n{}", memory.mtree(), memory.flat_views());
    /// ```
    pub fn mtree(&self) -> Mtree {
        Mtree(self.current())
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

/// Deeper levels are indented as this one, and say how much deeper they are.
const MAX_INDENT: usize = 32;

/// What kind of region it is, in QEMU's words, and whether it is read-only; an alias is of the
/// kind of its target.
type Shown = (&'static str, bool);

/// What was printed of a map so far. However regions are nested and aliased, each takes a line
/// below a root of spaces, and a line or two as the target of aliases or in one.
struct Printer<'a> {
    topology: &'a Topology,
    logged: &'a Logged,
    kinds: HashMap<RegionId, Shown>,
    printed: HashSet<RegionId>,
    /// Targets of the aliases that were printed, to be looked at.
    aliased: BTreeSet<RegionId>,
}

impl Printer<'_> {
    /// The kind of a region. Costs a step for each alias on the way whose kind is not yet known.
    fn kind(&mut self, id: RegionId) -> &'static str {
        let (mut way, mut at) = (Vec::new(), id);
        let mut shown = loop {
            if let Some(known) = self.kinds.get(&at) {
                break *known;
            }
            way.push(at);
            match self.topology.get(at).map(|region| &region.kind) {
                Ok(RegionKind::Alias { target, .. }) => at = *target,
                Ok(RegionKind::Container(_)) => break ("container", false),
                Ok(RegionKind::Ram(_)) => break ("ram", false),
                Ok(RegionKind::RomDevice { .. }) => break ("romd", false),
                Ok(RegionKind::Iommu(_)) => break ("iommu", false),
                Ok(RegionKind::Reservation) => break ("reserved", false),
                Ok(RegionKind::Trap(_)) => break ("trap", false),
                Ok(RegionKind::OpenBus(_)) => break ("open bus", false),
                Ok(RegionKind::Mmio(_)) | Err(_) => break ("i/o", false),
            }
        };
        for id in way.into_iter().rev() {
            shown.1 |= self.topology.get(id).is_ok_and(|region| region.readonly);
            self.kinds.insert(id, shown);
        }
        match shown {
            ("ram", true) => "rom",
            (kind, _) => kind,
        }
    }

    /// A region with all that is in it; with `once`, without what is in containers that were
    /// printed before.
    fn tree(&mut self, f: &mut fmt::Formatter<'_>, id: RegionId, once: bool) -> fmt::Result {
        // Not by recursion: nothing limits how deep containers are nested.
        let mut open = vec![(id, 0, 0, 1)];
        while let Some((id, base, priority, depth)) = open.pop() {
            let Ok(region) = self.topology.get(id) else { continue };
            self.line(f, id, region, (base, priority, depth))?;
            let first = self.printed.insert(id);
            let RegionKind::Container(children) = &region.kind else {
                writeln!(f)?;
                continue;
            };
            if once && !first && !children.is_empty() {
                writeln!(f, " (see above)")?;
            } else {
                writeln!(f)?;
                // By address; where they overlap, in the order in which they answer.
                let mut children: Vec<_> = children.iter().rev().collect();
                children.sort_by_key(|child| (child.offset, std::cmp::Reverse(child.priority)));
                let places = children.into_iter().rev().map(|child| {
                    (child.child, base + u128::from(child.offset), child.priority, depth + 1)
                });
                open.extend(places);
            }
        }
        Ok(())
    }

    fn line(
        &mut self,
        f: &mut fmt::Formatter<'_>,
        id: RegionId,
        region: &Region,
        (base, priority, depth): (u128, i32, usize),
    ) -> fmt::Result {
        write!(f, "{:1$}", "", 2 * depth.min(MAX_INDENT))?;
        if depth > MAX_INDENT {
            write!(f, "+{} ", depth - MAX_INDENT)?;
        }
        range(f, base, region.size)?;
        write!(f, " (prio {priority}, {}): ", self.kind(id))?;
        if let RegionKind::Alias { target, ref offset } = region.kind {
            write!(f, "alias {} @{} ", region.name, self.topology.name(target))?;
            range(f, offset.get().into(), region.size)?;
            self.aliased.insert(target);
        } else {
            write!(f, "{}", region.name)?;
        }
        write!(f, " [{}]", Size(region.size))?;
        if let Some(block) = region.block() {
            let logged = self.logged.get(&address_of(block));
            log(f, logged.map_or(ClientSet::EMPTY, |(_, clients)| *clients))?;
        }
        write!(f, "{}", if region.enabled { "" } else { " [disabled]" })
    }
}

impl fmt::Display for Mtree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MapState { topology, logged, spaces } = &*self.0;
        let (kinds, printed) = (HashMap::new(), HashSet::new());
        let mut printer = Printer { topology, logged, kinds, printed, aliased: BTreeSet::new() };
        // Spaces of the same root share its tree.
        let mut roots: Vec<RegionId> = Vec::new();
        let mut names: HashMap<RegionId, Vec<&str>> = HashMap::new();
        for SpaceEntry { space, .. } in spaces {
            let names = names.entry(space.root()).or_default();
            if names.is_empty() {
                roots.push(space.root());
            }
            names.push(space.name());
        }
        for root in roots {
            for name in &names[&root] {
                writeln!(f, "address-space: {name}")?;
            }
            printer.tree(f, root, false)?;
            writeln!(f)?;
        }
        // Targets of aliases, of which some have aliases in them.
        let mut shown = HashSet::new();
        while let Some(id) = printer.aliased.pop_first() {
            if shown.insert(id) {
                writeln!(f, "memory-region: {}", topology.name(id))?;
                printer.tree(f, id, true)?;
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Mtree {
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
    /// A line for each section, eventfd and coalesced range.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for section in self.sections() {
            writeln!(f, "  {section}")?;
        }
        for event in self.ioeventfds() {
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
