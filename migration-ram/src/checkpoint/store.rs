//! The contents of pages, each of them kept once.

use std::hash::BuildHasher;
use std::io;

use hashbrown::{DefaultHashBuilder, HashTable};

/// The number of a content in its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Content(u32);

impl Content {
    /// All zeros, of which there is no copy.
    pub(super) const ZERO: Self = Self(0);

    fn index(self) -> usize {
        self.0 as usize - 1
    }
}

/// Contents of pages of one size, with a count of who refers to each.
///
/// A content is [taken](Self::take) to be written, and then [settled](Self::settle): if the same is
/// there already, or it is zero, that is referred to instead. What is settled does not change.
#[derive(Debug)]
pub(super) struct PageStore {
    /// Bytes of a page.
    size: usize,
    slabs: Vec<Slab>,
    /// By the index of the content, as the next.
    entries: Vec<Entry>,
    /// Contents that nobody refers to.
    free: Vec<Content>,
    /// Those that are settled, by their hashes.
    settled: HashTable<Content>,
    hasher: DefaultHashBuilder,
    zero: Box<[u8]>,
}

/// Memory for contents, which begin with a page of the host's (or at a multiple of their size, if
/// that is less): no content lies on more pages than it has to, and none is a few bytes further in
/// its page than what it is copied from, where some processors copy at a fraction of their speed.
#[derive(Debug)]
struct Slab {
    bytes: Box<[u8]>,
    /// Where the first content is.
    start: usize,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    references: u64,
    /// The hash of what is settled.
    hash: Option<u64>,
}

/// Bytes of a slab, if a page is no larger.
const SLAB: usize = 1 << 20;
/// What slabs are aligned to, if a page is no smaller.
const ALIGNMENT: usize = 4096;

impl PageStore {
    /// An empty store of pages of `size` bytes, a power of two.
    pub(super) fn new(size: usize) -> io::Result<Self> {
        Ok(Self {
            size,
            slabs: Vec::new(),
            entries: Vec::new(),
            free: Vec::new(),
            settled: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            zero: zeros(size)?.into(),
        })
    }

    /// Bytes of a page.
    pub(super) fn page_size(&self) -> usize {
        self.size
    }

    /// Bytes of the contents that somebody refers to.
    pub(super) fn bytes_used(&self) -> u64 {
        (self.entries.len() - self.free.len()) as u64 * self.size as u64
    }

    fn pages_of_a_slab(&self) -> usize {
        (SLAB / self.size).max(1)
    }

    /// Makes room for `pages` more contents, in memory that the host has allocated.
    pub(super) fn reserve(&mut self, pages: usize) -> io::Result<()> {
        while self.free.len() < pages {
            let (count, alignment) = (self.pages_of_a_slab(), self.size.min(ALIGNMENT));
            let bytes = count * self.size + alignment - 1;
            let out_of_memory = |_| io::Error::from(io::ErrorKind::OutOfMemory);
            // Written, not only reserved: the pages are there when they are needed in a hurry.
            let slab: Box<[u8]> = zeros(bytes)?.into();
            self.slabs.try_reserve(1).map_err(out_of_memory)?;
            self.entries.try_reserve(count).map_err(out_of_memory)?;
            self.free.try_reserve(self.entries.len() + count).map_err(out_of_memory)?;
            // The result is no more than that, but for hosts that cannot tell.
            let start = slab.as_ptr().align_offset(alignment).min(alignment - 1);
            self.slabs.push(Slab { bytes: slab, start });
            let first = self.entries.len();
            self.entries.resize(first + count, Entry { references: 0, hash: None });
            let number = |index: usize| u32::try_from(index + 1).ok().map(Content);
            let new: Option<Vec<_>> = (first..first + count).rev().map(number).collect();
            // 16 TiB of pages of 4 KiB.
            self.free.extend(new.ok_or(io::ErrorKind::OutOfMemory)?);
        }
        Ok(())
    }

    /// Makes room to settle so many contents that are taken already.
    pub(super) fn reserve_settled(&mut self, contents: usize) -> io::Result<()> {
        let entries = &self.entries;
        let hash_of = |known: &Content| entries[known.index()].hash.unwrap_or(0);
        let room = self.settled.try_reserve(contents, hash_of);
        room.map_err(|_| io::ErrorKind::OutOfMemory.into())
    }

    /// A content to be written, of which the caller has the only reference.
    pub(super) fn take(&mut self) -> io::Result<Content> {
        if self.free.is_empty() {
            self.reserve(1)?;
        }
        let content = self.free.pop().ok_or(io::ErrorKind::OutOfMemory)?;
        self.entries[content.index()] = Entry { references: 1, hash: None };
        Ok(content)
    }

