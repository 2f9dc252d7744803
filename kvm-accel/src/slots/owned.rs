//! Whose a virtual machine's slots are.

use std::sync::{Arc, Mutex, Weak};

use kvm_ioctls::VmFd;

use crate::error::KvmError;
use crate::locks::lock;

/// The virtual machines whose slots are somebody's, and from which number on.
static OWNED: Mutex<Vec<(Weak<VmFd>, u32)>> = Mutex::new(Vec::new());

/// All slots of a virtual machine from a number on, for one machine alone.
#[derive(Debug)]
pub(crate) struct OwnedSlots(Weak<VmFd>);

impl OwnedSlots {
    pub(crate) fn claim(fd: &Arc<VmFd>, first: u32) -> Result<Self, KvmError> {
        let mut owned = lock(&OWNED);
        // Whoever is the second would have slots of the first one's numbers.
        if let Some((_, other)) = owned.iter().find(|(vm, _)| vm.as_ptr() == Arc::as_ptr(fd)) {
            return Err(KvmError::SlotsTaken { first: *other });
        }
        owned.push((Arc::downgrade(fd), first));
        Ok(Self(Arc::downgrade(fd)))
    }
}

impl Drop for OwnedSlots {
    fn drop(&mut self) {
        lock(&OWNED).retain(|(vm, _)| !vm.ptr_eq(&self.0));
    }
}
