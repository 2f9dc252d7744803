//! What a processor needs that is interpreted: memory at the speed of an array.
//!
//! - `entry`: one page of a software TLB, and when it may still be used
//! - `reservation`: what a processor has loaded and reserved
//! - `tlb`: loads and stores; what is not in an entry goes through the view
//! - `atomics`: read-modify-writes by address
//! - `translate`: where code is
//! - `statistics`: what a TLB has done
//! - `watchpoints`, `debug`: what a debugger stops
//!
//! Built on `view`.

mod atomics;
mod debug;
mod entry;
mod reservation;
pub(crate) mod statistics;
pub(crate) mod tlb;
mod translate;
mod watchpoints;