    fn place(&self, content: Content) -> (usize, usize) {
        let count = self.pages_of_a_slab();
        (content.index() / count, content.index() % count * self.size)
    }

    pub(super) fn bytes(&self, content: Content) -> &[u8] {
        if content == Content::ZERO {
            return &self.zero;
        }
        let (slab, at) = self.place(content);
        let Slab { bytes, start } = &self.slabs[slab];
        &bytes[start + at..start + at + self.size]
    }

    /// The bytes of a content that was taken, and is not settled.
    pub(super) fn bytes_mut(&mut self, content: Content) -> &mut [u8] {
        debug_assert!(self.entries[content.index()].hash.is_none(), "others refer to it");
        let (slab, at) = self.place(content);
        let Slab { bytes, start } = &mut self.slabs[slab];
        &mut bytes[*start + at..*start + at + self.size]
    }

    /// Settles a content that was taken, and hands the reference to it on: to the one that is
    /// returned.
    pub(super) fn settle(&mut self, content: Content) -> Content {
        let bytes = self.bytes(content);
        if is_zero(bytes) {
            self.release(content);
            return Content::ZERO;
        }
        let hash = self.hasher.hash_one(bytes);
        if let Some(known) = self.settled.find(hash, |known| self.bytes(*known) == bytes).copied() {
            self.release(content);
            self.share(known);
            return known;
        }
        self.entries[content.index()].hash = Some(hash);
        let entries = &self.entries;
        let hash_of = |known: &Content| entries[known.index()].hash.unwrap_or(0);
        self.settled.insert_unique(hash, content, hash_of);
        content
    }

    /// One more refers to it.
    pub(super) fn share(&mut self, content: Content) {
        if content != Content::ZERO {
            self.entries[content.index()].references += 1;
        }
    }

    /// One less refers to it.
    pub(super) fn release(&mut self, content: Content) {
        if content == Content::ZERO {
            return;
        }
        let entry = &mut self.entries[content.index()];
        entry.references -= 1;
        if entry.references > 0 {
            return;
        }
        if let Some(hash) = entry.hash.take() {
            if let Ok(found) = self.settled.find_entry(hash, |known| *known == content) {
                found.remove();
            }
        }
        self.free.push(content);
    }
}

fn zeros(count: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(count).map_err(|_| io::ErrorKind::OutOfMemory)?;
    bytes.resize(count, 0);
    Ok(bytes)
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(64).all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a list of who refers to what: each content once, none lost, none too many.
        #[test]
        fn contents_are_kept_once_and_as_long_as_somebody_refers_to_them(
            size in prop::sample::select(vec![64, 4096, 1 << 14]),
            steps in prop::collection::vec((any::<prop::sample::Index>(), 0..5u8, 0..3u8), 0..60),
        ) {
            let mut store = PageStore::new(size).unwrap();
            let mut held: Vec<(Content, u8)> = Vec::new();
            for (index, byte, step) in steps {
                match step {
                    0 => {
                        let content = store.take().unwrap();
                        store.bytes_mut(content).fill(byte);
                        held.push((store.settle(content), byte));
                    }
                    1 if !held.is_empty() => {
                        let (content, byte) = held[index.index(held.len())];
                        store.share(content);
                        held.push((content, byte));
                    }
                    2 if !held.is_empty() => {
                        let (content, _) = held.swap_remove(index.index(held.len()));
                        store.release(content);
                    }
                    _ => {}
                }
                let mut of_byte = BTreeMap::new();
                for (content, byte) in &held {
                    prop_assert!(store.bytes(*content).iter().all(|found| found == byte));
                    prop_assert_eq!(*of_byte.entry(*byte).or_insert(content.0), content.0);
                }
                of_byte.remove(&0);
                prop_assert_eq!(store.bytes_used(), of_byte.len() as u64 * size as u64);
                prop_assert_eq!(store.settled.len(), of_byte.len());
            }
        }
    }

    #[test]
    fn a_page_may_be_larger_than_a_slab() {
        let mut store = PageStore::new(2 * SLAB).unwrap();
        let pages = [1, 2].map(|byte| {
            let content = store.take().unwrap();
            store.bytes_mut(content).fill(byte);
            (store.settle(content), byte)
        });
        for (content, byte) in pages {
            assert!(store.bytes(content).iter().all(|found| *found == byte));
        }
        assert_eq!(store.bytes_used(), 4 * SLAB as u64);
    }
}
