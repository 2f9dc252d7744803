//! What harts load from and store to.
//!
//! - `bus`: what a hart asks of its memory
//! - `vec_bus`: an array
//! - `tlb_bus`: an address space, through a software TLB
//! - `code_pages`: which pages of RAM have decoded code, and how often they were written
//!
//! Built on nothing of this crate.

#[allow(clippy::module_inception)] // the trait is the module's idea
pub(crate) mod bus;
pub(crate) mod code_pages;
pub(crate) mod tlb_bus;
pub(crate) mod vec_bus;
