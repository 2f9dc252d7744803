//! The server, as its caller sees it.

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
    /// The address cannot be listened on.
    #[error("Viewers cannot be awaited")]
    Listen(#[source] io::Error),
    /// The password is empty, or has a character that is not in Latin-1.
    #[error("The password is empty, or has a character that VNC does not know")]
    Password,
    /// There is no thread for it.
    #[error("There is no thread to await viewers")]
    Thread(#[source] io::Error),
}

/// A VNC server: shows a picture to viewers, and hands on what they type.
///
/// Speaks RFB 3.8, 3.7 and 3.3, in the viewer's pixel format and in the first of Tight
/// (without JPEG), ZRLE, Zlib, Hextile and Raw that it names; scrolls are sent as CopyRect.
/// A viewer is told of another size if it can be (ExtendedDesktopSize, DesktopSize); if not,
/// it sees the picture cut or padded with black to the size that it knows. All viewers share
/// the picture and the input, also those that ask to be alone.
///
/// Each viewer has two threads, and memory for two pictures at most, five zlib streams, and
/// an area of what changed: a viewer that is slow or does not read finds that area grown,
/// not a queue. One whose connection takes nothing for the time of
/// [`write_timeout`](VncBuilder::write_timeout) is dropped, and so is one that breaks the protocol.
///
/// Nothing is encrypted. Listen on the loopback address, which is what
/// [`loopback`](Self::loopback) does, and let SSH or a TLS proxy carry it further.
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
/// Dropping it ends all connections. A handler that is being called at that moment returns
/// in its own time.
#[derive(Debug)]
pub struct VncServer {
    hub: Arc<Shared>,
    address: Option<SocketAddr>,
    /// Closed to stop the thread.
    stop: Option<UnixStream>,
    acceptor: Option<JoinHandle<()>>,
}

impl VncServer {
    /// A server that will listen on `address`. Whoever can reach it sees the picture and
    /// types.
    ///
    /// # Errors
    ///
    /// [`VncError::Listen`].
    pub fn bind(address: impl ToSocketAddrs) -> Result<VncBuilder, VncError> {
        Ok(Self::from_listener(TcpListener::bind(address).map_err(VncError::Listen)?))
    }

    /// A server that this machine alone can reach, at TCP port `port` of 127.0.0.1; 0 takes
    /// a free one.
    ///
    /// # Errors
    ///
    /// [`VncError::Listen`].
    pub fn loopback(port: u16) -> Result<VncBuilder, VncError> {
        Self::bind((Ipv4Addr::LOCALHOST, port))
    }

    /// A server on a socket of the caller's: a TCP or a Unix listener.
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
                patience: Duration::from_secs(30),
            },
        }
    }

    /// The address that viewers connect to, if the listener has one.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.address
    }

    /// How many viewers look.
    pub fn viewers(&self) -> usize {
        self.hub.watching()
    }

    /// Shows `surface`, which has changed in `damage` since the last call; the first time and
    /// when its size is another, all of it is taken.
    ///
    /// Copies the damage, or all of the picture if a viewer's thread is still at work on the
    /// last but one, and returns: no viewer is waited for.
    ///
    /// An empty surface is not shown, viewers keep what they have; before the first picture
    /// they see 640x480 black pixels.
    pub fn update(&self, surface: &Surface, damage: &[Rect]) {
        self.hub.publish(surface, damage);
    }
}

impl Drop for VncServer {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(acceptor) = self.acceptor.take() {
            // It does not panic; if it did, there is nothing to stop.
            let _ = acceptor.join();
        }
        self.hub.close();
    }
}

/// A [`VncServer`] to be.
#[derive(Debug)]
#[must_use = "viewers are awaited once it is started"]
pub struct VncBuilder {
    listener: VncListener,
    /// Whether the password, if there is one, is sound.
    is_sound: bool,
    settings: Settings,
}

impl VncBuilder {
    /// The name that viewers show; "display-vga" otherwise.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.name = name.into();
        self
    }

    /// Viewers have to know `password` (VNC authentication).
    ///
    /// This keeps out the curious, not an attacker: eight characters count, DES can be tried
    /// out by force, and what follows is readable to whoever can listen.
    pub fn password(mut self, password: &str) -> Self {
        self.settings.password = Password::new(password);
        self.is_sound = self.settings.password.is_some();
        self
    }

    /// Calls `handler` with what viewers do, from the threads of their connections, perhaps
    /// at the same time. While it runs its viewer's other messages wait; updates do not.
    pub fn on_input(mut self, handler: impl Fn(VncEvent) + Send + Sync + 'static) -> Self {
        self.settings.handler = Some(Box::new(handler));
        self
    }

    /// How many connections there may be at a time, at least one; 16 otherwise. One more is
    /// closed at once, unless another is still in the handshake: then that is.
    pub fn max_viewers(mut self, viewers: usize) -> Self {
        self.settings.viewers = viewers.max(1);
        self
    }

    /// How long a viewer may take to get through the handshake; 10 seconds otherwise.
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.settings.handshake = timeout;
        self
    }

    /// How long a connection that has something to take may take nothing before it is
    /// closed; 30 seconds otherwise, at least a millisecond.
    ///
    /// The machine of a viewer that has nothing to take is asked as often, but not more than once
    /// a second, whether it is there still; one that does not answer is gone after twice the
    /// time and two seconds at most.
    pub fn write_timeout(mut self, patience: Duration) -> Self {
        self.settings.patience = patience.max(Duration::from_millis(1));
        self
    }

    /// Begins to take viewers in, in a thread of its own.
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
