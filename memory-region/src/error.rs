//! Why a map cannot be as asked.

use ram_block::{DirtyClient, DirtyError, RamBlockError};
use thiserror::Error;

/// Why a listener refused; an error of its own type.
pub type ListenerError = Box<dyn std::error::Error + Send + Sync>;

/// A change of the memory map, or of its dirty logging, that cannot be made.
///
/// The map is then as it was before.
#[derive(Debug, Error)]
pub enum MapError {
    /// A region's size is zero or above 2^64.
    #[error("Region \"{name}\" has a size of {size:#x} bytes, 1 to 2^64 are possible")]
    Size {
        /// The region's name.
        name: String,
        /// The size asked for, in bytes.
        size: u128,
    },
    /// This thread changes the map already (in an update's closure, or in a listener), and would
    /// wait for itself.
    #[error("The map cannot be changed from within an update's closure or a listener")]
    Reentrant,
    /// The id names no region of this map, or one that was removed.
    #[error("Region {id} is not in this map")]
    UnknownRegion {
        /// The region's number.
        id: u64,
    },
    /// The address space belongs to another map.
    #[error("Address space \"{name}\" is not of this map")]
    UnknownSpace {
        /// The space's name.
        name: String,
    },
    /// Only containers hold other regions.
    #[error("\"{child}\" cannot be placed in \"{parent}\", which is no container")]
    NotAContainer {
        /// Where it should go.
        parent: String,
        /// What should go there.
        child: String,
    },
    /// A region is in one container at a time; an alias shows it elsewhere.
    #[error("\"{child}\" cannot be placed in \"{parent}\", it is already in \"{current}\"")]
    AlreadyPlaced {
        /// What should be placed.
        child: String,
        /// Where it should go.
        parent: String,
        /// Where it is.
        current: String,
    },
    /// The region is in no container.
    #[error("\"{name}\" is in no container")]
    NotPlaced {
        /// The region's name.
        name: String,
    },
    /// The region would reach past the end of its container.
    #[error(
        "\"{child}\" of {size:#x} bytes at {offset:#x} reaches past the end of \"{parent}\" of \
            {parent_size:#x} bytes"
    )]
    OutsideContainer {
        /// What should be placed.
        child: String,
        /// Its size in bytes.
        size: u128,
        /// Where, in bytes from the container's start.
        offset: u64,
        /// The container.
        parent: String,
        /// The container's size in bytes.
        parent_size: u128,
    },
    /// Two regions want the same addresses, and neither was placed as overlapping.
    #[error(
        "\"{child}\" at {offset:#x} with {size:#x} bytes overlaps \"{other}\" at {other_offset:#x} \
            with {other_size:#x} bytes"
    )]
    Overlap {
        /// What should be placed.
        child: String,
        /// Where, in bytes from the container's start.
        offset: u64,
        /// Its size in bytes.
        size: u128,
        /// What is there.
        other: String,
        /// Where that starts.
        other_offset: u64,
        /// The size of that in bytes.
        other_size: u128,
    },
    /// An alias would show what its target does not have.
    #[error(
        "Alias \"{name}\" wants {size:#x} bytes from {offset:#x} of \"{target}\", which has \
            {target_size:#x}"
    )]
    AliasOutside {
        /// The alias's name.
        name: String,
        /// Offset in the target, in bytes.
        offset: u64,
        /// The alias's size in bytes.
        size: u128,
        /// The target's name.
        target: String,
        /// The target's size in bytes.
        target_size: u128,
    },
    /// A region would contain itself, perhaps through an alias.
    #[error("\"{child}\" cannot be placed in \"{parent}\", which it already shows")]
    Cycle {
        /// What should be placed.
        child: String,
        /// Where it should go.
        parent: String,
    },
    /// Regions are nested too deeply.
    #[error("The map nests regions more than {limit} deep below \"{root}\"")]
    TooDeep {
        /// The address space's root.
        root: String,
        /// The deepest nesting that is rendered.
        limit: usize,
    },
    /// Aliases show regions in so many ways that the view would take far more steps than it
    /// has sections, or have more sections than anybody can follow.
    #[error("The map below \"{root}\" is too complex: {steps} steps found {sections} sections")]
    TooComplex {
        /// The address space's root.
        root: String,
        /// Regions that were visited, each as often as it was.
        steps: u64,
        /// Sections that were found until then.
        sections: usize,
    },
    /// The region is still placed, shown by an alias, or the root of an address space.
    #[error("\"{name}\" cannot be removed, \"{user}\" uses it")]
    InUse {
        /// The region's name.
        name: String,
        /// Who uses it.
        user: String,
    },
    /// Two different blocks have the same id, which a migration stream tells them by.
    #[error("A block named \"{id}\" is already in the map")]
    DuplicateBlock {
        /// The id.
        id: String,
    },
    /// RAM would show more than its block has.
    #[error("\"{name}\" cannot have {size:#x} bytes, its block has {block_len:#x}")]
    BlockTooSmall {
        /// The region's name.
        name: String,
        /// The size asked for, in bytes.
        size: u128,
        /// The size of its block in bytes.
        block_len: u64,
    },
    /// A device declares access sizes that no access has.
    #[error(
        "The device of \"{name}\" wants accesses of {min} to {max} bytes; both are 1, 2, 4 or 8"
    )]
    AccessSizes {
        /// The region's name.
        name: String,
        /// The smallest size that it declares, in bytes.
        min: usize,
        /// The largest.
        max: usize,
    },
    /// Only a ROM device chooses who answers its reads.
    #[error("\"{name}\" is no ROM device")]
    NotARomDevice {
        /// The region's name.
        name: String,
    },
    /// No device answers in the region.
    #[error("\"{name}\" has no device whose writes could be told otherwise")]
    NoDevice {
        /// The region's name.
        name: String,
    },
    /// An eventfd is asked for that no write could signal alone.
    #[error("No eventfd for writes of {size} bytes at {address:#x} of \"{name}\": {reason}")]
    EventFd {
        /// The region's name.
        name: String,
        /// The offset in the region, in bytes.
        address: u64,
        /// The size of the writes, in bytes.
        size: u8,
        /// Why not.
        reason: &'static str,
    },
    /// Writes that should be gathered are not the region's.
    #[error(
        "Writes to {start:#x}..{end:#x} of \"{name}\", which has {size:#x} bytes, cannot be \
            gathered"
    )]
    Coalescing {
        /// The region's name.
        name: String,
        /// The first byte.
        start: u64,
        /// One past the last byte.
        end: u64,
        /// The region's size in bytes.
        size: u128,
    },
    /// Only RAM has a dirty log.
    #[error("Client {client} cannot log \"{name}\", which is no RAM")]
    NotRam {
        /// The region's name.
        name: String,
        /// The client.
        client: DirtyClient,
    },
    /// The region has no memory of its own.
    #[error("\"{name}\" is no RAM and has no block")]
    NoBlock {
        /// The region's name.
        name: String,
    },
    /// Somebody has claimed this log, and nobody else harvests it or switches it off: two
    /// would eat each other's bits.
    #[error("Client {client}'s log of {what} is already claimed")]
    Claimed {
        /// The client.
        client: DirtyClient,
        /// Whose log.
        what: String,
    },
    /// The claim of a log has no part in these bits.
    #[error("The claim of client {client}'s log does not have {what}")]
    NotClaimed {
        /// The client.
        client: DirtyClient,
        /// Whose bits were asked for.
        what: String,
    },
    /// A listener cannot follow the change.
    #[error("Listener \"{listener}\" refuses the new map of \"{space}\"")]
    Refused {
        /// The listener.
        listener: String,
        /// The address space that it follows.
        space: String,
        /// Its reason.
        #[source]
        source: ListenerError,
    },
    /// A listener could not bring its dirty log; what it has is not lost.
    #[error("Listener \"{listener}\" cannot sync the dirty log of \"{region}\"")]
    Sync {
        /// The listener.
        listener: String,
        /// The region.
        region: String,
        /// Its reason.
        #[source]
        source: ListenerError,
    },
    /// The block's bitmaps cannot serve the request.
    #[error(transparent)]
    Dirty(#[from] DirtyError),
    /// A block could not be made.
    #[error(transparent)]
    Block(#[from] RamBlockError),
}

/// An access that met something other than memory or a device.
///
/// The rest of the access has been made. A guest is told nothing of this: it reads
/// all ones where nothing answers, and its writes there are dropped.
#[derive(Debug, Error)]
pub enum AccessError {
    /// Nothing answers at an address.
    #[error("Access of {len} bytes at {address:#x}: nothing answers at {unassigned:#x}")]
    Unassigned {
        /// Where the access starts.
        address: u64,
        /// Its length in bytes.
        len: usize,
        /// The first address at which nothing answers.
        unassigned: u64,
    },
    /// The access goes on past the end of the 64-bit space.
    #[error("Access of {len} bytes at {address:#x} passes the end of the address space")]
    PastEnd {
        /// Where the access starts.
        address: u64,
        /// Its length in bytes.
        len: usize,
    },
    /// A write to memory that is read-only; it was dropped.
    #[error("Write of {len} bytes at {address:#x}: \"{name}\" is read-only")]
    ReadOnly {
        /// Where the access starts.
        address: u64,
        /// Its length in bytes.
        len: usize,
        /// The region's name.
        name: String,
    },
    /// A device does not take pieces of this size; it was not asked.
    #[error("Access of {len} bytes at {address:#x}: \"{name}\" takes no {size} bytes")]
    TooSmall {
        /// Where the access starts.
        address: u64,
        /// Its length in bytes.
        len: usize,
        /// The region's name.
        name: String,
        /// The piece's size in bytes.
        size: usize,
    },
    /// A device's own handler made the access; the device was not asked.
    #[error("Access of {len} bytes at {address:#x} from within \"{name}\"'s own handler")]
    Reentered {
        /// Where the access starts.
        address: u64,
        /// Its length in bytes.
        len: usize,
        /// The region's name.
        name: String,
    },
    /// An IOMMU knows no place for a byte, or sends the access in circles.
    #[error("Access of {len} bytes at {address:#x}: \"{name}\" leads nowhere from {offset:#x}")]
    Untranslated {
        /// Where the access starts, in the last address space that it got to.
        address: u64,
        /// Its length in bytes.
        len: usize,
        /// The region's name.
        name: String,
        /// The first byte of the region that leads nowhere.
        offset: u64,
    },
    /// A block is smaller than its region: it reads as all ones there.
    #[error(transparent)]
    Block(#[from] RamBlockError),
}
