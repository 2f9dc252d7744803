//! What interpreters ask of a bus: traps, bus faults, an open bus, banks, address lines,
//! watchpoints.

mod banks;
mod buses;
mod counts;
mod devices;
mod machine;
mod watchpoints;
