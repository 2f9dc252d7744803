//! The low window in the memory map: an alias of video memory where the mode allows it.

use std::sync::{Arc, Weak};

use memory_region::{MapError, MemoryMap, RegionId};

use crate::clock::Instant;
use crate::device::graphics_controller::Direct;
use crate::rare_log::RareLog;

/// The low window's regions, and its current alias.
#[derive(Debug)]
pub(crate) struct Window {
    /// Weak, as the map owns the device.
    memory: Weak<MemoryMap>,
    /// Has the device's MMIO region, at a lower priority than the alias.
    container: RegionId,
    vram: RegionId,
    alias: Option<(RegionId, Direct)>,
    /// The alias that was last asked for, if the map refused it.
    refused: Option<Option<Direct>>,
    /// Rate limits: a guest can cause refusals repeatedly.
    refusals: RareLog,
    stale: RareLog,
}

impl Window {
    pub(crate) fn new(memory: &Arc<MemoryMap>, container: RegionId, vram: RegionId) -> Self {
        let (memory, alias, refused) = (Arc::downgrade(memory), None, None);
        let (refusals, stale) = (RareLog::default(), RareLog::default());
        Self { memory, container, vram, alias, refused, refusals, stale }
    }

    /// The part of the window that is an alias.
    pub(crate) fn direct(&self) -> Option<Direct> {
        self.alias.map(|(_, direct)| direct)
    }

    /// Whether the map refused `wanted` at the last attempt.
    pub(crate) fn has_refused(&self, wanted: Option<Direct>) -> bool {
        self.refused == Some(wanted)
    }

    /// Replaces the alias by `wanted`. If the map refuses, removes it: accesses then exit to the
    /// device, which is slower but equivalent.
    pub(crate) fn update_alias(&mut self, wanted: Option<Direct>) {
        self.refused = None;
        if let Err(error) = self.try_update_alias(wanted) {
            if let Some(more) = self.refusals.pass(Instant::now()) {
                log::warn!("vga: the low window cannot be an alias of video memory: {error}{more}");
            }
            if let Err(error) = self.try_update_alias(None) {
                if let Some(more) = self.stale.pass(Instant::now()) {
                    log::error!("vga: the low window keeps a former mode's alias: {error}{more}");
                }
            }
        }
        if self.direct() != wanted {
            self.refused = Some(wanted);
        }
    }

    fn try_update_alias(&mut self, wanted: Option<Direct>) -> Result<(), MapError> {
        let Some(memory) = self.memory.upgrade() else { return Ok(()) }; // the map is gone
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
