//! Slows the guest down during its migration: by a throttle, or by a dirty limit.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::converge::auto_converge::{AutoConverge, ThrottleSteps};
use crate::converge::dirty_limit::{DirtyLimit, DirtyLimiter};
use crate::converge::throttle::Throttle;
use crate::devices::device::DeviceError;
use crate::error::SendError;
use crate::status::progress::Progress;

type Pause = dyn Fn() -> Result<Box<dyn Any>, DeviceError> + Send + Sync;
type SetLimit = dyn Fn(Option<u64>) -> Result<(), DeviceError> + Send + Sync;

/// How the guest is slowed down if it dirties too much.
#[derive(Clone)]
pub(super) enum SlowdownSettings {
    Throttle { settings: AutoConverge, pause: Arc<Pause> },
    Limit { settings: DirtyLimit, set: Arc<SetLimit> },
}

impl fmt::Debug for SlowdownSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Throttle { settings, .. } => settings.fmt(f),
            Self::Limit { settings, .. } => settings.fmt(f),
        }
    }
}

/// Slows the guest down for one migration. Dropping it ends the throttle and lifts the limit.
pub(super) enum Throttler {
    None,
    Throttle { steps: ThrottleSteps, throttle: Option<Throttle>, pause: Arc<Pause> },
    Limit { choice: DirtyLimiter, limit: Limit },
}

impl Throttler {
    pub(super) fn new(slowing: Option<&SlowdownSettings>) -> Result<Self, SendError> {
        Ok(match slowing {
            None => Self::None,
            Some(SlowdownSettings::Throttle { settings, pause }) => {
                Self::Throttle { steps: settings.steps()?, throttle: None, pause: pause.clone() }
            }
            Some(SlowdownSettings::Limit { settings, set }) => {
                let choice = settings.begin()?;
                set(None).map_err(SendError::DirtyLimit)?;
                Self::Limit { choice, limit: Limit { set: set.clone(), in_force: false } }
            }
        })
    }

    /// Whether it can slow the guest down further.
    pub(super) fn has_more(&self) -> bool {
        match self {
            Self::None => false,
            Self::Throttle { steps, .. } => !steps.is_at_most(),
            Self::Limit { limit, .. } => !limit.in_force,
        }
    }

    /// Slows the guest down if it `dirtied` too many bytes in a `time` in which `sent` bytes were
    /// sent.
    pub(super) fn observe(
        &mut self,
        time: Duration,
        dirtied: u64,
        sent: u64,
        progress: &mut Progress,
    ) -> Result<(), SendError> {
        match self {
            Self::None => {}
            Self::Throttle { steps, throttle, pause } => {
                let Some(percent) = steps.observe(time, dirtied, sent) else { return Ok(()) };
                let throttle = match throttle {
                    Some(throttle) => throttle,
                    none => {
                        let pause = pause.clone();
                        none.insert(Throttle::new(move || pause()).map_err(SendError::Throttle)?)
                    }
                };
                throttle.set(percent);
                progress.throttle = percent;
            }
            Self::Limit { choice, limit } => {
                let Some(bytes) = choice.observe(time, dirtied, sent) else { return Ok(()) };
                limit.set(bytes)?;
                progress.dirty_limit = Some(bytes);
            }
        }
        Ok(())
    }

    /// Ends the throttle, whose guard the caller's `pause` might wait for. A dirty limit stays:
    /// no pause waits for it, and without it the guest would write at full speed just before the
    /// last round.
    pub(super) fn before_pause(&mut self) {
        if let Self::Throttle { throttle, .. } = self {
            *throttle = None;
        }
    }
}

/// A limit that is lifted when this is dropped.
pub(super) struct Limit {
    set: Arc<SetLimit>,
    in_force: bool,
}

impl Limit {
    fn set(&mut self, bytes: u64) -> Result<(), SendError> {
        log::debug!("The guest may dirty {bytes} bytes a second");
        // Also if `set` fails: the limit may be in force on some vCPUs.
        self.in_force = true;
        (self.set)(Some(bytes)).map_err(SendError::DirtyLimit)
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        if !self.in_force {
            return;
        }
        if let Err(error) = (self.set)(None) {
            log::warn!("The guest's dirty limit cannot be lifted: {error}");
        }
    }
}
