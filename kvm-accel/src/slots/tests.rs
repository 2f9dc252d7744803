//! Slots against a KVM of paper, with logs that clear by themselves, such that are cleared,
//! and rings, in slots of any size: whatever fails, the table is what KVM has, and no store is
//! lost to any client.

mod fake_kvm;
mod follower;
mod losses;
mod newcomers;
mod race;
mod random;
mod removal;
mod rings;
