//! Hooks that write watched pages of other blocks, and so each other's.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use crate::block::ram_block::RamBlock;
use crate::dirty::code_watch::CodeWatch;

const PAGE: u64 = 4096;
const PAGES: u64 = 16;

/// Runs `work` on a thread of its own; a thread that hangs is left behind.
fn within_a_minute(work: impl FnOnce() + Send + 'static) {
    let (done, end) = mpsc::channel();
    let worker = thread::spawn(move || {
        work();
        let _ = done.send(());
    });
    match end.recv_timeout(Duration::from_secs(60)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("hooks wait for each other"),
        _ => worker.join().unwrap(),
    }
}

/// Blocks of which the hook of each writes the same page of the next; how often each hook
/// was called.
struct Circle {
    blocks: Vec<Arc<RamBlock>>,
    watches: Vec<CodeWatch>,
    told: Arc<Vec<AtomicU64>>,
}

impl Circle {
    fn new(len: usize) -> Self {
        Self::with(len, |_| ())
    }

    /// As [`new`](Self::new), with `before` called in each hook before it writes.
    fn with(len: usize, before: impl Fn(usize) + Clone + Send + Sync + 'static) -> Self {
        let blocks: Vec<_> =
            (0..len).map(|n| RamBlock::anonymous(&n.to_string(), PAGES * PAGE).unwrap()).collect();
        let told: Arc<Vec<_>> = Arc::new((0..len).map(|_| AtomicU64::new(0)).collect());
        let watch = |at: usize| {
            let (next, told) = (Arc::downgrade(&blocks[(at + 1) % len]), told.clone());
            let before = before.clone();
            let hook = move |page| {
                told[at].fetch_add(1, Ordering::SeqCst);
                before(at);
                if let Some(next) = next.upgrade() {
                    next.write(page * PAGE, &[1]).unwrap();
                }
            };
            blocks[at].dirty().watch_code(hook).unwrap()
        };
        let watches: Vec<_> = (0..len).map(watch).collect();
        for watch in &watches {
            watch.watch(0..PAGES).unwrap();
        }
        Self { blocks, watches, told }
    }

    fn told(&self) -> Vec<u64> {
        self.told.iter().map(|told| told.load(Ordering::SeqCst)).collect()
    }

    fn is_watched(&self, page: u64) -> bool {
        self.watches.iter().any(|watch| watch.is_watched(page))
    }
}

#[test]
fn a_chain_of_any_length_ends_and_tells_each_hook_once() {
    within_a_minute(|| {
        for len in [1, 2, 3, 10, 100] {
            let circle = Circle::new(len);
            circle.blocks[0].write(5 * PAGE, &[1]).unwrap();
            assert_eq!(circle.told(), vec![1; len], "{len} blocks");
            assert!(!circle.is_watched(5) && circle.is_watched(6));
            // Several pages at once, by the other ways in.
            circle.blocks[len / 2].dirty().merge(0, 16, &[0b1100]).unwrap();
            circle.blocks[0].discard(8 * PAGE, 4 * PAGE).unwrap();
            assert_eq!(circle.told(), vec![7; len], "{len} blocks");
        }
    });
}

/// Each of as many threads as blocks is in a hook before one of them writes on.
#[test]
fn threads_that_are_in_the_hooks_of_a_circle_do_not_wait_for_each_other() {
    for len in [2, 3, 5] {
        within_a_minute(move || {
            let inside = Arc::new(Barrier::new(len));
            // The first time only: a hook that another hook causes meets no other thread.
            let met: Arc<Vec<OnceLock<()>>> = Arc::new((0..len).map(|_| OnceLock::new()).collect());
            let circle = Circle::with(len, move |at| {
                if met[at].set(()).is_ok() {
                    inside.wait();
                }
            });
            thread::scope(|scope| {
                for block in &circle.blocks {
                    scope.spawn(|| block.write(PAGE, &[1]).unwrap());
                }
            });
            assert!(circle.told().iter().all(|told| *told >= 1));
            assert!(!circle.is_watched(1) && circle.is_watched(2));
        });
    }
}

