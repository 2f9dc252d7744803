//! The errors of calls to KVM.

use std::io;
use std::time::Duration;

use ram_block::DirtyError;
use thiserror::Error;

use crate::config::DirtyTracking;

/// An operation on KVM that failed.
#[derive(Debug, Error)]
pub enum KvmError {
    /// The map needs more memory slots than KVM has, or than `KvmConfig::slot_limit` allows.
    #[error("The memory map needs {needed} slots, KVM has {limit}")]
    SlotLimit {
        /// Slots needed.
        needed: usize,
        /// Slots that may be used.
        limit: usize,
    },
    /// KVM refuses a memory slot.
    #[error("KVM refuses slot {slot}: {size:#x} bytes of \"{block}\" at guest address {guest:#x}")]
    SetSlot {
        /// The slot's number.
        slot: u32,
        /// The guest-physical address, in bytes.
        guest: u64,
        /// The size in bytes; 0 deletes.
        size: u64,
        /// The block's id.
        block: String,
        /// The error of KVM.
        #[source]
        source: io::Error,
    },
    /// KVM_GET_DIRTY_LOG failed.
    #[error("KVM_GET_DIRTY_LOG of slot {slot} (\"{block}\") failed")]
    GetDirtyLog {
        /// The slot's number.
        slot: u32,
        /// The block's id.
        block: String,
        /// The error of KVM.
        #[source]
        source: io::Error,
    },
    /// KVM_IOEVENTFD failed.
    #[error("KVM refuses the eventfd for writes of {size} bytes at {address:#x}")]
    IoEvent {
        /// The address or port.
        address: u64,
        /// The size of the writes in bytes; 0 for any.
        size: u8,
        /// The error of KVM.
        #[source]
        source: io::Error,
    },
    /// KVM_REGISTER_COALESCED_MMIO or KVM_UNREGISTER_COALESCED_MMIO failed.
    #[error("KVM refuses to coalesce writes to {size:#x} bytes at {start:#x}")]
    CoalescedZone {
        /// The first address or port.
        start: u64,
        /// The size in bytes.
        size: u64,
        /// The error of KVM.
        #[source]
        source: io::Error,
    },
    /// KVM_CLEAR_DIRTY_LOG of a part of a slot failed.
    #[error(
        "KVM_CLEAR_DIRTY_LOG of {count} pages from page {first} of slot {slot} (\"{block}\") failed"
    )]
    ClearDirtyLog {
        /// The slot's number.
        slot: u32,
        /// The first page, counted from the slot's start.
        first: u64,
        /// How many pages.
        count: u64,
        /// The block's id.
        block: String,
        /// The error of KVM.
        #[source]
        source: io::Error,
    },
    /// KVM_RESET_DIRTY_RINGS failed.
    #[error("KVM_RESET_DIRTY_RINGS failed")]
    ResetRings {
        /// The error of KVM.
        #[source]
        source: io::Error,
    },
    /// Written pages cannot be tracked in the way that was asked for.
    #[error("Written pages cannot be tracked by {tracking}: {reason}")]
    Tracking {
        /// The way that was asked for.
        tracking: DirtyTracking,
        /// Why it cannot be used.
        reason: String,
        /// KVM's error, if it was called.
        #[source]
        source: Option<io::Error>,
    },
    /// A dirty limit was set without dirty rings: only they count the pages that each vCPU writes.
    #[error("A dirty limit needs dirty rings: written pages are tracked by {tracking}")]
    NoRings {
        /// How written pages are tracked.
        tracking: DirtyTracking,
    },
    /// The thread that keeps the dirty limit cannot be started.
    #[error("The thread that keeps the dirty limit cannot be started")]
    LimitThread {
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
    /// A size in the configuration is zero, or no multiple of its unit.
    #[error("{what} is a non-zero multiple of {unit} bytes, {found} were asked for")]
    Config {
        /// Which size.
        what: &'static str,
        /// The unit, in bytes.
        unit: u64,
        /// What was asked for, in bytes.
        found: u64,
    },
    /// KVM's log does not fit the block's bitmaps.
    #[error(transparent)]
    Merge(#[from] DirtyError),
    /// A vCPU cannot be made.
    #[error("vCPU {id} cannot be created")]
    CreateVcpu {
        /// The vCPU's number.
        id: u64,
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
    /// A vCPU cannot be run.
    #[error("KVM_RUN of vCPU {id} failed")]
    Run {
        /// The vCPU's number.
        id: u64,
        /// The error of KVM.
        #[source]
        source: io::Error,
    },
    /// A part of a vCPU's state can be neither saved nor restored.
    #[error("The {part} of vCPU {id} cannot be carried over")]
    State {
        /// The vCPU's number.
        id: u64,
        /// Which part.
        part: &'static str,
        /// KVM's error, or the reason.
        #[source]
        source: io::Error,
    },
    /// The signal that interrupts guests cannot be used.
    #[error("Signal {signal} cannot be set up to interrupt vCPUs")]
    Signal {
        /// The signal's number.
        signal: i32,
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
    /// Some vCPUs did not stop in time; the others run again.
    #[error("{running} of {vcpus} vCPUs did not stop within {waited:?}")]
    PauseTimeout {
        /// vCPUs that did not stop.
        running: usize,
        /// vCPUs in all.
        vcpus: usize,
        /// How long was waited.
        waited: Duration,
    },
    /// A device's handler called [`KvmVm::pause`](crate::KvmVm::pause) on a vCPU's own thread.
    #[error("vCPU {id} cannot wait for itself to stop: pause from another thread")]
    PauseFromVcpu {
        /// The vCPU's number.
        id: u64,
    },
    /// The thread of a vCPU cannot be started.
    #[error("The thread of vCPU {id} cannot be started")]
    Spawn {
        /// The vCPU's number.
        id: u64,
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
    /// A device's handler panicked on the thread of a vCPU.
    #[error("The thread of vCPU {id} panicked: {message}")]
    Panicked {
        /// The vCPU's number.
        id: u64,
        /// The panic's message.
        message: String,
    },
}

/// KVM's error as the standard library's.
pub(crate) fn io_error(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}
