//! A shared value that readers use without a locked instruction, and that is dropped promptly once
//! another one has taken its place.
//!
//! - `record`: what one thread reads, its hazard pointers
//! - `readers`: the records of all threads, and the values that wait for some of them
//! - `thread`: the record of the calling thread, and the one list of them
//! - `cell`: the value, its readers' guards, and its replacement
//!
//! A reader (**R**) announces the address of the value in a slot of its record and looks whether it
//! is still the current one. A writer (**W**) that has replaced a value looks for its address in
//! all slots, and drops it if it is in none. Otherwise the slots in which it is are flagged, and
//! the last of their readers drops it as it leaves. In this order:
//!
//! ```text
//!   R1  a <- current          W1  current <- another value
//!   R2  slot <- a             W2  barrier
//!   R3  current = a? or again W3  a in a slot? if not, drop it
//!       use the value         W4  flag the slots that have it
//!   R4  slot <- nothing       W5  barrier
//!   R5  flagged? then look    W6  as W3
//!       as W3, under the lock
//! ```
//!
//! All that this adds to a read are loads and stores, of the value's address and of one line of the
//! cache that is the thread's own. In two places a store is followed by a load of something else,
//! which a processor may swap: R2 and R3, R4 and R5. W2 and W5 make up for it: every running thread
//! passes them (`membarrier`), somewhere between two of its steps. If a reader passes W2 before R3,
//! it sees at R3 that the value is not the current one. If it passes W2 later, its R2 is in memory,
//! and W3 finds it. If it passes W5 before R5, it finds its flag. If it passes W5 later, its R4 is
//! in memory, and W6 does not find it any more. Where there is no such barrier, each side has a
//! full fence in these places.
//!
//! W3 to W6, and the look of a flagged reader, happen under one lock: of several that leave at once
//! the last one to get it finds no other. That a reader's accesses come before the drop is due to
//! R4, a release that W3 acquires; as is R2, as it may overwrite R4 before that is read.
//!
//! Announcing addresses, not just that something is read (as the read sides of RCU do), costs the
//! same and lets a reader delay nothing but what it reads: a handler that waits for long delays no
//! drop of another machine, nor of a later commit.
//!
//! The tests check this with loom, whose barrier is one that meets the reader at any point, and
//! keep what is wrong: either barrier left out, R3 left out, the flag set too late, W6 left out, R5
//! before R4, no fence between the two where there is no barrier, slots without an order.
//!
//! Built on `sys`, for the barrier. It knows neither blocks nor views.

pub(crate) mod cell;
mod readers;
mod record;
mod thread;

// WebAssembly with WASI has no threads.
#[cfg(test)]
#[cfg(not(target_family = "wasm"))]
mod litmus_tests;
#[cfg(test)]
mod tests;
