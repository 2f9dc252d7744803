//! The errors of the source and of the destination.

use std::io;
use std::time::Duration;

use memory_region::MapError;
use ram_block::{DirtyError, RamBlockError};
use thiserror::Error;

use crate::devices::device::DeviceError;

/// Why the source could not complete a migration. The machine keeps running, the migration's
/// dirty log is off, and another attempt sends all pages again.
#[derive(Debug, Error)]
pub enum SendError {
    /// Writing to the stream failed.
    #[error("The stream broke after {sent} bytes")]
    Write {
        /// Bytes written before the error.
        sent: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Writing to a channel failed.
    #[error("Channel {channel} broke after {sent} bytes of all channels")]
    Channel {
        /// The channel's number, from 0 on.
        channel: usize,
        /// Bytes written before the error, on all channels.
        sent: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// No connection accepted any bytes for longer than the [deadlines](crate::Deadlines) allow.
    /// If it is a channel, the receiver may expect channel syncs at other places in the stream:
    /// see `multifd_flush_after_each_section` of [`Precopy`](crate::Precopy).
    #[error(
        "Waited {waited:.1?} for the receiver to take what was sent {}, after {sent} bytes",
        by(.channel)
    )]
    TimedOut {
        /// The channel whose transfer began first, from 0 on; `None` for the main stream.
        channel: Option<usize>,
        /// Bytes written before, to the stream or to all channels.
        sent: u64,
        /// How long it waited.
        waited: Duration,
    },
    /// A channel failed before; an earlier error said why.
    #[error("A channel is gone")]
    ChannelsClosed,
    /// More channels than the limit of 16.
    #[error("A migration has at most 16 channels, {channels} were given")]
    TooManyChannels {
        /// Channels given.
        channels: usize,
    },
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
    NotConverging {
        /// Rounds that were sent.
        rounds: u32,
        /// Bytes still to be sent.
        remaining: u64,
        /// Bytes of pages dirtied per second.
        dirty_rate: f64,
        /// Bytes sent per second.
        bandwidth: f64,
    },
    /// A device's `save` failed, or its state has the wrong length.
    #[error("Device \"{name}\" ({instance}) cannot be saved")]
    Device {
        /// The device's name.
        name: String,
        /// Its instance id.
        instance: u32,
        /// The cause.
        #[source]
        source: DeviceError,
    },
    /// A section name that is invalid, or is used twice.
    #[error(
        "A device's name has 1 to 255 bytes, is not \"ram\", and its own: \"{name}\" ({instance}) \
            was given"
    )]
    DeviceName {
        /// The name given.
        name: String,
        /// Its instance id.
        instance: u32,
    },
    /// A section to be sent on, of which the receiver kept no bytes.
    #[error("Section \"{name}\" ({instance}) was not kept, and cannot be sent on")]
    SectionNotKept {
        /// The section's name.
        name: String,
        /// Its instance id.
        instance: u32,
    },
    /// The receiver reported a failure on the return path.
    #[error("The receiver failed, for reason {reason}")]
    Refused {
        /// Its reason, which is not 0.
        reason: u32,
    },
    /// The receiver's acknowledgement was not received; the receiver may have everything, or not.
    #[error("The receiver did not acknowledge that it has everything")]
    NoAck {
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A return path message of an unknown kind or length.
    #[error("The receiver answers with kind {kind} and {len} bytes, which is unknown here")]
    ReturnPath {
        /// The message's kind.
        kind: u16,
        /// Its length in bytes.
        len: u16,
    },
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
    /// RAM blocks were added or removed during the migration.
    #[error("The machine's blocks changed during the migration: {before} before, {after} now")]
    BlocksChanged {
        /// The ids at the start, with commas.
        before: String,
        /// The ids at the end, with commas.
        after: String,
    },
    /// A block was unmapped during the migration, if only for a moment: its log has a gap.
    #[error("Block \"{block}\" was not logged all the time: it was off the map")]
    LogInterrupted {
        /// The block's id.
        block: String,
    },
    /// Channel packets support only pages of 4 KiB.
    #[error("Channels carry pages of 4096 bytes, {page} were asked for")]
    ChannelPageSize {
        /// Bytes of the stream's pages.
        page: u64,
    },
    /// The stream's pages must divide the host's.
    #[error("The stream's pages of {page} bytes do not divide the host's of {host}")]
    PageSize {
        /// Bytes of the stream's pages.
        page: u64,
        /// Bytes of the host's pages.
        host: u64,
    },
}

fn by(channel: &Option<usize>) -> String {
    let text = |n| format!("on channel {n} (does it wait for the channels where the stream says?)");
    channel.map_or_else(|| "in the stream".to_owned(), text)
}

