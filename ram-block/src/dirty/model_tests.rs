//! Switching a client off and on while others mark, and merges beside marks and harvests,
//! checked by loom; with wrong orders, kept to show that the model can see the loss.

use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::sync::atomic::AtomicU64;
use loom::sync::atomic::Ordering::{AcqRel, Acquire, SeqCst};
use loom::sync::{Arc, Mutex};
use loom::thread;

use crate::bitmap::atomic::Bitmap;
use crate::bitmap::page_set::PageSet;

fn model(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(body);
}

fn is_caught(body: impl Fn() + Sync + Send + 'static) -> bool {
    catch_unwind(AssertUnwindSafe(|| model(body))).is_err()
}

/// A client's number and bitmap: 1 while the first one has it, 2 while the second has.
struct Client {
    on: AtomicU64,
    bitmap: Bitmap<AtomicU64>,
}

fn taken(bitmap: &Bitmap<AtomicU64>) -> u64 {
    let mut all = 0;
    bitmap.take(&(0..64), |_, bits| all |= bits);
    all
}

/// A client is dropped and another gets its number, while one thread marks. What is
/// marked for the second is in its harvest.
fn a_number_is_given_again(reset: fn(&Client)) {
    let client = Arc::new(Client { on: AtomicU64::new(1), bitmap: Bitmap::new(64).unwrap() });
    let marker = {
        let client = client.clone();
        thread::spawn(move || {
            let on = client.on.load(Acquire);
            if on != 0 {
                client.bitmap.mark_word(0, on);
            }
            on
        })
    };
    reset(&client);
    client.bitmap.mark_word(0, 1 << 5);
    let mut found = taken(&client.bitmap);
    assert_ne!(found & 1 << 5, 0, "the second client's mark was lost");
    let marked_for = marker.join().unwrap();
    found |= taken(&client.bitmap);
    assert!(marked_for != 2 || found & 2 != 0, "a mark for the second client was lost");
}

#[test]
fn a_dropped_client_takes_nothing_from_the_next() {
    model(|| {
        a_number_is_given_again(|client| {
            client.on.swap(0, SeqCst);
            client.bitmap.reset();
            client.on.swap(2, SeqCst);
        });
    });
}

/// Wrong: the bits are dropped when the number is in use again.
#[test]
fn the_model_sees_a_late_reset() {
    assert!(is_caught(|| {
        a_number_is_given_again(|client| {
            client.on.swap(2, SeqCst);
            client.bitmap.reset();
        });
    }));
}

/// What is marked, and a client's set.
struct Dirty {
    marked: Bitmap<AtomicU64>,
    set: Mutex<PageSet>,
}

impl Dirty {
    fn merge(&self, bits: u64) {
        let mut words = [0; 64];
        words[0] = bits;
        self.set.lock().unwrap().merge_chunk(0, &words, 1);
    }

    /// A harvest of the client.
    fn take(&self) -> u64 {
        self.distribute();
        let mut all = 0;
        self.set.lock().unwrap().take(&(0..64), |_, bits| all |= bits);
        all
    }

    /// What the harvest of any client does first.
    fn distribute(&self) {
        if self.marked.dirty_granule(&(0..64)).is_some() {
            let mut set = self.set.lock().unwrap();
            self.marked.take(&(0..64), |word, bits| {
                set.insert_word(word, bits);
            });
        }
    }
}

/// A merge, a mark that has returned before the harvest, and another client's harvest at the same
/// time, which distributes the mark.
fn a_merge_and_a_mark_of_one_word(distribute: fn(&Dirty)) {
    let dirty = Arc::new(Dirty {
        marked: Bitmap::new(64).unwrap(),
        set: Mutex::new(PageSet::new(64).unwrap()),
    });
    let merger = {
        let dirty = dirty.clone();
        thread::spawn(move || dirty.merge(0b01))
    };
    let other = {
        let dirty = dirty.clone();
        thread::spawn(move || distribute(&dirty))
    };
    dirty.marked.mark_word(0, 0b10);
    let mut found = dirty.take();
    assert_ne!(found & 0b10, 0, "a mark that had returned was not found");
    merger.join().unwrap();
    other.join().unwrap();
    found |= dirty.take();
    assert_eq!(found, 0b11, "a bit was lost");
}

