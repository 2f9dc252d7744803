//! Deleting all slots when their machine is dropped.
//!
//! KVM keeps slots for as long as any descriptor of the machine or of one of its vCPUs is open, and
//! there may be a vCPU that this crate has not created: one that is older than the
//! [`KvmVm`](crate::KvmVm). Its guest must not reach memory that the process uses for something
//! else by then. KVM_SET_USER_MEMORY_REGION returns only when no vCPU uses the slot any more (KVM
//! waits for the readers of its slot table), so a block may be freed once its slots are deleted. If
//! KVM refuses to delete one, its block is never freed.

use crate::dirty_ring::ring::Entries;
use crate::slots::table::Slots;
use crate::sys::ioctl::SlotCalls;

impl<E: Entries> Slots<E> {
    /// Merges KVM's log, then deletes all slots. If the log of a slot cannot be fetched, all its
    /// pages are marked; if a slot cannot be deleted, its block lives as long as the process.
    pub(crate) fn remove_all(&mut self, vm: &impl SlotCalls) {
        for at in self.sections() {
            if let Err(error) = self.harvest(vm, at) {
                log::error!("{error}: all of the slot counts as written");
                for slot in self.used.get(&at).into_iter().flatten().filter(|slot| slot.logged) {
                    slot.block.dirty().mark(slot.offset, slot.size);
                }
            }
            while let Some(slot) = self.used.get(&at).and_then(|slots| slots.last()) {
                if let Err(error) = slot.delete(vm) {
                    log::error!("{error}: its memory is never freed");
                    std::mem::forget(slot.block.clone());
                }
                self.forget(at);
            }
        }
    }
}
