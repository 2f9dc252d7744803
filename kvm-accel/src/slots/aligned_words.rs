//! A buffer for KVM's reports, aligned so that the kernel copies to it at full speed.

use std::ops::{Deref, DerefMut};

/// Words of a line of the cache.
const LINE: usize = 8;

/// Words that begin with a line of the cache.
///
/// KVM's own bitmap begins with a page. AMD's processors copy (`rep movsb`, Zen 3) to a place that
/// is 8 or 16 bytes further in its page than the source at an eighth of their speed or less, and 16
/// bytes after the start of a page is where malloc puts what is large: a report of 64 GiB took 770
/// us instead of 60.
#[derive(Clone, Debug, Default)]
pub(super) struct AlignedWords {
    words: Vec<u64>,
    /// How many words come before the first line.
    skipped: usize,
}

impl AlignedWords {
    /// At least `len` words, all zero.
    pub(super) fn zeroed(len: usize) -> Self {
        let words = vec![0_u64; len + LINE - 1];
        let skipped = words.as_ptr().align_offset(LINE * size_of::<u64>()).min(LINE - 1);
        Self { words, skipped }
    }
}

impl Deref for AlignedWords {
    type Target = [u64];

    fn deref(&self) -> &[u64] {
        &self.words[self.skipped..]
    }
}

impl DerefMut for AlignedWords {
    fn deref_mut(&mut self) -> &mut [u64] {
        &mut self.words[self.skipped..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_words_begins_with_a_line() {
        for len in (0..40).chain([1 << 12, 1 << 15, 1 << 18]) {
            let words = AlignedWords::zeroed(len);
            assert!(words.len() >= len && words.as_ptr().addr() % 64 == 0, "{len}");
        }
        assert!(AlignedWords::default().is_empty());
    }
}
