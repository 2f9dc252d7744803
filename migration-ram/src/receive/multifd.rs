//! Receives pages on several connections at once.
//!
//! A page may be received on any channel, and again on another one in a later round. Syncs
//! order the two: no connection continues after its nth sync before all connections have
//! reached theirs, also the main stream, which carries the zero pages.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};

use ram_block::PageSize;

use crate::error::ReceiveError;
use crate::locks::{lock, unpoisoned};
use crate::receive::blocks::{Blocks, Populated};
use crate::receive::decode::Decoder;
use crate::wire::deadline::Clock;
use crate::wire::format::default_page_size;
use crate::wire::multifd::{Packet, SYNC};
use crate::wire::reader::StreamReader;
use crate::wire::transport::ShutdownHandle;

#[derive(Default)]
struct PacketState {
    /// Connections that wait at the next sync.
    waiting: usize,
    /// Syncs that all connections have passed.
    syncs: u64,
    /// Whether the stream has reached its last sync: channels may end after it.
    complete: bool,
    /// Channels that have ended, and will reach no more syncs.
    ended: usize,
    /// Bytes received on the channels.
    bytes: u64,
    failed: Option<ReceiveError>,
    over: bool,
}

impl PacketState {
    /// The first error counts.
    fn fail(&mut self, error: ReceiveError) {
        if !self.over {
            self.failed = Some(error);
            self.over = true;
        }
    }
}

/// The state that all connections of a migration share.
pub(super) struct Shared<'a> {
    pub(super) blocks: Blocks<'a>,
    /// Set before the first sync; no page precedes that.
    pub(super) page: OnceLock<PageSize>,
    channels: usize,
    state: Mutex<PacketState>,
    changed: Condvar,
    /// Shut down the main stream's connection, and those of the channels.
    main_end: Option<ShutdownHandle>,
    channel_ends: Vec<ShutdownHandle>,
    /// The deadlines of all connections.
    clock: Arc<Clock>,
}

impl<'a> Shared<'a> {
    pub(super) fn new(
        blocks: Blocks<'a>,
        channels: usize,
        main_end: Option<ShutdownHandle>,
        channel_ends: Vec<ShutdownHandle>,
        clock: Arc<Clock>,
    ) -> Self {
        let (page, state, changed) = Default::default();
        Self { blocks, page, channels, state, changed, main_end, channel_ends, clock }
    }

    pub(super) fn page(&self) -> PageSize {
        self.page.get().copied().unwrap_or_else(default_page_size)
    }

    /// Whether the migration has channels.
    pub(super) fn has_channels(&self) -> bool {
        self.channels > 0
    }

    /// Waits until all connections have reached this sync. An error if one of them failed, whose
    /// own error has the reason, or ended.
    pub(super) fn sync(&self, at: u64) -> Result<(), ReceiveError> {
        // A channel with one more sync than the stream waits until the stream ends.
        self.wait(lock(&self.state), at, |state| state.over)
    }

    /// As `sync`, for the stream; `last` if no page follows.
    pub(super) fn sync_all(&self, at: u64, last: bool) -> Result<(), ReceiveError> {
        let mut state = lock(&self.state);
        // Set before the channels continue: it tells them that they may end.
        state.complete |= last;
        // A channel that has ended never reaches this sync: do not wait for it.
        self.wait(state, at, |state| state.over || state.ended > 0)
    }

    fn wait(
        &self,
        mut state: MutexGuard<'_, PacketState>,
        at: u64,
        in_vain: impl Fn(&PacketState) -> bool,
    ) -> Result<(), ReceiveError> {
        state.waiting += 1;
        let this = state.syncs;
        if state.waiting == self.channels + 1 {
            state.waiting = 0;
            state.syncs += 1;
            self.changed.notify_all();
            return Ok(());
        }
        let waits = |state: &mut PacketState| state.syncs == this && !in_vain(state);
        let state = unpoisoned(self.changed.wait_while(state, waits));
        if state.syncs != this {
            return Ok(());
        }
        Err(ReceiveError::Truncated { at, what: "a sync of the channels" })
    }

    /// Fails the migration; the first error counts. Shuts all connections down: their peers may
    /// never send what they wait for.
    fn fail(&self, error: ReceiveError) {
        lock(&self.state).fail(error);
        self.stop_all();
    }

    fn stop_all(&self) {
        self.stop();
        self.main_end.iter().for_each(ShutdownHandle::hang_up);
    }

    /// Ends the channels: the result no longer depends on their input.
    fn stop(&self) {
        lock(&self.state).over = true;
        self.changed.notify_all();
        // Ends the waits of connections that cannot be shut down.
        self.clock.end();
        self.channel_ends.iter().for_each(ShutdownHandle::hang_up);
    }

    /// Records the result of the main stream, and ends the channels.
    pub(super) fn finish<T>(&self, stream: Result<T, ReceiveError>) -> Option<T> {
        match stream {
            Ok(value) => {
                if self.has_channels() {
                    self.stop();
                }
                Some(value)
            }
            Err(error) => {
                self.fail(error);
                None
            }
        }
    }

