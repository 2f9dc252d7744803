//! The guard against pushes at any moment, checked with loom.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use loom::thread;

use super::*;

const SIZE: usize = 4;
/// Entries that are there when the ring is taken.
const BEFORE: u64 = 2;
/// Those that KVM pushes meanwhile: the last one goes over the first of all.
const MEANWHILE: u64 = 3;

#[derive(Default)]
struct Modelled {
    flags: AtomicU32,
    page: AtomicU64,
}

struct Memory {
    entries: [Modelled; SIZE],
    fences: bool,
}

#[derive(Clone)]
struct Mapped(Arc<Memory>);

impl Entries for Mapped {
    fn count(&self) -> usize {
        SIZE
    }

    fn flags(&self, at: usize) -> u32 {
        self.0.entries[at].flags.load(Ordering::Acquire)
    }

    fn content(&self, at: usize) -> (u32, u64) {
        (0, self.0.entries[at].page.load(Ordering::Relaxed))
    }

    fn set_flags(&self, at: usize, flags: u32) {
        self.0.entries[at].flags.store(flags, Ordering::Release);
    }

    fn fence(&self) {
        if self.0.fences {
            fence(Ordering::SeqCst);
        }
    }
}

impl Mapped {
    /// KVM's push number `page`. Its write barrier orders the stores before it and after it
    /// for all readers; C11 guarantees that for its strongest fence only.
    fn push(&self, page: u64) {
        let entry = &self.0.entries[usize::try_from(page).unwrap() % SIZE];
        entry.page.store(page, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        entry.flags.store(DIRTY, Ordering::Relaxed);
    }
}

/// Takes the ring, lets KVM reset it from `reset` on, and settles; whether entries were found.
fn harvest(
    ring: &mut Ring<Mapped>,
    mapped: &Mapped,
    reset: &mut usize,
    found: &mut Vec<u64>,
) -> bool {
    let before = found.len();
    let taken = ring.take(|_, page| found.push(page));
    let mut count = 0;
    while mapped.flags(*reset % SIZE) & RESET != 0 {
        mapped.set_flags(*reset % SIZE, 0);
        *reset += 1;
        count += 1;
    }
    if count < ring.flagged() {
        ring.overrun();
    } else {
        let taken: Vec<_> = found[before..].iter().map(|page| (0, *page)).collect();
        ring.settle(&taken);
    }
    taken > 0
}

fn check(fences: bool) {
    let entries = std::array::from_fn(|_| Modelled::default());
    let mapped = Mapped(Arc::new(Memory { entries, fences }));
    (0..BEFORE).for_each(|page| mapped.push(page));
    let kvm = {
        let mapped = mapped.clone();
        thread::spawn(move || (BEFORE..BEFORE + MEANWHILE).for_each(|page| mapped.push(page)))
    };
    let (mut ring, mut reset, mut found) = (Ring::new(mapped.clone()), 0, Vec::new());
    harvest(&mut ring, &mapped, &mut reset, &mut found);
    kvm.join().unwrap();
    while !ring.is_overrun() && harvest(&mut ring, &mapped, &mut reset, &mut found) {}
    if !ring.is_overrun() {
        assert!(found.iter().copied().eq(0..BEFORE + MEANWHILE), "{found:?} and no loss seen");
    }
}

#[test]
fn what_is_written_over_at_any_moment_is_seen() {
    loom::model(|| check(true));
}

#[test]
fn the_model_sees_a_missing_fence() {
    assert!(std::panic::catch_unwind(|| loom::model(|| check(false))).is_err());
}
