//! The region tree, and how it is rendered into a flat view.

pub(crate) mod hulls;
pub(crate) mod render;
pub(crate) mod topology;
