//! Why a checkpoint cannot be taken, or gone back to.

use memory_region::MapError;
use ram_block::RamBlockError;
use thiserror::Error;

use crate::devices::device::DeviceError;

/// A checkpoint that cannot be taken, or gone back to.
///
/// Unless it is said otherwise, nothing was done: the machine can go on as it was, and every page
/// that was written since the current checkpoint is still known.
#[derive(Debug, Error)]
#[non_exhaustive]
#[allow(missing_docs)] // of fields: the messages say what they are
pub enum CheckpointError {
    /// The checkpoint was taken by another [`Checkpoints`](crate::Checkpoints).
    #[error("Checkpoint {number} is of another machine")]
    OtherMachine { number: u64 },
    /// The checkpoint was removed.
    #[error("There is no checkpoint {number}, it was removed")]
    Removed { number: u64 },
    /// No checkpoint was taken yet, or all were removed.
    #[error("There is no checkpoint to go back to")]
    NoCheckpoint,
    /// A block has left the memory map since the first checkpoint.
    #[error("Block \"{block}\" is in the checkpoints, and no longer in the memory map")]
    BlockGone { block: String },
    /// A block has joined the memory map since the first checkpoint.
    #[error("Block \"{block}\" has joined the memory map, and is not in the checkpoints")]
    BlockJoined { block: String },
    /// The block's length was changed, or it was out of the map for a time.
    #[error("Block \"{block}\" was resized, or left the memory map, since the first checkpoint")]
    BlockChanged { block: String },
    /// A device's state could not be saved.
    #[error("Device \"{device}\" (instance {instance}) cannot be saved")]
    Save { device: String, instance: u32, source: DeviceError },
    /// A device's state could not be put back. Memory and the devices before this one are as they
    /// were at the checkpoint, which is the current one; those after it are not.
    #[error("Device \"{device}\" (instance {instance}) cannot be put back")]
    RollBack { device: String, instance: u32, source: DeviceError },
    /// The machine could not be paused.
    #[error("The machine cannot be paused")]
    Pause(#[source] DeviceError),
    /// There is no memory for the checkpoint's pages. If it was to go back to one, as after
    /// [`Block`](Self::Block).
    #[error("There is no memory for a checkpoint's pages, {used} bytes are used")]
    NoMemory { used: u64 },
    /// The checkpoints would take more than they may.
    #[error("The checkpoints may take {limit} bytes, {needed} are needed")]
    Limit { limit: u64, needed: u64 },
    /// The memory map refuses a log, or cannot sync it.
    #[error(transparent)]
    Map(#[from] MapError),
    /// A block refuses an access. If it was to put back a page, some pages were put back: the
    /// machine must not run before a reset to the current checkpoint has succeeded.
    #[error(transparent)]
    Block(#[from] RamBlockError),
}
