//! The picture on the network: a VNC server (RFC 6143).
//!
//! From the top:
//!
//! - `server`: the server, as its caller sees it; `event`: what viewers do;
//! - `accept`: takes viewers in; `listener`: the sockets on which they come;
//! - `reader`, `writer`: a viewer's two threads; `client`: what waits for it;
//! - `shared`: what all threads share: the picture, and the list of viewers;
//! - `handshake`, `password`, `message`, `format`: the protocol's parts; `encode`: its encodings;
//! - `frame`, `region`, `scroll`: pixels that are kept, areas of them, and what moved.

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
