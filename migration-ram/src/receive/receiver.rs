//! The settings of the destination, and its run.

use std::fmt;
use std::sync::Arc;

use ram_block::RamBlock;

use crate::devices::device::{Device, Devices};
use crate::error::ReceiveError;
use crate::host::HAS_THREADS;
use crate::receive::blocks::{BlockTarget, Blocks, MakeBlock};
use crate::receive::multifd::Shared;
use crate::receive::received::Received;
use crate::receive::return_path::Answers;
use crate::receive::sections::{Sections, Settings};
use crate::wire::deadline::{Clock, Deadlines};
use crate::wire::format::MAGIC;
use crate::wire::multifd::{MAX_CHANNELS, MULTIFD_MAGIC, read_hello};
use crate::wire::reader::StreamReader;
use crate::wire::transport::{IncomingChannels, ReadTransport};

/// The destination of a migration.
///
/// Accepts the streams of QEMU's precopy: pages, zero pages, XBZRLE deltas, pages and packets of
/// channels that are compressed by zlib (`compress` of QEMU before 9.1, `multifd-compression`),
/// and with the feature `zstd`, whose library is in C, packets that are compressed by zstd.
/// Everything else that changes the stream is refused: postcopy, `mapped-ram`,
/// `x-ignore-shared`, other compression, sections without footers (machines before `pc-2.4`),
/// channels with pages of other than 4 KiB. A source with `switchover-ack` has to be
/// [acknowledged](Receiver::acknowledge_switchover).
///
/// # Example
///
/// Inspecting any stream:
///
/// ```
/// use migration_ram::{BlockTarget, Receiver};
/// # let memory = memory_region::MemoryMap::new();
/// # let mut stream = Vec::new();
/// # let _ = migration_ram::Precopy::new(memory).run(&mut stream, || Ok(()), |_| ())?;
/// let mut stream = stream.as_slice();
/// let received = Receiver::new(&[])
///     .on_unknown_block(|_id, _len| BlockTarget::Drop)
///     .keep_unknown_sections(true)
///     .run(&mut stream)?;
/// println!("{} has {} blocks", received.machine, received.blocks.len());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "nothing is received before `run`"]
pub struct Receiver<'a> {
    blocks: Vec<Arc<RamBlock>>,
    by: Option<MakeBlock<'a>>,
    devices: Devices,
    settings: Settings,
    deadlines: Deadlines,
    acknowledges: bool,
}

impl fmt::Debug for Receiver<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<_> = self.blocks.iter().map(|block| block.id()).collect();
        f.debug_struct("Receiver").field("blocks", &ids).field("devices", &self.devices).finish()
    }
}

impl<'a> Receiver<'a> {
    /// Receives into `blocks`, which are found by their ids. The stream must have all of them
    /// and no others, with their lengths.
    pub fn new(blocks: &[Arc<RamBlock>]) -> Self {
        Self {
            blocks: blocks.to_vec(),
            by: None,
            devices: Devices::default(),
            settings: Settings { keep_unknown: false, is_described: true, fresh: false },
            deadlines: Deadlines::default(),
            acknowledges: false,
        }
    }

    /// Calls `by` for every block of the stream that is not among those given, with its id and its
    /// length in bytes (0 if the stream did not announce it). Both are untrusted.
    pub fn on_unknown_block(
        mut self,
        by: impl FnMut(&str, u64) -> BlockTarget + Send + 'a,
    ) -> Self {
        self.by = Some(Box::new(by));
        self
    }

    /// Adds a device, whose state must be in the stream.
    pub fn device(mut self, device: Arc<dyn Device>) -> Self {
        self.devices.0.push(device);
        self
    }

    /// Keeps the bytes of unknown sections, those of devices that are not registered here, instead
    /// of refusing them: to receive only the RAM of a QEMU stream, or to relay it. They may
    /// precede and follow the sections of RAM, also between two of its parts, and be iterable as
    /// RAM's.
    ///
    /// The end of such a section is found by its footer and the bytes after that. At most 256 MiB
    /// of their bytes are kept in memory; of further sections only the lengths.
    pub fn keep_unknown_sections(mut self, keep: bool) -> Self {
        self.settings.keep_unknown = keep;
        self
    }

    /// Allows the receiver to discard the present contents of the blocks: pages that the stream
    /// does not send are then either zero or unchanged.
    ///
    /// This makes receiving into populated memory faster, as the receiver can read many pages
    /// with one system call before it knows their offsets; into memory that was never touched it
    /// always does so.
    pub fn discard_contents(mut self, fresh: bool) -> Self {
        self.settings.fresh = fresh;
        self
    }

    /// Whether a description (vmdesc) may follow the stream's end; true by default. The stream does
    /// not say whether one follows: if the source sends none (QEMU with `suppress-vmdesc=on`) and
    /// keeps the connection open, the receiver waits for it, for a second or as set by
    /// [`Deadlines::description`]. One that was received already is accepted in any case.
    ///
    /// With `false`, an unknown section whose state contains its own footer followed by a zero
    /// looks like the stream's end: RAM is complete, but that state, and everything after it, is
    /// not kept. Relay streams with a description.
    pub fn expect_vmdesc(mut self, follows: bool) -> Self {
        self.settings.is_described = follows;
        self
    }

