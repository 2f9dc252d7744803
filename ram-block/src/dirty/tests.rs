//! Marks, merges and harvests of one block.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use crate::bitmap::bits::GRANULE;
use crate::dirty::claim::DirtyClaim;
use crate::dirty::client::{Claimant, ClientSet, DirtyClient};
use crate::dirty::error::DirtyError;
use crate::dirty::memory::DirtyMemory;
use crate::dirty::snapshot::DirtySnapshot;
use crate::page::PageSize;

const VGA: DirtyClient = DirtyClient::VGA;
const MIGRATION: DirtyClient = DirtyClient::MIGRATION;

fn memory(pages: u64) -> Arc<DirtyMemory> {
    DirtyMemory::new(pages, PageSize::new(4096).unwrap())
}

fn take(log: &DirtyClaim, pages: Range<u64>) -> Vec<u64> {
    let harvest = log.snapshot_and_clear(pages).unwrap();
    let pages = harvest.pages().collect();
    harvest.commit();
    pages
}

#[test]
fn a_harvest_takes_one_clients_bits_only() {
    let memory = memory(200);
    let (vga, migration) = (memory.claim(VGA).unwrap(), memory.claim(MIGRATION).unwrap());
    memory.mark(70 * 4096 - 1, 2);
    assert_eq!(take(&vga, 0..200), [69, 70]);
    assert_eq!(take(&vga, 0..200), [0; 0]);
    assert_eq!(take(&migration, 70..200), [70]);
    assert_eq!(take(&migration, 0..200), [69]);
    assert!(!memory.is_dirty(DirtyClient::CODE, 70));
}

#[test]
fn a_client_that_is_off_holds_nothing() {
    let memory = memory(64);
    memory.mark(0, 4096);
    let migration = memory.claim(MIGRATION).unwrap();
    memory.mark(4096, 1);
    assert!(!memory.is_dirty(VGA, 1));
    assert_eq!(memory.enabled(), ClientSet::EMPTY.with(MIGRATION));
    assert_eq!(take(&migration, 0..64), [1]);
}

#[test]
fn a_claim_that_ends_drops_its_bits() {
    let memory = memory(64);
    let vga = memory.claim(VGA).unwrap();
    memory.mark(0, 1);
    drop(vga);
    assert!(memory.enabled().is_empty() && !memory.is_dirty(VGA, 0));
    assert_eq!(take(&memory.claim(VGA).unwrap(), 0..64), [0; 0]);
}

#[test]
fn a_harvest_without_commit_gives_its_bits_back() {
    let memory = memory(300);
    let vga = memory.claim(VGA).unwrap();
    memory.mark(5 * 4096, 290 * 4096);
    let harvest = vga.snapshot_and_clear(10..20).unwrap();
    assert!(!memory.is_dirty(VGA, 10));
    drop(harvest);
    assert_eq!(take(&vga, 0..300), (5..295).collect::<Vec<_>>());
}

#[test]
fn what_lies_outside_the_block_is_ignored_by_marks_and_refused_by_merges() {
    let memory = memory(10);
    let vga = memory.claim(VGA).unwrap();
    memory.mark(9 * 4096, u64::MAX);
    memory.mark(10 * 4096, 1);
    memory.mark(u64::MAX, 1);
    assert_eq!(take(&vga, 0..10), [9]);
    let out = DirtyError::OutOfRange { start: 9, end: 11, pages: 10 };
    assert_eq!(memory.merge(9, 2, &[3]), Err(out.clone()));
    assert_eq!(vga.snapshot_and_clear(9..11).unwrap_err(), out);
    let overflow = memory.merge(u64::MAX, 2, &[3]).unwrap_err();
    assert!(matches!(overflow, DirtyError::OutOfRange { .. }));
    let short = DirtyError::ShortBitmap { words: 0, pages: 10, needed: 1 };
    assert_eq!(memory.merge(0, 10, &[]), Err(short));
}

