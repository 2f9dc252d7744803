//! The server's public interface.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use thiserror::Error;

use crate::output::vnc::event::VncEvent;
use crate::output::vnc::listener::VncListener;
use crate::output::vnc::password::Password;
use crate::output::vnc::shared::{Settings, Shared};
use crate::picture::surface::{Rect, Surface};

/// Why a server cannot be started.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VncError {
    /// Listening failed.
    #[error("The server cannot listen for viewers")]
    Listen(#[source] io::Error),
    /// The password is empty, or has a character that is not in Latin-1.
    #[error("The password is empty, or has a character that is not in Latin-1")]
    Password,
    /// The server's thread cannot be started.
    #[error("The server's thread cannot be started")]
    Thread(#[source] io::Error),
}

/// A VNC server: shows a picture to viewers, and forwards their input.
///
/// Supports RFB 3.8, 3.7 and 3.3, the viewer's pixel format, and the encodings Tight (without
/// JPEG), ZRLE, Zlib, Hextile and Raw, of which it uses the first that the viewer lists; scrolls
/// are sent as CopyRect. The server announces a new size if the viewer supports resizing
/// (ExtendedDesktopSize, DesktopSize); if not, the viewer's picture is cut or padded with black
/// to its size. All viewers share the picture and the input, also those that ask for exclusive
/// access.
///
/// Each viewer has two threads, and memory for two pictures at most, five zlib streams, and
/// a region of changed pixels: while a viewer is slow or does not read, its region grows, but no
/// queue. The server closes a connection that accepts no bytes for the time of
/// [`write_timeout`](VncBuilder::write_timeout), or that violates the protocol.
///
/// Nothing is encrypted. Listen on the loopback address ([`loopback`](Self::loopback)), and use
/// SSH or a TLS proxy for remote access.
///
/// ```
/// # use std::sync::mpsc;
/// # use display_vga::{Screen, Vga};
/// use display_vga::VncServer;
/// # use memory_region::MemoryMap;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let memory = MemoryMap::new();
/// # let vga = Vga::new("vga.vram", 16 << 20)?;
/// # let vram = vga.add_to(&memory)?.vram;
/// # let mut screen = Screen::new(memory, vga.clone(), vram)?;
/// # vga.set_mode(640, 480, 32)?;
/// let (keyboard, events) = mpsc::channel();
/// let server = VncServer::loopback(0)? // port 5900 is a viewer's display :0
///     .name("a guest")
///     .password("secret")
///     .on_input(move |event| drop(keyboard.send(event)))
///     .start()?;
/// println!("vncviewer {}", server.local_addr().expect("it is on TCP"));
/// # let mut runs = (0..2).into_iter();
/// # let mut running = || runs.next().is_some();
/// while running() {
///     screen.refresh()?;
///     server.update(screen.surface(), &screen.last().damage);
///     for event in events.try_iter() { /* give it to the guest */ }
/// }
/// # Ok(())
/// # }
/// ```
///
/// Dropping it ends all connections, but does not wait for a handler that is being called.
#[derive(Debug)]
pub struct VncServer {
    hub: Arc<Shared>,
    address: Option<SocketAddr>,
    /// Closed to stop the thread.
    stop: Option<UnixStream>,
    acceptor: Option<JoinHandle<()>>,
}

impl VncServer {
    /// A server that listens on `address`. Anyone who can connect to it, and knows the password if
    /// there is one, sees the picture and can send input.
    ///
    /// # Errors
    ///
    /// [`VncError::Listen`].
    pub fn bind(address: impl ToSocketAddrs) -> Result<VncBuilder, VncError> {
        Ok(Self::from_listener(TcpListener::bind(address).map_err(VncError::Listen)?))
    }

    /// A server that only this host can reach, at TCP port `port` of 127.0.0.1; 0 selects a free
    /// port.
    ///
    /// # Errors
    ///
    /// [`VncError::Listen`].
    pub fn loopback(port: u16) -> Result<VncBuilder, VncError> {
        Self::bind((Ipv4Addr::LOCALHOST, port))
    }

    /// A server on the caller's TCP or Unix listener.
    pub fn from_listener(listener: impl Into<VncListener>) -> VncBuilder {
        VncBuilder {
            listener: listener.into(),
            is_sound: true,
            settings: Settings {
                name: "display-vga".to_owned(),
                password: None,
                handler: None,
                viewers: 16,
                handshake: Duration::from_secs(10),
                write_timeout: Duration::from_secs(30),
            },
        }
    }

    /// The address that viewers connect to, if the listener has one.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.address
    }

    /// How many viewers are connected.
    pub fn viewers(&self) -> usize {
        self.hub.watching()
    }

    /// Shows `surface`, which has changed in `damage` since the last call; at the first call and
    /// when its size changes, all of it counts as damage.
    ///
    /// Copies the damage, or the whole picture if a viewer's thread still uses the last picture
    /// but one, and returns: never waits for a viewer.
    ///
    /// An empty surface is ignored: viewers keep their picture. Before the first picture they see
    /// 640x480 black pixels.
    pub fn update(&self, surface: &Surface, damage: &[Rect]) {
        self.hub.publish(surface, damage);
    }
}

