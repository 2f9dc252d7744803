//! A VNC server (RFC 6143).
//!
//! From the top:
//!
//! - `server`: the public interface; `event`: events from viewers;
//! - `accept`: accepts viewers; `listener`: the sockets;
//! - `reader`, `writer`: a viewer's two threads; `client`: the state that they share;
//! - `shared`: the state that all threads share: the picture, and the list of viewers;
//! - `handshake`, `password`, `message`, `format`: the protocol's parts; `encode`: its encodings;
//! - `frame`, `region`, `scroll`: copies of the picture, areas of it, and detection of scrolls.

mod accept;
mod client;
mod encode;
mod event;
mod format;
mod frame;
mod handshake;
mod listener;
mod message;
mod password;
mod reader;
mod region;
mod scroll;
mod server;
mod shared;
mod writer;

pub use event::VncEvent;
pub use listener::VncListener;
pub use server::{VncBuilder, VncError, VncServer};
