//! Who follows the map.

use std::ops::Range;

use ram_block::ClientSet;

use crate::device::ioeventfd::{CoalescedRange, IoEventFd};
use crate::error::ListenerError;
use crate::view::section::Section;

/// A section that stays where it is while its logging clients change.
#[derive(Clone, Debug)]
pub struct LogChange {
    /// The section, with the new clients.
    pub section: Section,
    /// The clients before.
    pub old: ClientSet,
}

/// The clients that log all RAM change.
///
/// They are the reasons for which writes are tracked, a bit each: where one set is empty
/// and the other is not, tracking begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GlobalLogChange {
    /// The clients before.
    pub old: ClientSet,
    /// The clients from now on.
    pub new: ClientSet,
}

/// What a list lost and gained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference<T> {
    /// What is no more, in ascending order.
    pub removed: Vec<T>,
    /// What is new, in ascending order.
    pub added: Vec<T>,
}

impl<T> Default for Difference<T> {
    fn default() -> Self {
        Self { removed: Vec::new(), added: Vec::new() }
    }
}

impl<T: Clone> Difference<T> {
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
pub struct ViewChange {
    /// Sections that are no more, in ascending order.
    pub removed: Vec<Section>,
    /// Sections that are new, in ascending order. Their clients log from the start.
    pub added: Vec<Section>,
    /// Sections of which only the logging clients changed.
    pub relogged: Vec<LogChange>,
    /// The clients that log all RAM, if they changed.
    pub global_log: Option<GlobalLogChange>,
    /// The eventfds that writes signal.
    pub event_fds: Difference<IoEventFd>,
    /// The addresses of which writes may be gathered.
    pub coalesced: Difference<CoalescedRange>,
}

impl ViewChange {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty()
            && self.added.is_empty()
            && self.relogged.is_empty()
            && self.global_log.is_none()
            && self.event_fds.is_empty()
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
            relogged: self.relogged.iter().map(back).collect(),
            global_log: self.global_log.map(|log| GlobalLogChange { old: log.new, new: log.old }),
            event_fds: self.event_fds.inverse(),
            coalesced: self.coalesced.inverse(),
        }
    }
}

/// An accelerator or another follower of an address space.
///
/// A change is told to all listeners in two steps: [`prepare`](Self::prepare) from the
/// highest priority to the lowest, then [`commit`](Self::commit) from the lowest to the
/// highest; of equal ones the first registered counts as the lower. A listener that is
/// registered late is told all that is there as one change, and one that is taken off
/// that all of it is gone.
///
/// `prepare`, `commit` and `cancel` are called by the thread that commits, one commit at a
/// time, in its turn to change the map. They may look at the map, which is still the former
/// one; what would change it fails with [`MapError::Nested`](crate::MapError::Nested). They
/// must not wait for a thread that may change the map itself, nor for a lock that somebody
/// holds who does: a device's own lock, if its handlers change the map.
///
/// [`sync`](Self::sync), [`sync_all`](Self::sync_all) and [`log_clear`](Self::log_clear) may
/// be called from any thread at any time, also during a commit and from within another
/// listener, and with a section that was just removed, or that a commit under way, or this
/// listener's registration, has not brought here yet. That is no error: there is nothing to
/// merge, and nothing may be taken from a log, as it would be lost.
///
/// A listener follows one address space, and does not panic: nobody could say what it has
/// followed then.
pub trait MemoryListener: Send + Sync {
    /// For messages.
    fn name(&self) -> &str;

    /// Its place among the listeners of the space; an accelerator's is 0. Asked once.
    fn priority(&self) -> i32 {
        0
    }

    /// Lets go of what the change removes, and leaves it there: for a listener that
    /// stands on those of lower priority, as a device that writes through the mappings
    /// of an accelerator, and must be off before they are. Followed by `commit`, or by
    /// `cancel`.
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
    /// Dirty pages of a section that goes, or that is no longer logged, are merged
    /// into its block before they are forgotten.
    ///
    /// # Errors
    ///
    /// Any error refuses the commit; the listener must then be as it was before, but for
    /// what `prepare` did, which `cancel` takes back.
    fn commit(&self, change: &ViewChange) -> Result<(), ListenerError>;

    /// Takes back what `prepare` did for this change, which will not be committed.
    fn cancel(&self, change: &ViewChange) {
        let _ = change;
    }

    /// Merges what it knows of writes to `section` into the section's block.
    ///
    /// # Errors
    ///
    /// If it cannot be asked; what it knows must not be lost by that.
    fn sync(&self, section: &Section) -> Result<(), ListenerError>;

    /// Merges all that it knows of writes, of every section; returns whether it can do so
    /// at once. If not, it is asked for each section that is logged.
    ///
    /// `last` says that no guest runs any more and that nothing is read after this: what
    /// is too costly to ask for each time has to come now.
    ///
    /// # Errors
    ///
    /// As [`sync`](Self::sync).
    fn sync_all(&self, last: bool) -> Result<bool, ListenerError> {
        let _ = last;
        Ok(false)
    }

    /// Somebody is about to read the `bytes` of the block that `section` shows: a
    /// listener that logs the first write to a page only watches these pages again from
    /// now on. Those that were never reported stay as they are.
    ///
    /// The bytes lie within the section. Nothing needs to be done for pages that are
    /// watched all the time.
    ///
    /// # Errors
    ///
    /// If the pages cannot be watched.
    fn log_clear(&self, section: &Section, bytes: Range<u64>) -> Result<(), ListenerError> {
        let _ = (section, bytes);
        Ok(())
    }
}
