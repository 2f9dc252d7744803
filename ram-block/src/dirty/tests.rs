//! Marks, merges and harvests of one block.

use std::ops::Range;
use std::sync::Arc;

use crate::bitmap::bits::GRANULE;
use crate::dirty::client::{ClientSet, DirtyClient};
use crate::dirty::error::DirtyError;
use crate::dirty::memory::DirtyMemory;
use crate::dirty::registration::ClientRegistration;
use crate::dirty::snapshot::DirtySnapshot;
use crate::page::PageSize;

const VGA: DirtyClient = DirtyClient::VGA;
const MIGRATION: DirtyClient = DirtyClient::MIGRATION;

fn memory(pages: u64) -> Arc<DirtyMemory> {
    DirtyMemory::new(pages, PageSize::new(4096).unwrap())
}

fn take(memory: &Arc<DirtyMemory>, client: DirtyClient, pages: Range<u64>) -> Vec<u64> {
    let harvest = memory.snapshot_and_clear(client, pages).unwrap();
    let pages = harvest.pages().collect();
    harvest.commit();
    pages
}

#[test]
fn a_harvest_takes_one_clients_bits_only() {
    let memory = memory(200);
    memory.enable(VGA).unwrap();
    memory.enable(MIGRATION).unwrap();
    memory.mark(70 * 4096 - 1, 2);
    assert_eq!(take(&memory, VGA, 0..200), [69, 70]);
    assert_eq!(take(&memory, VGA, 0..200), [0; 0]);
    assert_eq!(take(&memory, MIGRATION, 70..200), [70]);
    assert_eq!(take(&memory, MIGRATION, 0..200), [69]);
    assert!(!memory.is_dirty(DirtyClient::CODE, 70));
}

#[test]
fn a_client_that_is_off_holds_nothing_and_cannot_be_harvested() {
    let memory = memory(64);
    memory.mark(0, 4096);
    memory.enable(MIGRATION).unwrap();
    memory.mark(4096, 1);
    assert!(!memory.is_dirty(VGA, 1));
    let refused = memory.snapshot_and_clear(VGA, 0..64).unwrap_err();
    let enabled = ClientSet::EMPTY.with(MIGRATION);
    assert_eq!(refused, DirtyError::ClientOff { client: VGA, enabled });
    assert_eq!(take(&memory, MIGRATION, 0..64), [1]);
}

#[test]
fn switching_off_drops_the_bits() {
    let memory = memory(64);
    memory.enable(VGA).unwrap();
    memory.mark(0, 1);
    memory.disable(VGA).unwrap();
    memory.enable(VGA).unwrap();
    assert_eq!(take(&memory, VGA, 0..64), [0; 0]);
}

#[test]
fn a_harvest_without_commit_gives_its_bits_back() {
    let memory = memory(300);
    memory.enable(VGA).unwrap();
    memory.mark(5 * 4096, 290 * 4096);
    let harvest = memory.snapshot_and_clear(VGA, 10..20).unwrap();
    assert!(!memory.is_dirty(VGA, 10));
    drop(harvest);
    assert_eq!(take(&memory, VGA, 0..300), (5..295).collect::<Vec<_>>());
}

#[test]
fn what_lies_outside_the_block_is_ignored_by_marks_and_refused_by_merges() {
    let memory = memory(10);
    memory.enable(VGA).unwrap();
    memory.mark(9 * 4096, u64::MAX);
    memory.mark(10 * 4096, 1);
    memory.mark(u64::MAX, 1);
    assert_eq!(take(&memory, VGA, 0..10), [9]);
    let out = DirtyError::OutOfRange { start: 9, end: 11, pages: 10 };
    assert_eq!(memory.merge(9, 2, &[3]), Err(out.clone()));
    assert_eq!(memory.snapshot_and_clear(VGA, 9..11).unwrap_err(), out);
    let overflow = memory.merge(u64::MAX, 2, &[3]).unwrap_err();
    assert!(matches!(overflow, DirtyError::OutOfRange { .. }));
    let short = DirtyError::ShortBitmap { words: 0, pages: 10, needed: 1 };
    assert_eq!(memory.merge(0, 10, &[]), Err(short));
}

#[test]
fn a_merge_reaches_every_client_that_is_on() {
    let memory = memory(1000);
    memory.enable(VGA).unwrap();
    let third = memory.register("third").unwrap();
    memory.enable(third.client()).unwrap();
    let words = [1 << 63, 0b101];
    assert_eq!(memory.merge(37, 66, &words), Ok(2)); // bit 66 is past the count
    for client in [VGA, third.client()] {
        assert_eq!(take(&memory, client, 0..1000), [37 + 63, 37 + 64]);
    }
}

#[test]
fn where_membarrier_is_refused_marks_fence_for_themselves() {
    let memory = DirtyMemory::with_fence(100, 100, PageSize::new(4096).unwrap(), true);
    memory.mark(0, 4096);
    assert!(memory.enabled().is_empty());
    memory.enable(VGA).unwrap();
    memory.mark(5 * 4096, 1);
    memory.merge(60, 10, &[0b11]).unwrap();
    assert_eq!(take(&memory, VGA, 0..100), [5, 60, 61]);
    memory.disable(VGA).unwrap();
    memory.mark(5 * 4096, 1);
    memory.enable(VGA).unwrap();
    assert_eq!(take(&memory, VGA, 0..100), [0; 0]);
}

