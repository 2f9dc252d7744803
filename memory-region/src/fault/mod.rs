//! What an access comes back with in place of a value, beside errors: a device's bus fault, a trap
//! that is the caller's to carry out, and a watchpoint that was reached.

pub(crate) mod bus_fault;
pub(crate) mod trap;
pub(crate) mod watchpoint;
