//! Any sequence of operations by up to eight clients, against a set of pages for each.

use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use crate::bitmap::bits::GRANULE;
use crate::dirty::claim::DirtyClaim;
use crate::dirty::client::{ClientSet, DirtyClient};
use crate::dirty::code_watch::CodeWatch;
use crate::dirty::error::DirtyError;
use crate::dirty::memory::DirtyMemory;
use crate::page::{PageSize, index};

const PAGE: u64 = 4096;
const ROOM: u64 = GRANULE + 5000;

#[derive(Clone, Debug)]
enum Step {
    Mark(Range<u64>),
    MarkPages(Vec<u64>),
    /// Words for the pages from the first on.
    Merge(u64, Vec<u64>),
    Snapshot {
        client: usize,
        pages: Range<u64>,
        commit: bool,
    },
    MoveInto(usize, Range<u64>),
    Runs {
        client: usize,
        pages: Range<u64>,
        stop: usize,
    },
    Claim(usize),
    ClaimByName,
    End(usize),
    Watch(Range<u64>),
    Unwatch(Range<u64>),
    Resize(u64),
}

fn pages() -> impl Strategy<Value = Range<u64>> {
    let start = prop_oneof![0..300u64, 4000..4200u64, GRANULE - 100..GRANULE + 100, 0..ROOM];
    let len = prop_oneof![4 => 0..5u64, 2 => 60..300u64, 1 => 0..ROOM];
    (start, len).prop_map(|(start, len)| start..(start + len).min(ROOM))
}

fn step() -> impl Strategy<Value = Step> {
    let word = prop_oneof![Just(0), Just(u64::MAX), any::<u64>(), (0..64u32).prop_map(|n| 1 << n)];
    let client = 0..DirtyClient::COUNT;
    prop_oneof![
        4 => pages().prop_map(Step::Mark),
        1 => prop::collection::vec(0..ROOM + 2, 0..5).prop_map(Step::MarkPages),
        4 => (pages(), prop::collection::vec(word, 1..70))
            .prop_map(|(pages, words)| Step::Merge(pages.start, words)),
        3 => (client.clone(), pages(), any::<bool>())
            .prop_map(|(client, pages, commit)| Step::Snapshot { client, pages, commit }),
        2 => (client.clone(), pages()).prop_map(|(client, pages)| Step::MoveInto(client, pages)),
        2 => (client.clone(), pages(), 0..5usize)
            .prop_map(|(client, pages, stop)| Step::Runs { client, pages, stop }),
        3 => client.clone().prop_map(Step::Claim),
        1 => Just(Step::ClaimByName),
        1 => client.prop_map(Step::End),
        2 => pages().prop_map(Step::Watch),
        1 => pages().prop_map(Step::Unwatch),
        1 => prop_oneof![Just(ROOM), 1..ROOM].prop_map(Step::Resize),
    ]
}

/// The expected state.
#[derive(Default)]
struct Oracle {
    pages: u64,
    /// The dirty pages of each client that is on.
    dirty: [Option<BTreeSet<u64>>; DirtyClient::COUNT],
    watched: BTreeSet<u64>,
    reported: Vec<u64>,
}

impl Oracle {
    fn mark(&mut self, pages: impl IntoIterator<Item = u64>) {
        let here: Vec<u64> = pages.into_iter().filter(|page| *page < ROOM).collect();
        for dirty in self.dirty.iter_mut().flatten() {
            dirty.extend(here.iter().filter(|page| **page < self.pages));
        }
        let watched = &mut self.watched;
        self.reported.extend(here.iter().filter(|page| watched.remove(page)));
    }

    fn inside(&self, client: usize, pages: &Range<u64>) -> Option<BTreeSet<u64>> {
        let dirty = self.dirty[client].as_ref()?;
        (pages.end <= self.pages).then(|| dirty.range(pages.clone()).copied().collect())
    }

