//! The errors of the source and of the destination.

use std::io;
use std::time::Duration;

use memory_region::MapError;
use ram_block::{DirtyError, RamBlockError};
use thiserror::Error;

use crate::devices::device::DeviceError;

/// Why the source could not complete a migration. The machine keeps running, the migration's
/// dirty log is off, and another attempt sends all pages again. `sent` counts the bytes that were
/// sent before, on the stream or on all channels; channels are numbered from 0 on.
#[derive(Debug, Error)]
#[non_exhaustive]
#[allow(missing_docs)] // of fields: the messages say what they are
pub enum SendError {
    /// Writing to the stream failed.
    #[error("The stream broke after {sent} bytes")]
    Write { sent: u64, source: io::Error },
    /// Writing to a channel failed.
    #[error("Channel {channel} broke after {sent} bytes of all channels")]
    Channel { channel: usize, sent: u64, source: io::Error },
    /// No connection accepted any bytes for longer than the [deadlines](crate::Deadlines) allow:
    /// the one whose transfer began first is a channel, or, for `None`, the main stream. After a
    /// channel's, the receiver may expect channel syncs at other places in the stream: see
    /// `multifd_flush_after_each_section` of [`Precopy`](crate::Precopy).
    #[error(
        "Waited {waited:.1?} for the receiver to take what was sent {}, after {sent} bytes",
        by(.channel)
    )]
    TimedOut { channel: Option<usize>, sent: u64, waited: Duration },
    /// A channel failed before; an earlier error said why.
    #[error("A channel is gone")]
    ChannelsClosed,
    /// More channels than the limit of 16.
    #[error("A migration has at most 16 channels, {channels} were given")]
    TooManyChannels { channels: usize },
    /// [`Cancel::cancel`](crate::Cancel::cancel) was called.
    #[error("The migration was cancelled")]
    Cancelled,
    /// The auto-converge settings are out of range.
    #[error(transparent)]
    AutoConverge(#[from] crate::converge::auto_converge::AutoConvergeError),
    /// The dirty limit's settings are out of range.
    #[error(transparent)]
    DirtyLimitSettings(#[from] crate::converge::dirty_limit::DirtyLimitError),
    /// The dirty limit cannot be set.
    #[error("The guest's dirty limit cannot be set")]
    DirtyLimit(#[source] DeviceError),
    /// The throttle's thread cannot be started.
    #[error("The throttle's thread cannot be started")]
    Throttle(#[source] io::Error),
    /// The guest dirties pages faster than they can be sent.
    #[error(
        "After {rounds} rounds {remaining} bytes are left, more than fit the downtime: the guest \
            writes {dirty_rate:.0} bytes a second, the connection takes {bandwidth:.0}"
    )]
    NotConverging { rounds: u32, remaining: u64, dirty_rate: f64, bandwidth: f64 },
    /// A device's `save` failed, or its state has the wrong length.
    #[error("Device \"{name}\" ({instance}) cannot be saved")]
    Device { name: String, instance: u32, source: DeviceError },
    /// A section name that is invalid, or is used twice.
    #[error(
        "A device's name has 1 to 255 bytes, is not \"ram\", and its own: \"{name}\" ({instance}) \
            was given"
    )]
    DeviceName { name: String, instance: u32 },
    /// A section to be sent on, of which the receiver kept no bytes.
    #[error("Section \"{name}\" ({instance}) was not kept, and cannot be sent on")]
    SectionNotKept { name: String, instance: u32 },
    /// The receiver reported a failure on the return path.
    #[error("The receiver failed, for reason {reason}")]
    Refused { reason: u32 },
    /// The receiver's acknowledgement was not received; the receiver may have everything, or not.
    #[error("The receiver did not acknowledge that it has everything")]
    NoAck { source: io::Error },
    /// A return path message of an unknown kind or length.
    #[error("The receiver answers with kind {kind} and {len} bytes, which is unknown here")]
    ReturnPath { kind: u16, len: u16 },
    /// The dirty log cannot be switched on or read.
    #[error(transparent)]
    Log(#[from] MapError),
    /// A block's bitmap cannot be read.
    #[error(transparent)]
    Dirty(#[from] DirtyError),
    /// A block cannot be read.
    #[error(transparent)]
    Memory(#[from] RamBlockError),
    /// The caller's `pause` failed.
    #[error("The machine cannot be paused for the last round")]
    Pause(#[source] DeviceError),
    /// RAM blocks were added or removed during the migration: their ids, with commas.
    #[error("The machine's blocks changed during the migration: {before} before, {after} now")]
    BlocksChanged { before: String, after: String },
    /// A block was unmapped during the migration, if only for a moment: its log has a gap.
    #[error("Block \"{block}\" was not logged all the time: it was off the map")]
    LogInterrupted { block: String },
    /// A block that is tracked in smaller pages than those of the stream, or has a part of one.
    #[error(
        "Block \"{block}\" has {len} bytes in pages of {found}, the stream's are of {page} bytes"
    )]
    BlockPages { block: String, len: u64, found: u64, page: u64 },
    /// Channel packets support only pages of 4 KiB.
    #[error("Channels carry pages of 4096 bytes, {page} were asked for")]
    ChannelPageSize { page: u64 },
    /// The host lacks something that was asked for: threads for channels, or a clock.
    #[error("This host has no {what}, which {by} need")]
    Unsupported { what: &'static str, by: &'static str },
    /// The stream's pages must divide the host's.
    #[error("The stream's pages of {page} bytes do not divide the host's of {host}")]
    PageSize { page: u64, host: u64 },
}

fn by(channel: &Option<usize>) -> String {
    let text = |n| format!("on channel {n} (does it wait for the channels where the stream says?)");
    channel.map_or_else(|| "in the stream".to_owned(), text)
}

/// Why a stream could not be received. The blocks hold only a part of it: the machine must not
/// be started from them.
///
/// `at` is an offset in the stream, or how much of it was read; `what` names a field. Sizes and
/// offsets are in bytes.
#[derive(Debug, Error)]
#[non_exhaustive]
#[allow(missing_docs)] // of fields: the messages say what they are
pub enum ReceiveError {
    /// The stream ended too early.
    #[error("The stream ends after {at} bytes, within {what}")]
    Truncated { at: u64, what: &'static str },
    /// The stream cannot be read.
    #[error("The stream cannot be read after {at} bytes")]
    Read { at: u64, source: io::Error },
    /// The sender sent nothing, or less than 4,096 bytes, for longer than the
    /// [deadlines](crate::Deadlines) allow.
    #[error("Waited {waited:.1?} for {what}, after {at} bytes of the stream")]
    TimedOut { at: u64, what: &'static str, waited: Duration },
    /// A field has another value than the format requires.
    #[error("At byte {at} of the stream: {what} is {found:#x}, expected {expected:#x}")]
    Unexpected { at: u64, what: &'static str, found: u64, expected: u64 },
    /// A part, record or command of an unknown kind.
    #[error("At byte {at} of the stream: {what} {found:#x} is not supported")]
    Unsupported { at: u64, what: &'static str, found: u64 },
    /// A section of a device that is not registered here.
    #[error("At byte {at} of the stream: there is no section \"{name}\" here")]
    UnknownSection { at: u64, name: String },
    /// A block that this machine does not have.
    #[error("At byte {at} of the stream: there is no block \"{id}\" here")]
    UnknownBlock { at: u64, id: String },
    /// A record with RAM_SAVE_FLAG_CONTINUE before any record that names a block.
    #[error("At byte {at} of the stream: a page without a block")]
    NoBlock { at: u64 },
    /// A block of another length.
    #[error(
        "At byte {at} of the stream: block \"{id}\" has {found:#x} bytes there and {expected:#x} \
            here"
    )]
    BlockLength { at: u64, id: String, found: u64, expected: u64 },
    /// A page outside its block, or not at a multiple of its size.
    #[error(
        "At byte {at} of the stream: block \"{id}\" of {len:#x} bytes has no page at {offset:#x}"
    )]
    NoSuchPage { at: u64, id: String, offset: u64, len: u64 },
    /// A compressed page or an XBZRLE delta that is malformed.
    #[error(
        "At byte {at} of the stream: the {what} of page {offset:#x} of block \"{id}\" is malformed"
    )]
    Encoding { at: u64, what: &'static str, id: String, offset: u64 },
    /// A capability that changes the stream in a way that is not supported.
    #[error("At byte {at} of the stream: capability \"{name}\" is not supported")]
    Capability { at: u64, name: String },
    /// A second section of the same device.
    #[error("At byte {at} of the stream: a second section \"{name}\" ({instance})")]
    DuplicateSection { at: u64, name: String, instance: u32 },
    /// A device's state is newer than the device.
    #[error(
        "At byte {at} of the stream: \"{name}\" has version {found}, known are those up to {known}"
    )]
    DeviceVersion { at: u64, name: String, found: u32, known: u32 },
    /// A field that is longer than its limit.
    #[error("At byte {at} of the stream: {what} has more than {most} bytes")]
    TooLong { at: u64, what: &'static str, most: u64 },
    /// The stream ended without the state of a registered device.
    #[error("The stream, of {at} bytes, has no section \"{name}\" ({instance})")]
    MissingDevice { at: u64, name: String, instance: u32 },
    /// A device's `restore` failed.
    #[error("Device \"{name}\" ({instance}) cannot be restored")]
    Device { name: String, instance: u32, source: DeviceError },
    /// None of the connections carries the stream.
    #[error("Of {channels} connections none carries the stream")]
    NoMainStream { channels: usize },
    /// More channels than the limit of 16.
    #[error("A migration has at most 16 channels, {channels} were given")]
    TooManyChannels { channels: usize },
    /// The host has no threads, which channels need.
    #[error("This host has no threads, which {channels} channels need")]
    NoThreads { channels: usize },
    /// The return path cannot be written.
    #[error("The sender cannot be answered")]
    ReturnPath { source: io::Error },
    /// A name that is not UTF-8, or is too long.
    #[error("At byte {at} of the stream: a name of {len} bytes is too long or no text")]
    Name { at: u64, len: u64 },
    /// The stream's block list has a block twice.
    #[error("At byte {at} of the stream: block \"{id}\" is announced again")]
    DuplicateBlock { at: u64, id: String },
    /// The stream ended without all blocks of this machine: the ids of those, with commas.
    #[error("The stream, of {at} bytes, has no block {ids}")]
    MissingBlocks { at: u64, ids: String },
    /// The stream ended without the last section of RAM.
    #[error("The stream ends at byte {at} without the last section of RAM")]
    Incomplete { at: u64 },
    /// A block cannot be written.
    #[error(transparent)]
    Memory(#[from] RamBlockError),
    /// There is no memory for the set of pages that were received.
    #[error(transparent)]
    Dirty(#[from] DirtyError),
}
