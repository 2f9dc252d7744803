//! `cargo +nightly fuzz run abuse` in `display-vga`. `tests/bad_input.rs` runs the same
//! programs, made at random.

#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

libfuzzer_sys::fuzz_target!(|program: &[u8]| common::abuse::run(program));
