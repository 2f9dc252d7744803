//! Those who are compared, each doing the same work in its own idiom.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bitvec::prelude::{BitVec, Lsb0};
use ram_block::{Claimant, DirtyClaim, DirtyClient, DirtyMemory, PageSize};
use roaring::RoaringBitmap;

use crate::source::PAGE;

/// Three clients' bitmaps, and the private bitmap of the third.
pub trait Contestant {
    /// ORs a log into all three.
    fn merge(&mut self, log: &[u64]);

    /// Moves the third client's bits into its private bitmap; how many are new there.
    fn harvest(&mut self) -> u64;

    /// Takes the third client's bits as runs of pages; how many runs there are.
    fn runs(&mut self) -> u64;

    /// Cleans all that the work left behind. Not timed.
    fn clean(&mut self);
}

/// This crate.
pub struct Ours {
    dirty: Arc<DirtyMemory>,
    clients: [DirtyClaim; 3],
    private: Vec<u64>,
    scratch: Vec<u64>,
}

impl Ours {
    pub fn new(pages: u64) -> Self {
        let dirty = DirtyMemory::new(pages, PageSize::new(PAGE).unwrap());
        let claimants: [Claimant; 3] =
            [DirtyClient::VGA.into(), "third".into(), DirtyClient::MIGRATION.into()];
        let clients = claimants.map(|claimant| dirty.claim(claimant).unwrap());
        let words = usize::try_from(pages / 64).unwrap();
        Self { dirty, clients, private: vec![0; words], scratch: vec![0; words] }
    }
}

impl Contestant for Ours {
    fn merge(&mut self, log: &[u64]) {
        self.dirty.merge(0, self.dirty.pages(), log).unwrap();
    }

    fn harvest(&mut self) -> u64 {
        let pages = 0..self.dirty.pages();
        self.clients[2].move_into(pages, &mut self.private).unwrap()
    }

    fn runs(&mut self) -> u64 {
        let mut found = 0;
        let visit = |_| {
            found += 1;
            ControlFlow::<()>::Continue(())
        };
        let pages = 0..self.dirty.pages();
        let _ = self.clients[2].visit_runs(pages, 0, visit).unwrap();
        found
    }

    fn clean(&mut self) {
        self.private.fill(0);
        for client in &self.clients {
            client.move_into(0..self.dirty.pages(), &mut self.scratch).unwrap();
        }
    }
}

/// The word loop that everybody writes: each word looked at, those that are not zero
/// OR-ed or exchanged atomically.
pub struct Classic {
    clients: [Vec<AtomicU64>; 3],
    private: Vec<u64>,
}

impl Classic {
    pub fn new(pages: u64) -> Self {
        let words = usize::try_from(pages / 64).unwrap();
        let bitmap = || (0..words).map(|_| AtomicU64::new(0)).collect();
        Self { clients: [(); 3].map(|()| bitmap()), private: vec![0; words] }
    }
}

/// Counts the runs in words of neighbouring pages, bit by bit.
fn count_runs(words: impl Iterator<Item = (u64, u64)>) -> u64 {
    let mut runs = 0;
    let mut next = None;
    for (n, mut bits) in words {
        while bits != 0 {
            let page = n * 64 + u64::from(bits.trailing_zeros());
            runs += u64::from(next != Some(page));
            next = Some(page + 1);
            bits &= bits - 1;
        }
    }
    runs
}

impl Contestant for Classic {
    fn merge(&mut self, log: &[u64]) {
        for (n, word) in log.iter().enumerate() {
            if *word != 0 {
                for client in &self.clients {
                    client[n].fetch_or(*word, Ordering::AcqRel);
                }
            }
        }
    }

    fn harvest(&mut self) -> u64 {
        let mut new = 0;
        for (word, slot) in self.clients[2].iter().zip(&mut self.private) {
            if word.load(Ordering::Relaxed) != 0 {
                let bits = word.swap(0, Ordering::AcqRel);
                new += u64::from((bits & !*slot).count_ones());
                *slot |= bits;
            }
        }
        new
    }

