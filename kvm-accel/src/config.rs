//! The configuration of a machine, and the ways in which KVM can track written pages.

use std::fmt;
use std::time::Duration;

use vmm_sys_util::signal::SIGRTMIN;

/// A way in which KVM tracks the pages that guests write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DirtyTracking {
    /// Manual protection where KVM has it, else the bitmap.
    #[default]
    Auto,
    /// A bitmap for each slot. KVM_GET_DIRTY_LOG returns and clears it, and write-protects the
    /// pages that it reports.
    Bitmap,
    /// The same bitmap, but KVM_GET_DIRTY_LOG only returns it. KVM_CLEAR_DIRTY_LOG clears bits and
    /// write-protects their pages, just before they are read.
    ManualProtect,
    /// A dirty ring for each vCPU: a list of written pages.
    ///
    /// KVM_RESET_DIRTY_RINGS write-protects the listed pages again, on the thread that syncs. A
    /// SIGSTOP, a debugger or work of io_uring that interrupts exactly the end of the call
    /// leaves up to 64 pages writable without an entry, and KVM does not report it. Sync from
    /// threads that use no io_uring.
    Ring {
        /// Entries of each ring: a power of two, of 16 bytes each. Where KVM emulates guest code it
        /// may push more entries than a small ring has left; such an overrun is detected and
        /// counted, and all pages are marked dirty. KVM takes 65,536 at most.
        entries: u32,
    },
}

impl fmt::Display for DirtyTracking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Bitmap => f.write_str("bitmap"),
            Self::ManualProtect => f.write_str("manual protect"),
            Self::Ring { entries } => write!(f, "ring of {entries}"),
        }
    }
}

/// The signal that makes vCPUs leave the guest.
///
/// What it does to other threads, and to system calls of the vCPUs' threads, is the handler's: one
/// that does nothing interrupts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KickSignal {
    /// A signal for which the first vCPU installs a handler that does nothing. If the process has
    /// another one, that is an error ([`KvmError::SignalTaken`](crate::KvmError::SignalTaken)).
    Install(i32),
    /// A signal for which the process has a handler, that does nothing which harms.
    Existing(i32),
}

impl Default for KickSignal {
    fn default() -> Self {
        Self::Install(SIGRTMIN())
    }
}

/// The configuration of a [`KvmVm`](crate::KvmVm); the default suits most.
///
/// Make one by `KvmConfig { tracking, ..KvmConfig::default() }`: fields may be added.
#[derive(Clone, Debug)]
pub struct KvmConfig {
    /// How written pages are tracked.
    pub tracking: DirtyTracking,
    /// With manual protection, whether a log starts with all pages reported as written
    /// (KVM_DIRTY_LOG_INITIALLY_SET), where KVM can do that; true by default.
    ///
    /// Then a log starts at once, whatever the size of the guest, its first harvest gives every
    /// page, and pages are write-protected as they are cleared: right for a migration or a
    /// display, which begin with all of memory anyway. If false, the first harvest gives exactly
    /// what was written since the log was switched on, as with the bitmap and the ring: for a
    /// checkpoint that was taken just then. KVM write-protects all pages of a slot when its log
    /// starts, before `claim_log` returns: that costs time that grows with the slot's mapped
    /// memory, and a fault at the first write of each page. Later clears are cheaper: with all
    /// pages reported first, KVM looks at each clear for huge pages to split, which took 140 ns
    /// more for each 64 pages in which one is cleared. A machine that is reset many times a second
    /// wants it false.
    pub initially_set: bool,
    /// At most so many memory slots, however many KVM has.
    pub slot_limit: usize,
    /// The largest slot, in bytes; larger pieces of RAM get several. Slots are synced one by one,
    /// and other threads' syncs run in between. KVM's report of 8 GiB, the default, is merged while
    /// it is in the CPU's cache; RAM of more than KVM's number of slots times this size needs
    /// larger slots.
    pub max_slot_bytes: u64,
    /// With manual protection, how much is write-protected at least, in bytes: a multiple of 64
    /// pages. What is cleared is widened to whole chunks, and a call takes as many of them as are
    /// asked for, up to a gibibyte. A chunk of the default, 32 MiB, costs little more for each page
    /// than one of a gibibyte, and leaves pages alone that are not about to be read.
    pub clear_chunk_bytes: u64,
    /// The number of the first memory slot. The owner of the descriptor of the virtual machine may
    /// have slots of his own below it (see [`KvmVm::over`](crate::KvmVm::over)).
    pub first_slot: u32,
    /// The signal that interrupts vCPUs; the first real-time signal (`SIGRTMIN`) by default.
    pub kick_signal: KickSignal,
    /// With the ring, how old the answer of a sync may be while guests run. With PML the CPU
    /// buffers what a guest wrote until it leaves the guest; a sync forces guests to exit for that
    /// only if the last time was at least this long ago. After a pause nothing is buffered.
    pub pml_flush_interval: Duration,
}

impl Default for KvmConfig {
    fn default() -> Self {
        Self {
            tracking: DirtyTracking::Auto,
            initially_set: true,
            slot_limit: usize::MAX,
            first_slot: 0,
            kick_signal: KickSignal::default(),
            max_slot_bytes: 8 << 30,
            clear_chunk_bytes: 32 << 20,
            pml_flush_interval: Duration::from_millis(200),
        }
    }
}
