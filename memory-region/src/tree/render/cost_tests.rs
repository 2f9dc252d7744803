//! How many steps trees take, in steps rather than in time, and which are refused.

use std::sync::Arc;

use ram_block::RamBlock;

use super::*;
use crate::map::memory_map::MemoryMap;
use crate::transaction::regions::Transaction;

const LEN: u64 = 1 << 20;

/// The steps and the sections of what `build` makes, or an error.
fn cost(
    build: impl FnOnce(&mut Transaction<'_>) -> Result<RegionId, MapError>,
) -> Result<(u64, usize), MapError> {
    let map = MemoryMap::new();
    let root = map.transaction(build).unwrap();
    let topology = &map.current().topology;
    let (view, steps) = render_counted(topology, root, &Logged::new())?;
    // Printed once, whatever the ways to it.
    map.address_space("space", root)?;
    let lines = map.mtree().to_string().lines().count();
    assert!(lines <= topology.len() * 3 + 2, "{lines} lines of {} regions", topology.len());
    Ok((steps, view.sections().len()))
}

fn ram(map: &mut Transaction<'_>, len: u64) -> Result<RegionId, MapError> {
    map.ram("ram", RamBlock::anonymous("ram", len)?)
}

/// `levels` containers, each with two aliases of the one below, of which the second is moved
/// by `step` of its level.
fn pairs(
    map: &mut Transaction<'_>,
    levels: u32,
    mut below: RegionId,
    mut size: u64,
    step: impl Fn(u32) -> u64,
) -> Result<RegionId, MapError> {
    for level in 0..levels {
        let all = size + step(level);
        let container = map.container("container", all.into())?;
        let first = map.alias("first", below, 0, size.into())?;
        let second = map.alias("second", below, 0, size.into())?;
        map.add_subregion_overlap(container, 0, first, 0)?;
        map.add_subregion_overlap(container, step(level), second, 1)?;
        (below, size) = (container, all);
    }
    Ok(below)
}

#[test]
fn overlapping_pairs_cost_a_step_or_two_for_each() {
    for levels in [18, 22, 60] {
        let nested = |map: &mut Transaction<'_>| {
            let ram = ram(map, LEN)?;
            pairs(map, levels, ram, LEN, |_| 0)
        };
        let (steps, sections) = cost(nested).unwrap();
        assert!(steps < 10 * u64::from(levels), "{steps} steps for {levels} levels");
        assert_eq!(sections, 1);
    }
}

/// Nothing in them, hidden, half hidden, and everywhere a little further.
#[test]
fn pairs_that_show_little_cost_little() {
    let empty = |map: &mut Transaction<'_>| {
        let nothing = map.container("nothing", LEN.into())?;
        pairs(map, 40, nothing, LEN, |level| 1 << level)
    };
    let (steps, sections) = cost(empty).unwrap();
    assert!(steps < 1000 && sections == 0, "{steps} steps, {sections} sections");

    let disabled = |map: &mut Transaction<'_>| {
        let ram = ram(map, LEN)?;
        map.set_enabled(ram, false)?;
        pairs(map, 40, ram, LEN, |level| 1 << level)
    };
    assert!(cost(disabled).unwrap().0 < 1000);

    let half = |map: &mut Transaction<'_>| {
        let (ram, hole) = (ram(map, LEN)?, map.container("hole", u128::from(LEN) * 2)?);
        map.add_subregion(hole, LEN / 2, ram)?;
        pairs(map, 60, hole, 2 * LEN, |_| 0)
    };
    let (steps, sections) = cost(half).unwrap();
    assert!(steps < 1000 && sections == 1, "{steps} steps, {sections} sections");

    let hidden = |map: &mut Transaction<'_>| {
        let ram = ram(map, LEN)?;
        let below = pairs(map, 40, ram, LEN, |level| 1 << level)?;
        let root = map.container("root", 1 << 60)?;
        let roof = map.reservation("roof", 1 << 60)?;
        map.add_subregion_overlap(root, 0, below, 0)?;
        map.add_subregion_overlap(root, 0, roof, 1)?;
        Ok(root)
    };
    // Once down to the first of all, as nobody has been there.
    let (steps, sections) = cost(hidden).unwrap();
    assert!(steps < 10_000 && sections == 1, "{steps} steps, {sections} sections");

    let moved = |map: &mut Transaction<'_>| {
        let ram = ram(map, LEN)?;
        pairs(map, 40, ram, LEN, |_| 0x1000)
    };
    let (steps, sections) = cost(moved).unwrap();
    assert!(steps < 20_000 && sections < 100, "{steps} steps, {sections} sections");
}

