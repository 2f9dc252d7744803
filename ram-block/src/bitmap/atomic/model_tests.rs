//! The argument of the parent module, checked by loom (with at most three
//! preemptions, and every stale read that the memory model allows), and four wrong
//! orders, kept to show that the model can see the loss.

use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::thread;

use super::*;

type ModelBitmap = Bitmap<AtomicU64>;

fn model(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(body);
}

/// Runs `body` in the model and says whether some execution failed.
fn is_caught(body: impl Fn() + Sync + Send + 'static) -> bool {
    catch_unwind(AssertUnwindSafe(|| model(body))).is_err()
}

fn taken(bitmap: &ModelBitmap, pages: Range<u64>) -> u64 {
    let mut all = 0;
    bitmap.take(&pages, |_, bits| all |= bits);
    all
}

/// Two markers of one leaf and a harvester; afterwards a last harvest. Every
/// mark that had returned when a harvest began must be in it or an earlier one.
fn two_markers_and_a_harvester(
    mark: fn(&ModelBitmap, u64),
    take: fn(&ModelBitmap, Range<u64>) -> u64,
) {
    let bitmap = Arc::new(ModelBitmap::new(64).unwrap());
    let first = {
        let bitmap = bitmap.clone();
        thread::spawn(move || mark(&bitmap, 0))
    };
    let second = {
        let bitmap = bitmap.clone();
        thread::spawn(move || {
            mark(&bitmap, 1);
            // This mark has returned: the next harvest must see it, unless the
            // concurrent one already has.
            take(&bitmap, 0..64)
        })
    };
    let mut seen = take(&bitmap, 0..64);
    seen |= second.join().unwrap();
    first.join().unwrap();
    seen |= take(&bitmap, 0..64);
    assert_eq!(seen, 0b11, "a mark was lost");
}

fn mark_page(bitmap: &ModelBitmap, page: u64) {
    bitmap.mark_word(page / BITS, 1 << (page % BITS));
}

#[test]
fn marks_survive_a_concurrent_harvest() {
    model(|| two_markers_and_a_harvester(mark_page, taken));
}

#[test]
fn a_mark_is_in_the_harvest_that_follows_it() {
    model(|| {
        let bitmap = Arc::new(ModelBitmap::new(64).unwrap());
        let other = {
            let bitmap = bitmap.clone();
            thread::spawn(move || mark_page(&bitmap, 0))
        };
        mark_page(&bitmap, 1);
        assert_ne!(taken(&bitmap, 0..64) & 0b10, 0, "a mark that had returned was not seen");
        other.join().unwrap();
    });
}

#[test]
fn a_range_mark_survives_a_concurrent_harvest_and_mark() {
    model(|| {
        let bitmap = Arc::new(ModelBitmap::new(128).unwrap());
        let ranger = {
            let bitmap = bitmap.clone();
            thread::spawn(move || bitmap.mark_range(&(0..128)))
        };
        let harvester = {
            let bitmap = bitmap.clone();
            thread::spawn(move || {
                let mut words = [0; 2];
                bitmap.take(&(0..128), |word, bits| words[index(word)] |= bits);
                words
            })
        };
        mark_page(&bitmap, 5);
        let mut words = harvester.join().unwrap();
        ranger.join().unwrap();
        bitmap.take(&(0..128), |word, bits| words[index(word)] |= bits);
        assert_eq!(words, [u64::MAX; 2], "part of a range was lost");
    });
}

#[test]
fn a_partial_harvest_leaves_the_rest_findable() {
    model(|| {
        let bitmap = Arc::new(ModelBitmap::new(64).unwrap());
        mark_page(&bitmap, 40);
        let marker = {
            let bitmap = bitmap.clone();
            thread::spawn(move || mark_page(&bitmap, 3))
        };
        let low = taken(&bitmap, 0..32);
        marker.join().unwrap();
        assert_eq!(low | taken(&bitmap, 0..64), 1 << 3 | 1 << 40);
    });
}

/// Wrong: the summary is set only by the mark that found the leaf at zero.
fn mark_trusting_the_leaf(bitmap: &ModelBitmap, page: u64) {
    if bitmap.leaves[0].fetch_or_seq_cst(1 << page) == 0 {
        ensure(&bitmap.summary, 0, 1);
        ensure(&bitmap.top, 0, 1);
    }
}