    /// How long the receiver waits for the source; [`Deadlines::default`] by default.
    pub fn deadlines(mut self, deadlines: Deadlines) -> Self {
        self.deadlines = deadlines;
        self
    }

    /// Whether to send MIG_RP_MSG_SWITCHOVER_ACK as soon as the source opens the return path: a
    /// source with `switchover-ack` (QEMU from 8.1 on) sends memory until it receives that. Other
    /// sources do not need it, and older ones do not know it.
    pub fn acknowledge_switchover(mut self, acknowledge: bool) -> Self {
        self.acknowledges = acknowledge;
        self
    }

    /// Reads a whole stream: pages are written into the blocks as they are received; the devices
    /// are restored after the whole stream was received.
    ///
    /// Zero pages are not written where memory is zero already, so untouched memory stays
    /// untouched. Returns after the end of the stream; up to 256 KiB beyond it may have been read.
    /// If the source opens the return path and there is a connection for it, the last message to
    /// the source (MIG_RP_MSG_SHUT) says whether this succeeded.
    ///
    /// # Errors
    ///
    /// [`ReceiveError`] with the offset in the stream. The blocks then hold only a part of it,
    /// and the machine must not be started.
    pub fn run<'c>(self, from: impl Into<IncomingChannels<'c>>) -> Result<Received, ReceiveError> {
        let IncomingChannels { inputs, back } = from.into();
        let (acknowledges, limit) = (self.acknowledges, self.deadlines.idle);
        let mut answers = Answers { back, acknowledges, limit, asked: false };
        let result = self.receive(inputs, &mut answers);
        let told = answers.shut(result.is_ok());
        let received = result?;
        told?;
        Ok(received)
    }

    fn receive(
        mut self,
        inputs: Vec<&mut dyn ReadTransport>,
        answers: &mut Answers<'_>,
    ) -> Result<Received, ReceiveError> {
        let clock = Arc::new(Clock::new(self.deadlines));
        let (mut main, channels) = classify(inputs, &clock)?;
        if !channels.is_empty() && !HAS_THREADS {
            return Err(ReceiveError::NoThreads { channels: channels.len() });
        }
        let blocks = Blocks::new(&self.blocks, self.by.take());
        let ends = channels.iter().filter_map(StreamReader::hang_up).collect();
        let shared = Shared::new(blocks, channels.len(), main.hang_up(), ends, clock);
        let came = std::thread::scope(|scope| {
            for channel in channels {
                scope.spawn(|| shared.channel(channel));
            }
            let parser = Sections::new(&mut main, &shared, &self.devices, self.settings);
            shared.finish(parser.run(answers))
        });
        let channel_bytes = shared.result()?;
        let (mut received, states) = came.unwrap_or_default(); // `None` only with an error, above
        received.bytes += channel_bytes;
        // The whole stream was received: from here on only a device's `restore` can fail.
        for (device, version, state) in states {
            let failed = |source| ReceiveError::Device {
                name: device.name().to_owned(),
                instance: device.instance(),
                source,
            };
            device.restore(version, &state).map_err(failed)?;
        }
        Ok(received)
    }
}

/// Tells the main stream from the channels, by their magic numbers.
fn classify<'a>(
    inputs: Vec<&'a mut dyn ReadTransport>,
    clock: &Arc<Clock>,
) -> Result<(StreamReader<'a>, Vec<StreamReader<'a>>), ReceiveError> {
    if inputs.len() > MAX_CHANNELS + 1 {
        return Err(ReceiveError::TooManyChannels { channels: inputs.len() - 1 });
    }
    let (mut main, mut channels) = (None, Vec::new());
    for input in inputs {
        let mut stream = StreamReader::new(input, clock.clone());
        let found = stream.u32("the magic number")?;
        match found {
            MULTIFD_MAGIC => {
                read_hello(&mut stream)?;
                channels.push(stream);
            }
            MAGIC if main.is_none() => main = Some(stream),
            _ => {
                let (what, found, expected) = ("the magic number", found.into(), MAGIC.into());
                return Err(ReceiveError::Unexpected { at: 0, what, found, expected });
            }
        }
    }
    let main = main.ok_or(ReceiveError::NoMainStream { channels: channels.len() })?;
    Ok((main, channels))
}

/// Reads a migration stream without devices from `input` into `blocks`: short for
/// [`Receiver::run`].
///
/// # Errors
///
/// As [`Receiver::run`].
pub fn receive<'c>(
    input: impl Into<IncomingChannels<'c>>,
    blocks: &[Arc<RamBlock>],
) -> Result<Received, ReceiveError> {
    Receiver::new(blocks).run(input)
}
