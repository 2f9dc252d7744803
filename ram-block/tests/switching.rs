//! Clients that come and go while others mark, merge and harvest: what is written for a
//! client is its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ram_block::{DirtyClient, DirtyError, DirtyMemory, PageSize};

const PAGES: u64 = 1 << 20;
const EVERY: usize = 4096;

/// Pages that the owner of a number marks after he has switched it on.
fn own_pages() -> Vec<u64> {
    (0..PAGES).step_by(EVERY).collect()
}

/// One thread switches a client off and on again and marks pages; another harvests the
/// same number all the time, as somebody who has not heard of it, and gives
/// everything back, in one way or another. All of it comes back, so all that was marked after a switch is there
/// in the end.
#[test]
fn a_harvest_across_a_switch_takes_nothing_from_the_next() {
    let dirty = DirtyMemory::new(PAGES, PageSize::new(4096).unwrap());
    let client = DirtyClient::VGA;
    dirty.enable(client).unwrap();
    let stop = AtomicBool::new(false);
    let deadline = Instant::now() + Duration::from_secs(3);
    std::thread::scope(|scope| {
        let harvester = {
            let (dirty, stop) = (&dirty, &stop);
            scope.spawn(move || {
                let mut private = vec![0; usize::try_from(PAGES / 64).unwrap()];
                let mut turns = 0;
                while !stop.load(Ordering::SeqCst) {
                    turns += 1;
                    let result = match turns % 3 {
                        // Not committed.
                        0 => dirty.snapshot_and_clear(client, 0..PAGES).map(drop),
                        1 => {
                            // Given back by hand.
                            let moved = dirty.move_into(client, 0..PAGES, &mut private);
                            give_back(dirty, &mut private);
                            moved.map(drop)
                        }
                        _ => dirty
                            .visit_runs(client, 0..PAGES, 0, |run| {
                                // What was seen is given back by hand.
                                dirty.mark_pages(&run.collect::<Vec<_>>());
                                std::ops::ControlFlow::Break(())
                            })
                            .map(drop),
                    };
                    assert!(matches!(result, Ok(()) | Err(DirtyError::ClientOff { .. })));
                }
                turns
            })
        };
        /// The harvester ends however the test does.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let stopping = Stop(&stop);
        let mut rounds = 0u64;
        while Instant::now() < deadline {
            rounds += 1;
            dirty.mark(0, PAGES * 4096);
            dirty.disable(client);
            dirty.enable(client).unwrap();
            dirty.mark_pages(&own_pages());
            let log = [1 << 7];
            dirty.merge(64 * rounds, 64, &log).unwrap();
            let missing = |page: &u64| {
                let deadline = Instant::now() + Duration::from_secs(5);
                while !dirty.is_dirty(client, *page) {
                    // Somebody may be about to give it back.
                    if Instant::now() > deadline {
                        return true;
                    }
                    std::thread::yield_now();
                }
                false
            };
            let lost: Vec<_> = own_pages().into_iter().filter(missing).take(1).collect();
            assert_eq!(lost, [0; 0], "in round {rounds}");
        }
        drop(stopping);
        assert!(rounds > 10 && harvester.join().unwrap() > 10);
    });
}

fn give_back(dirty: &Arc<DirtyMemory>, private: &mut [u64]) {
    for (word, bits) in (0..).zip(private.iter_mut()).filter(|(_, bits)| **bits != 0) {
        let pages = (0..64).filter(|bit| *bits >> bit & 1 != 0).map(|bit| word * 64 + bit);
        dirty.mark_pages(&pages.collect::<Vec<_>>());
        *bits = 0;
    }
}
