//! What vm-memory expects of a `Bitmap`, checked for ours and for its own.
//!
//! The same suite runs against `DirtyBitmap`, a shared `DirtyMemory`, `AtomicBitmap`,
//! `Option`s of them, and `()`, which tracks nothing.
#![cfg(all(target_os = "linux", feature = "vm-memory"))]

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use ram_block::{DirtyBitmap, DirtyClient, DirtyMemory, PageSize};
use vm_memory::bitmap::{ArcSlice, AtomicBitmap, Bitmap, NewBitmap};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress, ReadVolatile, VolatileMemory,
};

const PAGES: usize = 700;
/// Not a whole number of pages, as a bitmap may be asked for.
const LEN: usize = PAGES * 4096 - 100;

/// Every page of which some byte is dirty, by the first and the last byte of each.
fn dirty_pages<B: Bitmap>(bitmap: &B) -> BTreeSet<usize> {
    (0..PAGES)
        .filter(|page| {
            let first = bitmap.dirty_at(page * 4096);
            let last = bitmap.dirty_at((page * 4096 + 4095).min(LEN - 1));
            assert_eq!(first, last, "page {page} is dirty in part");
            first
        })
        .collect()
}

/// Marks through the bitmap and through slices of slices of it, against a set of pages.
fn marks_what_it_is_told<B: Bitmap>(
    make: impl Fn() -> B,
    tracks: bool,
    marks: &[(usize, usize, usize, usize)],
) -> Result<(), TestCaseError> {
    let bitmap = make();
    let mut expected = BTreeSet::new();
    prop_assert_eq!(dirty_pages(&bitmap), BTreeSet::new(), "a new bitmap is clean");
    for &(base, second, offset, len) in marks {
        let slice = bitmap.slice_at(base);
        let inner = slice.slice_at(second);
        let start = base + second + offset;
        let len = len.min(LEN.saturating_sub(start));
        inner.mark_dirty(offset, len);
        if len > 0 && tracks {
            expected.extend(start / 4096..=(start + len - 1) / 4096);
        }
        prop_assert_eq!(inner.dirty_at(offset), expected.contains(&(start / 4096)));
        prop_assert_eq!(slice.clone().dirty_at(second), bitmap.dirty_at(base + second));
    }
    prop_assert_eq!(dirty_pages(&bitmap), expected);
    // What lies outside is ignored, and clean.
    bitmap.mark_dirty(LEN + 8192, 1 << 40);
    bitmap.mark_dirty(usize::MAX, 1);
    prop_assert!(!bitmap.dirty_at(LEN + 8192) && !bitmap.dirty_at(usize::MAX));
    Ok(())
}

