//! Random region trees against a definition that asks, address by address, which
//! region answers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use memory_region::{
    AddressSpace, CoalescedRange, FlatView, IoEventFd, ListDiff, ListenerError, MapError,
    MemoryListener, MemoryMap, MmioDevice, RegionId, Section, SectionTarget, Transaction,
    ViewChange,
};
use proptest::prelude::*;
use ram_block::{DirtyClient, PageSize, RamBlock};

/// The size of the spaces in units: few enough to ask for every one.
const SPACE: u64 = 64;

struct Nothing;

impl MmioDevice for Nothing {
    fn read(&self, _: u64, _: usize) -> u64 {
        0
    }

    fn write(&self, _: u64, _: usize, _: u64) {}
}

/// What a tree is made of; indices are taken modulo what exists.
#[derive(Clone, Debug)]
enum Step {
    Leaf { kind: Leaf, size: u64, parent: usize, offset: u64, priority: i32 },
    Container { size: u64, parent: usize, offset: u64, priority: i32 },
    Alias { target: usize, from: u64, size: u64, parent: usize, offset: u64, priority: i32 },
    Enable { region: usize, enabled: bool },
    Readonly { region: usize, readonly: bool },
    DirectReads { region: usize, on: bool },
    Log { region: usize, on: bool },
    Gather { region: usize, first: u64, len: u64 },
    Signal { region: usize, at: u64 },
    Relocate { region: usize, offset: u64 },
    Priority { region: usize, priority: i32 },
    Resize { region: usize, size: u64 },
    Unplace { region: usize },
}

#[derive(Clone, Copy, Debug)]
enum Leaf {
    Device,
    Reservation,
    Ram,
    RomDevice,
}

fn step() -> impl Strategy<Value = Step> {
    let size = || prop_oneof![1..8u64, 1..=SPACE];
    let place = || (any::<usize>(), 0..SPACE, -2..3i32);
    let region = any::<usize>;
    let leaf = prop_oneof![
        3 => Just(Leaf::Device),
        1 => Just(Leaf::Reservation),
        3 => Just(Leaf::Ram),
        1 => Just(Leaf::RomDevice),
    ];
    let change = prop_oneof![
        (region(), any::<bool>()).prop_map(|(region, enabled)| Step::Enable { region, enabled }),
        (region(), any::<bool>())
            .prop_map(|(region, readonly)| Step::Readonly { region, readonly }),
        (region(), any::<bool>()).prop_map(|(region, on)| Step::DirectReads { region, on }),
        (region(), any::<bool>()).prop_map(|(region, on)| Step::Log { region, on }),
        (region(), 0..SPACE, size()).prop_map(|(region, first, len)| Step::Gather {
            region,
            first,
            len
        }),
        (region(), 0..SPACE).prop_map(|(region, at)| Step::Signal { region, at }),
        (region(), 0..SPACE).prop_map(|(region, offset)| Step::Relocate { region, offset }),
        (region(), -2..3i32).prop_map(|(region, priority)| Step::Priority { region, priority }),
        (region(), size()).prop_map(|(region, size)| Step::Resize { region, size }),
        region().prop_map(|region| Step::Unplace { region }),
    ];
    prop_oneof![
        4 => (leaf, size(), place()).prop_map(|(kind, size, (parent, offset, priority))|
            Step::Leaf { kind, size, parent, offset, priority }),
        3 => (size(), place()).prop_map(|(size, (parent, offset, priority))|
            Step::Container { size, parent, offset, priority }),
        3 => (any::<usize>(), 0..SPACE, size(), place()).prop_map(
            |(target, from, size, (parent, offset, priority))|
            Step::Alias { target, from, size, parent, offset, priority }),
        5 => change,
    ]
}

/// The oracle's own tree.
#[derive(Clone, Debug)]
struct Model {
    id: RegionId,
    size: u64,
    enabled: bool,
    readonly: bool,
    shape: Shape,
}

#[derive(Clone, Debug)]
enum Shape {
    Leaf {
        kind: Leaf,
        direct: bool,
    },
    /// (child, offset, priority) in the order of placement.
    Container(Vec<(usize, u64, i32)>),
    Alias(usize, u64),
}

/// What answers at `at` of region `index`: which region, at which of its offsets, and in
/// which way.
fn answers(tree: &[Model], index: usize, at: u64) -> Option<(RegionId, u64, &'static str)> {
    let region = &tree[index];
    if !region.enabled || at >= region.size {
        return None;
    }
    let (id, offset, way) = match &region.shape {
        Shape::Leaf { kind, direct } => {
            let way = match kind {
                Leaf::Device => "device",
                Leaf::Reservation => "reserved",
                Leaf::Ram => "ram",
                Leaf::RomDevice if *direct => "rom device",
                Leaf::RomDevice => "device",
            };
            (region.id, at, way)
        }
        Shape::Alias(target, from) => answers(tree, *target, at + from)?,
        Shape::Container(children) => {
            let mut children = children.clone();
            children.reverse(); // the last one placed first; the sort keeps that order
            children.sort_by_key(|(_, _, priority)| std::cmp::Reverse(*priority));
            children
                .iter()
                .find_map(|(child, offset, _)| answers(tree, *child, at.checked_sub(*offset)?))?
        }
    };
    Some((id, offset, if way == "ram" && region.readonly { "rom" } else { way }))
}