    fn take(&mut self, client: usize, pages: &BTreeSet<u64>) {
        if let Some(dirty) = &mut self.dirty[client] {
            dirty.retain(|page| !pages.contains(page));
        }
    }
}

struct Bench {
    memory: Arc<DirtyMemory>,
    oracle: Oracle,
    claims: [Option<DirtyClaim>; DirtyClient::COUNT],
    watch: CodeWatch,
    reported: Arc<Mutex<Vec<u64>>>,
}

impl Bench {
    fn new() -> Self {
        let memory = DirtyMemory::with_room(ROOM - 1000, ROOM, PageSize::new(PAGE).unwrap());
        let reported = Arc::new(Mutex::new(Vec::new()));
        let told = reported.clone();
        let watch = memory.watch_code(move |page| told.lock().unwrap().push(page)).unwrap();
        let oracle = Oracle { pages: ROOM - 1000, ..Oracle::default() };
        Self { memory, oracle, claims: Default::default(), watch, reported }
    }

    fn client(number: usize) -> DirtyClient {
        DirtyClient::all().nth(number).unwrap()
    }

    fn run(&mut self, step: Step) -> Result<(), TestCaseError> {
        let Self { memory, oracle, claims, watch, .. } = self;
        match step {
            Step::Mark(pages) => {
                memory.mark(pages.start * PAGE, (pages.end - pages.start) * PAGE);
                oracle.mark(pages);
            }
            Step::MarkPages(pages) => {
                let there = pages.iter().filter(|page| **page < oracle.pages).count() as u64;
                prop_assert_eq!(memory.mark_pages(&pages), there);
                oracle.mark(pages);
            }
            Step::Merge(first, words) => {
                let count = (words.len() as u64 * 64).min(ROOM - first);
                let set: Vec<u64> =
                    (0..count).filter(|n| words[index(n / 64)] >> (n % 64) & 1 != 0).collect();
                prop_assert_eq!(memory.merge(first, count, &words), Ok(set.len() as u64));
                oracle.mark(set.into_iter().map(|n| first + n));
            }
            Step::Snapshot { client, pages, commit } => {
                let Some(claim) = &claims[client] else { return Ok(()) };
                let harvest = claim.snapshot_and_clear(pages.clone());
                let expected = oracle.inside(client, &pages);
                prop_assert_eq!(harvest.is_ok(), expected.is_some(), "{:?}", harvest);
                if let (Ok(harvest), Some(expected)) = (harvest, expected) {
                    prop_assert!(harvest.pages().eq(expected.iter().copied()));
                    if commit {
                        harvest.commit();
                        oracle.take(client, &expected);
                    }
                }
            }
            Step::MoveInto(client, pages) => {
                let Some(claim) = &claims[client] else { return Ok(()) };
                let mut private = vec![0u64; index(ROOM.div_ceil(64))];
                let new = claim.move_into(pages.clone(), &mut private);
                let expected = oracle.inside(client, &pages);
                prop_assert_eq!(new.ok(), expected.as_ref().map(|pages| pages.len() as u64));
                let found = |page: &u64| private[index(page / 64)] >> (page % 64) & 1 != 0;
                prop_assert!((0..ROOM).filter(found).eq(expected.iter().flatten().copied()));
                oracle.take(client, &expected.unwrap_or_default());
            }
            Step::Runs { client, pages, stop } => {
                let Some(claim) = &claims[client] else { return Ok(()) };
                let mut seen = BTreeSet::new();
                let mut left = stop;
                let flow = claim.visit_runs(pages.clone(), 0, |run| {
                    seen.extend(run);
                    left = left.wrapping_sub(1);
                    if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                });
                let expected = oracle.inside(client, &pages);
                prop_assert_eq!(flow.is_ok(), expected.is_some());
                let expected = expected.unwrap_or_default();
                match flow {
                    Ok(ControlFlow::Break(())) => prop_assert!(seen.is_subset(&expected)),
                    _ => prop_assert_eq!(&seen, &expected),
                }
                oracle.take(client, &seen);
            }
            Step::Claim(number) => {
                let client = Self::client(number);
                let claimed = memory.claim(client);
                if number == 1 {
                    prop_assert_eq!(claimed.unwrap_err(), DirtyError::CodeClient);
                } else if oracle.dirty[number].is_some() {
                    let refused = claimed.unwrap_err();
                    let is_right =
                        matches!(refused, DirtyError::Claimed { client: c, .. } if c == client);
                    prop_assert!(is_right, "{}", refused);
                } else {
                    (claims[number], oracle.dirty[number]) =
                        (Some(claimed.unwrap()), Some(BTreeSet::new()));
                }
            }
            Step::ClaimByName => {
                let free = (3..DirtyClient::COUNT).find(|number| oracle.dirty[*number].is_none());
                let claimed = memory.claim("by name");
                let Some(number) = free else {
                    let name = "by name".to_owned();
                    prop_assert_eq!(claimed.unwrap_err(), DirtyError::TooManyClients { name });
                    return Ok(());
                };
                let claim = claimed.unwrap();
                prop_assert_eq!(claim.client(), Self::client(number));
                (claims[number], oracle.dirty[number]) = (Some(claim), Some(BTreeSet::new()));
            }
            Step::End(number) => {
                (claims[number], oracle.dirty[number]) = (None, None);
            }
            Step::Watch(pages) => {
                let watched = watch.watch(pages.clone());
                prop_assert_eq!(watched.is_ok(), pages.end <= oracle.pages);
                if let Ok(watching) = watched {
                    prop_assert!(watch.is_current(watching));
                    oracle.watched.extend(pages);
                }
            }
            Step::Unwatch(pages) => {
                watch.unwatch(pages.clone());
                let end = pages.end.min(oracle.pages);
                oracle.watched.retain(|page| *page < pages.start || *page >= end);
            }
            Step::Resize(pages) => {
                memory.resize(pages);
                let old = std::mem::replace(&mut oracle.pages, pages);
                memory.code_written(&(pages.min(old)..old));
                for dirty in oracle.dirty.iter_mut().flatten() {
                    dirty.extend(old..pages);
                    dirty.retain(|page| *page < pages);
                }
                oracle.reported.extend(oracle.watched.split_off(&pages.min(old)));
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let on = |number: &usize| self.oracle.dirty[*number].is_some();
        let clients: ClientSet = (0..DirtyClient::COUNT).filter(on).map(Self::client).collect();
        prop_assert_eq!(self.memory.enabled(), clients);
        prop_assert_eq!(&*self.reported.lock().unwrap(), &self.oracle.reported);
        for page in [0, 1, 63, 64, 100, 4096, GRANULE - 1, GRANULE, ROOM - 1] {
            for (number, dirty) in self.oracle.dirty.iter().enumerate() {
                let expected = match number {
                    1 => page < self.oracle.pages && !self.oracle.watched.contains(&page),
                    _ => dirty.as_ref().is_some_and(|dirty| dirty.contains(&page)),
                };
                prop_assert_eq!(
                    self.memory.is_dirty(Self::client(number), page),
                    expected,
                    "client {}, page {}",
                    number,
                    page
                );
            }
        }
        Ok(())
    }
}

proptest! {
    // WebAssembly reads no PROPTEST_CASES, and is slow.
    #![proptest_config(match cfg!(target_family = "wasm") {
        true => ProptestConfig::with_cases(16),
        false => ProptestConfig::default(),
    })]
    #[test]
    fn behaves_as_a_set_of_pages_for_each_client(
        steps in prop::collection::vec(step(), 1..60)
    ) {
        let mut bench = Bench::new();
        for step in steps {
            bench.run(step)?;
            bench.check()?;
        }
        let all = 0..bench.oracle.pages;
        for number in [0, 2, 3, 4, 5, 6, 7] {
            let (client, pages) = (number, all.clone());
            bench.run(Step::Snapshot { client, pages, commit: true })?;
        }
    }
}