/// As many sections as there are, a few steps for each; and no more than anybody can follow.
#[test]
fn pairs_side_by_side_cost_what_they_show() {
    let beside = |levels| {
        move |map: &mut Transaction<'_>| {
            let device = map.reservation("device", 0x1000)?;
            let hole = map.container("hole", 0x2000)?;
            map.add_subregion(hole, 0, device)?;
            pairs(map, levels, hole, 0x2000, |level| 0x2000 << level)
        }
    };
    let (steps, sections) = cost(beside(14)).unwrap();
    assert_eq!(sections, 1 << 14);
    assert!(steps < 10 << 14, "{steps} steps");
    let refused = cost(beside(22)).unwrap_err();
    assert!(matches!(refused, MapError::TooComplex { .. }), "{refused}");
}

/// Two far ends of each part are hidden, so that every way leads to the free middle and finds
/// nothing there.
#[test]
fn what_costs_more_than_it_shows_is_refused_and_leaves_the_map() {
    let map = MemoryMap::new();
    let build = |map: &mut Transaction<'_>| {
        let ends = map.container("ends", 1 << 40)?;
        for at in [0, (1 << 40) - 1] {
            let end = map.reservation("end", 1)?;
            map.add_subregion(ends, at, end)?;
        }
        let below = pairs(map, 30, ends, 1 << 40, |level| 1 << level)?;
        let root = map.container("root", 1 << 50)?;
        map.add_subregion_overlap(root, 0, below, 0)?;
        for at in [0, (1 << 40) - (1 << 31)] {
            let roof = map.reservation("roof", 1 << 32)?;
            map.add_subregion_overlap(root, at, roof, 1)?;
        }
        Ok(root)
    };
    let root = map.transaction(build).unwrap();
    let refused = map.address_space("space", root).unwrap_err();
    let MapError::TooComplex { steps, sections, .. } = refused else { panic!("{refused}") };
    assert!(steps < 200_000 && sections < 10, "{steps} steps, {sections} sections");
    // In a map that is there, the change is refused.
    let system = map.transaction(|map| map.container("system", 1 << 51)).unwrap();
    let space = map.address_space("space", system).unwrap();
    let refused = map.transaction(|map| map.add_subregion(system, 0, root)).unwrap_err();
    assert!(matches!(refused, MapError::TooComplex { .. }), "{refused}");
    assert!(space.view().sections().is_empty());
}

/// Small windows on a tree with many regions, each of which shows a few of them.
#[test]
fn many_small_windows_into_a_large_tree_are_cheap() {
    const MANY: u64 = 2000;
    for overlaps in [false, true] {
        let windows = |map: &mut Transaction<'_>| {
            let tree = map.container("tree", u128::from(MANY * 0x1000))?;
            for at in 0..MANY {
                let device = map.reservation("device", 0x800)?;
                map.add_subregion_overlap(tree, at * 0x1000, device, 0)?;
                if overlaps {
                    // Over all of it, but with nothing in it.
                    let over = map.container("over", u128::from(MANY * 0x1000))?;
                    map.add_subregion_overlap(tree, 0, over, 1)?;
                }
            }
            let root = map.container("root", 1 << 40)?;
            for at in 0..MANY {
                let window = map.alias("window", tree, at * 0x1000, 0x1000)?;
                map.add_subregion(root, at * 0x10000, window)?;
            }
            Ok(root)
        };
        let (steps, sections) = cost(windows).unwrap();
        assert_eq!(sections as u64, MANY);
        assert!(steps < 10 * MANY, "{steps} steps");
    }
}