/// Why a stream could not be received. The blocks hold only a part of it: the machine must not
/// be started from them.
#[derive(Debug, Error)]
pub enum ReceiveError {
    /// The stream ended too early.
    #[error("The stream ends after {at} bytes, within {what}")]
    Truncated {
        /// Bytes read before the error.
        at: u64,
        /// The name of the field that was being read.
        what: &'static str,
    },
    /// The stream cannot be read.
    #[error("The stream cannot be read after {at} bytes")]
    Read {
        /// Bytes read before the error.
        at: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The sender sent nothing, or less than 4,096 bytes, for longer than the
    /// [deadlines](crate::Deadlines) allow.
    #[error("Waited {waited:.1?} for {what}, after {at} bytes of the stream")]
    TimedOut {
        /// Bytes read before, on this connection.
        at: u64,
        /// The name of the field that was being read.
        what: &'static str,
        /// How long it waited.
        waited: Duration,
    },
    /// A field has another value than the format requires.
    #[error("At byte {at} of the stream: {what} is {found:#x}, expected {expected:#x}")]
    Unexpected {
        /// The offset in the stream, in bytes.
        at: u64,
        /// The name of the field.
        what: &'static str,
        /// Its value.
        found: u64,
        /// The required value.
        expected: u64,
    },
    /// A part, record or command of an unknown kind.
    #[error("At byte {at} of the stream: {what} {found:#x} is not supported")]
    Unsupported {
        /// The offset in the stream, in bytes.
        at: u64,
        /// The name of the field.
        what: &'static str,
        /// Its value.
        found: u64,
    },
    /// A section of a device that is not registered here.
    #[error("At byte {at} of the stream: there is no section \"{name}\" here")]
    UnknownSection {
        /// The offset in the stream, in bytes.
        at: u64,
        /// Its name.
        name: String,
    },
    /// A block that this machine does not have.
    #[error("At byte {at} of the stream: there is no block \"{id}\" here")]
    UnknownBlock {
        /// The offset in the stream, in bytes.
        at: u64,
        /// Its id.
        id: String,
    },
    /// A record with RAM_SAVE_FLAG_CONTINUE before any record that names a block.
    #[error("At byte {at} of the stream: a page without a block")]
    NoBlock {
        /// The offset in the stream, in bytes.
        at: u64,
    },
    /// A block of another length.
    #[error(
        "At byte {at} of the stream: block \"{id}\" has {found:#x} bytes there and {expected:#x} \
            here"
    )]
    BlockLength {
        /// The offset in the stream, in bytes.
        at: u64,
        /// Its id.
        id: String,
        /// Its length in the stream.
        found: u64,
        /// Its length here.
        expected: u64,
    },
    /// A page outside its block, or not at a multiple of its size.
    #[error(
        "At byte {at} of the stream: block \"{id}\" of {len:#x} bytes has no page at {offset:#x}"
    )]
    NoSuchPage {
        /// The offset in the stream, in bytes.
        at: u64,
        /// The block's id.
        id: String,
        /// The page's offset in bytes.
        offset: u64,
        /// The block's length in bytes.
        len: u64,
    },
    /// A compressed page or an XBZRLE delta that is malformed.
    #[error(
        "At byte {at} of the stream: the {what} of page {offset:#x} of block \"{id}\" is malformed"
    )]
    Encoding {
        /// The offset in the stream, in bytes.
        at: u64,
        /// The name of the field.
        what: &'static str,
        /// The block's id.
        id: String,
        /// The page's offset in bytes.
        offset: u64,
    },
    /// A capability that changes the stream in a way that is not supported.
    #[error("At byte {at} of the stream: capability \"{name}\" is not supported")]
    Capability {
        /// The offset in the stream, in bytes.
        at: u64,
        /// Its name.
        name: String,
    },
    /// A second section of the same device.
    #[error("At byte {at} of the stream: a second section \"{name}\" ({instance})")]
    DuplicateSection {
        /// The offset in the stream, in bytes.
        at: u64,
        /// Its name.
        name: String,
        /// Its instance id.
        instance: u32,
    },
    /// A device's state is newer than the device.
    #[error(
        "At byte {at} of the stream: \"{name}\" has version {found}, known are those up to {known}"
    )]
    DeviceVersion {
        /// The offset in the stream, in bytes.
        at: u64,
        /// The device's name.
        name: String,
        /// Its version in the stream.
        found: u32,
        /// Its version here.
        known: u32,
    },
    /// A field that is longer than its limit.
    #[error("At byte {at} of the stream: {what} has more than {most} bytes")]
    TooLong {
        /// The offset in the stream, in bytes.
        at: u64,
        /// The name of the field.
        what: &'static str,
        /// The limit in bytes.
        most: u64,
    },
    /// The stream ended without the state of a registered device.
    #[error("The stream, of {at} bytes, has no section \"{name}\" ({instance})")]
    MissingDevice {
        /// Bytes read.
        at: u64,
        /// The device's name.
        name: String,
        /// Its instance id.
        instance: u32,
    },
    /// A device's `restore` failed.
    #[error("Device \"{name}\" ({instance}) cannot be restored")]
    Device {
        /// The device's name.
        name: String,
        /// Its instance id.
        instance: u32,
        /// The cause.
        #[source]
        source: DeviceError,
    },
    /// None of the connections carries the stream.
    #[error("Of {channels} connections none carries the stream")]
    NoMainStream {
        /// Connections given.
        channels: usize,
    },
    /// More channels than the limit of 16.
    #[error("A migration has at most 16 channels, {channels} were given")]
    TooManyChannels {
        /// Channels given.
        channels: usize,
    },
    /// The return path cannot be written.
    #[error("The sender cannot be answered")]
    ReturnPath {
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A name that is not UTF-8, or is too long.
    #[error("At byte {at} of the stream: a name of {len} bytes is too long or no text")]
    Name {
        /// The offset in the stream, in bytes.
        at: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// The stream's block list has a block twice.
    #[error("At byte {at} of the stream: block \"{id}\" is announced again")]
    DuplicateBlock {
        /// The offset in the stream, in bytes.
        at: u64,
        /// Its id.
        id: String,
    },
    /// The stream ended without all blocks of this machine.
    #[error("The stream, of {at} bytes, has no block {ids}")]
    MissingBlocks {
        /// Bytes read.
        at: u64,
        /// The ids that are missing, with commas.
        ids: String,
    },
    /// The stream ended without the last section of RAM.
    #[error("The stream ends at byte {at} without the last section of RAM")]
    Incomplete {
        /// Bytes read.
        at: u64,
    },
    /// A block cannot be written.
    #[error(transparent)]
    Memory(#[from] RamBlockError),
}
