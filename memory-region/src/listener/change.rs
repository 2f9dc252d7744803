//! Listeners, and the changes of which they are notified.

use std::ops::Range;

use ram_block::ClientSet;

use crate::device::ioeventfd::{CoalescedRange, IoEventFd};
use crate::error::ListenerError;
use crate::view::section::Section;

/// A section that stays where it is while the clients that log it change (QEMU: `log_start`,
/// `log_stop`).
#[derive(Clone, Debug)]
pub struct LogChange {
    /// The section, with the new clients.
    pub section: Section,
    /// The clients before.
    pub old: ClientSet,
}

/// The clients that log all RAM change.
///
/// Each client is one reason to track writes to all RAM (QEMU: `log_global_start`,
/// `log_global_stop`): tracking begins where `old` is empty and `new` is not, and ends where `new`
/// is empty and `old` is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GlobalLogChange {
    /// The clients before.
    pub old: ClientSet,
    /// The clients from now on.
    pub new: ClientSet,
}

/// What a list lost and gained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListDiff<T> {
    /// Items of the old list only, in ascending order.
    pub removed: Vec<T>,
    /// Items of the new list only, in ascending order.
    pub added: Vec<T>,
}

impl<T> Default for ListDiff<T> {
    fn default() -> Self {
        Self { removed: Vec::new(), added: Vec::new() }
    }
}

impl<T: Clone> ListDiff<T> {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.added.is_empty()
    }

    /// The difference that undoes this one.
    #[must_use]
    pub fn inverse(&self) -> Self {
        Self { removed: self.added.clone(), added: self.removed.clone() }
    }
}

/// What one commit changed in the view of one address space.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ViewChange {
    /// Sections of the former view only, in ascending order (QEMU: `region_del`).
    pub removed: Vec<Section>,
    /// Sections of the new view only, in ascending order (QEMU: `region_add`). Their clients log
    /// from the start.
    pub added: Vec<Section>,
    /// Sections of which only the logging clients changed.
    pub log_changed: Vec<LogChange>,
    /// The clients that log all RAM, if they changed.
    pub global_log: Option<GlobalLogChange>,
    /// The eventfds that writes signal.
    pub ioeventfds: ListDiff<IoEventFd>,
    /// The ranges whose writes an accelerator may coalesce.
    pub coalesced: ListDiff<CoalescedRange>,
}

impl ViewChange {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty()
            && self.added.is_empty()
            && self.log_changed.is_empty()
            && self.global_log.is_none()
            && self.ioeventfds.is_empty()
            && self.coalesced.is_empty()
    }

    /// The change that undoes this one.
    #[must_use]
    pub fn inverse(&self) -> Self {
        let back = |change: &LogChange| LogChange {
            section: Section { log: change.old, ..change.section.clone() },
            old: change.section.log(),
        };
        Self {
            removed: self.added.clone(),
            added: self.removed.clone(),
            log_changed: self.log_changed.iter().map(back).collect(),
            global_log: self.global_log.map(|log| GlobalLogChange { old: log.new, new: log.old }),
            ioeventfds: self.ioeventfds.inverse(),
            coalesced: self.coalesced.inverse(),
        }
    }
}

/// What is notified of changes of an address space: an accelerator, a vhost back end.
///
/// A commit notifies all listeners in two steps: it calls [`prepare`](Self::prepare) from the
/// highest priority to the lowest, then [`commit`](Self::commit) from the lowest to the
/// highest; of equal priorities the first registered counts as the lower. Registration notifies
/// a listener of one change that adds everything that is there, and removal of one that removes
/// everything.
///
/// The committing thread calls `prepare`, `commit` and `cancel` while it holds the map's update
/// lock. They may read the map, which is still the former one; changing it fails with
/// [`MapError::Reentrant`](crate::MapError::Reentrant). They must not wait for another thread
/// that may change the map, nor for a lock that such a thread may hold, as a device's
/// own lock is if its handlers change the map: that would deadlock.
///
/// [`sync`](Self::sync), [`sync_all`](Self::sync_all) and [`log_clear`](Self::log_clear) may
/// be called from any thread at any time, also during a commit and from within another
/// listener, and with a section that was just removed, or that a commit under way, or this
/// listener's registration, has not brought here yet. That is no error: there is nothing to
/// merge, and nothing may be taken from a log, as it would be lost.
///
/// A listener belongs to one address space, and must not panic: the map could not know which
/// part of the change it has followed.
pub trait MemoryListener: Send + Sync {
    /// The listener's name in errors and log messages.
    fn name(&self) -> &str;

