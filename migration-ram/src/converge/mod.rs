//! Slowing a guest down, so that its migration ends. It knows nothing of a migration.
//!
//! - `trend`: whether a guest writes too much;
//! - `auto_converge`: how much to throttle it then; `throttle`: the throttle;
//! - `dirty_limit`: how much it may dirty then.

pub(crate) mod auto_converge;
pub(crate) mod dirty_limit;
pub(crate) mod throttle;
pub(crate) mod trend;
