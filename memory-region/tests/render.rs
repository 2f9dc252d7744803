//! Random region trees against a definition that asks, address by address, which
//! region answers.

use std::sync::{Arc, Mutex};

use memory_region::{
    AddressSpace, FlatView, ListenerError, MapError, MemoryListener, MemoryMap, MmioDevice,
    RegionId, Section, ViewChange,
};
use proptest::prelude::*;

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
    Device { size: u64, parent: usize, offset: u64, priority: i32 },
    Container { size: u64, parent: usize, offset: u64, priority: i32 },
    Alias { target: usize, from: u64, size: u64, parent: usize, offset: u64, priority: i32 },
    Enable { region: usize, enabled: bool },
    Unplace { region: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let size = || prop_oneof![1..8u64, 1..=SPACE];
    let place = || (any::<usize>(), 0..SPACE, -2..3i32);
    prop_oneof![
        4 => (size(), place()).prop_map(|(size, (parent, offset, priority))|
            Step::Device { size, parent, offset, priority }),
        3 => (size(), place()).prop_map(|(size, (parent, offset, priority))|
            Step::Container { size, parent, offset, priority }),
        3 => (any::<usize>(), 0..SPACE, size(), place()).prop_map(
            |(target, from, size, (parent, offset, priority))|
            Step::Alias { target, from, size, parent, offset, priority }),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(region, enabled)| Step::Enable { region, enabled }),
        1 => any::<usize>().prop_map(|region| Step::Unplace { region }),
    ]
}

/// The oracle's own tree.
#[derive(Clone, Debug)]
struct Model {
    id: RegionId,
    size: u64,
    enabled: bool,
    shape: Shape,
}

#[derive(Clone, Debug)]
enum Shape {
    Device,
    /// (child, offset, priority) in the order of placement.
    Container(Vec<(usize, u64, i32)>),
    Alias(usize, u64),
}

/// Which device answers at `at` of region `index`, and at which of its offsets.
fn answers(tree: &[Model], index: usize, at: u64) -> Option<(RegionId, u64)> {
    let region = &tree[index];
    if !region.enabled || at >= region.size {
        return None;
    }
    match &region.shape {
        Shape::Device => Some((region.id, at)),
        Shape::Alias(target, from) => answers(tree, *target, at + from),
        Shape::Container(children) => {
            let mut children = children.clone();
            children.reverse(); // the last one placed first; the sort keeps that order
            children.sort_by_key(|(_, _, priority)| std::cmp::Reverse(*priority));
            children
                .iter()
                .find_map(|(child, offset, _)| answers(tree, *child, at.checked_sub(*offset)?))
        }
    }
}

/// A listener that keeps its own copy of the view, from the changes alone.
#[derive(Default)]
struct Copy(Mutex<Vec<Section>>);

impl MemoryListener for Copy {
    fn name(&self) -> &str {
        "copy"
    }

    fn commit(&self, change: &ViewChange) -> Result<(), ListenerError> {
        let mut sections = self.0.lock().unwrap();
        for gone in &change.removed {
            let at = sections.iter().position(|section| section.same_mapping(gone));
            sections.remove(at.expect("a section that was never added is removed"));
        }
        sections.extend(change.added.iter().cloned());
        sections.sort_by_key(Section::start);
        Ok(())
    }

    fn sync(&self, _: &Section) -> Result<(), ListenerError> {
        Ok(())
    }
}

fn check(space: &AddressSpace, tree: &[Model], copy: &Copy, scale: u64) {
    let view = space.view();
    for at in 0..SPACE {
        for byte in [0, scale - 1] {
            let address = at * scale + byte;
            let found = view.at(address).map(|s| (s.region(), s.offset() + (address - s.start())));
            let expected = answers(tree, 0, at).map(|(id, offset)| (id, offset * scale + byte));
            assert_eq!(found, expected, "at {address:#x} of {view:?}");
        }
    }
    let sections = copy.0.lock().unwrap();
    assert_eq!(sections.len(), view.sections().len());
    assert!(sections.iter().zip(view.sections()).all(|(kept, new)| kept.same_mapping(new)));
}

