//! Anything, as a stream and as channels.
//!
//! `cargo +nightly fuzz run receive` in `migration-ram`; a corpus to begin with is made of
//! `tests/data` by putting the bytes 1 and 0 (how, and no channels) before a stream.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/hostile/body.rs"]
mod body;

fuzz_target!(|data: &[u8]| body::receive_slice(data));
