//! The ways in which KVM tracks written pages, as options name them.

use clap::ValueEnum;
use kvm_accel::DirtyTracking;

/// Entries of each dirty ring.
pub const RING_ENTRIES: u32 = 65_536;

/// How KVM tracks written pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TrackingMode {
    /// A bitmap that is cleared as it is read
    Bitmap,
    /// A bitmap that is cleared before its pages are read
    Manual,
    /// A ring of pages for each processor
    Ring,
}

impl TrackingMode {
    /// Its name among the options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bitmap => "bitmap",
            Self::Manual => "manual",
            Self::Ring => "ring",
        }
    }

    /// As the accelerator is configured.
    pub fn tracking(self) -> DirtyTracking {
        match self {
            Self::Bitmap => DirtyTracking::Bitmap,
            Self::Manual => DirtyTracking::ManualProtect,
            Self::Ring => DirtyTracking::Ring { entries: RING_ENTRIES },
        }
    }
}
