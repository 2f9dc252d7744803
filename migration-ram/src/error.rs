//! What can go wrong on either side.

use std::io;
use std::time::Duration;

use memory_region::MapError;
use ram_block::{DirtyError, RamBlockError};
use thiserror::Error;

use crate::devices::device::DeviceError;

/// A migration that its source could not complete. The machine runs on, its log is
/// off, and another try begins from all pages.
#[derive(Debug, Error)]
pub enum SendError {
    /// The stream does not take what is written.
    #[error("The stream broke after {sent} bytes")]
    Write {
        /// Bytes written before.
        sent: u64,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// A channel does not take what is written.
    #[error("Channel {channel} broke after {sent} bytes of all channels")]
    Channel {
        /// The channel's number, from 0 on.
        channel: usize,
        /// Bytes written before, on all channels.
        sent: u64,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// No connection took anything for longer than the [deadlines](crate::Deadlines) allow. A
    /// channel that is waited for may mean that the receiver waits for channels in another way:
    /// see `multifd_flush_after_each_section` of [`Precopy`](crate::Precopy).
    #[error(
        "Waited {waited:.1?} for the receiver to take what was sent {}, after {sent} bytes",
        by(.channel)
    )]
    TimedOut {
        /// The number of the channel that was waited for first, from 0 on; `None` for the stream.
        channel: Option<usize>,
        /// Bytes written before, of the stream or of all channels.
        sent: u64,
        /// How long it was waited for.
        waited: Duration,
    },
    /// A channel is gone, as was said before.
    #[error("A channel is gone")]
    ChannelsClosed,
    /// More channels than there can be.
    #[error("A migration has at most 16 channels, {channels} were given")]
    TooManyChannels {
        /// Channels given.
        channels: usize,
    },
    /// Somebody asked for the end.
    #[error("The migration was cancelled")]
    Cancelled,
    /// Percentages of a throttle that make no sequence.
    #[error(transparent)]
    AutoConverge(#[from] crate::converge::auto_converge::AutoConvergeError),
    /// A dirty limit that leads nowhere.
    #[error(transparent)]
    DirtyLimitSettings(#[from] crate::converge::dirty_limit::DirtyLimitError),
    /// What the guest dirties cannot be limited.
    #[error("What the guest dirties cannot be limited")]
    DirtyLimit(#[source] DeviceError),
    /// The thread that slows the guest down cannot be started.
    #[error("The guest cannot be slowed down")]
    Throttle(#[source] io::Error),
    /// The guest writes faster than what is written can be sent.
    #[error(
        "After {rounds} rounds {remaining} bytes are left, more than fit the downtime: the guest \
            writes {dirty_rate:.0} bytes a second, the connection takes {bandwidth:.0}"
    )]
    NotConverging {
        /// Rounds that were sent.
        rounds: u32,
        /// Bytes that are left.
        remaining: u64,
        /// Bytes a second in pages that are written.
        dirty_rate: f64,
        /// Bytes a second that are sent.
        bandwidth: f64,
    },
    /// A device has no state to be sent.
    #[error("Device \"{name}\" ({instance}) cannot be saved")]
    Device {
        /// The device's name.
        name: String,
        /// Which of several.
        instance: u32,
        /// What it said.
        #[source]
        source: DeviceError,
    },
    /// A name that no section can have, or two devices of one name.
    #[error(
        "A device's name has 1 to 255 bytes, is not \"ram\", and its own: \"{name}\" ({instance}) \
            was given"
    )]
    DeviceName {
        /// The name given.
        name: String,
        /// Which of several.
        instance: u32,
    },
    /// A section that is to be sent on, of which the receiver kept no bytes.
    #[error("Section \"{name}\" ({instance}) was not kept, and cannot be sent on")]
    SectionNotKept {
        /// The section's name.
        name: String,
        /// Which of several.
        instance: u32,
    },
    /// The receiver says that it could not take everything.
    #[error("The receiver failed, for reason {reason}")]
    Refused {
        /// Its reason, which is not 0.
        reason: u32,
    },
    /// The receiver's answer did not come; it may have everything, or not.
    #[error("The receiver does not say whether it has everything")]
    NoAck {
        /// What the connection said.
        #[source]
        source: io::Error,
    },
    /// The receiver answers something that has no meaning here.
    #[error("The receiver answers with kind {kind} and {len} bytes, which is unknown here")]
    ReturnPath {
        /// The answer's kind.
        kind: u16,
        /// Its length in bytes.
        len: u16,
    },
    /// The dirty log cannot be switched or read.
    #[error(transparent)]
    Log(#[from] MapError),
    /// A block's bitmap cannot be read.
    #[error(transparent)]
    Dirty(#[from] DirtyError),
    /// A block cannot be read.
    #[error(transparent)]
    Memory(#[from] RamBlockError),
    /// The machine does not pause.
    #[error("The machine cannot be paused for the last round")]
    Pause(#[source] DeviceError),
    /// RAM was added or taken away meanwhile.
    #[error("The machine's blocks changed during the migration: {before} before, {after} now")]
    BlocksChanged {
        /// The ids at the start, with commas.
        before: String,
        /// The ids at the end, with commas.
        after: String,
    },
    /// A block was taken off the map, if only for a moment: its log is not whole.
    #[error("Block \"{block}\" was not logged all the time: it was off the map")]
    LogInterrupted {
        /// The block's id.
        block: String,
    },
    /// Packets of channels have another form with other pages.
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

/// A stream that could not be received whole. The blocks hold a part of it: the
/// machine must not be started from them.
#[derive(Debug, Error)]
pub enum ReceiveError {
    /// The stream ended where something should follow.
    #[error("The stream ends after {at} bytes, within {what}")]
    Truncated {
        /// Bytes read before.
        at: u64,
        /// What was being read.
        what: &'static str,
    },
    /// The stream cannot be read.
    #[error("The stream cannot be read after {at} bytes")]
    Read {
        /// Bytes read before.
        at: u64,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// The sender was silent for longer than the [deadlines](crate::Deadlines) allow, or sent
    /// next to nothing.
    #[error("Waited {waited:.1?} for {what}, after {at} bytes of the stream")]
    TimedOut {
        /// Bytes read before, of the connection that was waited for.
        at: u64,
        /// What was being read.
        what: &'static str,
        /// How long it was waited for.
        waited: Duration,
    },
    /// Something other than what must stand here.
    #[error("At byte {at} of the stream: {what} is {found:#x}, expected {expected:#x}")]
    Unexpected {
        /// Where it stands.
        at: u64,
        /// What it is.
        what: &'static str,
        /// Its value.
        found: u64,
        /// The value that it must have.
        expected: u64,
    },
    /// A part, record or command of a kind that is not known here.
    #[error("At byte {at} of the stream: {what} {found:#x} is not supported")]
    Unsupported {
        /// Where it stands.
        at: u64,
        /// What it is.
        what: &'static str,
        /// Its value.
        found: u64,
    },
    /// A section of a device that is not here.
    #[error("At byte {at} of the stream: there is no section \"{name}\" here")]
    UnknownSection {
        /// Where it stands.
        at: u64,
        /// Its name.
        name: String,
    },
    /// A block that this machine does not have.
    #[error("At byte {at} of the stream: there is no block \"{id}\" here")]
    UnknownBlock {
        /// Where it stands.
        at: u64,
        /// Its id.
        id: String,
    },
    /// A record that goes on with the same block as the one before, which there is not.
    #[error("At byte {at} of the stream: a page without a block")]
    NoBlock {
        /// Where it stands.
        at: u64,
    },
    /// A block of another length.
    #[error(
        "At byte {at} of the stream: block \"{id}\" has {found:#x} bytes there and {expected:#x} \
            here"
    )]
    BlockLength {
        /// Where it stands.
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
        /// Where it stands.
        at: u64,
        /// The block's id.
        id: String,
        /// The page's offset in bytes.
        offset: u64,
        /// The block's length in bytes.
        len: u64,
    },
    /// A page that came compressed, or as what changed of it, and makes no sense.
    #[error(
        "At byte {at} of the stream: the {what} of page {offset:#x} of block \"{id}\" is malformed"
    )]
    Encoding {
        /// Where it stands.
        at: u64,
        /// What it is.
        what: &'static str,
        /// The block's id.
        id: String,
        /// The page's offset in bytes.
        offset: u64,
    },
    /// A capability that changes the stream in a way that is not known here.
    #[error("At byte {at} of the stream: capability \"{name}\" is not supported")]
    Capability {
        /// Where it stands.
        at: u64,
        /// Its name.
        name: String,
    },
    /// A second section of the same device.
    #[error("At byte {at} of the stream: a second section \"{name}\" ({instance})")]
    DuplicateSection {
        /// Where it stands.
        at: u64,
        /// Its name.
        name: String,
        /// Which of several.
        instance: u32,
    },
    /// A device's state is newer than the device.
    #[error(
        "At byte {at} of the stream: \"{name}\" has version {found}, known are those up to {known}"
    )]
    DeviceVersion {
        /// Where it stands.
        at: u64,
        /// The device's name.
        name: String,
        /// Its version in the stream.
        found: u32,
        /// Its version here.
        known: u32,
    },
    /// More than is taken.
    #[error("At byte {at} of the stream: {what} has more than {most} bytes")]
    TooLong {
        /// Where it stands.
        at: u64,
        /// What it is.
        what: &'static str,
        /// What is taken at most, in bytes.
        most: u64,
    },
    /// The stream ended as it should, but a device's state did not come.
    #[error("The stream, of {at} bytes, has no section \"{name}\" ({instance})")]
    MissingDevice {
        /// Bytes read.
        at: u64,
        /// The device's name.
        name: String,
        /// Which of several.
        instance: u32,
    },
    /// A device does not take its state.
    #[error("Device \"{name}\" ({instance}) cannot be restored")]
    Device {
        /// The device's name.
        name: String,
        /// Which of several.
        instance: u32,
        /// What it said.
        #[source]
        source: DeviceError,
    },
    /// None of the connections carries the stream.
    #[error("Of {channels} connections none carries the stream")]
    NoMainStream {
        /// Connections given.
        channels: usize,
    },
    /// More connections than there can be.
    #[error("A migration has at most 16 channels, {channels} were given")]
    TooManyChannels {
        /// Channels given.
        channels: usize,
    },
    /// The sender cannot be told how it went.
    #[error("The sender cannot be answered")]
    ReturnPath {
        /// What the connection said.
        #[source]
        source: io::Error,
    },
    /// A name that is no UTF-8, or too long.
    #[error("At byte {at} of the stream: a name of {len} bytes is too long or no text")]
    Name {
        /// Where it stands.
        at: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// The stream announces a block twice.
    #[error("At byte {at} of the stream: block \"{id}\" is announced again")]
    DuplicateBlock {
        /// Where it stands.
        at: u64,
        /// Its id.
        id: String,
    },
    /// The stream ended as it should, but does not have all blocks of this machine.
    #[error("The stream, of {at} bytes, has no block {ids}")]
    MissingBlocks {
        /// Bytes read.
        at: u64,
        /// The ids that are missing, with commas.
        ids: String,
    },
    /// The stream ended as it should, but never completed its RAM.
    #[error("The stream ends at byte {at} without the last section of RAM")]
    Incomplete {
        /// Bytes read.
        at: u64,
    },
    /// A block cannot be written.
    #[error(transparent)]
    Memory(#[from] RamBlockError),
}
