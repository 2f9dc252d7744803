//! How KVM tracks written pages, and which way is taken.

use std::fmt;
use std::time::Duration;

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP,
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, kvm_enable_cap,
};
use kvm_ioctls::VmFd;

use crate::error::{KvmError, io_error};
use crate::ring::Entry;

/// A way in which KVM tracks the pages that guests write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DirtyTracking {
    /// Manual protection where KVM has it, else the bitmap.
    #[default]
    Auto,
    /// A bitmap for each slot, which KVM_GET_DIRTY_LOG takes, write-protecting the pages
    /// that it reports.
    Bitmap,
    /// The bitmap again, but it is only looked at, and pages are write-protected by
    /// KVM_CLEAR_DIRTY_LOG, just before they are read.
    ManualProtect,
    /// A list of written pages for each vCPU.
    ///
    /// KVM_RESET_DIRTY_RINGS write-protects the listed pages again, on the thread that syncs. A
    /// SIGSTOP, a debugger or work of io_uring that interrupts exactly the end of the call
    /// leaves up to 64 pages writable without an entry, and KVM does not report it. Sync from
    /// threads that use no io_uring.
    Ring {
        /// Entries of each list: a power of two, of 16 bytes each. Where KVM emulates
        /// guest code it may write more entries than a small ring has left (found, counted,
        /// and answered by taking all pages as written): 65,536 is the most that KVM takes.
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

/// What a [`KvmVm`](crate::KvmVm) is to do; the default suits most.
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
    /// starts, before `set_log` returns: that costs time that grows with the slot's mapped
    /// memory, and a fault at the first write of each page.
    pub initially_set: bool,
    /// At most so many memory slots, however many KVM has.
    pub slot_limit: usize,
    /// The largest slot, in bytes; larger pieces of RAM get several. Each is synced by
    /// itself, with others' syncs in between. KVM's report of 8 GiB, which is the default,
    /// is merged while it is in the processor's cache; a map of more than so many times
    /// KVM's number of slots needs larger ones.
    pub max_slot_bytes: u64,
    /// With manual protection, how much is write-protected by one call, in bytes: a multiple
    /// of 64 pages. A call of the default, 32 MiB, costs little more for each page than one
    /// of a gibibyte, and pages that nobody is about to read are left alone.
    pub clear_chunk_bytes: u64,
    /// With the ring, how old the answer of a sync may be while guests run. The processor
    /// may hold back what a guest wrote until it leaves the guest; within this time of the
    /// last look guests are not interrupted for it. After a pause nothing is held back.
    pub ring_staleness: Duration,
}

impl Default for KvmConfig {
    fn default() -> Self {
        Self {
            tracking: DirtyTracking::Auto,
            initially_set: true,
            slot_limit: usize::MAX,
            max_slot_bytes: 8 << 30,
            clear_chunk_bytes: 32 << 20,
            ring_staleness: Duration::from_millis(200),
        }
    }
}

/// What was chosen, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The way that is taken, never [`DirtyTracking::Auto`].
    pub tracking: DirtyTracking,
    /// Why, in a few words.
    pub reason: String,
    /// With manual protection, whether a log starts with all pages written rather than
    /// with write-protecting them all: then the first harvest of a log gives every page; see
    /// [`KvmConfig::initially_set`].
    pub initially_set: bool,
    /// With the ring, whether a bitmap has what was written outside of vCPUs.
    pub with_bitmap: bool,
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.tracking, self.reason)
    }
}

fn enable(vm: &VmFd, cap: u32, argument: u64) -> Result<(), std::io::Error> {
    let mut request = kvm_enable_cap { cap, ..kvm_enable_cap::default() };
    request.args[0] = argument;
    vm.enable_cap(&request).map_err(io_error)
}

/// What KVM answers about a capability: 0 if it does not have it.
fn capability(vm: &VmFd, cap: u32) -> u64 {
    u64::try_from(vm.check_extension_raw(cap.into())).unwrap_or(0)
}

/// Switches on what `wanted` asks for, before there is a slot or a vCPU.
pub(crate) fn choose(vm: &VmFd, config: &KvmConfig) -> Result<Chosen, KvmError> {
    let KvmConfig { tracking: wanted, initially_set, .. } = *config;
    let refused = |reason: &str, source| KvmError::Tracking {
        tracking: wanted,
        reason: reason.to_owned(),
        source,
    };
    let chosen = |tracking, reason: &str| Chosen {
        tracking,
        reason: reason.to_owned(),
        initially_set: false,
        with_bitmap: false,
    };
    match wanted {
        DirtyTracking::Bitmap => Ok(chosen(wanted, "asked for")),
        DirtyTracking::ManualProtect => match manual_protect(vm, initially_set) {
            Ok(Some(initially_set)) => Ok(Chosen { initially_set, ..chosen(wanted, "asked for") }),
            Ok(None) => Err(refused("KVM does not have it", None)),
            Err(error) => Err(refused("KVM refuses it", Some(error))),
        },
        DirtyTracking::Auto => Ok(match manual_protect(vm, initially_set) {
            Ok(Some(true)) => Chosen {
                initially_set: true,
                ..chosen(DirtyTracking::ManualProtect, "KVM has it, and logs start at once")
            },
            Ok(Some(false)) if !initially_set => {
                chosen(DirtyTracking::ManualProtect, "KVM has it, and logs start exact, as asked")
            }
            Ok(Some(false)) => chosen(DirtyTracking::ManualProtect, "KVM has it"),
            Ok(None) => chosen(DirtyTracking::Bitmap, "KVM has no manual protection"),
            Err(error) => {
                chosen(DirtyTracking::Bitmap, &format!("KVM refuses manual protection: {error}"))
            }
        }),
        DirtyTracking::Ring { entries } => {
            let acquire = capability(vm, KVM_CAP_DIRTY_LOG_RING_ACQ_REL);
            let (cap, most) = match acquire {
                0 => (KVM_CAP_DIRTY_LOG_RING, capability(vm, KVM_CAP_DIRTY_LOG_RING)),
                most => (KVM_CAP_DIRTY_LOG_RING_ACQ_REL, most),
            };
            if most == 0 {
                return Err(refused("KVM does not have it", None));
            }
            let bytes = u64::from(entries) * size_of::<Entry>() as u64;
            if !entries.is_power_of_two() || bytes > most {
                let most = most / size_of::<Entry>() as u64;
                let reason = format!("a ring has a power of two of entries, {most} at most");
                return Err(refused(&reason, None));
            }
            enable(vm, cap, bytes)
                .map_err(|error| refused("KVM refuses it, perhaps as too small", Some(error)))?;
            let with_bitmap = capability(vm, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP) != 0
                && enable(vm, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP, 0).is_ok();
            Ok(Chosen { with_bitmap, ..chosen(wanted, "asked for") })
        }
    }
}

/// Enables manual protection, with logs that start with all pages written if that is wanted;
/// says whether they do. `None` if KVM does not have it.
fn manual_protect(vm: &VmFd, initially_set: bool) -> Result<Option<bool>, std::io::Error> {
    let offered = capability(vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
    let on = u64::from(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
    if offered & on == 0 {
        return Ok(None);
    }
    let set = if initially_set { u64::from(KVM_DIRTY_LOG_INITIALLY_SET) } else { 0 };
    enable(vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, on | offered & set)?;
    Ok(Some(offered & set != 0))
}