#[test]
fn a_merge_reaches_every_client_that_is_on() {
    let memory = memory(1000);
    let vga = memory.claim(VGA).unwrap();
    let third = memory.claim("third").unwrap();
    let words = [1 << 63, 0b101];
    assert_eq!(memory.merge(37, 66, &words), Ok(2)); // bit 66 is past the count
    for log in [vga, third] {
        assert_eq!(take(&log, 0..1000), [37 + 63, 37 + 64]);
    }
}

#[test]
fn where_membarrier_is_refused_marks_fence_for_themselves() {
    let memory = DirtyMemory::with_fence(100, 100, PageSize::new(4096).unwrap(), true);
    memory.mark(0, 4096);
    assert!(memory.enabled().is_empty());
    let vga = memory.claim(VGA).unwrap();
    memory.mark(5 * 4096, 1);
    memory.merge(60, 10, &[0b11]).unwrap();
    assert_eq!(take(&vga, 0..100), [5, 60, 61]);
    drop(vga);
    memory.mark(5 * 4096, 1);
    let vga = memory.claim(VGA).unwrap();
    assert_eq!(take(&vga, 0..100), [0; 0]);
}

#[test]
fn listed_pages_are_marked_and_strangers_ignored() {
    let memory = memory(100);
    let vga = memory.claim(VGA).unwrap();
    assert_eq!(memory.mark_pages(&[99, 3, 3, 100, u64::MAX]), 3);
    assert_eq!(take(&vga, 0..100), [3, 99]);
}

#[test]
fn a_snapshot_buffer_is_reused() {
    let memory = memory(6400);
    let vga = memory.claim(VGA).unwrap();
    let mut buffer = DirtySnapshot::default();
    for round in 0..3 {
        memory.mark(round * 4096, 1);
        let harvest = vga.snapshot_and_clear_into(0..6400, buffer).unwrap();
        assert_eq!(harvest.pages().collect::<Vec<_>>(), [round]);
        let words = harvest.as_words().as_ptr();
        buffer = harvest.commit();
        assert_eq!(buffer.as_words().as_ptr(), words);
    }
}

#[test]
fn a_log_is_claimed_once_by_number_or_by_name() {
    let memory = memory(64);
    let claimed = |client: DirtyClient, by: &str| DirtyError::Claimed { client, by: by.to_owned() };
    let mut logs: Vec<_> = (0..5).map(|n| memory.claim(&*format!("log {n}")).unwrap()).collect();
    assert!(logs.iter().map(DirtyClaim::client).eq(DirtyClient::dynamic()));
    let refused = memory.claim("sixth").unwrap_err();
    assert_eq!(refused, DirtyError::TooManyClients { name: "sixth".to_owned() });
    let (fourth, fifth) = (logs.remove(3).client(), logs[3].client());
    assert_eq!(memory.claim(fifth).unwrap_err(), claimed(fifth, "log 4"));
    let again = memory.claim(Claimant::named(fourth, "again")).unwrap();
    assert_eq!(memory.claim(fourth).unwrap_err(), claimed(fourth, "again"));
    let _migration = memory.claim(MIGRATION).unwrap();
    assert_eq!(memory.claim(MIGRATION).unwrap_err(), claimed(MIGRATION, "migration"));
    assert_eq!(memory.claim(DirtyClient::CODE).unwrap_err(), DirtyError::CodeClient);
    // It ends once, whoever has the number then.
    again.end();
    let next = memory.claim(fourth).unwrap();
    again.end();
    drop(again);
    assert!(memory.enabled().contains(fourth));
    drop(next);
    assert!(!memory.enabled().contains(fourth));
}

/// While a claim exists nothing else can end it or take its bits, so a claim that has ended has no
/// bits to lose: those of the next client of its number are not its.
#[test]
fn a_claim_that_has_ended_takes_nothing_from_the_next() {
    let memory = memory(64);
    let first = memory.claim("first").unwrap();
    memory.mark(0, 4096);
    let harvest = first.snapshot_and_clear(0..64).unwrap();
    first.end();
    let second = memory.claim("second").unwrap();
    assert_eq!(second.client(), first.client());
    drop(harvest);
    assert_eq!(take(&second, 0..64), [0; 0]);
    memory.mark(4096, 1);
    let gone = |error| matches!(error, DirtyError::ClientOff { .. });
    assert!(gone(first.snapshot_and_clear(0..64).unwrap_err()));
    assert!(gone(first.move_into(0..64, &mut [0]).unwrap_err()));
    let visited = first.visit_runs(0..64, 0, |_| ControlFlow::<()>::Continue(()));
    assert!(gone(visited.unwrap_err()));
    assert_eq!(take(&second, 0..64), [1]);
}

