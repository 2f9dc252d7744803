//! Live migration of guest RAM.
//!
//! [`Precopy`] sends all pages of a running machine, then in rounds those that were
//! written meanwhile, until the rest can be sent within the allowed downtime; then
//! the machine is paused and the rest follows. [`receive`] puts them into the blocks
//! of another machine. What goes over the wire is QEMU's migration stream.
//!
//! The invariant: **a page is read after its dirty bit was taken**, so a store that
//! comes later sets the bit again and the page is sent again. After the last round,
//! for which the machine stands still, both memories are equal.
//!
//! ```text
//!   MemoryMap --sync, harvest--> pending pages --read, encode--> stream
//!       ^                          (one private bitmap             |
//!       | all RAM logged            for each block)                v
//!   guest goes on until the last round                 receive --> RamBlocks
//! ```
//!
//! # Example
//!
//! ```
//! use memory_region::MemoryMap;
//! use migration_ram::{Precopy, receive};
//! use ram_block::RamBlock;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let memory = MemoryMap::new();
//! let ram = RamBlock::anonymous("pc.ram", 1 << 20)?;
//! memory.update(|map| map.ram("ram", ram.clone()))?;
//! ram.write(0x1234, b"moves along")?;
//!
//! let mut stream = Vec::new(); // or a socket
//! let pause = || Ok(()); // stops the vCPUs, and returns a guard that holds them
//! let migrated = Precopy::new(memory).run(&mut stream, pause, |round| println!("{round}"))?;
//! assert_eq!(migrated.stats.pages(), ram.pages());
//!
//! let twin = RamBlock::anonymous("pc.ram", 1 << 20)?;
//! receive(&mut stream.as_slice(), &[twin.clone()])?;
//! let mut text = [0; 11];
//! twin.read(0x1234, &mut text)?;
//! assert_eq!(&text, b"moves along");
//! # Ok(())
//! # }
//! ```

mod auto_converge;
mod channel;
mod contents;
mod deadline;
mod device;
mod dirty_limit;
mod dirty_rate;
mod error;
mod format;
mod multifd;
mod pending;
mod plan;
mod progress;
mod receive;
mod send;
mod socket;
mod stats;
#[cfg(test)]
#[path = "../../tests/machines/src/deadline.rs"]
mod test_deadline;
mod throttle;
mod trend;
mod working_set;

pub use auto_converge::{AutoConverge, AutoConvergeError, ThrottleSteps};
pub use channel::{Copied, HangUp, Incoming, Input, Outgoing, Output};
pub use deadline::Deadlines;
pub use device::{Device, DeviceError, FnDevice, Framing, MAX_STATE};
pub use dirty_limit::{DirtyLimit, DirtyLimitError, LimitChoice};
pub use dirty_rate::{BlockDirtyRate, DirtyRate, DirtyRateError, DirtyRateReport, DirtySample};
pub use error::{ReceiveError, SendError};
pub use plan::{Forecast, ForecastRound, MigrationPlan, Outcome, PlanError};
pub use progress::{Progress, QueryMigrate, QueryMigrateRam, State};
pub use receive::{BlockInfo, Received, Receiver, SectionInfo, Target, receive};
pub use send::{Cancel, Migrated, Precopy};
pub use socket::{Address, AddressError, Listener, Socket, SocketError};
pub use stats::{DowntimeParts, MigrationStats, RoundStats};
pub use throttle::Throttle;
pub use working_set::WorkingSet;