    /// Its place among the listeners of the space; an accelerator's is 0. Called once, at
    /// registration.
    fn priority(&self) -> i32 {
        0
    }

    /// Stops using what the change removes, while it is still mapped. A device that writes
    /// through an accelerator's mappings, for example, stops here, before the accelerator of lower
    /// priority unmaps them. `commit` or `cancel` follows.
    ///
    /// # Errors
    ///
    /// Any error refuses the commit; the listener must then be as it was before.
    fn prepare(&self, change: &ViewChange) -> Result<(), ListenerError> {
        let _ = change;
        Ok(())
    }

    /// Follows the change as a whole: first what is removed, then what is added.
    ///
    /// Dirty pages of a section that is removed, or no longer logged, must be merged into its
    /// block before the listener forgets them.
    ///
    /// # Errors
    ///
    /// Any error refuses the commit; the listener must then be as it was after `prepare`, which
    /// `cancel` undoes.
    fn commit(&self, change: &ViewChange) -> Result<(), ListenerError>;

    /// Undoes what `prepare` did for this change, which will not be committed.
    fn cancel(&self, change: &ViewChange) {
        let _ = change;
    }

    /// Merges what it knows of writes to `section` into the section's block.
    ///
    /// # Errors
    ///
    /// If the log cannot be read; bits that it has taken must not be lost by that.
    fn sync(&self, section: &Section) -> Result<(), ListenerError>;

    /// Merges what it knows of writes to every section, if it can do so at once, and returns
    /// whether it did. If not, [`sync`](Self::sync) is called for each section that is logged.
    ///
    /// # Errors
    ///
    /// As [`sync`](Self::sync).
    fn sync_all(&self) -> Result<bool, ListenerError> {
        Ok(false)
    }

    /// A client is about to read `bytes` of the block that `section` shows, and has taken the
    /// bits of these pages. A listener that reports only the first write to a page re-arms those
    /// of them that it has reported (KVM_CLEAR_DIRTY_LOG); one that reports every write does
    /// nothing.
    ///
    /// The bytes lie within the section. They are what *one* client took, or more: it must not
    /// decide what is cleared in a log that is shared by all clients. Such a listener
    ///
    /// - keeps the pages of its last report of each section, and clears only those of them that
    ///   are among `bytes`: the log may have the others from a write that no client was given yet;
    /// - clears each of them once, and drops it with that, until the next report has it again: by
    ///   a second client's call, the log may have it from a write after the first;
    /// - reads [`DirtyMemory::switch_ons`](ram_block::DirtyMemory::switch_ons) before the merge of
    ///   its report, and again before and *after* the clear. A client that was switched on since
    ///   was not given the report: if the count differs before, it clears nothing and drops its
    ///   report; if it differs after, it merges what was cleared once more;
    /// - gives what it has cleared to
    ///   [`DirtyMemory::report_to_code`](ram_block::DirtyMemory::report_to_code): the watch of a
    ///   page may have begun since the report.
    ///
    /// # Errors
    ///
    /// If the pages cannot be re-armed.
    fn log_clear(&self, section: &Section, bytes: Range<u64>) -> Result<(), ListenerError> {
        let _ = (section, bytes);
        Ok(())
    }
}
