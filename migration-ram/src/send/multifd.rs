//! Pages over several connections at once.
//!
//! The encoding thread puts packets of pages into a short queue; each channel's thread takes
//! the next one as soon as its connection accepts more. A page may be sent on any channel. Two
//! copies of a page are ordered by a sync at the end of each section: the receiver reads on
//! from a channel only after it has received what all channels sent before the sync.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::Scope;

use ram_block::{RamBlock, SendList};

use crate::error::SendError;
use crate::locks::{lock, unpoisoned};
use crate::wire::multifd::{PACKET_PAGES, Packet, SYNC, hello};
use crate::wire::transport::{ShutdownHandle, WriteTransport};

/// Pages of one block, to be sent as one packet.
struct Batch {
    block: Arc<RamBlock>,
    pages: Vec<u64>,
}

#[derive(Default)]
struct ChannelState {
    queue: VecDeque<Batch>,
    /// Channels that are sending something.
    busy: usize,
    /// Channels that have sent their hello.
    begun: usize,
    /// For each channel: whether it is to send a sync.
    sync: Vec<bool>,
    packets: u64,
    sent: u64,
    failed: Option<SendError>,
    over: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<ChannelState>,
    /// Signalled when there is a task for a channel.
    work: Condvar,
    /// Signalled when a channel has done a task, or failed.
    done: Condvar,
    hang_ups: Vec<ShutdownHandle>,
}

/// The channels of a migration.
pub(crate) struct Channels {
    shared: Arc<Shared>,
    next: Option<Batch>,
}

impl Channels {
    /// Starts a thread for each channel, which ends when the result is dropped; `hang_ups` then
    /// abort transfers that are under way.
    pub(crate) fn start<'scope, 'out: 'scope>(
        scope: &'scope Scope<'scope, '_>,
        outputs: Vec<&'out mut dyn WriteTransport>,
        hang_ups: Vec<ShutdownHandle>,
        page: u64,
    ) -> Self {
        let shared = Arc::new(Shared { hang_ups, ..Shared::default() });
        lock(&shared.state).sync = vec![false; outputs.len()];
        for (number, output) in outputs.into_iter().enumerate() {
            let shared = shared.clone();
            scope.spawn(move || {
                let mut channel = Channel { shared: &shared, number, output, page };
                if let Err(error) = channel.run() {
                    lock(&shared.state).failed.get_or_insert(error);
                }
                shared.done.notify_all();
            });
        }
        Self { shared, next: None }
    }

    /// Bytes sent on all channels so far.
    pub(crate) fn sent(&self) -> u64 {
        lock(&self.shared.state).sent
    }

    /// Adds a page to the next packet, and queues that when it is full; waits while the queue is
    /// full.
    pub(crate) fn page(&mut self, block: &Arc<RamBlock>, offset: u64) -> Result<(), SendError> {
        if self.next.as_ref().is_some_and(|next| !Arc::ptr_eq(&next.block, block)) {
            self.queue_batch()?;
        }
        let new = || Batch { block: block.clone(), pages: Vec::with_capacity(PACKET_PAGES) };
        let next = self.next.get_or_insert_with(new);
        next.pages.push(offset);
        if next.pages.len() == PACKET_PAGES { self.queue_batch() } else { Ok(()) }
    }

    fn queue_batch(&mut self) -> Result<(), SendError> {
        let Some(batch) = self.next.take() else { return Ok(()) };
        let mut state = lock(&self.shared.state);
        let room = 2 * state.sync.len();
        state = self.wait(state, |state| state.queue.len() >= room)?;
        state.queue.push_back(batch);
        drop(state);
        self.shared.work.notify_one();
        Ok(())
    }

    /// Sends all queued pages, then a sync on each channel.
    pub(crate) fn sync(&mut self) -> Result<(), SendError> {
        self.queue_batch()?;
        let state = lock(&self.shared.state);
        let mut state = self.wait(state, |state| !state.queue.is_empty() || state.busy > 0)?;
        state.sync.fill(true);
        self.shared.work.notify_all();
        self.wait(state, |state| state.sync.contains(&true) || state.busy > 0).map(drop)
    }

    /// Waits while `not_yet` is true; returns the first error of a channel.
    fn wait<'a>(
        &'a self,
        state: MutexGuard<'a, ChannelState>,
        mut not_yet: impl FnMut(&ChannelState) -> bool,
    ) -> Result<MutexGuard<'a, ChannelState>, SendError> {
        let wait = |state: &mut ChannelState| state.failed.is_none() && not_yet(state);
        let mut state = unpoisoned(self.shared.done.wait_while(state, wait));
        match state.failed.take() {
            // The error is returned once; later calls fail with `ChannelsClosed`.
            Some(error) => {
                state.over = true;
                state.failed = Some(SendError::ChannelsClosed);
                self.shared.work.notify_all();
                Err(error)
            }
            None => Ok(state),
        }
    }
}

