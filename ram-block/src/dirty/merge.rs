//! Merging a log of others, such as KVM's, 64 pages a word.

use crate::bitmap::bits::{BITS, words_of};
use crate::bitmap::shifted::Shifted;
use crate::bitmap::simd::{self, CHUNK};
use crate::dirty::client::DirtyClient;
use crate::dirty::error::DirtyError;
use crate::dirty::memory::DirtyMemory;
use crate::page::index;

impl DirtyMemory {
    /// Merges a bitmap of `count` pages, bit 0 of which is page `first`, into every client that is
    /// on. Returns how many of its bits are set.
    ///
    /// The form is that of KVM's dirty log: little-endian bit order in 64-bit
    /// words. Bits from `count` on are ignored. `first` need not be a multiple of
    /// 64. Costs one pass over the words, and no atomic operation; other merges and
    /// harvests of this block wait for a granule of 262,144 pages at most. Pages that
    /// the block has room for but does not have at present are accepted.
    ///
    /// # Errors
    ///
    /// [`DirtyError::OutOfRange`] if the block has no room for such pages, and
    /// [`DirtyError::ShortBitmap`] if `words` does not hold `count` bits; nothing
    /// is marked then.
    pub fn merge(&self, first: u64, count: u64, words: &[u64]) -> Result<u64, DirtyError> {
        let source = self.source(first, count, words)?;
        let set = self.merge_chunks(&source);
        if self.interested().contains(DirtyClient::CODE) {
            self.code_written_words(&source);
        }
        Ok(set)
    }

    /// Reports the pages of a bitmap, as [`merge`](Self::merge) takes it, to the
    /// [`CodeWatch`](crate::CodeWatch) of the block, and to no other client.
    ///
    /// For a synchronizer that clears pages in a log such as KVM's after it has merged them: a page
    /// whose watch began between the merge and the clear may have been written since, and the log
    /// no longer says so. Call it after the clear. Costs a load and a branch if no page is watched.
    ///
    /// # Errors
    ///
    /// As [`merge`](Self::merge).
    pub fn report_to_code(&self, first: u64, count: u64, words: &[u64]) -> Result<(), DirtyError> {
        if self.interested().contains(DirtyClient::CODE) {
            self.code_written_words(&self.source(first, count, words)?);
        }
        Ok(())
    }

    fn source<'a>(
        &self,
        first: u64,
        count: u64,
        words: &'a [u64],
    ) -> Result<Shifted<'a>, DirtyError> {
        let end = first.checked_add(count).filter(|end| *end <= self.room);
        if end.is_none() {
            let end = first.saturating_add(count);
            return Err(DirtyError::OutOfRange { start: first, end, pages: self.room });
        }
        let needed = count.div_ceil(BITS);
        if (words.len() as u64) < needed {
            return Err(DirtyError::ShortBitmap { words: words.len(), pages: count, needed });
        }
        Ok(Shifted { words, first, count })
    }

    /// Merges granule by granule, so that the lock is held for a short time.
    fn merge_chunks(&self, source: &Shifted<'_>) -> u64 {
        let mut buffer = [0; CHUNK];
        let mut set = 0;
        let chunks = words_of(&source.destination());
        let mut next = chunks.start;
        while next < chunks.end {
            let end = ((next / BITS + 1) * BITS).min(chunks.end);
            // The words of each chunk that are not zero. What they are merged into is prefetched
            // while the next chunks are scanned.
            let mut nonzero = [0; 64];
            let mut full = 0u64;
            let granule = next / BITS * BITS;
            // Locked at the first word that is not zero: a clean granule takes no lock.
            let mut sets = None;
            for chunk in next..end {
                let words = source.chunk(chunk, &mut buffer);
                if words.iter().fold(0, |all, word| all | word) != 0 {
                    let sets = sets.get_or_insert_with(|| self.sets.lock());
                    let (found, ones) = simd::scan(words);
                    nonzero[index(chunk - granule)] = found;
                    set += ones;
                    // All pages of the chunk: one bit is enough, see `PageSet`.
                    if ones == CHUNK as u64 * BITS {
                        full |= 1 << (chunk - granule);
                    } else {
                        let sets = sets.iter().flatten();
                        sets.for_each(|set| set.prefetch_chunk(index(chunk), found));
                    }
                }
            }
            let Some(mut sets) = sets else {
                next = end;
                continue;
            };
            let dirty =
                (next..end).zip(&nonzero[index(next - granule)..]).filter(|(_, n)| **n != 0);
            for (chunk, nonzero) in dirty {
                if full >> (chunk - granule) & 1 != 0 {
                    sets.iter_mut().flatten().for_each(|set| set.fill_chunk(index(chunk)));
                    continue;
                }
                let words = source.chunk(chunk, &mut buffer);
                for set in sets.iter_mut().flatten() {
                    set.merge_chunk(index(chunk), words, *nonzero);
                }
            }
            next = end;
        }
        set
    }
}