    fn runs(&mut self) -> u64 {
        let take = |word: &AtomicU64| match word.load(Ordering::Relaxed) {
            0 => 0,
            _ => word.swap(0, Ordering::AcqRel),
        };
        count_runs((0..).zip(self.clients[2].iter().map(take)))
    }

    fn clean(&mut self) {
        self.private.fill(0);
        self.clients.iter().flatten().for_each(|word| word.store(0, Ordering::Relaxed));
    }
}

/// `bitvec`: not atomic, so for a machine that stands still.
pub struct Bits {
    clients: [BitVec<u64, Lsb0>; 3],
    private: BitVec<u64, Lsb0>,
}

impl Bits {
    pub fn new(pages: u64) -> Self {
        let bitmap = || BitVec::repeat(false, usize::try_from(pages).unwrap());
        Self { clients: [(); 3].map(|()| bitmap()), private: bitmap() }
    }
}

impl Contestant for Bits {
    fn merge(&mut self, log: &[u64]) {
        let log = bitvec::slice::BitSlice::<u64, Lsb0>::from_slice(log);
        for client in &mut self.clients {
            *client |= log;
        }
    }

    fn harvest(&mut self) -> u64 {
        let client = &mut self.clients[2];
        let mut new = 0;
        for page in client.iter_ones() {
            new += u64::from(!self.private.replace(page, true));
        }
        client.fill(false);
        new
    }

    fn runs(&mut self) -> u64 {
        let client = &mut self.clients[2];
        let (mut runs, mut next) = (0, None);
        for page in client.iter_ones() {
            runs += u64::from(next != Some(page));
            next = Some(page + 1);
        }
        client.fill(false);
        runs
    }

    fn clean(&mut self) {
        self.private.fill(false);
        self.clients.iter_mut().for_each(|client| client.fill(false));
    }
}

/// `roaring`: compressed, and not atomic either.
#[derive(Default)]
pub struct Roaring {
    clients: [RoaringBitmap; 3],
    private: RoaringBitmap,
}

impl Contestant for Roaring {
    fn merge(&mut self, log: &[u64]) {
        let bytes: Vec<u8> = log.iter().flat_map(|word| word.to_le_bytes()).collect();
        // In halves, as one call takes fewer than 2^32 bits.
        let (low, high) = bytes.split_at(bytes.len() / 2);
        let middle = u32::try_from(low.len() * 8).unwrap();
        let log =
            RoaringBitmap::from_lsb0_bytes(0, low) | RoaringBitmap::from_lsb0_bytes(middle, high);
        for client in &mut self.clients {
            *client |= &log;
        }
    }

    fn harvest(&mut self) -> u64 {
        let taken = std::mem::take(&mut self.clients[2]);
        let new = taken.len() - taken.intersection_len(&self.private);
        self.private |= taken;
        new
    }

    fn runs(&mut self) -> u64 {
        let taken = std::mem::take(&mut self.clients[2]);
        let mut runs = 0;
        let mut pages = taken.iter();
        while pages.next_range().is_some() {
            runs += 1;
        }
        runs
    }

    fn clean(&mut self) {
        *self = Self::default();
    }
}

/// What vm-memory's `AtomicBitmap` would be with 64 pages an operation: a mark ORs whole words, and
/// a harvest skips those that are clean.
pub struct Twin(Vec<AtomicU64>);

impl Twin {
    pub fn new(pages: u64) -> Self {
        Self((0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    #[inline]
    pub fn mark(&self, offset: u64, len: u64) {
        let (first, last) = (offset / PAGE, (offset + len - 1) / PAGE);
        for word in first / 64..=last / 64 {
            let low = u64::MAX << (first.saturating_sub(word * 64));
            let high = u64::MAX >> (63 - (last - word * 64).min(63));
            self.0[usize::try_from(word).unwrap()].fetch_or(low & high, Ordering::SeqCst);
        }
    }

    /// Moves the bits into `into`; how many are new there.
    pub fn harvest(&self, into: &mut [u64]) -> u64 {
        let mut new = 0;
        for (word, into) in self.0.iter().zip(into) {
            if word.load(Ordering::Acquire) != 0 {
                let bits = word.swap(0, Ordering::AcqRel);
                new += u64::from((bits & !*into).count_ones());
                *into |= bits;
            }
        }
        new
    }
}
