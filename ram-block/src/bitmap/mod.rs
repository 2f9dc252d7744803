//! One bitmap, and what it is made of.
//!
//! - `bits`: which bits of which words a range of pages is
//! - `word`: a word that is atomic, or a model checker's, and arrays of words
//! - `atomic`: the bitmap that any thread marks
//! - `page_set`: a set of pages that one thread at a time writes: what is merged, under a lock, and
//!   consumers' own
//! - `shifted`: a bitmap that is merged at any offset
//! - `simd`: the loops over many words, compiled for wider registers too
//!
//! Built on `sys`, for memory. It has page numbers only, and no clients.

pub(crate) mod atomic;
pub(crate) mod bits;
pub(crate) mod page_set;
pub(crate) mod shifted;
pub(crate) mod simd;
pub(crate) mod word;
