//! The state that all threads of a server share: the picture, and the list of viewers.
//!
//! No thread holds a lock that another one needs while it waits for the network or copies pixels:
//! a published picture is never written, and the next one reuses the buffer of the one before it,
//! if no viewer's thread uses that any more. Locks are held only to change a few fields, except
//! for that of the spare buffer, which only `publish` takes.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::locks::lock;
use crate::output::vnc::client::Client;
use crate::output::vnc::event::VncEvent;
use crate::output::vnc::frame::Frame;
use crate::output::vnc::password::Password;
use crate::output::vnc::region::Region;
use crate::picture::surface::{Rect, Surface};

/// The longest side of a picture that a viewer can be sent, in pixels: the protocol has 16 bits.
const MAX_SIDE: u32 = 65535;
const EVERYTHING: Rect = Rect { x: 0, y: 0, width: MAX_SIDE, height: MAX_SIDE };

pub(super) type Handler = Box<dyn Fn(VncEvent) + Send + Sync>;

/// The caller's settings.
pub(super) struct Settings {
    pub(super) name: String,
    pub(super) password: Option<Password>,
    pub(super) handler: Option<Handler>,
    pub(super) viewers: usize,
    pub(super) handshake: Duration,
    pub(super) write_timeout: Duration,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The buffer for the next picture.
#[derive(Debug, Default)]
struct Spare {
    /// The picture before the present one; `None` before there was one.
    frame: Option<Arc<Frame>>,
    /// Where the present picture differs from it.
    stale: Region,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: Settings,
    picture: Mutex<Arc<Frame>>,
    spare: Mutex<Spare>,
    viewers: Mutex<Vec<Arc<Client>>>,
}

impl Shared {
    pub(super) fn new(settings: Settings, size: (u32, u32)) -> Self {
        let picture = Mutex::new(Arc::new(Frame::new(size)));
        Self { settings, picture, spare: Mutex::default(), viewers: Mutex::default() }
    }

    /// The picture that was published last.
    pub(super) fn picture(&self) -> Arc<Frame> {
        lock(&self.picture).clone()
    }

    pub(super) fn viewers(&self) -> MutexGuard<'_, Vec<Arc<Client>>> {
        lock(&self.viewers)
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

    /// Publishes the pixels first, then the damage: a writer that takes the damage then finds the
    /// new pixels.
    pub(super) fn publish(&self, surface: &Surface, damage: &[Rect]) {
        let size = (surface.width().min(MAX_SIDE), surface.height().min(MAX_SIDE));
        if size.0 == 0 || size.1 == 0 {
            return;
        }
        let mut spare = lock(&self.spare);
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
            // A viewer's writer still uses it.
            _ => before.duplicate(),
        };
        picture.publish(surface, changed.rects());
        *lock(&self.picture) = Arc::new(picture);
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
}
