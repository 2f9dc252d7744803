//! Forecasts a migration without starting one.
//!
//! Uses `converge`, to simulate the throttle and the dirty limit as a migration applies them.
//!
//! - `dirty_rate`: measures how fast a machine dirties its memory; `report`: the result;
//! - `working_set`: a model of the guest's writes, fitted to a measurement;
//! - `plan`: forecasts the rounds of a migration with given settings.

pub(crate) mod dirty_rate;
pub(crate) mod plan;
pub(crate) mod report;
pub(crate) mod working_set;
