//! What it takes to start a log, to bring it, and to let it watch pages again: in each way
//! in which KVM tracks written pages, for guests of any size.
//!
//! `cargo bench -p integration-tests --bench kvm_sync [-- --gib N,N,...] [-- --rounds N]`
//!
//! A guest in ring 3 writes the pages, which are spread over all of its memory. Beside the
//! machine's RAM there is a video memory of 16 MiB, whose own sync must not depend on the
//! size of RAM. Medians; the last line is JSON.

#[cfg(target_arch = "x86_64")]
mod logs;

fn main() {
    #[cfg(target_arch = "x86_64")]
    logs::main();
    #[cfg(not(target_arch = "x86_64"))]
    println!("the guests of this bench are for x86-64");
}
