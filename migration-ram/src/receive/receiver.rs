//! What the destination of a migration is told, and its run.

use std::fmt;
use std::sync::Arc;

use ram_block::RamBlock;

use crate::devices::device::{Device, Devices};
use crate::error::ReceiveError;
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
/// Takes what QEMU's precopy sends: pages, zeros, XBZRLE deltas, pages and packets of channels
/// that are compressed by zlib (`compress` of QEMU before 9.1, `multifd-compression`), and with
/// the feature `zstd`, whose library is in C, packets that are compressed by zstd. What else
/// changes the stream is refused: postcopy, `mapped-ram`, `x-ignore-shared`, other compression,
/// sections without footers (machines before `pc-2.4`), channels with pages of other than 4 KiB.
/// A source with `switchover-ack` has to be
/// [acknowledged](Receiver::acknowledge_switchover).
///
/// # Example
///
/// Looking at a stream of anybody's:
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
    /// Receives into `blocks`, which are told by their ids. The stream must have all of them
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

    /// `by` decides about every block that is not among those given: it gets the id and the
    /// length in bytes (0 if the stream does not say), which are the stream's word: anything
    /// may stand there.
    pub fn on_unknown_block(
        mut self,
        by: impl FnMut(&str, u64) -> BlockTarget + Send + 'a,
    ) -> Self {
        self.by = Some(Box::new(by));
        self
    }

    /// The device's state is in the stream.
    pub fn device(mut self, device: Arc<dyn Device>) -> Self {
        self.devices.0.push(device);
        self
    }

    /// Sections of devices that are not here are kept as they came, instead of refused: for a
    /// stream of QEMU's of which RAM is wanted, or that is sent on. They may stand before, between
    /// and behind the sections of RAM, and have parts as RAM's has.
    ///
    /// Where such a section ends is told from its footer and what follows that. 256 MiB of their
    /// bytes are kept in memory at most; of what exceeds them only lengths are.
    pub fn keep_unknown_sections(mut self, keep: bool) -> Self {
        self.settings.keep_unknown = keep;
        self
    }

    /// Nothing that stands in the blocks now matters: pages that the stream does not bring are
    /// zero afterwards, or as they were.
    ///
    /// This makes receiving into populated memory faster, by reading many pages at a time to
    /// where they will most likely belong; into memory that was never touched it is always
    /// done.
    pub fn discard_contents(mut self, fresh: bool) -> Self {
        self.settings.fresh = fresh;
        self
    }

    /// Whether a description may follow the stream's end, as it does unless said otherwise. A
    /// source that sends none (QEMU with `suppress-vmdesc=on`) and keeps the connection open is
    /// waited for, as nothing in the stream tells that nothing follows: for a second, or as
    /// [`Deadlines::description`] says. One that is there already is taken in any case.
    ///
    /// Where none follows, an unknown section whose state holds its own footer and a zero behind
    /// it looks like the stream's end: RAM is whole, but that state, and what came after it, is
    /// not kept. Relay streams with a description.
    pub fn expect_vmdesc(mut self, follows: bool) -> Self {
        self.settings.is_described = follows;
        self
    }

    /// How long the sender is waited for: as [`Deadlines::default`] says unless this is called.
    pub fn deadlines(mut self, deadlines: Deadlines) -> Self {
        self.deadlines = deadlines;
        self
    }

    /// Whether a source that opens a way for answers is told at once that it may switch over:
    /// one with `switchover-ack` (QEMU from 8.1 on) sends memory until it is. Others need no
    /// such answer, and older ones do not know it.
    pub fn acknowledge_switchover(mut self, acknowledge: bool) -> Self {
        self.acknowledges = acknowledge;
        self
    }

    /// Reads a whole stream: RAM into the blocks as it comes, then the devices' states,
    /// which are handed out when everything has come.
    ///
    /// Pages that come as zeros are not written where they are zero already, so memory that
    /// nobody touched stays untouched. Returns after the end of the stream, of which nothing
    /// more is read; up to 256 KiB may have been taken beyond it. If the sender asks for
    /// answers and there is a way for them, it is told last whether all went well.
    ///
    /// # Errors
    ///
    /// [`ReceiveError`] with the place in the stream. The blocks then hold a part of it,
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
        let (mut received, states) = came.unwrap_or_default(); // or there was an error
        received.bytes += channel_bytes;
        // Everything has come: from here on only a device can say no.
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

/// Tells the stream from the channels.
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

/// Reads a migration stream of RAM alone from `input` into `blocks`: short for
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
