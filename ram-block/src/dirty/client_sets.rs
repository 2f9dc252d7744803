//! The dirty pages of each client that is on, but for those that are marked.

use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::bitmap::page_set::PageSet;
use crate::dirty::client::DirtyClient;

/// The set of each client that is on.
pub(super) type Sets = [Option<PageSet>; DirtyClient::COUNT];

/// The sets, and how far the marks in them are behind a barrier.
#[derive(Debug, Default)]
pub(super) struct ClientSets {
    sets: Mutex<Sets>,
    /// The sequence of the marks after the last distribution that found something; changes under
    /// the lock of the sets.
    pub(super) found: AtomicU64,
    /// The same, after the last one that a barrier has followed.
    pub(super) fenced: AtomicU64,
}

impl ClientSets {
    pub(super) fn lock(&self) -> MutexGuard<'_, Sets> {
        // Plain words: after a panic each of them is still valid.
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn contains(&self, client: DirtyClient, page: u64) -> bool {
        self.lock()[client.index()].as_ref().is_some_and(|set| set.contains(page))
    }

    /// Puts words of pages in one client's set, if it is on.
    pub(super) fn insert_words(
        &self,
        client: DirtyClient,
        words: impl IntoIterator<Item = (u64, u64)>,
    ) {
        /// For how many words the lock is held.
        const HELD: usize = 4096;
        let mut words = words.into_iter().peekable();
        while words.peek().is_some() {
            let mut sets = self.lock();
            let Some(set) = &mut sets[client.index()] else { return };
            for (word, bits) in words.by_ref().take(HELD) {
                set.insert_word(word, bits);
            }
        }
    }

    /// Calls `each` for every granule of `pages` that may have a dirty page in the set of `client`,
    /// with the lock held for one granule at a time.
    pub(super) fn each_granule(
        &self,
        client: DirtyClient,
        pages: &Range<u64>,
        mut each: impl FnMut(&mut PageSet, &Range<u64>),
    ) {
        let mut rest = pages.clone();
        loop {
            let mut sets = self.lock();
            let Some(set) = &mut sets[client.index()] else { break };
            let Some(granule) = set.dirty_granule(&rest) else { break };
            each(set, &granule);
            rest.start = granule.end;
        }
    }
}
