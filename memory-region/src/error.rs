//! Errors of the map and of accesses.

use ram_block::{DirtyClient, DirtyError, RamBlockError};
use thiserror::Error;

use crate::fault::bus_fault::BusFault;
use crate::fault::trap::Trap;
use crate::fault::watchpoint::Watchpoint;

/// Why a listener refused; an error of its own type.
pub type ListenerError = Box<dyn std::error::Error + Send + Sync>;

/// A change of the memory map, or of its dirty logging, that cannot be made.
///
/// The map is then as it was before. Sizes and offsets are in bytes.
#[derive(Debug, Error)]
#[non_exhaustive]
#[allow(missing_docs)] // of fields: the messages say what they are
pub enum MapError {
    /// A region's size is zero or above 2^64.
    #[error("Region \"{name}\" has a size of {size:#x} bytes, 1 to 2^64 are possible")]
    Size { name: String, size: u128 },
    /// This thread changes the map already (in an update's closure, or in a listener), and would
    /// wait for itself.
    #[error("The map cannot be changed from within an update's closure or a listener")]
    Reentrant,
    /// The id names no region of this map, or one that was removed.
    #[error("Region {id} is not in this map")]
    UnknownRegion { id: u64 },
    /// The address space belongs to another map.
    #[error("Address space \"{name}\" is not of this map")]
    UnknownSpace { name: String },
    /// Only containers hold other regions.
    #[error("\"{child}\" cannot be a subregion of \"{parent}\", which is no container")]
    NotAContainer { parent: String, child: String },
    /// A region is in one container at a time; an alias shows it elsewhere.
    #[error("\"{child}\" cannot be placed in \"{parent}\", it is already in \"{current}\"")]
    AlreadyPlaced { child: String, parent: String, current: String },
    /// The region is in no container.
    #[error("\"{name}\" is in no container")]
    NotPlaced { name: String },
    /// The region would reach past the end of its container.
    #[error(
        "\"{child}\" of {size:#x} bytes at {offset:#x} reaches past the end of \"{parent}\" of \
            {parent_size:#x} bytes"
    )]
    OutsideContainer { child: String, size: u128, offset: u64, parent: String, parent_size: u128 },
    /// Two subregions share addresses, and neither was added as overlapping.
    #[error(
        "\"{child}\" at {offset:#x} with {size:#x} bytes overlaps \"{other}\" at {other_offset:#x} \
            with {other_size:#x} bytes"
    )]
    Overlap {
        child: String,
        offset: u64,
        size: u128,
        other: String,
        other_offset: u64,
        other_size: u128,
    },
    /// An alias would show what its target does not have.
    #[error(
        "Alias \"{name}\" wants {size:#x} bytes from {offset:#x} of \"{target}\", which has \
            {target_size:#x}"
    )]
    AliasOutside { name: String, offset: u64, size: u128, target: String, target_size: u128 },
    /// A region would contain itself, perhaps through an alias.
    #[error("\"{child}\" cannot be placed in \"{parent}\", which it already shows")]
    Cycle { child: String, parent: String },
    /// Regions are nested too deeply.
    #[error("The map nests regions more than {limit} deep below \"{root}\"")]
    TooDeep { root: String, limit: usize },
    /// Aliases show regions in so many ways that the view would take far more steps than it
    /// has sections, or have more sections than anybody can follow.
    #[error("The map below \"{root}\" is too complex: {steps} steps found {sections} sections")]
    TooComplex {
        root: String,
        /// Regions that were visited, each as often as it was.
        steps: u64,
        sections: usize,
    },
    /// The region is still in a container, shown by an alias, or the root of an address space.
    #[error("\"{name}\" cannot be removed, \"{user}\" uses it")]
    InUse { name: String, user: String },
    /// Two different blocks have the same id, by which a migration stream names them.
    #[error("A block named \"{id}\" is already in the map")]
    DuplicateBlock { id: String },
    /// RAM would show more than its block has.
    #[error("\"{name}\" cannot have {size:#x} bytes, its block has {block_len:#x}")]
    BlockTooSmall { name: String, size: u128, block_len: u64 },
    /// A device declares sizes that no access has.
    #[error(
        "The device of \"{name}\" wants accesses of {min} to {max} bytes; both are 1, 2, 4 or 8"
    )]
    AccessSizes { name: String, min: usize, max: usize },
    /// A bus of no address lines, or of more than 64.
    #[error("An address space has 1 to 64 address bits, \"{name}\" would have {bits}")]
    AddressBits { name: String, bits: u32 },
    /// Only an alias has an offset in a target.
    #[error("\"{name}\" is no alias")]
    NotAnAlias { name: String },
    /// Only a ROM device has a romd mode.
    #[error("\"{name}\" is no ROM device")]
    NotARomDevice { name: String },
    /// The region is no device: it has no ioeventfds, and its writes are not coalesced.
    #[error("\"{name}\" is no device")]
    NoDevice { name: String },
    /// No write would signal this ioeventfd, or not it alone.
    #[error("No ioeventfd for writes of {size} bytes at {address:#x} of \"{name}\": {reason}")]
    EventFd { name: String, address: u64, size: u8, reason: &'static str },
    /// A coalesced range is empty, or not within the region.
    #[error(
        "Writes to {start:#x}..{end:#x} of \"{name}\", which has {size:#x} bytes, cannot be \
            coalesced"
    )]
    Coalescing {
        name: String,
        start: u64,
        /// One past the last byte.
        end: u64,
        size: u128,
    },
    /// Only RAM has a dirty log.
    #[error("\"{client}\" cannot log \"{name}\", which is no RAM")]
    NotRam { name: String, client: String },
    /// The region has no memory of its own.
    #[error("\"{name}\" is no RAM and has no block")]
    NoBlock { name: String },
    /// The log, or a part of it, is claimed already: two harvesters would take each other's bits.
    #[error("The {client} log of {what} is claimed by \"{by}\" already")]
    Claimed { client: DirtyClient, what: String, by: String },
    /// The log has no bits of this block, perhaps because the block has left the map.
    #[error("The {client} log does not have block \"{block}\"")]
    NotLogged { client: DirtyClient, block: String },
    /// No range of bytes that the block has, or, to be re-armed, no whole pages of it.
    #[error("Bytes {start:#x}..{end:#x} of block \"{block}\", which has {len:#x}: {reason}")]
    ByteRange {
        block: String,
        start: u64,
        /// One past the last byte.
        end: u64,
        len: u64,
        reason: &'static str,
    },
    /// A listener cannot follow the change.
    #[error("Listener \"{listener}\" refuses the new map of \"{space}\"")]
    Refused {
        listener: String,
        space: String,
        #[source]
        source: ListenerError,
    },
    /// A listener could not sync its dirty log; its bits are not lost.
    #[error("Listener \"{listener}\" cannot sync the dirty log of \"{region}\"")]
    Sync {
        listener: String,
        region: String,
        #[source]
        source: ListenerError,
    },
    /// The block's dirty bitmaps refuse the request.
    #[error(transparent)]
    Dirty(#[from] DirtyError),
    /// A block could not be made.
    #[error(transparent)]
    Block(#[from] RamBlockError),
}

/// An access that met something other than memory or a device.
///
/// The rest of the access has been made. A guest gets no error: it reads all ones where nothing
/// answers, and its writes there are dropped. Each error has the `address` and the `len` in bytes
/// of the whole access; on a bus that wraps, the address within it, and of an access that passes
/// its end those of the part.
#[derive(Debug, Error)]
#[non_exhaustive]
#[allow(missing_docs)] // of fields: the messages say what they are
pub enum AccessError {
    /// Nothing answers at an address.
    #[error("Access of {len} bytes at {address:#x}: nothing answers at {unassigned:#x}")]
    Unassigned { address: u64, len: usize, unassigned: u64 },
    /// The access goes on past the end of the 64-bit space.
    #[error("Access of {len} bytes at {address:#x} passes the end of the address space")]
    PastEnd { address: u64, len: usize },
    /// A write to memory that is read-only; it was dropped.
    #[error("Write of {len} bytes at {address:#x}: \"{name}\" is read-only")]
    ReadOnly { address: u64, len: usize, name: String },
    /// A device does not take pieces of this size; it was not asked.
    #[error("Access of {len} bytes at {address:#x}: \"{name}\" takes no accesses of {size} bytes")]
    TooSmall { address: u64, len: usize, name: String, size: usize },
    /// A device's own handler made the access; the device was not asked.
    #[error("Access of {len} bytes at {address:#x} from within \"{name}\"'s own handler")]
    Reentered { address: u64, len: usize, name: String },
    /// An IOMMU has no translation for a byte, or translations lead in a circle.
    #[error("Access of {len} bytes at {address:#x}: \"{name}\" has no translation of {offset:#x}")]
    Untranslated {
        /// Where the access starts, in the last address space that it got to.
        address: u64,
        len: usize,
        name: String,
        /// The first byte of the region that leads nowhere.
        offset: u64,
    },
    /// An atomic access that is not at a multiple of its size, on the bus or in its block.
    #[error("Atomic access of {len} bytes at {address:#x} is not aligned to its size in memory")]
    Misaligned { address: u64, len: usize },
    /// An atomic access to something that is not memory as a whole.
    #[error("Atomic access of {len} bytes at {address:#x}: \"{name}\" is not memory there")]
    NotMemory { address: u64, len: usize, name: String },
    /// The device answers with a bus fault.
    #[error("Access of {len} bytes at {address:#x}: \"{name}\" answers with {fault}")]
    Fault { address: u64, len: usize, name: String, fault: BusFault },
    /// An access of a [`Tlb`](crate::Tlb) to a trap: the caller's to carry out.
    #[error("{0}")]
    Trap(Trap),
    /// An access to a trap that nobody carries out: one that does not come from a
    /// [`Tlb`](crate::Tlb), an atomic one, or one of which only a part is the trap's.
    #[error("Access of {len} bytes at {address:#x}: \"{name}\" is a trap that nobody handles")]
    UnhandledTrap { address: u64, len: usize, name: String },
    /// An access of a [`Tlb`](crate::Tlb) that reaches a watchpoint; it was not carried out.
    #[error("Access of {len} bytes at {address:#x} reaches a watchpoint: {watchpoint}")]
    Watchpoint { address: u64, len: usize, watchpoint: Watchpoint },
    /// A block is smaller than its region: it reads as all ones there.
    #[error(transparent)]
    Block(#[from] RamBlockError),
}
