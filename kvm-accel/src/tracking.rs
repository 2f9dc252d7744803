//! The choice of how written pages are tracked.

use std::fmt;

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP,
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, kvm_enable_cap,
};
use kvm_ioctls::VmFd;

use crate::config::{DirtyTracking, KvmConfig};
use crate::error::KvmError;
use crate::sys::dirty_gfn::Entry;
use crate::sys::ioctl::SlotCalls;

/// How written pages are tracked, and why so.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DirtyTrackingMode {
    /// The way that was chosen, never [`DirtyTracking::Auto`].
    pub tracking: DirtyTracking,
    /// Why, in a few words.
    pub reason: String,
    /// With manual protection, whether a log starts with all pages reported as written rather than
    /// with all pages write-protected: then the first harvest of a log gives every page; see
    /// [`KvmConfig::initially_set`].
    pub initially_set: bool,
    /// With the ring, whether KVM has a bitmap as well, of pages that were written outside of
    /// vCPUs.
    pub with_bitmap: bool,
}

impl fmt::Display for DirtyTrackingMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.tracking, self.reason)
    }
}

fn enable(vm: &VmFd, cap: u32, argument: u64) -> Result<(), std::io::Error> {
    let mut request = kvm_enable_cap { cap, ..kvm_enable_cap::default() };
    request.args[0] = argument;
    vm.enable_cap(&request).map_err(Into::into)
}

/// What KVM answers about a capability: 0 if it does not have it.
fn capability(vm: &VmFd, cap: u32) -> u64 {
    u64::try_from(vm.check_extension_raw(cap.into())).unwrap_or(0)
}

/// Enables the way of tracking that `config` asks for, before there is a slot or a vCPU.
pub(crate) fn choose(vm: &VmFd, config: &KvmConfig) -> Result<DirtyTrackingMode, KvmError> {
    let KvmConfig { tracking: wanted, initially_set, .. } = *config;
    let refused = |reason: &str, source| KvmError::Tracking {
        tracking: wanted,
        reason: reason.to_owned(),
        source,
    };
    let chosen = |tracking, reason: &str| DirtyTrackingMode {
        tracking,
        reason: reason.to_owned(),
        initially_set: false,
        with_bitmap: false,
    };
    // A virtual machine that its owner keeps may have been tracked in another way before. Rings
    // cannot be switched off, nor be had twice; without them there are none to reset (KVM API,
    // section 8.29).
    if vm.reset_rings().is_ok() {
        return Err(refused("this virtual machine has dirty rings already", None));
    }
    match wanted {
        DirtyTracking::Bitmap => {
            if capability(vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) != 0 {
                // Else KVM_GET_DIRTY_LOG would report pages for ever.
                enable(vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 0)
                    .map_err(|error| refused("KVM keeps manual protection", Some(error)))?;
            }
            Ok(chosen(wanted, "asked for"))
        }
        DirtyTracking::ManualProtect => match manual_protect(vm, initially_set) {
            Ok(Some(initially_set)) => {
                Ok(DirtyTrackingMode { initially_set, ..chosen(wanted, "asked for") })
            }
            Ok(None) => Err(refused("KVM does not have it", None)),
            Err(error) => Err(refused("KVM refuses it", Some(error))),
        },
        DirtyTracking::Auto => Ok(match manual_protect(vm, initially_set) {
            Ok(Some(true)) => DirtyTrackingMode {
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
            // A weakly ordered host (arm64) has the second capability only (KVM API, section 8.29).
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
            Ok(DirtyTrackingMode { with_bitmap, ..chosen(wanted, "asked for") })
        }
    }
}

/// Enables manual protection, with logs that start with all pages reported if `initially_set`;
/// returns whether they do. `None` if KVM does not have it.
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