/// Writers go round from every block, while a translator watches again: what is left is what
/// was translated after the last write.
#[test]
fn no_translation_of_a_circle_is_stale() {
    const ROUNDS: u64 = 2_000;
    within_a_minute(|| {
        // What each block's page held when it was translated.
        let caches: Arc<Vec<Mutex<Option<u64>>>> =
            Arc::new((0..3).map(|_| Mutex::default()).collect());
        let forget = caches.clone();
        let circle = Circle::with(3, move |at| *forget[at].lock().unwrap() = None);
        // Counts the stores to the page's second word, which the hooks do not write.
        let read = |at: usize| {
            let mut bytes = [0; 8];
            circle.blocks[at].read(8, &mut bytes).unwrap();
            u64::from_le_bytes(bytes)
        };
        let stop = std::sync::atomic::AtomicBool::new(false);
        thread::scope(|scope| {
            let translator = scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    for (at, watch) in circle.watches.iter().enumerate() {
                        let watching = watch.watch(0..1).unwrap();
                        let code = read(at);
                        *caches[at].lock().unwrap() = Some(code);
                        if !watch.is_current(watching) {
                            *caches[at].lock().unwrap() = None;
                        }
                    }
                }
            });
            let writers: Vec<_> = (0..3)
                .map(|at| {
                    let block = &circle.blocks[at];
                    scope.spawn(move || {
                        for value in 1..=ROUNDS {
                            block.write(8, &value.to_le_bytes()).unwrap();
                        }
                    })
                })
                .collect();
            writers.into_iter().for_each(|writer| writer.join().unwrap());
            stop.store(true, Ordering::SeqCst);
            translator.join().unwrap();
        });
        for (at, cache) in caches.iter().enumerate() {
            let found = *cache.lock().unwrap();
            assert!(found.is_none_or(|found| found == ROUNDS), "{at}: {found:?} is stale");
        }
    });
}

/// Two hooks drop each other's watch at the same time.
#[test]
fn hooks_may_end_each_others_watch() {
    within_a_minute(|| {
        let inside = Arc::new(Barrier::new(2));
        let watches: Arc<Vec<Mutex<Option<CodeWatch>>>> =
            Arc::new((0..2).map(|_| Mutex::default()).collect());
        let blocks = ["a", "b"].map(|id| RamBlock::anonymous(id, PAGES * PAGE).unwrap());
        for (at, block) in blocks.iter().enumerate() {
            let (inside, watches) = (inside.clone(), watches.clone());
            let hook = {
                let watches = watches.clone();
                move |_| {
                    inside.wait();
                    let other = watches[1 - at].lock().unwrap().take();
                    drop(other);
                }
            };
            let watch = block.dirty().watch_code(hook).unwrap();
            watch.watch(0..1).unwrap();
            *watches[at].lock().unwrap() = Some(watch);
        }
        thread::scope(|scope| {
            for block in &blocks {
                scope.spawn(|| block.write(0, &[1]).unwrap());
            }
        });
        for block in &blocks {
            drop(block.dirty().watch_code(|_| ()).unwrap());
        }
    });
}

/// A watch that is dropped elsewhere waits for the hook that runs.
#[test]
fn no_hook_runs_when_its_watch_is_gone() {
    within_a_minute(|| {
        let ram = RamBlock::anonymous("ram", PAGES * PAGE).unwrap();
        let (inside, returned) = (Arc::new(Barrier::new(2)), Arc::new(AtomicU64::new(0)));
        let hook = {
            let (inside, returned) = (inside.clone(), returned.clone());
            move |_| {
                inside.wait();
                thread::yield_now();
                returned.fetch_add(1, Ordering::SeqCst);
            }
        };
        for round in 1..=200 {
            let watch = ram.dirty().watch_code(hook.clone()).unwrap();
            watch.watch(0..1).unwrap();
            thread::scope(|scope| {
                scope.spawn(|| ram.write(0, &[1]).unwrap());
                inside.wait();
                drop(watch);
                assert_eq!(returned.load(Ordering::SeqCst), round, "the hook still runs");
            });
        }
    });
}
