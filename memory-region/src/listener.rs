//! Who follows the map.

use ram_block::ClientSet;

use crate::flat_view::Section;

/// Why a listener could not do as told; its own error type.
pub type ListenerError = Box<dyn std::error::Error + Send + Sync>;

/// A section that stays where it is while its logging clients change.
#[derive(Clone, Debug)]
pub struct LogChange {
    /// The section, with the new clients.
    pub section: Section,
    /// The clients before.
    pub old: ClientSet,
}

/// What one commit changed in the view of one address space.
#[derive(Clone, Debug, Default)]
pub struct ViewChange {
    /// Sections that are no more, in ascending order.
    pub removed: Vec<Section>,
    /// Sections that are new, in ascending order.
    pub added: Vec<Section>,
    /// Sections of which only the logging clients changed.
    pub relogged: Vec<LogChange>,
}

impl ViewChange {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.added.is_empty() && self.relogged.is_empty()
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
        }
    }
}

/// An accelerator or another follower of an address space.
///
/// Called by the thread that commits, one commit at a time. [`sync`](Self::sync)
/// may be called from any thread at any time, also during a commit, and with a
/// section that was just removed, which is then no error. A listener follows one
/// address space, and does not panic: nobody could say what it has followed then.
pub trait MemoryListener: Send + Sync {
    /// For messages.
    fn name(&self) -> &str;

    /// Follows the change as a whole: first what is removed, then what is added.
    ///
    /// Dirty pages of a section that goes, or that is no longer logged, are merged
    /// into its block before they are forgotten.
    ///
    /// # Errors
    ///
    /// Any error refuses the commit; the listener must then be as it was before.
    fn commit(&self, change: &ViewChange) -> Result<(), ListenerError>;

    /// Merges what it knows of writes to `section` into the section's block.
    ///
    /// # Errors
    ///
    /// If it cannot be asked; what it knows must not be lost by that.
    fn sync(&self, section: &Section) -> Result<(), ListenerError>;
}
