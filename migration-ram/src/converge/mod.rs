//! Slows a guest down so that its migration converges. Independent of the migration code.
//!
//! - `trend`: whether the guest dirties more than half of what is sent;
//! - `auto_converge`: the percentage to throttle it by; `throttle`: the throttle;
//! - `dirty_limit`: the bytes per second that it may dirty instead.

pub(crate) mod auto_converge;
pub(crate) mod dirty_limit;
pub(crate) mod throttle;
pub(crate) mod trend;
