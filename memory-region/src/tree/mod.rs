//! The region tree, the logs of its RAM, and how it is rendered into a flat view.

pub(crate) mod hulls;
pub(crate) mod log;
pub(crate) mod render;
pub(crate) mod topology;