/// Wrong: the leaf is taken before the bits above it are cleared.
fn take_leaf_first(bitmap: &ModelBitmap, _: Range<u64>) -> u64 {
    if bitmap.top[0].load_seq_cst() & 1 == 0 || bitmap.summary[0].load_seq_cst() & 1 == 0 {
        return 0;
    }
    let bits = bitmap.leaves[0].swap_seq_cst(0);
    bitmap.summary[0].fetch_and_seq_cst(!1);
    bitmap.top[0].fetch_and_seq_cst(!1);
    bits
}

/// Wrong: the top is asked for only by the mark that sets the summary bit.
fn mark_trusting_the_summary(bitmap: &ModelBitmap, page: u64) {
    bitmap.leaves[0].fetch_or_seq_cst(1 << page);
    if bitmap.summary[0].fetch_or_seq_cst(1) & 1 == 0 {
        ensure(&bitmap.top, 0, 1);
    }
}

#[test]
fn the_model_sees_a_mark_that_trusts_the_summary() {
    assert!(is_caught(|| {
        let bitmap = Arc::new(ModelBitmap::new(64).unwrap());
        let other = {
            let bitmap = bitmap.clone();
            thread::spawn(move || mark_trusting_the_summary(&bitmap, 0))
        };
        mark_trusting_the_summary(&bitmap, 1);
        assert_ne!(taken(&bitmap, 0..64) & 0b10, 0);
        other.join().unwrap();
    }));
}

#[test]
fn the_model_sees_a_mark_that_trusts_the_leaf() {
    assert!(is_caught(|| {
        let bitmap = Arc::new(ModelBitmap::new(64).unwrap());
        let other = {
            let bitmap = bitmap.clone();
            thread::spawn(move || mark_trusting_the_leaf(&bitmap, 0))
        };
        mark_trusting_the_leaf(&bitmap, 1);
        assert_ne!(taken(&bitmap, 0..64) & 0b10, 0);
        other.join().unwrap();
    }));
}

#[test]
fn the_model_sees_a_harvest_that_takes_the_leaf_first() {
    assert!(is_caught(|| two_markers_and_a_harvester(mark_page, take_leaf_first)));
}

/// Wrong: the mark reads the summary without the order that the argument needs.
#[test]
fn the_model_sees_a_mark_without_the_total_order() {
    use loom::sync::atomic::Ordering::{Relaxed, Release};
    assert!(is_caught(|| {
        let bitmap = Arc::new(ModelBitmap::new(64).unwrap());
        mark_page(&bitmap, 7);
        let marker = {
            let bitmap = bitmap.clone();
            thread::spawn(move || {
                // A write and a read with nothing between them that orders both.
                bitmap.leaves[0].swap(u64::MAX, Release);
                for above in [&bitmap.summary[0], &bitmap.top[0]] {
                    if above.load(Relaxed) & 1 == 0 {
                        above.fetch_or(1, Relaxed);
                    }
                }
            })
        };
        let seen = taken(&bitmap, 0..64);
        marker.join().unwrap();
        assert_eq!(seen | taken(&bitmap, 0..64), u64::MAX);
    }));
}

/// The range mark with its plain stores, over many random interleavings.
#[test]
fn stores_of_a_range_mark_survive_any_interleaving() {
    use shuttle::sync::atomic::AtomicU64;
    use shuttle::thread;
    shuttle::check_random(
        || {
            let bitmap = std::sync::Arc::new(Bitmap::<AtomicU64>::new(128).unwrap());
            let ranger = {
                let bitmap = bitmap.clone();
                thread::spawn(move || bitmap.mark_range(&(0..128)))
            };
            let harvester = {
                let bitmap = bitmap.clone();
                thread::spawn(move || {
                    let mut seen = [0; 2];
                    bitmap.take(&(0..128), |word, bits| seen[index(word)] |= bits);
                    seen
                })
            };
            bitmap.mark_word(0, 1 << 5);
            let mut seen = harvester.join().unwrap();
            ranger.join().unwrap();
            bitmap.take(&(0..128), |word, bits| seen[index(word)] |= bits);
            assert_eq!(seen, [u64::MAX; 2], "part of a range was lost");
        },
        20_000,
    );
}
