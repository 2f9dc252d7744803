//! A connection to a viewer: what waits for it, and what it says.
//!
//! Two threads serve it. The one here reads: it changes the [`State`] and hands input on.
//! The other ([`updater`](super::updater)) writes what the state asks for. So a viewer that
//! does not read stops nobody but its writer.

use std::io::{BufReader, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use thiserror::Error;

use super::format::PixelFormat;
use super::frame::Frame;
use super::handshake::{HandshakeError, greet, server_init};
use super::hub::Hub;
use super::listener::{Hurried, Stream};
use super::message::{self, Abilities, Message, MessageError};
use super::region::Region;
use super::{VncEvent, updater};
use crate::output::input::InputEvent;
use crate::surface::Rect;

/// More keys than anybody has fingers for.
const KEYS: usize = 64;

#[derive(Debug, Error)]
enum ViewerError {
    #[error("The viewer was not let in")]
    Handshake(#[from] HandshakeError),
    #[error("The viewer went away, or cannot be understood")]
    Message(#[from] MessageError),
    #[error("The viewer cannot be served")]
    Stream(#[from] std::io::Error),
}

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
pub(super) struct Viewer {
    pub(super) id: u64,
    pub(super) stream: Stream,
    /// Whether it has got through the handshake.
    watches: AtomicBool,
    state: Mutex<State>,
    wake: Condvar,
}

impl Viewer {
    pub(super) fn new(id: u64, stream: Stream) -> Self {
        let (watches, state) = (AtomicBool::new(false), Mutex::default());
        Self { id, stream, watches, state, wake: Condvar::new() }
    }

    pub(super) fn watches(&self) -> bool {
        self.watches.load(Ordering::Relaxed)
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

/// Takes the viewer off the list, also when a handler of input panics.
struct Leave<'a>(&'a Hub, &'a Viewer);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.1.close();
        self.0.remove(self.1.id);
    }
}

/// Serves a viewer until it goes away: the body of its first thread.
pub(super) fn serve(hub: &Arc<Hub>, viewer: &Arc<Viewer>) {
    let mut held = Held::default();
    let result = {
        let _leave = Leave(hub, viewer);
        talk(hub, viewer, &mut held)
    };
    if let Err(error) = result {
        let cause = std::error::Error::source(&error);
        let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
        log::debug!("vnc: viewer {}: {error}{cause}", viewer.id);
    }
    held.release(hub);
    if viewer.watches() {
        hub.tell(VncEvent::Viewers(hub.watching()));
    }
}

fn talk(hub: &Arc<Hub>, viewer: &Arc<Viewer>, held: &mut Held) -> Result<(), ViewerError> {
    let settings = &hub.settings;
    viewer.stream.prepare()?;
    let mut hurried = Hurried::new(&viewer.stream, settings.handshake);
    greet(&mut hurried, settings.password.as_ref())?;
    let (width, height) = hub.picture().size();
    let size = u16::try_from(width).ok().zip(u16::try_from(height).ok());
    hurried.write_all(&server_init(size.unwrap_or_default(), &settings.name))?;
    viewer.stream.set_patience(settings.patience)?;

    let seen = Frame::new((width, height));
    viewer.change(|state| state.forced.add(seen.area()));
    let writer = { (hub.clone(), viewer.clone()) };
    std::thread::Builder::new()
        .name(format!("vnc-out-{}", viewer.id))
        .spawn(move || updater::run(&writer.0, &writer.1, seen))?;
    viewer.watches.store(true, Ordering::Relaxed);
    hub.tell(VncEvent::Viewers(hub.watching()));

    let mut stream = BufReader::new(&viewer.stream);
    loop {
        let message = message::read(&mut stream)?;
        held.note(&message);
        match message {
            Message::Input(event) => hub.tell(VncEvent::Input(event)),
            Message::CutText(text) => hub.tell(VncEvent::CutText(text)),
            message => viewer.change(|state| obey(state, message)),
        }
    }
}

/// What of a message concerns the updates.
fn obey(state: &mut State, message: Message) {
    match message {
        Message::SetPixelFormat(format) => {
            state.tell_colours = format.colour_map().is_some();
            state.format = Some(format);
        }
        Message::SetEncodings(abilities) => {
            state.tell_keys |= abilities.qemu_keys && !state.abilities.qemu_keys;
            // A picture that was cut because the viewer could not follow is due now.
            state.check_size = true;

            state.abilities = abilities;
        }
        Message::UpdateRequest { incremental, area } => {
            if !incremental {
                state.forced.add(area);
                state.tell_size |= state.abilities.extended_desktop_size;
            }
            state.add_request(Request { area, at_once: !incremental });
        }
        Message::SetDesktopSize => state.refuse_size |= state.abilities.extended_desktop_size,
        Message::Input(_) | Message::CutText(_) | Message::Skipped => {}
    }
}

/// What a viewer holds down: it is released if the viewer goes away.
#[derive(Debug, Default)]
struct Held {
    keys: Vec<(u32, Option<u32>)>,
    buttons: bool,
    at: (u32, u32),
}

impl Held {
    fn note(&mut self, message: &Message) {
        match *message {
            Message::Input(InputEvent::Key { keysym, keycode, down }) => {
                // A key goes up as another symbol if Shift went up before it.
                self.keys.retain(|(symbol, code)| match keycode {
                    Some(_) => *code != keycode,
                    None => code.is_some() || *symbol != keysym,
                });
                if down {
                    if self.keys.len() == KEYS {
                        self.keys.remove(0); // most likely one that went up as another symbol
                    }
                    self.keys.push((keysym, keycode));
                }
            }
            Message::Input(InputEvent::Pointer { x, y, buttons }) => {
                (self.buttons, self.at) = (buttons != 0, (x, y));
            }
            _ => {}
        }
    }

    fn release(self, hub: &Hub) {
        for (keysym, keycode) in self.keys {
            hub.tell(VncEvent::Input(InputEvent::Key { keysym, keycode, down: false }));
        }
        if self.buttons {
            let (x, y) = self.at;
            hub.tell(VncEvent::Input(InputEvent::Pointer { x, y, buttons: 0 }));
        }
    }
}
