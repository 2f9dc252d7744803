//! The errors of calls to KVM.

use std::io;
use std::time::Duration;

use ram_block::DirtyError;
use thiserror::Error;

use crate::config::DirtyTracking;

/// An operation on KVM that failed. Sizes are in bytes, addresses those of the guest.
#[derive(Debug, Error)]
#[non_exhaustive]
#[allow(missing_docs)] // of fields: the messages say what they are
pub enum KvmError {
    /// The map needs more memory slots than KVM has, or than `KvmConfig::slot_limit` allows.
    #[error("The memory map needs {needed} slots, KVM has {limit}")]
    SlotLimit { needed: usize, limit: usize },
    /// A block whose writes are tracked in other pages than KVM logs.
    #[error("Block \"{block}\" has pages of {found} bytes, KVM logs those of the host, of {host}")]
    PageSize { block: String, found: u64, host: u64 },
    /// KVM refuses to make a memory slot, or, with a size of 0, to delete it.
    #[error("KVM refuses slot {slot}: {size:#x} bytes of \"{block}\" at guest address {guest:#x}")]
    SetSlot { slot: u32, guest: u64, size: u64, block: String, source: io::Error },
    /// KVM_GET_DIRTY_LOG failed.
    #[error("KVM_GET_DIRTY_LOG of slot {slot} (\"{block}\") failed")]
    GetDirtyLog { slot: u32, block: String, source: io::Error },
    /// KVM_IOEVENTFD failed; a size of 0 stands for writes of any size.
    #[error("KVM refuses the eventfd for writes of {size} bytes at {address:#x}")]
    IoEvent { address: u64, size: u8, source: io::Error },
    /// KVM_REGISTER_COALESCED_MMIO or KVM_UNREGISTER_COALESCED_MMIO failed.
    #[error("KVM refuses to coalesce writes to {size:#x} bytes at {start:#x}")]
    CoalescedZone { start: u64, size: u64, source: io::Error },
    /// KVM_CLEAR_DIRTY_LOG of a part of a slot failed; its first page is counted from the slot's.
    #[error(
        "KVM_CLEAR_DIRTY_LOG of {count} pages from page {first} of slot {slot} (\"{block}\") failed"
    )]
    ClearDirtyLog { slot: u32, first: u64, count: u64, block: String, source: io::Error },
    /// KVM_RESET_DIRTY_RINGS failed.
    #[error("KVM_RESET_DIRTY_RINGS failed")]
    ResetRings { source: io::Error },
    /// Written pages cannot be tracked in the way that was asked for; the source is KVM's error, if
    /// it was called.
    #[error("Written pages cannot be tracked by {tracking}: {reason}")]
    Tracking { tracking: DirtyTracking, reason: String, source: Option<io::Error> },
    /// A dirty limit or bound was set without dirty rings: only they count the pages that vCPUs
    /// write.
    #[error("{what} needs dirty rings: written pages are tracked by {tracking}")]
    NoRings { what: &'static str, tracking: DirtyTracking },
    /// A dirty bound of fewer pages than the rings of all vCPUs have entries.
    #[error(
        "A dirty bound is at least {least} pages, the entries of all rings: {asked} were asked"
    )]
    DirtyBound { asked: u64, least: u64 },
    /// The thread that keeps the dirty limit cannot be started.
    #[error("The thread that keeps the dirty limit cannot be started")]
    LimitThread { source: io::Error },
    /// A size in the configuration is zero, or no multiple of its unit.
    #[error("{what} is a non-zero multiple of {unit} bytes, {found} were asked for")]
    Config { what: &'static str, unit: u64, found: u64 },
    /// KVM's log does not fit the block's bitmaps.
    #[error(transparent)]
    Merge(#[from] DirtyError),
    /// Another machine has memory slots with these numbers of the same virtual machine of KVM.
    #[error("Slots from {first} on of this virtual machine are another machine's")]
    SlotsTaken { first: u32 },
    /// Writes are coalesced, and no vCPU has buses that they could be passed to.
    #[error("Coalesced writes have no bus to go to: no vCPU was given one")]
    NoBus,
    /// A vCPU cannot be made.
    #[error("vCPU {id} cannot be created")]
    CreateVcpu { id: u64, source: io::Error },
    /// A vCPU cannot be run.
    #[error("KVM_RUN of vCPU {id} failed")]
    Run { id: u64, source: io::Error },
    /// A part of a vCPU's state can be neither saved nor restored; the source is KVM's error, or
    /// the reason.
    #[error("The {part} of vCPU {id} cannot be carried over")]
    State { id: u64, part: &'static str, source: io::Error },
    /// The state of a chip in the kernel can be neither saved nor restored.
    #[error("The {part} cannot be carried over")]
    Chip { part: &'static str, source: io::Error },
    /// A vCPU of a set is not stopped, or its thread could not be started.
    #[error("vCPU {index} of the set is not stopped")]
    VcpuRuns { index: usize },
    /// States of more vCPUs, or of fewer, than there are.
    #[error("{found} states of vCPUs were given to {expected} vCPUs")]
    VcpuCount { found: usize, expected: usize },
    /// The signal that interrupts guests cannot be used.
    #[error("Signal {signal} cannot be set up to interrupt vCPUs")]
    Signal { signal: i32, source: io::Error },
    /// The process has a handler for the signal that is not to be replaced.
    #[error("Signal {signal} has a handler already: choose another one, or `KickSignal::Existing`")]
    SignalTaken { signal: i32 },
    /// The process has no handler for the signal, which would end it, or would interrupt nothing.
    #[error("Signal {signal} has no handler: install one, or choose `KickSignal::Install`")]
    SignalUnhandled { signal: i32 },
    /// Some vCPUs did not stop in time; the others run again.
    #[error("{running} of {vcpus} vCPUs did not stop within {waited:?}")]
    PauseTimeout { running: usize, vcpus: usize, waited: Duration },
    /// A device's handler called [`KvmVm::pause`](crate::KvmVm::pause) on a vCPU's own thread.
    #[error("vCPU {id} cannot wait for itself to stop: pause from another thread")]
    PauseFromVcpu { id: u64 },
    /// The thread of a vCPU cannot be started.
    #[error("The thread of vCPU {id} cannot be started")]
    Spawn { id: u64, source: io::Error },
    /// A device's handler panicked on the thread of a vCPU.
    #[error("The thread of vCPU {id} panicked: {message}")]
    Panicked { id: u64, message: String },
}
