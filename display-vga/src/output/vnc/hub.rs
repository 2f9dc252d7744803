//! What all threads of a server share: the picture, and the list of viewers.
//!
//! No lock is held while anybody waits for the network, or copies pixels: a picture that is
//! published is not written any more, and the next one is made of the one before, if no
//! viewer looks at that any more. Locks are held to change a few numbers.

use std::fmt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::VncEvent;
use super::frame::Frame;
use super::listener::{Stream, VncListener};
use super::password::Password;
use super::region::Region;
use super::viewer::{Viewer, serve};
use crate::rare_log::RareLog;
use crate::surface::{Rect, Surface};

/// All that a viewer can be shown, in pixels of a side: the protocol has 16 bits.
const LARGEST: u32 = 65535;
const EVERYTHING: Rect = Rect { x: 0, y: 0, width: LARGEST, height: LARGEST };
/// How long to wait when there are no descriptors or threads for a viewer.
const PAUSE: Duration = Duration::from_millis(100);

/// Warnings that whoever can connect can cause as often as he likes.
#[derive(Default)]
struct Logs {
    refused: RareLog,
    no_thread: RareLog,
    not_accepted: RareLog,
}

pub(super) type Handler = Box<dyn Fn(VncEvent) + Send + Sync>;

/// What the caller chose.
pub(super) struct Settings {
    pub(super) name: String,
    pub(super) password: Option<Password>,
    pub(super) handler: Option<Handler>,
    pub(super) viewers: usize,
    pub(super) handshake: Duration,
    pub(super) patience: Duration,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("name", &self.name)
            .field("password", &self.password)
            .field("viewers", &self.viewers)
            .field("handshake", &self.handshake)
            .field("patience", &self.patience)
            .finish_non_exhaustive()
    }
}

/// What the next picture is made of.
#[derive(Debug, Default)]
struct Spare {
    /// The picture before the present one; `None` before there was one.
    frame: Option<Arc<Frame>>,
    /// Where the present one differs from it.
    stale: Region,
}

#[derive(Debug)]
pub(super) struct Hub {
    pub(super) settings: Settings,
    picture: Mutex<Arc<Frame>>,
    spare: Mutex<Spare>,
    viewers: Mutex<Vec<Arc<Viewer>>>,
}

impl Hub {
    pub(super) fn new(settings: Settings, size: (u32, u32)) -> Self {
        let picture = Mutex::new(Arc::new(Frame::new(size)));
        Self { settings, picture, spare: Mutex::default(), viewers: Mutex::default() }
    }

    /// What was published last.
    pub(super) fn picture(&self) -> Arc<Frame> {
        self.picture.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn viewers(&self) -> MutexGuard<'_, Vec<Arc<Viewer>>> {
        self.viewers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many have got through the handshake.
    pub(super) fn watching(&self) -> usize {
        self.viewers().iter().filter(|viewer| viewer.watches()).count()
    }

    pub(super) fn tell(&self, event: VncEvent) {
        if let Some(handler) = &self.settings.handler {
            handler(event);
        }
    }

    /// The pixels first, the damage second: whoever takes the damage finds the pixels.
    pub(super) fn publish(&self, surface: &Surface, damage: &[Rect]) {
        let size = (surface.width().min(LARGEST), surface.height().min(LARGEST));
        if size.0 == 0 || size.1 == 0 {
            return;
        }
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.picture();
        let (first, resized) = (spare.frame.is_none(), before.size() != size);
        if damage.is_empty() && !first && !resized {
            return;
        }
        let mut changed = Region::default();
        if first || resized {
            changed.add(EVERYTHING);
        } else {
            changed.add_all(damage);
        }
        let mut picture = match spare.frame.take().map(Arc::try_unwrap) {
            _ if resized => Frame::new(size),
            Some(Ok(mut frame)) if frame.size() == size => {
                frame.copy(&before, &spare.stale);
                frame
            }
            // A viewer looks at it.
            _ => before.duplicate(),
        };
        picture.publish(surface, changed.rects());
        *self.picture.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(picture);
        *spare = Spare { frame: Some(before), stale: changed.clone() };
        drop(spare);
        for viewer in self.viewers().iter() {
            viewer.change(|state| state.changed.add_all(changed.rects()));
        }
    }

    pub(super) fn remove(&self, id: u64) {
        self.viewers().retain(|viewer| viewer.id != id);
    }

    /// Ends all connections.
    pub(super) fn close(&self) {
        std::mem::take(&mut *self.viewers()).iter().for_each(|viewer| viewer.close());
    }

    /// Takes a viewer in. If there are too many, the eldest makes room that is still in the
    /// handshake; if there is none, the new one has to go.
    fn admit(self: &Arc<Self>, id: u64, stream: Stream, logs: &mut Logs) {
        let viewer = Arc::new(Viewer::new(id, stream));
        let mut viewers = self.viewers();
        if viewers.len() >= self.settings.viewers {
            let Some(at) = viewers.iter().position(|viewer| !viewer.watches()) else {
                drop(viewers);
                if let Some(more) = logs.refused.pass(Instant::now()) {
                    log::warn!("vnc: viewer {id} is one too many{more}");
                }
                return;
            };
            viewers.remove(at).close();
        }
        viewers.push(viewer.clone());
        drop(viewers);
        let hub = self.clone();
        let thread = thread::Builder::new().name(format!("vnc-in-{id}"));
        if let Err(error) = thread.spawn(move || serve(&hub, &viewer)) {
            if let Some(more) = logs.no_thread.pass(Instant::now()) {
                log::warn!("vnc: no thread for viewer {id}: {error}{more}");
            }
            self.remove(id);
            thread::sleep(PAUSE);
        }
    }

    /// Takes viewers in until the other end of `stop` is closed: the body of a thread.
    pub(super) fn accept(self: &Arc<Self>, listener: &VncListener, stop: &UnixStream) {
        let mut logs = Logs::default();
        for id in 1.. {
            match listener.accept(stop) {
                Ok(Some(stream)) => self.admit(id, stream, &mut logs),
                Ok(None) => return,
                Err(error) => {
                    if let Some(more) = logs.not_accepted.pass(Instant::now()) {
                        log::warn!("vnc: no viewer can be taken in: {error}{more}");
                    }
                    thread::sleep(PAUSE);
                }
            }
        }
    }
}
