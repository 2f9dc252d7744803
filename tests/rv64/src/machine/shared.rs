//! A device that harts on several threads access: the one place where devices meet the map.

use std::sync::{Mutex, MutexGuard, PoisonError};

use memory_region::MmioDevice;

use crate::devices::device::Device;

/// A device behind a lock.
#[derive(Debug, Default)]
pub(super) struct Shared<D>(Mutex<D>);

impl<D> Shared<D> {
    pub(super) fn new(device: D) -> Self {
        Self(Mutex::new(device))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, D> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Device> MmioDevice for Shared<D> {
    fn read(&self, offset: u64, size: usize) -> u64 {
        self.lock().load(offset, size)
    }

    fn write(&self, offset: u64, size: usize, value: u64) {
        self.lock().store(offset, size, value);
    }
}
