//! Live migration of guest RAM.
//!
//! [`Precopy`] sends all pages of a running machine, then, in rounds, the pages that the
//! guest dirtied meanwhile, until the rest can be sent within the allowed downtime; then
//! it pauses the machine and sends the rest. [`receive`] writes the pages into the blocks
//! of another machine. The format on the wire is QEMU's migration stream.
//!
//! The invariant: **a page is read after its dirty bit was taken**, so a store after the
//! read sets the bit again and the page is sent again. After the last round, for which the
//! machine is paused, both memories are equal.
//!
//! ```text
//!   MemoryMap --sync, harvest--> pending pages --read, encode--> stream
//!       ^                          (one send bitmap                |
//!       | all RAM logged            for each block)                v
//!   guest runs until the last round                    receive --> RamBlocks
//! ```
//!
//! # Hosts
//!
//! On Linux guest memory is sent to sockets, pipes and files without a copy, and received so;
//! [`Socket`], [`Listener`] and all deadlines are there. On other hosts the same types of `std` are
//! written and read through a buffer, and block without a deadline, as any other `Write` and `Read`
//! in [`Buffered`] do. WebAssembly has no threads for channels, and without an operating system no
//! clock: all times are zero then, and a bandwidth limit is refused ([`SendError::Unsupported`]).
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
//! memory.transaction(|map| map.ram("ram", ram.clone()))?;
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

// docs.rs, which builds with a nightly compiler, says which feature an item needs.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod checkpoint;
mod converge;
mod devices;
mod error;
mod forecast;
mod host;
mod locks;
mod pages;
mod receive;
mod send;
mod status;
#[cfg(test)]
#[path = "../tests/common/deadline.rs"]
mod test_deadline;
mod wire;

pub use checkpoint::checkpoints::{CheckpointId, Checkpoints};
pub use checkpoint::epochs::{DirtyEpoch, DirtyEpochs};
pub use checkpoint::error::CheckpointError;
pub use checkpoint::rewind::Rewind;
pub use checkpoint::stats::{LiveStats, ResetStats};
pub use converge::auto_converge::{AutoConverge, AutoConvergeError, ThrottleSteps};
pub use converge::dirty_limit::{DirtyLimit, DirtyLimitError, DirtyLimiter};
pub use converge::throttle::Throttle;
pub use devices::device::{Device, DeviceError, DeviceState, FnDevice, Framing, MAX_STATE};
pub use devices::section_info::SectionInfo;
pub use devices::value::ValueDevice;
pub use error::{ReceiveError, SendError};
pub use forecast::dirty_rate::{DirtyRate, DirtyRateError};
pub use forecast::plan::{Forecast, ForecastRound, MigrationPlan, Outcome, PlanError};
pub use forecast::report::{BlockDirtyRate, DirtyRateReport, DirtySample};
pub use forecast::working_set::WorkingSet;
pub use receive::{BlockInfo, BlockTarget, Received, Receiver, receive};
pub use send::{Cancel, Migrated, Precopy};
pub use status::progress::{MigrationStatus, Progress, QueryMigrate, QueryMigrateRam};
pub use status::stats::{DowntimeParts, MigrationStats, RoundStats};
pub use wire::deadline::Deadlines;
#[cfg(target_os = "linux")]
pub use wire::socket::{Address, AddressError, Listener, Socket, SocketError};
pub use wire::transport::{
    Buffered, IncomingChannels, OutgoingChannels, ReadTransport, ShutdownHandle, WriteTransport,
};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
