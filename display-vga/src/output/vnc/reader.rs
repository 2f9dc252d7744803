//! Reads one viewer's messages: the first thread of its connection.

use std::io::{BufReader, Write};
use std::sync::Arc;

use thiserror::Error;

use crate::output::input::InputEvent;
use crate::output::vnc::client::{Client, ClientState, Request};
use crate::output::vnc::event::VncEvent;
use crate::output::vnc::frame::Frame;
use crate::output::vnc::handshake::{HandshakeError, greet, server_init};
use crate::output::vnc::listener::DeadlineStream;
use crate::output::vnc::message::{self, Message, MessageError};
use crate::output::vnc::shared::Shared;
use crate::output::vnc::writer;

/// The most keys that are tracked as held.
const MAX_KEYS: usize = 64;

#[derive(Debug, Error)]
enum ViewerError {
    #[error("The handshake failed")]
    Handshake(#[from] HandshakeError),
    #[error("The connection was lost, or the viewer sent an invalid message")]
    Message(#[from] MessageError),
    #[error("The connection cannot be set up")]
    Stream(#[from] std::io::Error),
}

/// Removes the viewer from the list when dropped, also if the input handler panics.
struct Leave<'a>(&'a Shared, &'a Client);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.1.close();
        self.0.remove(self.1.id);
    }
}

/// Serves a viewer until it disconnects: the body of its first thread.
pub(super) fn serve(hub: &Arc<Shared>, viewer: &Arc<Client>) {
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

fn talk(hub: &Arc<Shared>, viewer: &Arc<Client>, held: &mut Held) -> Result<(), ViewerError> {
    let settings = &hub.settings;
    viewer.stream.prepare()?;
    let mut handshake = DeadlineStream::new(&viewer.stream, settings.handshake);
    greet(&mut handshake, settings.password.as_ref())?;
    // Before ServerInit: whoever has received that cannot be closed in favour of a newcomer.
    viewer.let_in();
    let (width, height) = hub.picture().size();
    let size = u16::try_from(width).ok().zip(u16::try_from(height).ok());
    handshake.write_all(&server_init(size.unwrap_or_default(), &settings.name))?;
    viewer.stream.set_timeouts(settings.write_timeout)?;

    let seen = Frame::new((width, height));
    viewer.change(|state| state.forced.add(seen.area()));
    let writer = { (hub.clone(), viewer.clone()) };
    std::thread::Builder::new()
        .name(format!("vnc-out-{}", viewer.id))
        .spawn(move || writer::run(&writer.0, &writer.1, seen))?;
    hub.tell(VncEvent::Viewers(hub.watching()));

    let mut stream = BufReader::new(&viewer.stream);
    loop {
        let message = message::read(&mut stream)?;
        held.record(&message);
        match message {
            Message::Input(event) => hub.tell(VncEvent::Input(event)),
            Message::CutText(text) => hub.tell(VncEvent::CutText(text)),
            message => viewer.change(|state| apply(state, message)),
        }
    }
}

/// Applies a message to the state of updates.
fn apply(state: &mut ClientState, message: Message) {
    match message {
        Message::SetPixelFormat(format) => {
            state.tell_colours = format.colour_map().is_some();
            state.format = Some(format);
        }
        Message::SetEncodings(abilities) => {
            state.tell_keys |= abilities.qemu_keys && !state.abilities.qemu_keys;
            // If the viewer could not be resized before, its picture was cut or padded: it may
            // support that now.
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

/// The keys and buttons that a viewer holds; they are released when it disconnects.
#[derive(Debug, Default)]
struct Held {
    keys: Vec<(u32, Option<u32>)>,
    buttons: bool,
    at: (u32, u32),
}

impl Held {
    fn record(&mut self, message: &Message) {
        match *message {
            Message::Input(InputEvent::Key { keysym, keycode, down }) => {
                // Match by keycode if there is one: the release has another keysym if Shift was
                // released before the key.
                self.keys.retain(|(symbol, code)| match keycode {
                    Some(_) => *code != keycode,
                    None => code.is_some() || *symbol != keysym,
                });
                if down {
                    if self.keys.len() == MAX_KEYS {
                        self.keys.remove(0); // most likely released with another keysym
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

    fn release(self, hub: &Shared) {
        for (keysym, keycode) in self.keys {
            hub.tell(VncEvent::Input(InputEvent::Key { keysym, keycode, down: false }));
        }
        if self.buttons {
            let (x, y) = self.at;
            hub.tell(VncEvent::Input(InputEvent::Pointer { x, y, buttons: 0 }));
        }
    }
}
