//! Accepts viewers.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::output::vnc::client::Client;
use crate::output::vnc::listener::{Stream, VncListener};
use crate::output::vnc::reader::serve;
use crate::output::vnc::shared::Shared;
use crate::rare_log::RareLog;

/// The time between two attempts if there are no file descriptors or threads for a viewer.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// Rate limits of warnings that anyone who can connect could cause without end.
#[derive(Default)]
struct Logs {
    refused: RareLog,
    no_thread: RareLog,
    not_accepted: RareLog,
}

impl Shared {
    /// Adds a viewer and starts its reader. If there are too many, the oldest one that is still in
    /// the handshake is closed; if there is none, the new one is.
    fn admit(self: &Arc<Self>, id: u64, stream: Stream, logs: &mut Logs) {
        let viewer = Arc::new(Client::new(id, stream));
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
                log::warn!("vnc: no thread can be started for viewer {id}: {error}{more}");
            }
            self.remove(id);
            thread::sleep(RETRY_DELAY);
        }
    }

    /// Accepts viewers until the other end of `stop` is closed: the body of a thread.
    pub(super) fn accept(self: &Arc<Self>, listener: &VncListener, stop: &UnixStream) {
        let mut logs = Logs::default();
        for id in 1.. {
            match listener.accept(stop) {
                Ok(Some(stream)) => self.admit(id, stream, &mut logs),
                Ok(None) => return,
                Err(error) => {
                    if let Some(more) = logs.not_accepted.pass(Instant::now()) {
                        log::warn!("vnc: viewers cannot be accepted: {error}{more}");
                    }
                    thread::sleep(RETRY_DELAY);
                }
            }
        }
    }
}
