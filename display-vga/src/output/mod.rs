//! Where a picture goes.

#[cfg(feature = "png")]
pub(crate) mod png;
#[cfg(feature = "terminal")]
pub(crate) mod terminal;
