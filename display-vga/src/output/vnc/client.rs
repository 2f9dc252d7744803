//! A connection to a viewer, and the state of its pending updates.
//!
//! Two threads serve it. The [`reader`](super::reader) receives messages: it changes the
//! [`ClientState`] and forwards input. The [`writer`](super::writer) sends the updates that the
//! state asks for. So a viewer that does not read blocks only its own writer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};

use crate::locks::{lock, unpoisoned};
use crate::output::vnc::format::PixelFormat;
use crate::output::vnc::listener::Stream;
use crate::output::vnc::message::Abilities;
use crate::output::vnc::region::Region;
use crate::picture::surface::Rect;

/// The viewer's FramebufferUpdateRequest that is not answered yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) area: Rect,
    /// Whether it is answered even if nothing changed (not incremental).
    pub(super) at_once: bool,
}

/// What is pending for a viewer; of bounded size, even if the viewer is slow.
#[derive(Debug, Default)]
pub(super) struct ClientState {
    pub(super) closed: bool,
    pub(super) format: Option<PixelFormat>,
    pub(super) abilities: Abilities,
    pub(super) request: Option<Request>,
    /// Whether to send the colour map.
    pub(super) tell_colours: bool,
    /// Whether to announce support of QEMU extended key events.
    pub(super) tell_keys: bool,
    /// Whether to send the size though it has not changed.
    pub(super) tell_size: bool,
    /// Whether to refuse a SetDesktopSize.
    pub(super) refuse_size: bool,
    /// Whether to compare sizes again, as the viewer may support resizing now.
    pub(super) check_size: bool,
    /// Areas that may have changed since they were sent.
    pub(super) changed: Region,
    /// Areas that are to be sent even if they have not changed.
    pub(super) forced: Region,
}

impl ClientState {
    /// Whether there is something to send to a viewer whose picture covers `view`.
    pub(super) fn is_ready(&mut self, view: &Rect) -> bool {
        self.changed = self.changed.take(view);
        self.forced = self.forced.take(view);
        self.refuse_size
            || self.request.is_some_and(|request| {
                request.at_once
                    || self.tell_keys
                    || self.tell_size
                    || self.check_size
                    || self.changed.intersects(&request.area)
                    || self.forced.intersects(&request.area)
            })
    }

    /// Joins a request with the one that is pending.
    pub(super) fn add_request(&mut self, request: Request) {
        self.request = Some(match self.request {
            None => request,
            Some(before) => Request {
                area: before.area.hull(&request.area),
                at_once: before.at_once || request.at_once,
            },
        });
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) id: u64,
    pub(super) stream: Stream,
    /// Whether it has completed the handshake up to and including ClientInit.
    watches: AtomicBool,
    state: Mutex<ClientState>,
    wake: Condvar,
}

impl Client {
    pub(super) fn new(id: u64, stream: Stream) -> Self {
        let (watches, state) = (AtomicBool::new(false), Mutex::default());
        Self { id, stream, watches, state, wake: Condvar::new() }
    }

    pub(super) fn watches(&self) -> bool {
        self.watches.load(Ordering::Relaxed)
    }

    /// It has completed the handshake up to and including ClientInit.
    pub(super) fn let_in(&self) {
        self.watches.store(true, Ordering::Relaxed);
    }

    /// Changes the state and wakes the writer. The lock is never held while a thread waits for the
    /// network.
    pub(super) fn change(&self, change: impl FnOnce(&mut ClientState)) {
        change(&mut lock(&self.state));
        self.wake.notify_one();
    }

    /// Waits until there is something to send to a viewer whose picture covers `view`, and takes
    /// it; `None` if the connection has ended.
    pub(super) fn wait<T>(
        &self,
        view: &Rect,
        take: impl FnOnce(&mut ClientState) -> T,
    ) -> Option<T> {
        let waits = |state: &mut ClientState| !state.closed && !state.is_ready(view);
        let mut state = unpoisoned(self.wake.wait_while(lock(&self.state), waits));
        (!state.closed).then(|| take(&mut state))
    }

    /// Ends the connection and both threads.
    pub(super) fn close(&self) {
        self.stream.close();
        self.change(|state| state.closed = true);
    }
}