/// What a call of vm-memory does to the page at its address: (name, marks, call).
type Call<B> = (&'static str, bool, fn(&GuestRegionMmap<B>, MemoryRegionAddress));

/// Every call that reaches guest memory, at a page of its own.
fn calls<B: Bitmap>() -> Vec<Call<B>> {
    fn slice<B: Bitmap>(
        region: &GuestRegionMmap<B>,
        at: MemoryRegionAddress,
    ) -> vm_memory::VolatileSlice<'_, vm_memory::bitmap::BS<'_, B>> {
        GuestMemoryRegion::get_slice(region, at, 64).unwrap()
    }
    vec![
        ("write", true, |r, at| {
            let _ = r.write(&[1; 64], at).unwrap();
        }),
        ("write_slice", true, |r, at| r.write_slice(&[1; 64], at).unwrap()),
        ("write_obj", true, |r, at| r.write_obj(1u64, at).unwrap()),
        ("store", true, |r, at| r.store(1u32, at, Ordering::Relaxed).unwrap()),
        ("read_volatile_from", true, |r, at| {
            let _ = r.read_volatile_from(at, &mut &[1u8; 64][..], 64).unwrap();
        }),
        ("read_exact_volatile_from", true, |r, at| {
            r.read_exact_volatile_from(at, &mut &[1u8; 64][..], 64).unwrap();
        }),
        ("ReadVolatile of a file", true, |r, at| {
            let mut zero = std::fs::File::open("/dev/zero").unwrap();
            zero.read_exact_volatile(&mut slice(r, at)).unwrap();
        }),
        ("VolatileSlice::copy_from", true, |r, at| slice(r, at).copy_from(&[1u16; 32])),
        ("VolatileSlice::copy_from of bytes", true, |r, at| slice(r, at).copy_from(&[1u8; 32])),
        ("VolatileSlice::copy_to_volatile_slice", true, |r, at| {
            let mut source = [1u8; 64];
            let source = vm_memory::VolatileSlice::from(&mut source[..]);
            source.copy_to_volatile_slice(slice(r, at));
        }),
        ("VolatileRef::store", true, |r, at| slice(r, at).get_ref::<u64>(8).unwrap().store(1)),
        ("VolatileArrayRef::store", true, |r, at| {
            slice(r, at).get_array_ref::<u64>(0, 4).unwrap().store(2, 1);
        }),
        ("VolatileArrayRef::copy_from", true, |r, at| {
            slice(r, at).get_array_ref::<u64>(0, 4).unwrap().copy_from(&[1; 4]);
        }),
        ("read", false, |r, at| {
            let _ = r.read(&mut [0; 64], at).unwrap();
        }),
        ("read_obj", false, |r, at| {
            let _ = r.read_obj::<u64>(at).unwrap();
        }),
        ("load", false, |r, at| {
            let _ = r.load::<u32>(at, Ordering::Relaxed).unwrap();
        }),
        ("write_volatile_to", false, |r, at| {
            let _ = r.write_volatile_to(at, &mut Vec::new(), 64).unwrap();
        }),
        ("VolatileSlice::copy_to", false, |r, at| {
            let _ = slice(r, at).copy_to(&mut [0u8; 64]);
        }),
        ("VolatileRef::load", false, |r, at| {
            slice(r, at).get_ref::<u64>(8).unwrap().load();
        }),
        // These write without a mark: an explicit one has to follow.
        ("get_atomic_ref", false, |r, at| {
            let slice = slice(r, at);
            slice.get_atomic_ref::<AtomicU64>(0).unwrap().store(1, Ordering::Relaxed);
        }),
        ("get_host_address", false, |r, at| {
            let _ = r.get_host_address(at).unwrap();
        }),
        ("ptr_guard_mut", false, |r, at| {
            let _ = slice(r, at).ptr_guard_mut().as_ptr();
        }),
    ]
}

/// Each call marks its own page or nothing.
fn calls_mark_what_they_write<B: Bitmap>(region: &GuestRegionMmap<B>, tracks: bool) {
    let mut expected = BTreeSet::new();
    for (n, (name, marks, call)) in calls::<B>().into_iter().enumerate() {
        // Within a page, so that the neighbours must stay clean.
        let page = 2 * n + 1;
        let at = page * 4096 + 16;
        call(region, MemoryRegionAddress(at as u64));
        if tracks && marks {
            expected.insert(page);
        }
        assert_eq!(dirty_pages(&GuestMemoryRegion::bitmap(region)), expected, "after {name}");
        if !marks {
            GuestMemoryRegion::bitmap(region).mark_dirty(at, 64);
            expected.extend(Some(page).filter(|_| tracks));
            assert_eq!(dirty_pages(&GuestMemoryRegion::bitmap(region)), expected, "{name}");
        }
    }
}

/// A region of vm-memory's own with `bitmap`.
fn region_with<B: Bitmap>(bitmap: B) -> GuestRegionMmap<B> {
    let region = MmapRegionBuilder::new_with_bitmap(LEN, bitmap)
        .with_mmap_prot(3) // readable and writable
        .with_mmap_flags(0x22) // private, anonymous
        .build()
        .unwrap();
    GuestRegionMmap::new(region, GuestAddress(0)).unwrap()
}

/// Accesses that cross from one region of `GuestMemoryMmap<B>` to the next mark both.
fn works_in_guest_memory<B: NewBitmap>(enable: impl Fn(&B), tracks: bool) {
    let (first, second) = (GuestAddress(0x1000), GuestAddress(0x1000 + (1 << 20)));
    let ranges = [(first, 1 << 20), (second, 1 << 20)];
    let memory = GuestMemoryMmap::<B>::from_ranges(&ranges).unwrap();
    memory.iter().for_each(|region| enable(region.get_mmap().bitmap()));
    memory.write_slice(&[7; 8192], GuestAddress(second.0 - 4096)).unwrap();
    let dirty = |base: GuestAddress| {
        let region = memory.find_region(base).unwrap();
        let bitmap = GuestMemoryRegion::bitmap(region);
        (0..256usize).filter(|page| bitmap.dirty_at(page * 4096)).collect::<Vec<_>>()
    };
    let expected = |page: usize| Some(page).filter(|_| tracks).into_iter().collect::<Vec<_>>();
    assert_eq!(dirty(first), expected(255));
    assert_eq!(dirty(second), expected(0));
}

/// A claim that nobody ends.
fn log_for_good(bitmap: &DirtyBitmap) {
    std::mem::forget(bitmap.claim(DirtyClient::MIGRATION).unwrap());
}

fn ours() -> DirtyBitmap {
    let pages = PAGES as u64;
    let bitmap = DirtyBitmap::from(DirtyMemory::new(pages, PageSize::new(4096).unwrap()));
    log_for_good(&bitmap);
    bitmap
}

fn shared() -> ArcSlice<DirtyMemory> {
    ArcSlice::new(Arc::clone(&ours()), 0)
}

fn off() -> DirtyBitmap {
    DirtyMemory::new(PAGES as u64, PageSize::new(4096).unwrap()).into()
}

fn theirs() -> AtomicBitmap {
    AtomicBitmap::new(LEN, NonZeroUsize::new(4096).unwrap())
}

fn their_slice() -> ArcSlice<AtomicBitmap> {
    ArcSlice::new(Arc::new(theirs()), 0)
}

proptest! {
    #[test]
    fn marks_are_those_that_were_asked_for(
        marks in prop::collection::vec(
            (0..LEN / 2, 0..LEN / 4, 0..LEN / 2, prop_oneof![0..3usize, 0..9000usize, Just(LEN)]),
            0..12,
        )
    ) {
        marks_what_it_is_told(ours, true, &marks)?;
        marks_what_it_is_told(shared, true, &marks)?;
        marks_what_it_is_told(|| Some(ours()), true, &marks)?;
        marks_what_it_is_told(off, false, &marks)?;
        marks_what_it_is_told(theirs, true, &marks)?;
        marks_what_it_is_told(their_slice, true, &marks)?;
        marks_what_it_is_told(|| None::<DirtyBitmap>, false, &marks)?;
        marks_what_it_is_told(|| (), false, &marks)?;
    }
}

#[test]
fn every_call_marks_what_it_writes() {
    calls_mark_what_they_write(&region_with(ours()), true);
    calls_mark_what_they_write(&region_with(shared()), true);
    calls_mark_what_they_write(&region_with(Some(ours())), true);
    calls_mark_what_they_write(&region_with(off()), false);
    calls_mark_what_they_write(&region_with(theirs()), true);
    calls_mark_what_they_write(&region_with(()), false);
}

#[test]
fn guest_memory_is_built_with_it() {
    works_in_guest_memory::<DirtyBitmap>(log_for_good, true);
    works_in_guest_memory::<DirtyBitmap>(|_| (), false);
    works_in_guest_memory::<AtomicBitmap>(|_| (), true);
    works_in_guest_memory::<()>(|()| (), false);
}