    /// The result, after all threads have ended: the bytes of the channels, or the first error.
    pub(super) fn result(&self) -> Result<u64, ReceiveError> {
        let mut state = lock(&self.state);
        state.failed.take().map_or(Ok(state.bytes), Err)
    }

    /// Receives a channel's packets, up to its end.
    pub(super) fn channel(&self, mut stream: StreamReader<'_>) {
        let result = self.packets(&mut stream);
        let mut state = lock(&self.state);
        state.bytes += stream.at();
        let error = match result {
            Err(error) => Some(error),
            // Fail here: the main stream may stay open without another sync that detects this.
            Ok(()) if !state.complete && !state.over => {
                Some(ReceiveError::Truncated { at: stream.at(), what: "a channel" })
            }
            Ok(()) => None,
        };
        let has_failed = error.is_some();
        // Both at once: the stream, which waits for this channel in vain from here on, fails, too,
        // and does not have the reason.
        state.ended += 1;
        error.into_iter().for_each(|error| state.fail(error));
        drop(state);
        self.changed.notify_all();
        if has_failed {
            self.stop_all();
        }
    }

    fn packets(&self, stream: &mut StreamReader<'_>) -> Result<(), ReceiveError> {
        let mut populated = Populated::default();
        let mut decoder = None;
        loop {
            let at = stream.at();
            let Some(packet) = Packet::read(stream)? else { return Ok(()) };
            if !packet.pages.is_empty() || !packet.zero_pages.is_empty() {
                self.pages(stream, at, &packet, &mut populated, &mut decoder)?;
            }
            if packet.flags & SYNC != 0 {
                self.sync(stream.at())?;
            }
        }
    }

    fn pages(
        &self,
        stream: &mut StreamReader<'_>,
        at: u64,
        packet: &Packet,
        populated: &mut Populated,
        decoder: &mut Option<Decoder>,
    ) -> Result<(), ReceiveError> {
        let page = self.page();
        let unknown = || ReceiveError::UnknownBlock { at, id: packet.block.clone() };
        let block = self.blocks.find(&packet.block).ok_or_else(unknown)?;
        let offsets = packet.pages.iter().chain(&packet.zero_pages);
        offsets.copied().try_for_each(|offset| block.check(at, offset, page))?;
        match packet.compressed {
            // Without pages the field still has the value of an earlier packet.
            Some(part) if !packet.pages.is_empty() => {
                let decoder = decoder.get_or_insert_with(|| Decoder::new(page));
                decoder.part(stream, part, &block, &packet.pages)?;
            }
            _ => block.pages(stream, &packet.pages, page)?,
        }
        for offset in packet.zero_pages.iter().copied() {
            block.zero(offset..offset + page.bytes(), page, populated)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// The stream waits at a sync, and then a channel ends without having reached it.
    fn a_channel_ends(last: bool, before: impl FnOnce(&Shared<'_>)) -> ReceiveError {
        let shared = Shared::new(Blocks::new(&[], None), 1, None, Vec::new(), Arc::default());
        before(&shared);
        std::thread::scope(|scope| {
            let stream = scope.spawn(|| shared.sync_all(7, last).unwrap_err());
            let deadline = Instant::now() + crate::test_deadline::seconds(30);
            while lock(&shared.state).waiting == 0 {
                assert!(Instant::now() < deadline, "the stream does not come to its sync");
                std::thread::yield_now();
            }
            shared.channel(StreamReader::untimed(&mut [].as_slice()));
            while !stream.is_finished() {
                if Instant::now() > deadline {
                    shared.stop(); // or the scope would wait, too
                    panic!("the stream waits for a channel that has ended");
                }
                std::thread::yield_now();
            }
            stream.join().unwrap()
        })
    }

    #[test]
    fn a_channel_that_ends_before_the_last_sync_is_not_waited_for() {
        for last in [false, true] {
            let error = a_channel_ends(last, |_| ());
            assert!(matches!(error, ReceiveError::Truncated { at: 7, .. }), "{error}");
        }
    }

    /// The stream waits at a sync for a channel that fails, and fails for it: the channel's error
    /// tells why.
    #[test]
    fn the_channels_error_is_the_one_that_counts() {
        for _ in 0..2000 {
            let shared = Shared::new(Blocks::new(&[], None), 1, None, Vec::new(), Arc::default());
            std::thread::scope(|scope| {
                scope.spawn(|| shared.finish(shared.sync_all(7, false)));
                let half_a_head = [0; 64];
                shared.channel(StreamReader::untimed(&mut half_a_head.as_slice()));
            });
            let error = shared.result().unwrap_err();
            assert!(matches!(error, ReceiveError::Truncated { at: 64, .. }), "{error}");
        }
    }

    /// A stream may say that it is the last sync more than once.
    #[test]
    fn a_channel_that_ended_rightly_is_not_waited_for_again() {
        let error = a_channel_ends(true, |shared| {
            std::thread::scope(|scope| {
                scope.spawn(|| shared.sync(0).unwrap());
                shared.sync_all(0, true).unwrap();
            });
            assert!(lock(&shared.state).complete);
        });
        assert!(matches!(error, ReceiveError::Truncated { at: 7, .. }), "{error}");
    }
}
