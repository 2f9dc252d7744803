//! The stream from its beginning to its end: the configuration, parts, commands and description.

use std::sync::Arc;

use ram_block::PageSize;

use crate::devices::device::Device;
use crate::error::ReceiveError;
use crate::receive::received::Received;
use crate::receive::return_path::Answers;
use crate::receive::sections::state::{DeviceState, Sections};
use crate::wire::format::*;

impl Sections<'_, '_, '_> {
    /// Reads the stream to its end.
    pub(in crate::receive) fn run(
        mut self,
        answers: &mut Answers<'_>,
    ) -> Result<(Received, Vec<DeviceState>), ReceiveError> {
        let (at, what) = (self.stream.at(), "the version");
        let found = self.stream.u32(what)?;
        self.stream.expect(what, found.into(), VERSION.into(), at)?;
        let mut part = self.stream.u8("the first part")?;
        if part == CONFIGURATION {
            part = self.configuration()?;
        }
        self.stream.clock().begun();
        if self.shared.has_channels() && self.page != default_page_size() {
            let (at, found) = (self.stream.at(), self.page.bytes());
            return Err(ReceiveError::Unsupported { at, what: "page size of channels", found });
        }
        // Only this sets it, so it cannot fail.
        let _ = self.shared.page.set(self.page);
        loop {
            let at = self.stream.at() - 1;
            match part {
                SECTION_START => self.section_start(at)?,
                SECTION_FULL => self.section_full(at)?,
                SECTION_PART | SECTION_END => self.section_part(part == SECTION_END)?,
                COMMAND => self.command(at, answers)?,
                EOF => break,
                found => {
                    return Err(ReceiveError::Unsupported {
                        at,
                        what: "part",
                        found: found.into(),
                    });
                }
            }
            part = self.stream.u8("the next part")?;
        }
        self.check_complete()?;
        self.description()?;
        Ok(self.finish())
    }

    fn finish(mut self) -> (Received, Vec<DeviceState>) {
        let blocks = self.shared.blocks.info();
        self.received.page_size = self.page.bytes();
        self.received.pages = blocks.iter().map(|block| block.pages).sum();
        self.received.delta_pages = blocks.iter().map(|block| block.delta_pages).sum();
        self.received.zero_pages = blocks.iter().map(|block| block.zero_pages).sum();
        self.received.bytes = self.stream.at();
        self.received.blocks = blocks;
        (self.received, self.states)
    }

    fn check_complete(&self) -> Result<(), ReceiveError> {
        let at = self.stream.at();
        if !self.complete {
            return Err(ReceiveError::Incomplete { at });
        }
        let missing = self.shared.blocks.missing();
        if !missing.is_empty() {
            return Err(ReceiveError::MissingBlocks { at, ids: missing.join(", ") });
        }
        let states = &self.states;
        let came = |device: &Arc<dyn Device>| states.iter().any(|(d, ..)| Arc::ptr_eq(d, device));
        match self.devices.0.iter().find(|device| !came(device)) {
            Some(device) => {
                let (name, instance) = (device.name().to_owned(), device.instance());
                Err(ReceiveError::MissingDevice { at, name, instance })
            }
            None => Ok(()),
        }
    }

    /// Reads the configuration; returns the kind of the part that follows it.
    fn configuration(&mut self) -> Result<u8, ReceiveError> {
        let len = self.stream.u32("the machine's name")?;
        self.received.machine = self.stream.text(len, MAX_MACHINE_NAME, "the machine's name")?;
        loop {
            let part = self.stream.u8("the part after the configuration")?;
            if part != SUBSECTION {
                return Ok(part);
            }
            let at = self.stream.at();
            let name = self.stream.name("a subsection's name")?;
            self.stream.u32("a subsection's version")?;
            match name.as_str() {
                PAGE_BITS => self.page_bits()?,
                UUID => self.stream.skip(16, "the machine's UUID")?,
                CAPABILITIES => {
                    // Only capabilities that change the stream are listed here.
                    if self.stream.u32("the number of capabilities")? > 0 {
                        let at = self.stream.at();
                        let name = self.stream.name("a capability's name")?;
                        return Err(ReceiveError::Capability { at, name });
                    }
                }
                _ => return Err(ReceiveError::UnknownSection { at, name }),
            }
        }
    }

    fn page_bits(&mut self) -> Result<(), ReceiveError> {
        let at = self.stream.at();
        let bits = self.stream.u32("the page size")?;
        // Flags share a word with offsets, so pages have 4 KiB at least; no target
        // has more than 64 KiB. A record of 9 bytes makes the receiver write one page.
        let size = 1u64.checked_shl(bits).filter(|_| (12..=16).contains(&bits));
        self.page = size
            .and_then(|size| PageSize::new(size).ok())
            .ok_or(ReceiveError::Unsupported { at, what: "page shift", found: bits.into() })?;
        Ok(())
    }

    fn section_start(&mut self, at: u64) -> Result<(), ReceiveError> {
        let number = self.stream.u32("a section's number")?;
        let (name, instance, version) = self.section_head()?;
        if name != RAM_NAME {
            return self.unknown_section(at, number, (name, instance, version), true);
        }
        let what = "the instance of RAM";
        self.stream.expect(what, instance.into(), RAM_INSTANCE.into(), at)?;
        self.stream.expect("the version of RAM", version.into(), RAM_VERSION.into(), at)?;
        if self.ram_section.is_some() {
            let found = number.into();
            return Err(ReceiveError::Unsupported { at, what: "second section of RAM", found });
        }
        self.ram_section = Some(number);
        self.records(false)?;
        self.footer(number)
    }

    fn section_part(&mut self, last: bool) -> Result<(), ReceiveError> {
        let at = self.stream.at();
        let number = self.stream.u32("a section's number")?;
        if self.unknown.contains_key(&number) {
            return self.unknown_part(number, last);
        }
        if self.ram_section != Some(number) {
            return Err(ReceiveError::Unsupported { at, what: "section", found: number.into() });
        }
        self.records(last)?;
        self.footer(number)?;
        self.complete |= last;
        Ok(())
    }

    fn command(&mut self, at: u64, answers: &mut Answers<'_>) -> Result<(), ReceiveError> {
        let command = self.stream.u16("a command")?;
        let len_at = self.stream.at();
        let len = self.stream.u16("a command's length")?;
        match (command, len) {
            (MIG_CMD_OPEN_RETURN_PATH, 0) => answers.open()?,
            (MIG_CMD_PING, 4) => {
                let value = self.stream.u32("a ping")?;
                answers.pong(value)?;
            }
            (MIG_CMD_SWITCHOVER_START, 0) => {}
            (MIG_CMD_POSTCOPY_ADVISE, 0) => {} // from a source that does not send RAM
            (MIG_CMD_POSTCOPY_ADVISE, 16) => self.postcopy_advise()?,
            (
                MIG_CMD_OPEN_RETURN_PATH
                | MIG_CMD_PING
                | MIG_CMD_POSTCOPY_ADVISE
                | MIG_CMD_SWITCHOVER_START,
                found,
            ) => {
                let expected = match command {
                    MIG_CMD_PING => 4,
                    MIG_CMD_POSTCOPY_ADVISE => 16,
                    _ => 0,
                };
                let (what, found) = ("a command's length", found.into());
                return Err(ReceiveError::Unexpected { at: len_at, what, found, expected });
            }
            (found, _) => {
                let found = found.into();
                return Err(ReceiveError::Unsupported { at, what: "command", found });
            }
        }
        Ok(())
    }

    /// MIG_CMD_POSTCOPY_ADVISE, from a source that may switch to postcopy: the page sizes of its
    /// blocks, OR-ed, and the stream's. Both must be the stream's: with blocks of other page sizes
    /// the block list would have another format.
    fn postcopy_advise(&mut self) -> Result<(), ReceiveError> {
        for what in ["the page sizes of postcopy", "the page size of postcopy"] {
            let at = self.stream.at();
            let found = self.stream.u64(what)?;
            self.stream.expect(what, found, self.page.bytes(), at)?;
        }
        Ok(())
    }

    /// Waits for bytes after the end, until the deadline for a description; returns whether there
    /// are any.
    fn something_follows(&mut self) -> Result<bool, ReceiveError> {
        let comes = !self.stream.buffered().is_empty() || self.stream.description_comes()?;
        Ok(comes && !self.stream.is_at_end("the description")?)
    }

    /// Reads the description (vmdesc) after the end, which may be missing.
    fn description(&mut self) -> Result<(), ReceiveError> {
        // One that was received already is accepted, whatever was expected.
        let is_there = self.stream.buffered().first() == Some(&VMDESC);
        let follows = is_there || (self.is_described && self.something_follows()?);
        if !follows {
            return Ok(());
        }
        let at = self.stream.at();
        let found = self.stream.u8("the description")?;
        if found != VMDESC {
            let found = found.into();
            return Err(ReceiveError::Unsupported { at, what: "part after the end", found });
        }
        let at = self.stream.at();
        let len = u64::from(self.stream.u32("the description's length")?);
        if len > MAX_DESCRIPTION {
            let (what, most) = ("the description", MAX_DESCRIPTION);
            return Err(ReceiveError::TooLong { at, what, most });
        }
        self.received.description = self.stream.counted(len, "the description")?;
        Ok(())
    }
}