impl Drop for VncServer {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(acceptor) = self.acceptor.take() {
            // An error means that it panicked, and so has ended.
            let _ = acceptor.join();
        }
        self.hub.close();
    }
}

/// Builds a [`VncServer`].
#[derive(Debug)]
#[must_use = "the server accepts no viewers before `start`"]
pub struct VncBuilder {
    listener: VncListener,
    /// Whether the password, if there is one, is valid.
    is_sound: bool,
    settings: Settings,
}

impl VncBuilder {
    /// The name that viewers show; "display-vga" by default.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.name = name.into();
        self
    }

    /// Requires `password` (VNC authentication).
    ///
    /// This does not stop an attacker: only eight characters count, DES can be broken by brute
    /// force, and the connection is not encrypted.
    pub fn password(mut self, password: &str) -> Self {
        self.settings.password = Password::new(password);
        self.is_sound = self.settings.password.is_some();
        self
    }

    /// Calls `handler` with the events of viewers, from the threads of their connections, possibly
    /// concurrently. While it runs, its viewer's other messages wait; updates do not.
    pub fn on_input(mut self, handler: impl Fn(VncEvent) + Send + Sync + 'static) -> Self {
        self.settings.handler = Some(Box::new(handler));
        self
    }

    /// The most connections at a time, at least one; 16 by default. A further one is closed at
    /// once, unless another is still in the handshake: then that one is closed.
    pub fn max_viewers(mut self, viewers: usize) -> Self {
        self.settings.viewers = viewers.max(1);
        self
    }

    /// How long a viewer may take for the handshake; 10 seconds by default.
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.settings.handshake = timeout;
        self
    }

    /// How long a connection with pending bytes may accept none before it is closed; 30 seconds by
    /// default, at least a millisecond.
    ///
    /// If no bytes are pending, TCP sends keep-alive probes after the same time, but at least a
    /// second; a connection whose machine does not answer is closed after twice the time and two
    /// seconds at most.
    pub fn write_timeout(mut self, timeout: Duration) -> Self {
        self.settings.write_timeout = timeout.max(Duration::from_millis(1));
        self
    }

    /// Starts a thread that accepts viewers.
    ///
    /// # Errors
    ///
    /// [`VncError`].
    pub fn start(self) -> Result<VncServer, VncError> {
        if !self.is_sound {
            return Err(VncError::Password);
        }
        self.listener.prepare().map_err(VncError::Listen)?;
        let (stop, stopped) = UnixStream::pair().map_err(VncError::Listen)?;
        let address = self.listener.local_addr();
        let hub = Arc::new(Shared::new(self.settings, (640, 480)));
        let (accepting, listener) = (hub.clone(), self.listener);
        let acceptor = thread::Builder::new()
            .name("vnc".to_owned())
            .spawn(move || accepting.accept(&listener, &stopped))
            .map_err(VncError::Thread)?;
        Ok(VncServer { hub, address, stop: Some(stop), acceptor: Some(acceptor) })
    }
}
