//! A vCPU on a thread of its own.

use std::fmt;
use std::thread::{Builder, JoinHandle};

use crate::error::KvmError;
use crate::vcpu::{Vcpu, VcpuEvent, VcpuKicker};

/// A vCPU that runs on its own thread until something ends its `run`.
///
/// Dropped, it is kicked and waited for.
pub struct VcpuThread {
    id: u64,
    kicker: VcpuKicker,
    /// Taken by whoever joins it.
    handle: Option<JoinHandle<(Vcpu, Result<VcpuEvent, KvmError>)>>,
}

impl VcpuThread {
    pub(crate) fn new(mut vcpu: Vcpu, name: &str) -> Result<Self, KvmError> {
        let (id, kicker) = (vcpu.id(), vcpu.kicker());
        let body = move || {
            let result = vcpu.run();
            (vcpu, result)
        };
        let handle = Builder::new().name(name.to_owned()).spawn(body);
        let handle = Some(handle.map_err(|source| KvmError::Spawn { id, source })?);
        Ok(Self { id, kicker, handle })
    }

    /// For other threads, to end the run.
    pub fn kicker(&self) -> VcpuKicker {
        self.kicker.clone()
    }

    /// Whether the run has ended by itself.
    pub fn is_finished(&self) -> bool {
        self.handle.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until the run ends by itself; returns the vCPU and what ended it.
    ///
    /// # Errors
    ///
    /// What [`Vcpu::run`] returned, or [`KvmError::Panicked`].
    pub fn join(mut self) -> Result<(Vcpu, VcpuEvent), KvmError> {
        self.wait()
    }

    /// Kicks the vCPU and waits for it; returns it and what ended the run, which is
    /// [`VcpuEvent::Kicked`] unless something else came first.
    ///
    /// # Errors
    ///
    /// As [`join`](Self::join).
    pub fn stop(mut self) -> Result<(Vcpu, VcpuEvent), KvmError> {
        self.kicker.kick();
        self.wait()
    }

    fn wait(&mut self) -> Result<(Vcpu, VcpuEvent), KvmError> {
        let id = self.id;
        let gone = |message: &str| KvmError::Panicked { id, message: message.to_owned() };
        let handle = self.handle.take().ok_or_else(|| gone("joined before"))?;
        let (vcpu, result) = handle.join().map_err(|panic| {
            let text = panic.downcast_ref::<&str>().copied();
            gone(
                text.or(panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message"),
            )
        })?;
        Ok((vcpu, result?))
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        if self.handle.is_some() {
            self.kicker.kick();
            if let Err(error) = self.wait() {
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
