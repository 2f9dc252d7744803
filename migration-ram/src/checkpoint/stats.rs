//! What checkpoints cost.

use std::time::Duration;

/// What going back to a checkpoint took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResetStats {
    /// Pages that were put back.
    pub pages: u64,
    /// The time to merge what accelerators have logged, and to take it.
    pub get: Duration,
    /// The time to re-arm the log of what was taken.
    pub clear: Duration,
    /// The time to put the pages back.
    pub copy: Duration,
    /// The time to put the states of devices back.
    pub state: Duration,
}

/// What a checkpoint of a running machine took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LiveStats {
    /// Pages that were copied while the machine ran, some of them more than once.
    pub pages_live: u64,
    /// Pages that were copied while it was paused.
    pub pages_paused: u64,
    /// How often what was dirty was copied, the last time included.
    pub rounds: u32,
    /// How long the machine was paused.
    pub paused: Duration,
}
