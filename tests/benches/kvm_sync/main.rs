//! What it takes to start a log, to bring it, and to let it watch pages again: in each way
//! in which KVM tracks written pages, for guests of any size.
//!
//! `cargo bench -p integration-tests --bench kvm_sync [-- --help]`
//!
//! A guest in ring 3 writes the pages, which are spread over the first gibibyte of its
//! memory, whatever the size. Beside the machine's RAM there is a video memory of 16 MiB,
//! whose own sync must not depend on the size of RAM. Medians, of fewer rounds where they do not
//! fit three minutes; `--all` makes all tables with all rounds. The last line is JSON.

#[cfg(target_arch = "x86_64")]
mod chunks;
#[cfg(target_arch = "x86_64")]
mod logs;
#[cfg(target_arch = "x86_64")]
mod machine;
#[cfg(target_arch = "x86_64")]
mod options;
#[cfg(target_arch = "x86_64")]
mod reapers;

fn main() {
    #[cfg(target_arch = "x86_64")]
    options::main();
    #[cfg(not(target_arch = "x86_64"))]
    println!("the guests of this bench are for x86-64");
}
