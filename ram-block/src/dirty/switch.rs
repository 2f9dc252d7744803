//! Switching clients on and off, and resizing the block, while marks are under way.

use std::io;
use std::sync::atomic::{Ordering, fence};

use crate::dirty::client::DirtyClient;
use crate::dirty::error::DirtyError;
use crate::dirty::memory::DirtyMemory;

impl DirtyMemory {
    /// Sets the client's bit; each write that this thread does not see yet will see the bit. Under
    /// the lock of the claims.
    pub(super) fn switch_on(&self, client: DirtyClient) {
        self.enabled.fetch_or(1 << client.number(), Ordering::SeqCst);
        // After the bit: what was settled before was so without this client.
        self.marks.unsettle();
        // After the bit: a merge that follows a read of the new count reaches the client. Before
        // the caller's next step: pages that the client reads, and writes that it has to see, come
        // after the count has changed.
        self.switch_ons.fetch_add(1, Ordering::SeqCst);
        self.fence_writers();
    }

    /// How often a client was switched on, by any map or caller. A code watch is not counted; see
    /// [`report_to_code`](Self::report_to_code).
    ///
    /// For a synchronizer that keeps pages that it has merged, to clear them later in a log such as
    /// KVM's: a client that was switched on since was not given those pages, and may need them.
    /// Read the count before the [`merge`](Self::merge) and again before and *after* the clear. If
    /// it differs before, keep the pages in the log. If it differs after, merge what was cleared
    /// once more: the client may have been switched on in between. The count changes after
    /// [`claim`](Self::claim) has switched the client on and before it returns.
    pub fn switch_ons(&self) -> u64 {
        // SeqCst: ordered after the caller's clear, which has its own barriers where it
        // interrupts other processors.
        fence(Ordering::SeqCst);
        self.switch_ons.load(Ordering::SeqCst)
    }

    /// Switches `client` off, drops its bits and frees their memory. Under the lock of the claims.
    ///
    /// A mark that is under way may still leave a bit behind: when the client is
    /// switched on again, it may find a page dirty that is not.
    pub(super) fn switch_off(&self, client: DirtyClient) {
        let _harvesting = self.lock_harvest(client);
        self.enabled.fetch_and(!(1 << client.number()), Ordering::SeqCst);
        self.disable_counts[client.index()].fetch_add(1, Ordering::AcqRel);
        let set = self.sets.lock()[client.index()].take();
        drop(set);
        if self.enabled().is_empty() {
            let _sets = self.sets.lock();
            self.marks.reset();
        }
    }

    /// How often `client` was switched off, or the block resized.
    ///
    /// Between two calls with the same result, no bits of the client were dropped and the block had
    /// one length: by this a consumer can check that all it has harvested since is still valid.
    pub fn epoch(&self, client: DirtyClient) -> u64 {
        self.disable_count(client) + self.resizes.load(Ordering::Acquire)
    }

    /// Makes the block `pages` pages long, within what is reserved: drops the bits of removed
    /// pages, and sets those of added ones. The caller has to report removed pages to a code watch
    /// afterwards, without holding a lock.
    pub(crate) fn resize(&self, pages: u64) {
        let claims = self.lock_claims();
        // Before and after, so that two reads around a part of this differ.
        self.resizes.fetch_add(1, Ordering::AcqRel);
        let old = self.pages.swap(pages, Ordering::AcqRel);
        let clients = self.enabled();
        if pages < old {
            for client in clients.iter() {
                self.take_granules(client, &(pages..old), |set, granule| {
                    set.take(granule, |_, _| ());
                });
            }
        } else {
            self.mark_range(clients, &(old..pages));
        }
        self.resizes.fetch_add(1, Ordering::AcqRel);
        drop(claims);
    }
}

pub(super) fn no_memory(pages: u64, error: &io::Error) -> DirtyError {
    DirtyError::NoMemory { pages, kind: error.kind() }
}