fn apply(map: &Arc<MemoryMap>, tree: &mut Vec<Model>, step: &Step, scale: u64) {
    let before = tree.clone();
    let scaled = |units: u64| u128::from(units) * u128::from(scale);
    let result = map.update(|map| {
        let (id, shape, size, (parent, offset, priority)) = match *step {
            Step::Enable { region, enabled } => {
                let region = 1 + region % tree.len().max(2).saturating_sub(1);
                if let Some(region) = tree.get_mut(region) {
                    map.set_enabled(region.id, enabled)?;
                    region.enabled = enabled;
                }
                return Ok(());
            }
            Step::Unplace { region } => {
                let region = region % tree.len();
                map.unplace(tree[region].id)?;
                for other in tree.iter_mut() {
                    if let Shape::Container(children) = &mut other.shape {
                        children.retain(|(child, ..)| *child != region);
                    }
                }
                return Ok(());
            }
            Step::Device { size, parent, offset, priority } => {
                let id = map.mmio("device", scaled(size), Arc::new(Nothing))?;
                (id, Shape::Device, size, (parent, offset, priority))
            }
            Step::Container { size, parent, offset, priority } => {
                let id = map.container("container", scaled(size))?;
                (id, Shape::Container(Vec::new()), size, (parent, offset, priority))
            }
            Step::Alias { target, from, size, parent, offset, priority } => {
                let target = target % tree.len();
                let id = map.alias("alias", tree[target].id, from * scale, scaled(size))?;
                (id, Shape::Alias(target, from), size, (parent, offset, priority))
            }
        };
        tree.push(Model { id, size, enabled: true, shape });
        let parent = parent % (tree.len() - 1);
        map.place_overlapping(tree[parent].id, offset * scale, id, priority)?;
        let child = tree.len() - 1;
        let Shape::Container(children) = &mut tree[parent].shape else {
            panic!("placed in what is no container")
        };
        children.push((child, offset, priority));
        Ok(())
    });
    if result.is_err() {
        *tree = before;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(
        std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(3000)) })]

    /// Trees of any shape; in half of the cases a unit is 2^58 bytes, and the space all 2^64.
    #[test]
    fn a_view_shows_what_the_definition_says(
        steps in prop::collection::vec(step(), 1..24),
        huge in any::<bool>(),
    ) {
        let scale = if huge { 1 << 58 } else { 1 };
        let map = MemoryMap::new();
        let size = u128::from(SPACE) * u128::from(scale);
        let root = map.update(|map| map.container("root", size)).unwrap();
        let space = map.address_space("space", root).unwrap();
        let copy = Arc::new(Copy::default());
        map.add_listener(&space, copy.clone()).unwrap();
        let shape = Shape::Container(Vec::new());
        let mut tree = vec![Model { id: root, size: SPACE, enabled: true, shape }];
        for step in &steps {
            apply(&map, &mut tree, step, scale);
            check(&space, &tree, &copy, scale);
        }
    }
}

#[test]
fn the_last_byte_can_be_in_a_section() {
    let map = MemoryMap::new();
    let (root, below, top) = map
        .update(|map| {
            let root = map.container("root", 1 << 64)?;
            let below = map.mmio("below", 1 << 64, Arc::new(Nothing))?;
            let all = map.alias("all", below, 0, 1 << 64)?;
            let top = map.mmio("top", 16, Arc::new(Nothing))?;
            map.place(root, 0, all)?;
            map.place_overlapping(root, u64::MAX - 15, top, 1)?;
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
    let root = map.update(|map| map.container("root", 0x1000)).unwrap();
    let space = map.address_space("space", root).unwrap();
    let deep = map.update(|map| {
        let mut target = map.mmio("device", 0x1000, Arc::new(Nothing))?;
        for _ in 0..200 {
            target = map.alias("alias", target, 0, 0x1000)?;
        }
        map.place(root, 0, target)
    });
    assert!(matches!(deep, Err(MapError::TooDeep { limit: 128, .. })), "{deep:?}");
    assert!(space.view().sections().is_empty());
}