/// The visitor of runs ends the claim, and another one begins.
#[test]
fn a_harvest_whose_claim_ends_takes_nothing_from_the_next() {
    let memory = memory(3 * GRANULE);
    let first = memory.claim("first").unwrap();
    let late = 2 * GRANULE + 5;
    memory.mark_pages(&[1, 3, late]);

    let mut second = None;
    let mut seen = Vec::new();
    let flow = first.visit_runs(0..memory.pages(), 0, |run| {
        seen.push(run);
        if second.is_none() {
            first.end();
            second = Some(memory.claim(first.client()).unwrap());
            memory.mark_pages(&[late]);
        }
        ControlFlow::<()>::Continue(())
    });
    assert!(matches!(flow, Err(DirtyError::ClientOff { .. })));
    assert!(seen.iter().all(|run| run.end <= 4), "{seen:?}");
    assert!(take(&second.unwrap(), 0..memory.pages()).contains(&late));
}

/// As one thread harvests and gives back without a break, its claim ends and the next begins: that
/// one has what is marked for it, and nothing of what is given back.
#[cfg(not(target_family = "wasm"))] // has no threads
#[test]
fn claims_that_follow_each_other_share_no_bits() {
    use std::sync::atomic::Ordering;

    use crate::page::index;

    let memory = memory(2 * GRANULE);
    let (all, last) = (|| 0..memory.pages(), memory.pages() - 1);
    // Even pages, so many that a harvest takes its time.
    let even = vec![0x5555_5555_5555_5555; index(memory.pages() / 64)];
    for round in 0..400 {
        let first = memory.claim(VGA).unwrap();
        let harvests = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut words = vec![0; even.len()];
                let mut set = memory.page_set().unwrap();
                let mut harvest = || match round % 4 {
                    0 => first.snapshot_and_clear(all()).is_ok(),
                    1 => first.visit_runs(all(), 0, |_| ControlFlow::<()>::Continue(())).is_ok(),
                    2 => first.move_into(all(), &mut words).is_ok(),
                    _ => first.move_to(all(), &mut set).is_ok(),
                };
                loop {
                    memory.merge(0, memory.pages(), &even).unwrap();
                    harvests.fetch_add(1, Ordering::Relaxed);
                    if !harvest() {
                        break;
                    }
                    first.give_back(&(7..8));
                }
            });
            while harvests.load(Ordering::Relaxed) < 3 {
                std::hint::spin_loop();
            }
            first.end();
            let second = memory.claim(VGA).unwrap();
            memory.mark_pages(&[last]);
            let found = second.snapshot_and_clear(all()).unwrap().commit();
            assert!(found.is_dirty(last), "round {round}: taken by another");
            assert!(!found.is_dirty(7), "round {round}: another's page");
        });
    }
}

#[test]
fn what_is_given_back_is_found_again() {
    let memory = memory(64);
    let (vga, migration) = (memory.claim(VGA).unwrap(), memory.claim(MIGRATION).unwrap());
    vga.give_back(&(5..7));
    assert_eq!(take(&vga, 0..64), [5, 6]);
    assert_eq!(take(&migration, 0..64), [0; 0]);
    vga.end();
    vga.give_back(&(5..7));
    assert_eq!(take(&memory.claim(VGA).unwrap(), 0..64), [0; 0]);
}

#[test]
fn a_client_whose_bitmap_has_no_addresses_is_refused() {
    let memory = memory(1 << 56);
    let refused = memory.claim(VGA).unwrap_err();
    assert!(matches!(refused, DirtyError::NoMemory { pages, .. } if pages == 1 << 56), "{refused}");
    assert!(memory.enabled().is_empty());
    assert!(matches!(memory.watch_code(|_| ()), Err(DirtyError::NoMemory { .. })));
}
