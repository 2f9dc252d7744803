//! What a processor needs that is interpreted: memory at the speed of an array.
//!
//! - `entry`: one page of a software TLB, and when it may still be used
//! - `tlb`: loads and stores; what is not in an entry goes through the view
//! - `atomics`: read-modify-writes by address
//!
//! Built on `view`.

mod atomics;
mod entry;
pub(crate) mod tlb;