#[test]
fn listed_pages_are_marked_and_strangers_ignored() {
    let memory = memory(100);
    memory.enable(VGA).unwrap();
    assert_eq!(memory.mark_pages(&[99, 3, 3, 100, u64::MAX]), 3);
    assert_eq!(take(&memory, VGA, 0..100), [3, 99]);
}

#[test]
fn a_snapshot_buffer_is_reused() {
    let memory = memory(6400);
    memory.enable(VGA).unwrap();
    let mut buffer = DirtySnapshot::default();
    for round in 0..3 {
        memory.mark(round * 4096, 1);
        let harvest = memory.snapshot_and_clear_into(VGA, 0..6400, buffer).unwrap();
        assert_eq!(harvest.pages().collect::<Vec<_>>(), [round]);
        let words = harvest.as_words().as_ptr();
        buffer = harvest.commit();
        assert_eq!(buffer.as_words().as_ptr(), words);
    }
}

#[test]
fn clients_are_registered_by_name_and_number() {
    let memory = memory(64);
    let taken = |name: &str, client, taken: &str| {
        let (name, taken) = (name.to_owned(), taken.to_owned());
        DirtyError::ClientTaken { name, client, taken }
    };
    let mut clients: Vec<_> =
        (0..5).map(|n| memory.register(&format!("client {n}")).unwrap()).collect();
    assert!(clients.iter().map(ClientRegistration::client).eq(DirtyClient::dynamic()));
    let refused = memory.register("sixth").unwrap_err();
    assert_eq!(refused, DirtyError::TooManyClients { name: "sixth".to_owned() });
    let fourth = clients.remove(3).client();
    assert_eq!(memory.client_name(fourth), None);
    assert_eq!(memory.enable(fourth), Err(DirtyError::Unregistered { client: fourth }));
    let refused = memory.register("vga").unwrap_err();
    assert_eq!(refused, taken("vga", VGA, "vga"));
    let refused = memory.register("client 0").unwrap_err();
    assert_eq!(refused, taken("client 0", clients[0].client(), "client 0"));
    let refused = memory.register_as(MIGRATION, "mine").unwrap_err();
    assert_eq!(refused, taken("mine", MIGRATION, "migration"));
    let again = memory.register_as(fourth, "again").unwrap();
    assert_eq!(memory.client_name(again.client()).as_deref(), Some("again"));
    assert_eq!(memory.enable(DirtyClient::CODE), Err(DirtyError::CodeClient));
    let refused = memory.snapshot_and_clear(DirtyClient::CODE, 0..64).unwrap_err();
    assert_eq!(refused, DirtyError::CodeClient);
}

#[test]
fn a_harvest_of_a_client_that_is_gone_gives_nothing_to_the_next() {
    let memory = memory(64);
    let first = memory.register("first").unwrap();
    memory.enable(first.client()).unwrap();
    memory.mark(0, 4096);
    let harvest = memory.snapshot_and_clear(first.client(), 0..64).unwrap();
    drop(first);
    let second = memory.register("second").unwrap();
    memory.enable(second.client()).unwrap();
    drop(harvest);
    assert_eq!(take(&memory, second.client(), 0..64), [0; 0]);
}

/// Bits that a harvest of a number's former client takes go to the client that has it now.
#[test]
fn a_harvest_that_a_switch_overtakes_takes_nothing_from_the_next() {
    use std::ops::ControlFlow;
    let memory = memory(3 * GRANULE);
    let first = memory.register("first").unwrap();
    let client = first.client();
    memory.enable(client).unwrap();
    let late = 2 * GRANULE + 5;
    memory.mark_pages(&[1, 3, late]);

    let (mut first, mut second) = (Some(first), None);
    let mut seen = Vec::new();
    let flow = memory.visit_runs(client, 0..memory.pages(), 0, |run| {
        seen.push(run);
        if first.take().is_some() {
            let next = memory.register("second").unwrap();
            assert_eq!(next.client(), client);
            memory.enable(client).unwrap();
            memory.mark_pages(&[late]);
            second = Some(next);
        }
        ControlFlow::<()>::Continue(())
    });
    assert!(matches!(flow, Err(DirtyError::ClientOff { .. })));
    assert!(seen.iter().all(|run| run.end <= 4), "{seen:?}");
    assert!(take(&memory, client, 0..memory.pages()).contains(&late));

    // The same of the other harvests, whose switch comes in the middle of their work.
    let disable_count = memory.disable_count(client);
    drop(second.take());
    let third = memory.register("third").unwrap();
    memory.enable(client).unwrap();
    memory.mark_pages(&[late]);
    memory.take_words(client, &(0..memory.pages()), |_, _| ());
    let overtaken = memory.check_still_on(client, disable_count, &(late..late + 1));
    assert!(matches!(overtaken, Err(DirtyError::ClientOff { .. })));
    assert_eq!(take(&memory, third.client(), 0..memory.pages()), [late]);
}

#[test]
fn a_client_whose_bitmap_has_no_addresses_is_refused() {
    let memory = memory(1 << 56);
    let refused = memory.enable(VGA).unwrap_err();
    assert!(matches!(refused, DirtyError::NoMemory { pages, .. } if pages == 1 << 56), "{refused}");
    assert!(memory.enabled().is_empty());
    assert!(matches!(memory.watch_code(|_| ()), Err(DirtyError::NoMemory { .. })));
}
