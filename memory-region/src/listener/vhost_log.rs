//! The log of a vhost-user back end, in memory that both share.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ram_block::vm_memory::{Address, GuestMemoryBackend, VolatileMemory};
use ram_block::{PageSize, RamBlock, RamBlockError};

use crate::error::ListenerError;
use crate::listener::external_log::ExternalDirtyLog;
use crate::view::guest_ram::GuestRam;

/// A page of the log, whatever the host's is (vhost-user specification, "Migration":
/// VHOST_LOG_PAGE).
const LOG_PAGE: u64 = 0x1000;

/// What one word of the log spans, in bytes of guest address.
const WORD_SPAN: u64 = LOG_PAGE * 64;

/// A dirty log that a vhost-user back end writes: one bit for each 4 KiB of guest address,
/// bit n mod 8 of byte n / 8, set atomically by the back end and taken by exchange.
///
/// Make one from the RAM of a view, hand its file to the back end with VHOST_USER_SET_LOG_BASE,
/// and register it with [`ExternalDirtyLogListener`](crate::ExternalDirtyLogListener). A log that
/// has become too short for the map is replaced by a longer one: the writer is told of that
/// first, and the former log is taken off last.
#[derive(Debug)]
pub struct VhostLog {
    name: String,
    block: Arc<RamBlock>,
}

impl VhostLog {
    /// An empty log for the addresses up to the last one of `ram`, in a memory file.
    ///
    /// # Errors
    ///
    /// [`RamBlockError`] if there is no memory for it.
    pub fn new(name: &str, ram: &GuestRam) -> Result<Self, RamBlockError> {
        let last = ram.last_addr().raw_value();
        let bytes = (last / WORD_SPAN + 1) * 8;
        let page = PageSize::host().bytes();
        let block = RamBlock::memfd(name, bytes.div_ceil(page) * page)?;
        Ok(Self { name: name.to_owned(), block })
    }

    /// The memory of the log. Its file is the back end's, and its length the log's.
    pub fn block(&self) -> &Arc<RamBlock> {
        &self.block
    }
}

impl ExternalDirtyLog for VhostLog {
    fn name(&self) -> &str {
        &self.name
    }

    fn page_size(&self) -> PageSize {
        const PAGE: PageSize = match PageSize::new(LOG_PAGE) {
            Ok(page) => page,
            Err(_) => panic!("4 KiB is a page size"),
        };
        PAGE
    }

    fn fetch_and_clear(
        &self,
        pages: Range<u64>,
        found: &mut dyn FnMut(u64, u64),
    ) -> Result<(), ListenerError> {
        let end = pages.end.div_ceil(64).min(self.block.len() / 8);
        let memory = self.block.as_slice();
        for number in pages.start / 64..end {
            let offset = usize::try_from(number * 8)?;
            let word = memory.get_atomic_ref::<AtomicU64>(offset)?;
            // Most words are zero: look before writing to memory that is the back end's.
            if word.load(Ordering::Relaxed) != 0 {
                // Acquire: what the back end wrote before it set the bit is there.
                found(number * 64, u64::from_le(word.swap(0, Ordering::AcqRel)));
            }
        }
        Ok(())
    }
}
