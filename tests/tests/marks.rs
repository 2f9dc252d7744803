//! Ten million marks through vm-memory, against a harvester that never stops.
//!
//! In each pass four threads write every page of a region once, the pages of one
//! word shared among them, while a fifth harvests every client. Each page must be
//! harvested exactly once for each of them, from one client to all eight. The same with
//! a harvest that is not atomic must lose marks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ram_block::vm_memory::bitmap::{ArcSlice, Bitmap, BitmapSlice, WithBitmapSlice};
use ram_block::{Claimant, DirtyClaim, DirtyClient, DirtyMemory, PageSize};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

const THREADS: u64 = 4;
const MARKS: u64 = 10_000_000;
const PAGE: u64 = 512;
const PAGES: u64 = 1 << 17;

/// A client that harvests.
trait Harvests: Sync {
    /// Takes all its bits; counts each page that was dirty in `found`.
    fn harvest(&self, found: &mut [u32]);
}

impl Harvests for DirtyClaim {
    fn harvest(&self, found: &mut [u32]) {
        let harvest = self.snapshot_and_clear(0..PAGES).unwrap();
        for page in harvest.pages() {
            found[usize::try_from(page).unwrap()] += 1;
        }
        harvest.commit();
    }
}

/// Runs marks through vm-memory against harvests of each client; returns how many of `marks`,
/// times the clients, were never harvested. `passed` is called after each pass.
fn lost<B: Bitmap + Send + Sync + 'static>(
    bitmap: Arc<B>,
    clients: &[impl Harvests],
    marks: u64,
    mut passed: impl FnMut(),
) -> u64
where
    ArcSlice<B>: BitmapSlice,
{
    let size = usize::try_from(PAGES * PAGE).unwrap();
    let region = MmapRegionBuilder::new_with_bitmap(size, ArcSlice::new(bitmap, 0))
        .with_mmap_prot(3) // readable and writable
        .with_mmap_flags(0x22) // private, anonymous
        .build()
        .unwrap();
    let region = GuestRegionMmap::new(region, GuestAddress(0)).unwrap();
    let memory = GuestMemoryMmap::from_regions(vec![region]).unwrap();
    let mut lost = 0;
    let mut marked = 0;
    while marked < marks {
        let mut found = vec![vec![0; usize::try_from(PAGES).unwrap()]; clients.len()];
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let memory = &memory;
                    scope.spawn(move || {
                        for page in (thread..PAGES).step_by(usize::try_from(THREADS).unwrap()) {
                            memory.write_obj(1u8, GuestAddress(page * PAGE + thread)).unwrap();
                        }
                    })
                })
                .collect();
            let harvester = scope.spawn(|| {
                let mut last = false;
                while !last {
                    last = done.load(Ordering::Acquire);
                    for (client, found) in clients.iter().zip(&mut found) {
                        client.harvest(found);
                    }
                }
                found.concat()
            });
            writers.into_iter().for_each(|writer| writer.join().unwrap());
            done.store(true, Ordering::Release);
            let found = harvester.join().unwrap();
            assert!(found.iter().all(|times| *times <= 1), "a page was harvested twice");
            lost += found.iter().map(|times| u64::from(1 - *times)).sum::<u64>();
        });
        marked += PAGES;
        passed();
    }
    lost
}

/// VGA and migration first, then those that are claimed by a name; and with the eighth, a
/// translator that watches every page again before each pass.
#[test]
fn no_mark_is_lost_at_any_count_of_clients() {
    for count in 1..=DirtyClient::COUNT {
        let dirty = DirtyMemory::new(PAGES, PageSize::new(PAGE).unwrap());
        let built_in = [DirtyClient::VGA, DirtyClient::MIGRATION].map(Claimant::from);
        let named = (2..7).map(|n| Claimant::from(n.to_string().as_str()));
        let claimants = built_in.into_iter().chain(named).take(count);
        let clients: Vec<_> = claimants.map(|claimant| dirty.claim(claimant).unwrap()).collect();
        assert_eq!(dirty.enabled().iter().count(), count.min(7));
        let reports = Arc::new(AtomicU64::new(0));
        let watch = (count == DirtyClient::COUNT).then(|| {
            let reports = reports.clone();
            let watch = dirty.watch_code(move |_| {
                reports.fetch_add(1, Ordering::Relaxed);
            });
            let watch = watch.unwrap();
            watch.watch(0..PAGES).unwrap();
            watch
        });
        let mut passes = 0;
        let lost = lost(dirty, &clients, MARKS, || {
            passes += 1;
            if let Some(watch) = &watch {
                assert_eq!(reports.load(Ordering::Relaxed), passes * PAGES);
                watch.watch(0..PAGES).unwrap();
            }
        });
        assert_eq!(lost, 0, "with {count} clients");
    }
}

/// Marks as it should, and harvests as it must not: reads a word, then clears it.
#[derive(Default)]
struct ReadThenClear(Vec<AtomicU64>);

impl<'a> WithBitmapSlice<'a> for ReadThenClear {
    type S = ram_block::vm_memory::bitmap::RefSlice<'a, Self>;
}

impl Bitmap for ReadThenClear {
    fn mark_dirty(&self, offset: usize, _: usize) {
        let page = offset as u64 / PAGE;
        self.0[usize::try_from(page / 64).unwrap()].fetch_or(1 << (page % 64), Ordering::AcqRel);
    }

    fn dirty_at(&self, _: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> <Self as WithBitmapSlice<'_>>::S {
        ram_block::vm_memory::bitmap::RefSlice::new(self, offset)
    }
}

impl Harvests for Arc<ReadThenClear> {
    fn harvest(&self, found: &mut [u32]) {
        for (word, bits) in self.0.iter().enumerate() {
            let taken = bits.load(Ordering::Acquire);
            if taken == 0 {
                continue;
            }
            if taken != u64::MAX {
                // Somebody is about to mark a page of it: he runs now, on a busy machine too.
                std::thread::yield_now();
            }
            bits.store(0, Ordering::Release);
            for bit in (0..64).filter(|bit| taken >> bit & 1 != 0) {
                found[word * 64 + bit] += 1;
            }
        }
    }
}

#[test]
fn the_test_sees_a_harvest_that_is_not_atomic() {
    let words = usize::try_from(PAGES / 64).unwrap();
    let broken = Arc::new(ReadThenClear((0..words).map(|_| AtomicU64::new(0)).collect()));
    let lost = lost(broken.clone(), &[broken], MARKS, || ());
    println!("{lost} of {MARKS} marks lost");
    assert!(lost > 0);
}