fn way(section: &Section) -> &'static str {
    match (section.target(), section.readonly()) {
        (SectionTarget::Ram(_), false) => "ram",
        (SectionTarget::Ram(_), true) => "rom",
        (SectionTarget::RomDevice { .. }, true) => "rom device",
        (SectionTarget::Mmio(_), false) => "device",
        (SectionTarget::Reserved, false) => "reserved",
        (SectionTarget::Iommu(_), false) => "iommu",
        other => panic!("{other:?}"),
    }
}

/// A listener that keeps its own copy of the view, from the changes alone.
#[derive(Default)]
struct Copy(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    sections: Vec<Section>,
    event_fds: Vec<IoEventFd>,
    coalesced: Vec<CoalescedRange>,
}

fn follow<T: Ord + Clone>(kept: &mut Vec<T>, change: &ListDiff<T>) {
    for gone in &change.removed {
        let at = kept.iter().position(|other| other == gone);
        kept.remove(at.expect("what was never added is removed"));
    }
    kept.extend(change.added.iter().cloned());
    kept.sort();
}

impl MemoryListener for Copy {
    fn name(&self) -> &str {
        "copy"
    }

    fn commit(&self, change: &ViewChange) -> Result<(), ListenerError> {
        let mut kept = self.0.lock().unwrap();
        follow(&mut kept.event_fds, &change.ioeventfds);
        follow(&mut kept.coalesced, &change.coalesced);
        let sections = &mut kept.sections;
        for gone in &change.removed {
            let at = sections.iter().position(|s| s.same_mapping(gone) && s.log() == gone.log());
            sections.remove(at.expect("a section that was never added is removed"));
        }
        for relogged in &change.log_changed {
            let same = |s: &&mut Section| s.same_mapping(&relogged.section);
            let section = sections.iter_mut().find(same).expect("no such section");
            assert_eq!(section.log(), relogged.old);
            assert_ne!(section.log(), relogged.section.log());
            *section = relogged.section.clone();
        }
        sections.extend(change.added.iter().cloned());
        sections.sort_by_key(Section::start);
        Ok(())
    }

    fn sync(&self, _: &Section) -> Result<(), ListenerError> {
        Ok(())
    }
}

fn check_copy(view: &FlatView, copy: &Copy) {
    let kept = copy.0.lock().unwrap();
    let same = |a: &Section, b: &Section| a.same_mapping(b) && a.log() == b.log();
    assert_eq!(kept.sections.len(), view.sections().len());
    assert!(kept.sections.iter().zip(view.sections()).all(|(kept, new)| same(kept, new)));
    assert_eq!(kept.event_fds, view.ioeventfds());
    assert_eq!(kept.coalesced, view.coalesced());
}

fn check(space: &AddressSpace, tree: &[Model], copy: &Copy, scale: u64) {
    let view = space.view();
    for at in 0..SPACE {
        for byte in [0, scale - 1] {
            let address = at * scale + byte;
            let section = view.section_at(address);
            let found = section.map(|s| (s.region(), s.offset() + (address - s.start()), way(s)));
            let expected = answers(tree, 0, at).map(|(id, at, way)| (id, at * scale + byte, way));
            assert_eq!(found, expected, "at {address:#x} of {view:?}");
        }
    }
    // Neighbours that could be one are one.
    for pair in view.sections().windows(2) {
        let goes_on = pair[0].last() + 1 == pair[1].start()
            && (pair[0].region(), way(&pair[0]), pair[0].log())
                == (pair[1].region(), way(&pair[1]), pair[1].log())
            && u128::from(pair[0].offset()) + pair[0].size() == u128::from(pair[1].offset());
        assert!(!goes_on, "{pair:?}");
    }
    check_copy(&view, copy);
}

