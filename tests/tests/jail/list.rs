//! The list of system calls in the document.

use std::collections::BTreeMap;

/// What a machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Memory, slots, vCPUs and logs are made.
    Start,
    /// It runs, is harvested, paused, saved, checkpointed, and changes its map.
    Run,
    /// It is sent to a socket.
    Migrate,
    /// It is received from one.
    Restore,
}

pub const PHASES: [Phase; 4] = [Phase::Start, Phase::Run, Phase::Migrate, Phase::Restore];

/// A system call, and the phases for which the document lists it: always, or only at times, as the
/// allocator or the scheduler has it.
pub type List = BTreeMap<String, BTreeMap<Phase, bool>>;

/// The rows of the table: `| \`call\` | x | (x) | | |`, in the order of the phases.
pub fn read() -> List {
    let text = include_str!("../../../docs/syscalls.md");
    let mut list = List::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let phases = PHASES.iter().zip(&cells[2..6]).filter_map(|(phase, cell)| match *cell {
            "x" => Some((*phase, true)),
            "(x)" => Some((*phase, false)),
            "" => None,
            other => panic!("{other:?} in {line}"),
        });
        list.insert(cells[1].trim_matches('`').to_owned(), phases.collect());
    }
    assert!(!list.is_empty(), "the table is gone");
    list
}

/// The calls of these phases.
pub fn of<'l>(list: &'l List, phases: &[Phase]) -> impl Iterator<Item = &'l str> {
    let has = |row: &BTreeMap<Phase, bool>| phases.iter().any(|phase| row.contains_key(phase));
    let names: Vec<&str> =
        list.iter().filter(|(_, row)| has(row)).map(|(name, _)| name.as_str()).collect();
    names.into_iter()
}
