//! The run of a migration: its claim of the log, its connections and its threads.

use std::sync::Arc;

use memory_region::GlobalLogClaim;
use ram_block::DirtyClient;

use crate::devices::device::DeviceError;
use crate::error::SendError;
use crate::host::{HAS_THREADS, Instant};
use crate::send::multifd::Channels;
use crate::send::precopy::{Migrated, Sending};
use crate::send::settings::Precopy;
use crate::send::watch::{Watch, Watched};
use crate::status::progress::Progress;
use crate::wire::transport::{OutgoingChannels, ReadTransport, ShutdownHandle, WriteTransport};
use crate::wire::writer::SendStream;

impl Precopy {
    /// Sends the machine's RAM while it runs, then calls `pause` and sends the rest, and the
    /// devices. `observe` is called after each round, and ten times a second in between.
    ///
    /// `pause` stops everything that writes guest memory: vCPUs and devices. It returns a guard;
    /// dropping the guard resumes them.
    ///
    /// # Errors
    ///
    /// [`SendError`], also if another migration of this map is under way. After an error the log
    /// is off, the guard of `pause` is dropped, and the caller may try again over new
    /// connections. Only the destination can tell whether it has received everything: see
    /// [`OutgoingChannels::return_path`]. If its acknowledgement is lost ([`SendError::NoAck`]) or
    /// malformed ([`SendError::ReturnPath`]), it may have received everything all the same: it
    /// must not resume the machine before it is told that this call has succeeded.
    pub fn run<'c, P>(
        &self,
        to: impl Into<OutgoingChannels<'c>>,
        pause: impl FnOnce() -> Result<P, DeviceError>,
        mut observe: impl FnMut(&Progress),
    ) -> Result<Migrated<P>, SendError> {
        let begin = Instant::now();
        let OutgoingChannels { main, channels, back } = to.into();
        self.check(channels.len())?;
        // The log is on before the first page is read: pages written from now on are sent again.
        // Dropping the claim switches it off, on errors too. Claim before `cancel.begin`: if
        // another migration is under way, the claim fails and its `cancel` is left alone.
        let mut logging = self.memory.claim_global_log(DirtyClient::MIGRATION)?;
        let channel_ends: Vec<_> = channels.iter().filter_map(|to| to.hang_up()).collect();
        let back_end = back.as_ref().and_then(|back| back.hang_up());
        let ends = main.hang_up().into_iter().chain(back_end).chain(channel_ends.iter().cloned());
        let ends: Vec<_> = ends.collect();
        let watch = Arc::new(Watch::new(self.deadlines.idle, ends.clone()));
        self.cancel.begin(ends);
        let watched = |(connection, output)| {
            let watch = watch.clone();
            Watched { output, connection, watch }
        };
        // All transfers, also those of the channels' threads, count for the idle deadline.
        let mut channels: Vec<_> = (1..).zip(channels).map(watched).collect();
        let channels =
            channels.iter_mut().map(|channel| channel as &mut dyn WriteTransport).collect();
        let mut main = watched((0, main));
        let migrated = std::thread::scope(|scope| {
            let _over = watch.until_dropped();
            if HAS_THREADS {
                scope.spawn(|| watch.run());
            }
            let (main, observe) = (&mut main, &mut observe);
            self.send(begin, &mut logging, main, channels, channel_ends, back, pause, observe)
        });
        drop(logging);
        self.cancel.end(migrated.map_err(|error| watch.explain(error)))
    }

    #[allow(clippy::too_many_arguments)] // the arguments of `run`, and its connections
    fn send<P>(
        &self,
        begin: Instant,
        log: &mut GlobalLogClaim,
        main: &mut dyn WriteTransport,
        channels: Vec<&mut dyn WriteTransport>,
        channel_ends: Vec<ShutdownHandle>,
        back: Option<&mut dyn ReadTransport>,
        pause: impl FnOnce() -> Result<P, DeviceError>,
        observe: &mut dyn FnMut(&Progress),
    ) -> Result<Migrated<P>, SendError> {
        let blocks = self.memory.ram_blocks();
        std::thread::scope(|scope| {
            let page = self.page.bytes();
            let channels = (!channels.is_empty())
                .then(|| Channels::start(scope, channels, channel_ends, page));
            let stream = SendStream::new(main);
            let mut sending = Sending::new(self, begin, stream, channels, log, &blocks, observe)?;
            sending.run(&blocks, pause, back)
        })
    }
}
