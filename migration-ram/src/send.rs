//! The sending side: rounds of dirty pages while the machine runs, then the rest.

mod answers;
mod devices;
mod multifd;
mod pace;
mod pages;
mod precopy;
mod sending;
mod slowing;
mod stream;
mod watch;

pub use pace::Cancel;
pub use precopy::{Migrated, Precopy};