fn leaf(
    map: &mut Transaction<'_>,
    kind: Leaf,
    size: u64,
    scale: u64,
) -> Result<RegionId, MapError> {
    let bytes = u128::from(size) * u128::from(scale);
    // Blocks have whole pages, and not 2^58 of them: elsewhere devices take their place.
    if scale == PageSize::host().bytes() {
        let block = || {
            static NUMBER: AtomicU64 = AtomicU64::new(0);
            let id = NUMBER.fetch_add(1, Ordering::Relaxed).to_string();
            RamBlock::anonymous(&id, size * scale)
        };
        match kind {
            Leaf::Ram => return map.ram("ram", block()?),
            Leaf::RomDevice => return map.rom_device("flash", block()?, Arc::new(Nothing)),
            _ => {}
        }
    }
    match kind {
        Leaf::Reservation => map.reservation("reservation", bytes),
        _ => map.mmio("device", bytes, Arc::new(Nothing)),
    }
}

/// Changes the map and the model; an error may leave the model as it should not be.
fn change(
    map: &mut Transaction<'_>,
    tree: &mut Vec<Model>,
    step: &Step,
    scale: u64,
) -> Result<(), MapError> {
    let scaled = |units: u64| u128::from(units) * u128::from(scale);
    let count = tree.len();
    let (id, shape, size, (parent, offset, priority)) = match *step {
        Step::Enable { region, enabled } => {
            let region = &mut tree[region % count];
            region.enabled = enabled;
            return map.set_enabled(region.id, enabled);
        }
        Step::Readonly { region, readonly } => {
            let region = &mut tree[region % count];
            region.readonly = readonly;
            return map.set_readonly(region.id, readonly);
        }
        Step::DirectReads { region, on } => {
            let region = &mut tree[region % count];
            map.set_romd(region.id, on)?;
            if let Shape::Leaf { direct, .. } = &mut region.shape {
                *direct = on;
            }
            return Ok(());
        }
        Step::Log { .. } => return Ok(()), // between transactions
        Step::Gather { region, first, len } => {
            let end = (first + len).checked_mul(scale);
            let range = first * scale..end.unwrap_or(u64::MAX);
            return map.set_coalescing(tree[region % count].id, &[range]);
        }
        #[cfg(not(target_os = "linux"))] // has no eventfds
        Step::Signal { region: _region, at: _at } => return Ok(()),
        #[cfg(target_os = "linux")]
        Step::Signal { region, at } => {
            use std::sync::LazyLock;

            use memory_region::vmm_sys_util::eventfd::EventFd;

            static FD: LazyLock<Arc<EventFd>> =
                LazyLock::new(|| Arc::new(EventFd::new(0).unwrap()));
            let fd = FD.clone();
            let event = IoEventFd { address: at * scale, size: 1, datamatch: None, fd };
            return map.add_ioeventfd(tree[region % count].id, event);
        }
        Step::Relocate { region, offset } => {
            let region = region % count;
            map.set_address(tree[region].id, offset * scale)?;
            replace(tree, region, |_, priority| (offset, priority));
            return Ok(());
        }
        Step::Priority { region, priority } => {
            let region = region % count;
            map.set_priority(tree[region].id, priority)?;
            replace(tree, region, |offset, _| (offset, priority));
            return Ok(());
        }
        Step::Resize { region, size } => {
            let region = &mut tree[region % count];
            map.resize(region.id, scaled(size))?;
            region.size = size;
            return Ok(());
        }
        Step::Unplace { region } => {
            let region = region % count;
            map.del_subregion(tree[region].id)?;
            take(tree, region);
            return Ok(());
        }
        Step::Leaf { kind, size, parent, offset, priority } => {
            let kind = match kind {
                Leaf::Ram | Leaf::RomDevice if scale != PageSize::host().bytes() => Leaf::Device,
                other => other,
            };
            let id = leaf(map, kind, size, scale)?;
            (id, Shape::Leaf { kind, direct: true }, size, (parent, offset, priority))
        }
        Step::Container { size, parent, offset, priority } => {
            let id = map.container("container", scaled(size))?;
            (id, Shape::Container(Vec::new()), size, (parent, offset, priority))
        }
        Step::Alias { target, from, size, parent, offset, priority } => {
            let target = target % count;
            let id = map.alias("alias", tree[target].id, from * scale, scaled(size))?;
            (id, Shape::Alias(target, from), size, (parent, offset, priority))
        }
    };
    tree.push(Model { id, size, enabled: true, readonly: false, shape });
    let parent = parent % count;
    map.add_subregion_overlap(tree[parent].id, offset * scale, id, priority)?;
    let Shape::Container(children) = &mut tree[parent].shape else {
        panic!("placed in what is no container")
    };
    children.push((count, offset, priority));
    Ok(())
}

/// Takes a region out of its container, if it is in one: which, where, and how.
fn take(tree: &mut [Model], region: usize) -> Option<(usize, u64, i32)> {
    for (parent, other) in tree.iter_mut().enumerate() {
        if let Shape::Container(children) = &mut other.shape {
            if let Some(at) = children.iter().position(|(child, ..)| *child == region) {
                let (_, offset, priority) = children.remove(at);
                return Some((parent, offset, priority));
            }
        }
    }
    None
}

