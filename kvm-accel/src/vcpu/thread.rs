//! A vCPU on a thread of its own.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread::{self, Builder, JoinHandle};

use crate::error::KvmError;
use crate::vcpu::guarded::VcpuKicker;
use crate::vcpu::run::{Vcpu, VcpuEvent};

/// A vCPU that runs on its own thread until something ends its `run`.
///
/// Dropping it kicks the vCPU and waits for it; on the vCPU's own thread, in a device's handler, it
/// only kicks.
pub struct VcpuThread {
    id: u64,
    kicker: VcpuKicker,
    /// `None` once the thread was joined.
    handle: Option<JoinHandle<Ended>>,
}

/// Why the run of a vCPU on its own thread failed, and the vCPU.
///
/// Its error is [`Vcpu::run`]'s, or [`KvmError::Panicked`] after a device's panic. The vCPU can be
/// inspected, saved or run again, as far as the failure allows it.
#[derive(Debug)]
pub struct VcpuThreadError {
    /// Boxed, as results with it would be large.
    vcpu: Box<Vcpu>,
    error: KvmError,
}

impl VcpuThreadError {
    /// The failure.
    pub fn error(&self) -> &KvmError {
        &self.error
    }

    /// The vCPU, and the failure.
    pub fn into_parts(self) -> (Vcpu, KvmError) {
        (*self.vcpu, self.error)
    }
}

impl fmt::Display for VcpuThreadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for VcpuThreadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

impl From<VcpuThreadError> for KvmError {
    fn from(failed: VcpuThreadError) -> Self {
        failed.error
    }
}

type Ended = Result<(Vcpu, VcpuEvent), VcpuThreadError>;

/// Runs the vCPU, and returns it even after a panic.
fn run(mut vcpu: Vcpu) -> Ended {
    // A vCPU is whole at every point where a device's handler may panic.
    let result = catch_unwind(AssertUnwindSafe(|| vcpu.run()));
    let result = result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or(panic.downcast_ref::<String>().map(String::as_str));
        let message = text.unwrap_or("no message").to_owned();
        Err(KvmError::Panicked { id: vcpu.id(), message })
    });
    match result {
        Ok(event) => Ok((vcpu, event)),
        Err(error) => Err(VcpuThreadError { vcpu: Box::new(vcpu), error }),
    }
}

impl Vcpu {
    /// Runs the vCPU on a thread of its own until something ends [`run`](Self::run).
    ///
    /// # Errors
    ///
    /// [`KvmError::Spawn`].
    pub fn spawn(self, name: &str) -> Result<VcpuThread, KvmError> {
        VcpuThread::new(self, name)
    }
}

impl VcpuThread {
    fn new(vcpu: Vcpu, name: &str) -> Result<Self, KvmError> {
        let (id, kicker) = (vcpu.id(), vcpu.kicker());
        let handle = Builder::new().name(name.to_owned()).spawn(move || run(vcpu));
        let handle = Some(handle.map_err(|source| KvmError::Spawn { id, source })?);
        Ok(Self { id, kicker, handle })
    }

    /// A handle by which other threads end the run.
    pub fn kicker(&self) -> VcpuKicker {
        self.kicker.clone()
    }

    /// Whether the calling thread is the vCPU's.
    pub(super) fn is_current(&self) -> bool {
        let current = thread::current().id();
        self.handle.as_ref().is_some_and(|handle| handle.thread().id() == current)
    }

    /// The number of the vCPU.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Whether the run has ended by itself.
    pub fn is_finished(&self) -> bool {
        self.handle.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until the run ends by itself; returns the vCPU and what ended it.
    ///
    /// # Errors
    ///
    /// What [`Vcpu::run`] returned, or [`KvmError::Panicked`], with the vCPU.
    ///
    /// # Panics
    ///
    /// If the vCPU's own thread calls it, in a device's handler: it cannot wait for itself.
    pub fn join(mut self) -> Result<(Vcpu, VcpuEvent), VcpuThreadError> {
        self.wait().expect("the handle is taken here and when dropped")
    }

    /// Kicks the vCPU and waits for it; returns it and the event that ended the run, which is
    /// [`VcpuEvent::Kicked`] unless another came first. Kicks until then count as this one.
    ///
    /// # Errors
    ///
    /// As [`join`](Self::join).
    ///
    /// # Panics
    ///
    /// As [`join`](Self::join).
    pub fn stop(self) -> Result<(Vcpu, VcpuEvent), VcpuThreadError> {
        self.kicker.kick();
        let mut ended = self.join();
        // The run may have ended by itself, or by another kick: the next one is not to end by this.
        match &mut ended {
            Ok((vcpu, _)) => vcpu.forget_kick(),
            Err(failed) => failed.vcpu.forget_kick(),
        }
        ended
    }

    fn wait(&mut self) -> Option<Ended> {
        // Panics of the run are caught in `run`; nothing else on the thread panics.
        Some(self.handle.take()?.join().unwrap_or_else(|panic| resume_unwind(panic)))
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        // After a join the caller has the vCPU, and it must not be kicked.
        if let Some(handle) = &self.handle {
            self.kicker.kick();
            if handle.thread().id() == thread::current().id() {
                return; // it cannot wait for itself
            }
            if let Some(Err(error)) = self.wait() {
                log::warn!("{error}");
            }
        }
    }
}

impl fmt::Debug for VcpuThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuThread")
            .field("id", &self.id)
            .field("finished", &self.is_finished())
            .finish()
    }
}
