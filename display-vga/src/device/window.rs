//! The low window in the memory map: an alias of video memory where the mode allows it.

use std::sync::{Arc, Weak};
use std::time::Instant;

use memory_region::{MapError, MemoryMap, RegionId};

use crate::device::graphics_controller::Direct;
use crate::rare_log::RareLog;

/// The low window's regions, and what of it is an alias now.
#[derive(Debug)]
pub(crate) struct Window {
    /// The map owns the device, not the other way round.
    memory: Weak<MemoryMap>,
    /// Holds the device's own region, which answers where no alias does.
    container: RegionId,
    vram: RegionId,
    alias: Option<(RegionId, Direct)>,
    /// What was asked for last, if the map did not show it.
    refused: Option<Option<Direct>>,
    /// A guest can bring refusals about again and again.
    refusals: RareLog,
    stale: RareLog,
}

impl Window {
    pub(crate) fn new(memory: &Arc<MemoryMap>, container: RegionId, vram: RegionId) -> Self {
        let (memory, alias, refused) = (Arc::downgrade(memory), None, None);
        let (refusals, stale) = (RareLog::default(), RareLog::default());
        Self { memory, container, vram, alias, refused, refusals, stale }
    }

    /// What of the window is an alias.
    pub(crate) fn direct(&self) -> Option<Direct> {
        self.alias.map(|(_, direct)| direct)
    }

    /// Whether the map did not show `wanted` when it was last asked to.
    pub(crate) fn has_refused(&self, wanted: Option<Direct>) -> bool {
        self.refused == Some(wanted)
    }

    /// Shows `wanted` as an alias, and nothing else. If the map refuses, accesses go to
    /// the device, which is slower and as good.
    pub(crate) fn follow(&mut self, wanted: Option<Direct>) {
        self.refused = None;
        if let Err(error) = self.try_follow(wanted) {
            if let Some(more) = self.refusals.pass(Instant::now()) {
                log::warn!(
                    "vga: the low window goes without an alias of video memory: {error}{more}"
                );
            }
            if let Err(error) = self.try_follow(None) {
                if let Some(more) = self.stale.pass(Instant::now()) {
                    log::error!("vga: the low window keeps a former mode's alias: {error}{more}");
                }
            }
        }
        if self.direct() != wanted {
            self.refused = Some(wanted);
        }
    }

    fn try_follow(&mut self, wanted: Option<Direct>) -> Result<(), MapError> {
        let Some(memory) = self.memory.upgrade() else { return Ok(()) }; // nobody accesses it
        self.alias = memory.transaction(|map| {
            if let Some((alias, _)) = self.alias {
                map.del_subregion(alias)?;
                map.remove(alias)?;
            }
            let Some(direct) = wanted else { return Ok(None) };
            let alias = map.alias("vga.low", self.vram, direct.vram, direct.len.into())?;
            map.add_subregion_overlap(self.container, direct.offset, alias, 1)?;
            Ok(Some((alias, direct)))
        })?;
        Ok(())
    }
}
