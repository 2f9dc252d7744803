//! What it takes to put a machine back to a checkpoint, and to take one while it runs: beside the
//! loop that is written by hand, beside dropping private pages, and beside what cannot be saved.
//! And the part of a frame that an emulator gives for a way back.
//!
//! `cargo bench -p integration-tests --bench checkpoint [-- --help]`
//!
//! A guest in ring 3 dirties the pages, which are spread over 256 MiB of its memory whatever the
//! size, and writes to a port, which ends the case. The machines of a row take turns of a few
//! cases each. Medians, of fewer rounds where they do not fit three minutes; `--all` makes all
//! rounds. The last line is JSON.

#[cfg(target_arch = "x86_64")]
mod by_hand;
#[cfg(target_arch = "x86_64")]
mod case;
#[cfg(target_arch = "x86_64")]
mod frames;
#[cfg(target_arch = "x86_64")]
mod live;
#[cfg(target_arch = "x86_64")]
mod options;
#[cfg(target_arch = "x86_64")]
mod ours;
#[cfg(target_arch = "x86_64")]
mod raw;
#[cfg(target_arch = "x86_64")]
mod registers;
#[cfg(target_arch = "x86_64")]
mod resets;
#[cfg(target_arch = "x86_64")]
mod running;

fn main() {
    #[cfg(target_arch = "x86_64")]
    options::main();
    #[cfg(not(target_arch = "x86_64"))]
    println!("the guests of this bench are for x86-64");
}