impl Drop for Channels {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.over = true;
        let busy = state.busy > 0 || state.begun < state.sync.len();
        drop(state);
        self.shared.work.notify_all();
        // Busy only after an error. A receiver that stopped reading must not block the threads.
        if busy {
            self.shared.hang_ups.iter().for_each(ShutdownHandle::hang_up);
        }
    }
}

enum Task {
    Pages(Batch, u64),
    Sync(u64),
}

struct Channel<'a> {
    shared: &'a Shared,
    number: usize,
    output: &'a mut dyn WriteTransport,
    page: u64,
}

impl Channel<'_> {
    fn run(&mut self) -> Result<(), SendError> {
        let hello = hello(u8::try_from(self.number).unwrap_or(0));
        let mut list = SendList::new();
        list.push_bytes(&hello);
        self.send(list)?;
        lock(&self.shared.state).begun += 1;
        while let Some(task) = self.next() {
            let (block, pages, flags, number) = match task {
                Task::Pages(batch, number) => (Some(batch.block), batch.pages, 0, number),
                Task::Sync(number) => (None, Vec::new(), SYNC, number),
            };
            let id = block.as_ref().map_or("", |block| block.id()).to_owned();
            let zero_pages = Vec::new();
            let compressed = None;
            let packet = Packet { flags, number, block: id, pages, zero_pages, compressed };
            let head = packet.head(self.page);
            let mut list = SendList::new();
            list.push_bytes(&head);
            for offset in packet.pages {
                if let Some(block) = &block {
                    list.push_memory(block, offset..offset + self.page)?;
                }
            }
            self.send(list)?;
            let mut state = lock(&self.shared.state);
            state.busy -= 1;
            if flags == SYNC {
                state.sync[self.number] = false;
            }
            drop(state);
            self.shared.done.notify_all();
        }
        Ok(())
    }

    fn next(&self) -> Option<Task> {
        let idle = |state: &mut ChannelState| {
            state.queue.is_empty() && !state.sync[self.number] && !state.over
        };
        let state = lock(&self.shared.state);
        let mut state = unpoisoned(self.shared.work.wait_while(state, idle));
        if state.over {
            return None;
        }
        state.busy += 1;
        state.packets += 1;
        let number = state.packets;
        Some(match state.queue.pop_front() {
            Some(batch) => Task::Pages(batch, number),
            None => Task::Sync(number),
        })
    }

    fn send(&mut self, mut list: SendList<'_>) -> Result<(), SendError> {
        let len = list.len();
        let sent = self.output.send(&mut list);
        let mut state = lock(&self.shared.state);
        match sent {
            Ok(()) => state.sent += len,
            Err(error) => {
                state.sent += error.done();
                let (channel, sent) = (self.number, state.sent);
                return Err(SendError::Channel { channel, sent, source: error.into() });
            }
        }
        Ok(())
    }
}