/// However deep: built, printed, refused and dropped, on a small stack.
#[cfg(not(target_family = "wasm"))] // has no threads
#[test]
fn depth_overflows_no_stack() {
    const DEEP: u32 = 20_000;
    let deep = || {
        let map = MemoryMap::new();
        let build = |map: &mut Transaction<'_>| {
            let top = map.container("top", LEN.into())?;
            let (mut container, mut alias) = (top, map.alias("alias", top, 0, LEN.into())?);
            for _ in 0..DEEP {
                let child = map.container("container", LEN.into())?;
                map.add_subregion(container, 0, child)?;
                container = child;
                alias = map.alias("alias", alias, 0, LEN.into())?;
            }
            Ok((top, container, alias))
        };
        let (top, bottom, alias) = map.transaction(build).unwrap();
        for root in [top, alias] {
            let refused = map.address_space("space", root).unwrap_err();
            assert!(matches!(refused, MapError::TooDeep { .. }), "{refused}");
        }
        let system = map.transaction(|map| map.container("system", u128::from(LEN))).unwrap();
        map.address_space("space", system).unwrap();
        let placed = map.transaction(|map| map.add_subregion(system, 0, alias)).unwrap_err();
        assert!(matches!(placed, MapError::TooDeep { .. }), "{placed}");
        map.transaction(|map| {
            map.set_enabled(alias, false)?;
            map.add_subregion(system, 0, alias)
        })
        .unwrap();
        let printed = map.mtree().to_string();
        assert_eq!(printed.lines().filter(|line| line.contains("prio")).count(), 40_003);
        assert!(printed.len() < 250 * 40_003, "{} bytes", printed.len());
        // A cycle is found from far away.
        let inner = map.transaction(|map| map.alias("inner", alias, 0, LEN.into())).unwrap();
        let cycle =
            map.transaction(|map| map.add_subregion_overlap(bottom, 0, inner, 0)).unwrap_err();
        assert!(matches!(cycle, MapError::Cycle { .. }), "{cycle}");
    };
    let small = std::thread::Builder::new().stack_size(256 << 10);
    small.spawn(deep).unwrap().join().unwrap();
}

/// A shared region that is first shown through a small window, then as a whole.
#[test]
fn what_a_window_left_out_is_drawn_later() {
    let map = MemoryMap::new();
    let build = |map: &mut Transaction<'_>| {
        let shared = map.container("shared", 0x3000)?;
        let ram = ram(map, 0x2000)?;
        map.add_subregion(shared, 0, ram)?;
        let root = map.container("root", 0x10000)?;
        let window = map.alias("window", shared, 0x1000, 0x1000)?;
        map.add_subregion_overlap(root, 0x1000, window, 1)?;
        map.add_subregion_overlap(root, 0, shared, 0)?;
        Ok(root)
    };
    let root = map.transaction(build).unwrap();
    let space = map.address_space("space", root).unwrap();
    let view = space.view();
    assert_eq!(view.sections().len(), 1, "{}", &*view);
    assert_eq!((view.sections()[0].start(), view.sections()[0].last()), (0, 0x1fff));
    assert!(Arc::ptr_eq(&view, &space.view()));
}

/// Each of many nested containers is shown by an alias, from the innermost on, which comes first.
#[test]
fn nested_targets_of_aliases_are_printed_once() {
    const DEEP: usize = 1000;
    let map = MemoryMap::new();
    let build = |map: &mut Transaction<'_>| {
        let mut inner = map.container("0", LEN.into())?;
        let mut all = vec![inner];
        for n in 1..DEEP {
            let outer = map.container(&n.to_string(), LEN.into())?;
            map.add_subregion(outer, 0, inner)?;
            all.push(outer);
            inner = outer;
        }
        let root = map.container("root", LEN.into())?;
        for shown in all {
            let alias = map.alias("alias", shown, 0, LEN.into())?;
            map.set_enabled(alias, false)?;
            map.add_subregion_overlap(root, 0, alias, 0)?;
        }
        Ok(root)
    };
    let root = map.transaction(build).unwrap();
    map.address_space("space", root).unwrap();
    let printed = map.mtree().to_string();
    let lines = printed.lines().filter(|line| line.contains("prio")).count();
    assert_eq!(lines, 1 + DEEP + 2 * DEEP - 1, "{} bytes", printed.len());
    assert_eq!(printed.matches("(see above)").count(), DEEP - 2);
}
