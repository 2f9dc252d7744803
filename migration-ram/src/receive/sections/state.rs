//! The state of the parser, and what all sections begin and end with.

use std::collections::HashMap;
use std::sync::Arc;

use ram_block::PageSize;

use crate::devices::device::{Device, Devices};
use crate::error::ReceiveError;
use crate::receive::blocks::{Block, Populated};
use crate::receive::decode::Decoder;
use crate::receive::multifd::Shared;
use crate::receive::read_ahead::ReadAhead;
use crate::receive::received::Received;
use crate::receive::unknown_sections::Kept;
use crate::wire::format::*;
use crate::wire::reader::StreamReader;

/// A device's state that was received, with its version.
pub(in crate::receive) type DeviceState = (Arc<dyn Device>, u32, Vec<u8>);

/// The receiver's settings for the parser.
#[derive(Clone, Copy, Debug)]
pub(in crate::receive) struct Settings {
    pub(in crate::receive) keep_unknown: bool,
    pub(in crate::receive) is_described: bool,
    pub(in crate::receive) fresh: bool,
}

/// Where the receiver waits for all channels.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum SyncAt {
    /// Not known yet.
    Unknown,
    /// At the end of each section of RAM: QEMU before 8.1, and this crate's source with
    /// `multifd_flush_after_each_section`.
    SectionEnd,
    /// At each RAM_SAVE_FLAG_MULTIFD_FLUSH record.
    Flush,
}

/// A parser of the stream's sections.
pub(in crate::receive) struct Sections<'p, 's, 'a> {
    pub(super) stream: &'p mut StreamReader<'s>,
    pub(super) shared: &'p Shared<'a>,
    pub(super) devices: &'p Devices,
    pub(super) keep_unknown: bool,
    pub(super) is_described: bool,
    pub(super) page: PageSize,
    /// The number of RAM's section, once it has begun.
    pub(super) ram_section: Option<u32>,
    /// The block of the last record.
    pub(super) block: Option<Arc<Block>>,
    pub(super) populated: Populated,
    /// Created when it is first needed.
    pub(super) decoder: Option<Decoder>,
    pub(super) ahead: ReadAhead,
    pub(super) sync_at: SyncAt,
    /// Whether RAM's last section was received.
    pub(super) complete: bool,
    pub(super) states: Vec<DeviceState>,
    /// Unknown iterable sections that have not ended: their indices in `received`, by number.
    pub(super) unknown: HashMap<u32, usize>,
    pub(super) kept: Kept,
    pub(super) received: Received,
}

impl<'p, 's, 'a> Sections<'p, 's, 'a> {
    /// A parser of `stream`, whose magic number was read.
    pub(in crate::receive) fn new(
        stream: &'p mut StreamReader<'s>,
        shared: &'p Shared<'a>,
        devices: &'p Devices,
        settings: Settings,
    ) -> Self {
        let Settings { keep_unknown, is_described, fresh } = settings;
        Self {
            stream,
            shared,
            devices,
            keep_unknown,
            is_described,
            page: default_page_size(),
            ram_section: None,
            block: None,
            populated: Populated::default(),
            decoder: None,
            ahead: ReadAhead::new(fresh),
            sync_at: SyncAt::Unknown,
            complete: false,
            states: Vec::new(),
            unknown: HashMap::new(),
            kept: Kept::default(),
            received: Received::default(),
        }
    }

    /// Reads what follows a section's number: its name, instance and version.
    pub(super) fn section_head(&mut self) -> Result<(String, u32, u32), ReceiveError> {
        let name = self.stream.name("a section's name")?;
        let instance = self.stream.u32("a section's instance")?;
        let version = self.stream.u32("a section's version")?;
        Ok((name, instance, version))
    }

    /// Reads the footer of section `number`.
    pub(super) fn footer(&mut self, number: u32) -> Result<(), ReceiveError> {
        let at = self.stream.at();
        let found = self.stream.u8("a section's footer")?;
        self.stream.expect("a section's footer", found.into(), FOOTER.into(), at)?;
        let found = self.stream.u32("a footer's number")?;
        self.stream.expect("a footer's number", found.into(), number.into(), at + 1)
    }
}