#[test]
fn a_harvest_joins_what_is_merged_and_what_is_marked() {
    model(|| a_merge_and_a_mark_of_one_word(Dirty::distribute));
}

/// Wrong: the lock is released between taking the marks and giving them to the client.
#[test]
fn the_model_sees_a_distribution_that_lets_go_of_the_lock() {
    assert!(is_caught(|| {
        a_merge_and_a_mark_of_one_word(|dirty| {
            let mut taken = 0;
            let set = dirty.set.lock().unwrap();
            dirty.marked.take(&(0..64), |_, bits| taken |= bits);
            drop(set);
            dirty.set.lock().unwrap().insert_word(0, taken);
        });
    }));
}

/// Wrong: whether a client is on is decided by its bit alone, read before the page is written.
#[test]
fn the_model_sees_a_mask_that_is_read_before_the_store() {
    assert!(is_caught(|| {
        let (on, page) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let writer = {
            let (on, page) = (on.clone(), page.clone());
            thread::spawn(move || {
                let marks = on.load(Acquire);
                page.swap(1, AcqRel);
                marks
            })
        };
        on.swap(1, SeqCst);
        let seen = page.load(SeqCst);
        assert!(writer.join().unwrap() == 1 || seen == 1, "neither marked nor seen");
    }));
}

/// A page in a log that is read and cleared in two steps, as KVM's with manual protection:
/// whether its bit is set, and whether a store would set it.
struct Logged {
    bit: bool,
    watched: bool,
}

impl Logged {
    fn store(&mut self) {
        if self.watched {
            *self = Self { bit: true, watched: false };
        }
    }
}

/// Which steps the two sides take.
#[derive(Clone, Copy, Debug)]
struct Steps {
    /// A client is on before it is counted.
    counted_last: bool,
    /// The count is read before the report is merged.
    read_first: bool,
    /// Whether the count is read before the clear, and after it.
    looks: [bool; 2],
}

/// A page that a guest wrote is reported, merged and cleared, while a client is switched on
/// and reads the page, before the guest stores to it again.
fn a_client_comes_while_a_page_is_cleared(steps: Steps) {
    let log = Arc::new(Mutex::new(Logged { bit: true, watched: false }));
    let (on, count) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let clears = {
        let (log, on, count) = (log.clone(), on.clone(), count.clone());
        thread::spawn(move || {
            let early = count.load(SeqCst);
            assert!(log.lock().unwrap().bit);
            let given = on.load(Acquire) != 0;
            let since = if steps.read_first { early } else { count.load(SeqCst) };
            if steps.looks[0] && count.load(SeqCst) != since {
                return given;
            }
            *log.lock().unwrap() = Logged { bit: false, watched: true };
            // Merged again: for the client, if it is on.
            given || steps.looks[1] && count.load(SeqCst) != since && on.load(Acquire) != 0
        })
    };
    if steps.counted_last {
        on.fetch_or(1, SeqCst);
        count.fetch_add(1, SeqCst);
    } else {
        count.fetch_add(1, SeqCst);
        on.fetch_or(1, SeqCst);
    }
    // It is on now, and reads the page. Then the guest stores, ordered after that.
    log.lock().unwrap().store();
    let given = clears.join().unwrap();
    // What the last sync finds.
    let reported = log.lock().unwrap().bit;
    assert!(given || reported, "the store is lost");
}

#[test]
fn a_client_that_comes_while_a_page_is_cleared_gets_its_store() {
    model(|| {
        let steps = Steps { counted_last: true, read_first: true, looks: [true; 2] };
        a_client_comes_while_a_page_is_cleared(steps);
    });
}

/// Wrong: each step of the protocol that is left out.
#[test]
fn the_model_sees_each_look_at_the_count_that_is_missing() {
    let right = Steps { counted_last: true, read_first: true, looks: [true; 2] };
    for wrong in [
        Steps { looks: [true, false], ..right },
        Steps { looks: [false; 2], ..right },
        Steps { counted_last: false, ..right },
        Steps { read_first: false, ..right },
    ] {
        assert!(is_caught(move || a_client_comes_while_a_page_is_cleared(wrong)), "{wrong:?}");
    }
}
