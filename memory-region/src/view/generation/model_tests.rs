//! Two harts beside a thread that commits, checked by loom: a hart that knows of a commit sees its
//! view, or a later one; with wrong orders, kept to show that the model can see the fault.
//!
//! The lists of what moved are behind a lock of std's, within which nothing yields to loom.

use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use loom::thread;

use super::{Extent, Generation, Number};

impl Number for AtomicU64 {
    fn load(&self) -> u64 {
        self.load(Acquire)
    }

    fn store(&self, value: u64) {
        self.store(value, Release);
    }
}

/// The page that has moved, and one that has not.
const MOVED: (u64, u64) = (0x1000, 0x1fff);

struct Space {
    /// What the page at the moved addresses is.
    view: AtomicU64,
    generation: Generation<AtomicU64>,
    /// The last commit that is complete, as a hart may learn of it.
    known: AtomicU64,
}

/// What a hart keeps of the moved page, as `Tlb` does.
struct Hart {
    followed: u64,
    view: u64,
    entry: Option<u64>,
}

#[derive(Clone, Copy, PartialEq)]
enum Wrong {
    Nothing,
    /// The number is raised before the view is published.
    NumberFirst,
    /// A hart takes the number that it reads last for that which it has followed.
    FollowsLater,
    /// A hart loads the view before it reads the number.
    ViewFirst,
    /// What moved is in no list.
    NotListed,
}

impl Hart {
    fn load(&mut self, space: &Space, wrong: Wrong) -> u64 {
        if wrong == Wrong::ViewFirst {
            self.view = space.view.load(Acquire);
        }
        let current = space.generation.number();
        if current != self.followed {
            let mut takes = false;
            let is_all = space.generation.moved_since(self.followed, |first, last| {
                takes |= (first, last) == MOVED;
            });
            if takes || !is_all {
                self.entry = None;
            }
            if wrong != Wrong::ViewFirst {
                self.view = space.view.load(Acquire);
            }
            self.followed = current;
            if wrong == Wrong::FollowsLater {
                self.followed = space.generation.number();
            }
        }
        *self.entry.get_or_insert(self.view)
    }
}

fn commit(space: &Space, number: u64, extent: Extent<'_>, wrong: Wrong) {
    if wrong == Wrong::NumberFirst {
        space.generation.advance(extent);
        space.view.swap(number, AcqRel);
    } else {
        space.view.swap(number, AcqRel);
        let extent = if wrong == Wrong::NotListed { Extent::Ranges(&[]) } else { extent };
        space.generation.advance(extent);
    }
    space.known.store(number, Release);
}

fn harts_beside_commits(wrong: Wrong) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let space = Arc::new(Space {
            view: AtomicU64::new(0),
            generation: Generation { number: AtomicU64::new(0), moved: Default::default() },
            known: AtomicU64::new(0),
        });
        let harts = [0, 1].map(|_| {
            let space = space.clone();
            thread::spawn(move || {
                let mut hart = Hart { followed: 0, view: 0, entry: Some(0) };
                for _ in 0..2 {
                    let known = space.known.load(Acquire);
                    let found = hart.load(&space, wrong);
                    assert!(found >= known, "the view of commit {found}, not of {known}");
                }
                (space, hart)
            })
        });
        commit(&space, 1, Extent::Ranges(&[MOVED]), wrong);
        commit(&space, 2, Extent::All, wrong);
        for hart in harts {
            let (space, mut hart) = hart.join().unwrap();
            assert_eq!(hart.load(&space, wrong), space.view.load(Relaxed), "the last view");
        }
    });
}

#[test]
fn a_hart_sees_the_commits_that_it_knows_of() {
    harts_beside_commits(Wrong::Nothing);
}

#[test]
fn the_model_sees_wrong_orders() {
    for (name, wrong) in [
        ("the number first", Wrong::NumberFirst),
        ("what is followed read later", Wrong::FollowsLater),
        ("the view first", Wrong::ViewFirst),
        ("what moved in no list", Wrong::NotListed),
    ] {
        let result = catch_unwind(AssertUnwindSafe(|| harts_beside_commits(wrong)));
        assert!(result.is_err(), "{name}");
    }
}
