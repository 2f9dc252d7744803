//! A connection to a viewer, and what waits for it.
//!
//! Two threads serve it. One ([`reader`](super::reader)) reads: it changes the [`State`] and
//! hands input on. The other ([`writer`](super::writer)) writes what the state asks for. So a
//! viewer that does not read stops nobody but its writer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use crate::output::vnc::format::PixelFormat;
use crate::output::vnc::listener::Stream;
use crate::output::vnc::message::Abilities;
use crate::output::vnc::region::Region;
use crate::picture::surface::Rect;

/// An update that the viewer waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) area: Rect,
    /// Whether it is answered even if nothing changed.
    pub(super) at_once: bool,
}

/// What a viewer asked for and has not got; of bounded size, however slow it is.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) closed: bool,
    pub(super) format: Option<PixelFormat>,
    pub(super) abilities: Abilities,
    pub(super) request: Option<Request>,
    /// The map of colours is to be sent.
    pub(super) tell_colours: bool,
    /// It is to be told that we understand keys by position.
    pub(super) tell_keys: bool,
    /// It is to be told the size, though that is the same.
    pub(super) tell_size: bool,
    /// It wants another size.
    pub(super) refuse_size: bool,
    /// It may be able to follow the picture's size now, which it was not.
    pub(super) check_size: bool,
    /// Where the picture may have changed since it was sent.
    pub(super) changed: Region,
    /// What is to be sent even if it has not.
    pub(super) forced: Region,
}

impl State {
    /// Whether there is something to write to a viewer that sees `view`.
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

    /// The viewer waits for this too.
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
    /// Whether it has got through the handshake.
    watches: AtomicBool,
    state: Mutex<State>,
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

    /// It has got through the handshake.
    pub(super) fn let_in(&self) {
        self.watches.store(true, Ordering::Relaxed);
    }

    /// Changes what waits for the viewer. Short: nobody waits for the network meanwhile.
    pub(super) fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.notify_one();
    }

    /// Waits until there is something to write to a viewer that sees `view`, and takes it;
    /// `None` if the connection has ended.
    pub(super) fn wait<T>(&self, view: &Rect, take: impl FnOnce(&mut State) -> T) -> Option<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.closed && !state.is_ready(view) {
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        (!state.closed).then(|| take(&mut state))
    }

    /// Ends the connection and both threads.
    pub(super) fn close(&self) {
        self.stream.close();
        self.change(|state| state.closed = true);
    }
}
