//! Discards of private copies of files: what they take of the process's mappings.
#![cfg(target_os = "linux")]
#![allow(unsafe_code)] // mappings, until there are no more

use std::fs::{File, OpenOptions};
use std::sync::{Arc, Mutex, PoisonError};

use ram_block::{DirtyClient, PageSize, RamBlock};

fn page_bytes() -> u64 {
    PageSize::host().bytes()
}

/// Mappings are the whole process's: one test at a time.
static TURN: Mutex<()> = Mutex::new(());

/// A file of `pages` pages that is gone with its descriptor; each begins with its number.
fn file(pages: u64) -> File {
    use std::os::unix::fs::FileExt;
    let name = format!("ram-block-holes-{}-{pages}", std::process::id());
    let path = std::env::temp_dir().join(name);
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file.set_len(pages * page_bytes()).unwrap();
    (0..pages).for_each(|page| file.write_all_at(&content(page), page * page_bytes()).unwrap());
    file
}

fn content(page: u64) -> [u8; 8] {
    (page + 1).to_le_bytes()
}

fn copy(pages: u64) -> Arc<RamBlock> {
    RamBlock::builder("ram", pages * page_bytes()).file_private(&file(pages), 0).unwrap()
}

/// How many mappings the process has.
fn mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().count()
}

/// Checks each page: discarded and so zero, or the file's bytes.
fn check(ram: &RamBlock, is_zero: impl Fn(u64) -> bool) {
    for page in 0..ram.pages() {
        let mut found = [0; 8];
        ram.read(page * page_bytes(), &mut found).unwrap();
        let expected = if is_zero(page) { [0; 8] } else { content(page) };
        assert_eq!(found, expected, "page {page}");
    }
}

/// How much of the block's memory is the process's own, in bytes: not the file's.
fn own_memory(ram: &RamBlock) -> u64 {
    let (start, end) = (ram.host_address() as u64, ram.host_address() as u64 + ram.len());
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut inside, mut kib) = (false, 0);
    for line in smaps.lines() {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        if let Some((from, _)) = range {
            let from = u64::from_str_radix(from, 16);
            inside = from.is_ok_and(|from| (start..end).contains(&from));
        } else if let Some(size) = line.strip_prefix("Anonymous:").filter(|_| inside) {
            kib += size.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        }
    }
    kib << 10
}

/// A balloon that takes every other page takes a few thousand mappings, not all of them.
#[test]
fn scattered_discards_leave_the_process_its_mappings() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    const PAGES: u64 = 20_000;
    let ram = copy(PAGES);
    let _log = ram.dirty().claim(DirtyClient::MIGRATION).unwrap();
    let before = mappings();
    for page in (0..PAGES).step_by(2) {
        ram.write(page * page_bytes(), &[9]).unwrap();
        ram.discard(page * page_bytes(), page_bytes()).unwrap();
    }
    let taken = mappings() - before;
    assert!(taken <= 2_100, "{taken} mappings are taken");
    check(&ram, |page| page % 2 == 0);
    let dirty = |page| ram.dirty().is_dirty(DirtyClient::MIGRATION, page);
    assert!((0..PAGES).all(|page| dirty(page) == (page % 2 == 0)));
    // The others, and all of them again: holes grow together.
    for page in (0..PAGES).rev() {
        ram.write(page * page_bytes(), &[8]).unwrap();
        ram.discard(page * page_bytes(), page_bytes()).unwrap();
    }
    let taken = mappings() - before;
    assert!(taken <= 2_100, "{taken} mappings are taken");
    check(&ram, |_| true);
    // In one piece all of it is given back, and there is room for others.
    ram.discard(0, ram.len()).unwrap();
    assert!(mappings() - before <= 2, "one hole");
    if gives_back() {
        assert_eq!(own_memory(&ram), 0);
    }
    check(&ram, |_| true);
}

/// Neighbours that have pages already are not joined by the kernel: they count all the same.
#[test]
fn holes_that_have_pages_when_they_meet_are_bounded_too() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    const PAGES: u64 = 40_000;
    let ram = copy(PAGES);
    let before = mappings();
    for group in (0..PAGES).step_by(100) {
        let discard = |page: u64| ram.discard((group + page) * page_bytes(), page_bytes()).unwrap();
        // Holes that are written, then what is between them.
        for page in (0..100).step_by(2) {
            discard(page);
            ram.write((group + page) * page_bytes(), &[1]).unwrap();
        }
        (1..100).step_by(2).for_each(discard);
        (0..100).step_by(2).for_each(discard);
    }
    let taken = mappings() - before;
    assert!(taken <= 2_100, "{taken} mappings are taken");
    check(&ram, |_| true);
}

/// What is discarded in one piece, or piece by piece in order, is given back.
#[test]
fn what_adjoins_is_given_back() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let ram = copy(8_000);
    let before = mappings();
    for page in 0..ram.pages() {
        ram.write(page * page_bytes(), &[9]).unwrap();
    }
    assert_eq!(own_memory(&ram), ram.len());
    for page in 1_000..5_000 {
        ram.discard(page * page_bytes(), page_bytes()).unwrap();
    }
    ram.discard(6_000 * page_bytes(), 1_000 * page_bytes()).unwrap();
    assert!(mappings() - before <= 4, "two holes");
    if gives_back() {
        assert_eq!(own_memory(&ram), 3_000 * page_bytes());
    }
    for page in 1_000..5_000 {
        ram.write(page * page_bytes(), &[7]).unwrap();
    }
    ram.discard(500 * page_bytes(), 6_000 * page_bytes()).unwrap();
    assert!(mappings() - before <= 4, "one hole");
    if gives_back() {
        assert_eq!(own_memory(&ram), 1_500 * page_bytes());
    }
    ram.discard(0, ram.len()).unwrap();
    check(&ram, |_| true);
}

/// Whether the memory of copies of files is given back: not before Linux 6.12.
fn gives_back() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map_while(|number| number.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 12)
}

/// With no mapping left in the process, a discard still zeroes, and nothing is unmapped.
#[test]
fn a_discard_needs_no_mapping() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let ram = copy(64);
    ram.discard(10 * page_bytes(), page_bytes()).unwrap();
    // One mapping for each page, as neighbours differ in what may be done with them.
    let step = usize::try_from(page_bytes()).unwrap();
    let len = 80_000 * step;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: the kernel chooses a free place.
    let place = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
    assert_ne!(place, libc::MAP_FAILED);
    let mut full = false;
    for at in (0..len).step_by(2 * step) {
        // SAFETY: the page lies within the place that was just mapped, which nobody uses.
        full = unsafe { libc::mprotect(place.wrapping_byte_add(at), step, libc::PROT_READ) } != 0;
        if full {
            break;
        }
    }
    let results: [_; 3] = [20, 11, 10].map(|page| ram.discard(page * page_bytes(), page_bytes()));
    let mut found = [[1; 8]; 4];
    for (found, page) in found.iter_mut().zip([20, 11, 10, 21]) {
        ram.read(page * page_bytes(), found).unwrap();
    }
    // SAFETY: as above; everything else is as it was then.
    unsafe { libc::munmap(place, len) };
    results.into_iter().for_each(|result| result.unwrap());
    assert_eq!(found, [[0; 8], [0; 8], [0; 8], content(21)]);
    if !full {
        eprintln!("SKIPPED in part: this process may have more than 80,000 mappings");
    }
    check(&ram, |page| [10, 11, 20].contains(&page));
}
