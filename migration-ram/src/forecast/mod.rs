//! What a migration will do, before it is begun; none need be.
//!
//! It stands on `converge`, whose steps a forecast goes through as a migration does.
//!
//! - `dirty_rate`: how fast a machine writes its memory; `report`: what a measurement found;
//! - `working_set`: a model of its writes, made of that;
//! - `plan`: what a migration with these settings will do.

pub(crate) mod dirty_rate;
pub(crate) mod plan;
pub(crate) mod report;
pub(crate) mod working_set;