/// Places a region anew in its container.
fn replace(tree: &mut [Model], region: usize, place: impl FnOnce(u64, i32) -> (u64, i32)) {
    let (parent, offset, priority) = take(tree, region).expect("what is nowhere was moved");
    let (offset, priority) = place(offset, priority);
    if let Shape::Container(children) = &mut tree[parent].shape {
        children.push((region, offset, priority));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(
        std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(3000)) })]

    /// Trees of any shape, changed in transactions of several steps. A unit is a byte, a
    /// page, or 2^58 bytes: the space then has all 2^64.
    #[test]
    fn a_view_shows_what_the_definition_says(
        transactions in prop::collection::vec(prop::collection::vec(step(), 1..4), 1..16),
        scale in prop_oneof![Just(1), Just(PageSize::host().bytes()), Just(1 << 58)],
    ) {
        let map = MemoryMap::new();
        let size = u128::from(SPACE) * u128::from(scale);
        let root = map.transaction(|map| map.container("root", size)).unwrap();
        let space = map.address_space("space", root).unwrap();
        let copy = Arc::new(Copy::default());
        map.add_listener(&space, copy.clone()).unwrap();
        let shape = Shape::Container(Vec::new());
        let mut tree = vec![Model { id: root, size: SPACE, enabled: true, readonly: false, shape }];
        let mut logs = Vec::new();
        for steps in &transactions {
            let mut changed = tree.clone();
            let result = map.transaction(|map| {
                steps.iter().try_for_each(|step| change(map, &mut changed, step, scale))
            });
            if result.is_ok() {
                tree = changed;
            }
            for step in steps {
                if let Step::Log { region, on } = *step {
                    let region = tree[region % tree.len()].id;
                    logs.retain(|(logged, _)| *logged != region);
                    let log = on.then(|| map.claim_log(region, DirtyClient::VGA).ok()).flatten();
                    logs.extend(log.map(|log| (region, log)));
                }
            }
            check(&space, &tree, &copy, scale);
        }
        // Who comes late is told the same; who leaves is left with nothing.
        let late = Arc::new(Copy::default());
        let listener: Arc<dyn MemoryListener> = late.clone();
        map.add_listener(&space, listener.clone()).unwrap();
        check_copy(&space.view(), &late);
        map.remove_listener(&space, &listener).unwrap();
        check_copy(&FlatView::default(), &late);
    }
}

#[test]
fn the_last_byte_can_be_in_a_section() {
    let map = MemoryMap::new();
    let (root, below, top) = map
        .transaction(|map| {
            let root = map.container("root", 1 << 64)?;
            let below = map.mmio("below", 1 << 64, Arc::new(Nothing))?;
            let all = map.alias("all", below, 0, 1 << 64)?;
            let top = map.mmio("top", 16, Arc::new(Nothing))?;
            map.add_subregion(root, 0, all)?;
            map.add_subregion_overlap(root, u64::MAX - 15, top, 1)?;
            Ok((root, below, top))
        })
        .unwrap();
    let space = map.address_space("space", root).unwrap();
    let view: Arc<FlatView> = space.view();
    let shape: Vec<_> =
        view.sections().iter().map(|s| (s.region(), s.start(), s.last(), s.size())).collect();
    assert_eq!(
        shape,
        [(below, 0, u64::MAX - 16, (1 << 64) - 16), (top, u64::MAX - 15, u64::MAX, 16)]
    );
}

#[test]
fn nesting_without_end_is_refused() {
    let map = MemoryMap::new();
    let root = map.transaction(|map| map.container("root", 0x1000)).unwrap();
    let space = map.address_space("space", root).unwrap();
    let chain = |aliases: usize| {
        map.transaction(|map| {
            let mut target = map.mmio("device", 0x1000, Arc::new(Nothing))?;
            for _ in 0..aliases {
                target = map.alias("alias", target, 0, 0x1000)?;
            }
            Ok(target)
        })
        .unwrap()
    };
    let too_deep = chain(128);
    let deep = map.transaction(|map| map.add_subregion(root, 0, too_deep));
    assert!(matches!(deep, Err(MapError::TooDeep { limit: 128, .. })), "{deep:?}");
    assert!(space.view().sections().is_empty());
    // The root counts as none: 128 below it are shown, in whatever way they are below it.
    let just = chain(127);
    map.transaction(|map| map.add_subregion(root, 0, just)).unwrap();
    assert_eq!(space.view().sections().len(), 1);
    let windows = map.address_space("windows", too_deep).unwrap();
    assert_eq!(windows.view().sections().len(), 1);
    let refused = map.address_space("more", chain(129));
    assert!(matches!(refused, Err(MapError::TooDeep { limit: 128, .. })), "{refused:?}");
}
