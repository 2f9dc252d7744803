//! The sections of devices, registered here or not.

use std::sync::Arc;

use crate::devices::device::{Framing, MAX_STATE};
use crate::devices::section_info::SectionInfo;
use crate::error::ReceiveError;
use crate::receive::sections::state::Sections;
use crate::receive::unknown_sections::{Body, Follows};
use crate::wire::format::RAM_NAME;

/// The most sections of devices: one that is short in the stream takes more memory here.
const MAX_SECTIONS: usize = 65_536;

impl Sections<'_, '_, '_> {
    /// Reads a full section, which is a device's.
    pub(super) fn section_full(&mut self, at: u64) -> Result<(), ReceiveError> {
        let number = self.stream.u32("a section's number")?;
        let (name, instance, version) = self.section_head()?;
        if name == RAM_NAME && self.devices.find(&name, instance).is_none() {
            // RAM in a full section: an old format that live migration never uses.
            let what = "RAM in a single section";
            return Err(ReceiveError::Unsupported { at, what, found: number.into() });
        }
        let Some(device) = self.devices.find(&name, instance).cloned() else {
            return self.unknown_section(at, number, (name, instance, version), false);
        };
        if version > device.version() {
            let (found, known) = (version, device.version());
            return Err(ReceiveError::DeviceVersion { at, name, found, known });
        }
        if self.states.iter().any(|(known, ..)| Arc::ptr_eq(known, &device)) {
            return Err(ReceiveError::DuplicateSection { at, name, instance });
        }
        let len = match device.framing() {
            Framing::Fixed(len) => len,
            Framing::LengthPrefixed => {
                let at = self.stream.at();
                let len = self.stream.u32("a state's length")?;
                if len > MAX_STATE {
                    let most = MAX_STATE.into();
                    return Err(ReceiveError::TooLong { at, what: "a device's state", most });
                }
                len
            }
        };
        let state = self.stream.counted(len.into(), "a device's state")?;
        self.footer(number)?;
        let len = state.len() as u64;
        let early = !self.complete;
        let restored = true;
        let info =
            SectionInfo { name, instance, version, at, len, restored, early, ..Default::default() };
        self.add_section(info)?;
        self.states.push((device, version, state));
        Ok(())
    }

    fn add_section(&mut self, info: SectionInfo) -> Result<(), ReceiveError> {
        if self.received.sections.len() >= MAX_SECTIONS {
            let (at, most) = (info.at, MAX_SECTIONS as u64);
            return Err(ReceiveError::TooLong { at, what: "the list of devices' sections", most });
        }
        self.received.sections.push(info);
        Ok(())
    }

    /// Reads an unknown full section, or the first part of an `iterable` one, after its head.
    pub(super) fn unknown_section(
        &mut self,
        at: u64,
        number: u32,
        (name, instance, version): (String, u32, u32),
        iterable: bool,
    ) -> Result<(), ReceiveError> {
        if !self.keep_unknown {
            return Err(ReceiveError::UnknownSection { at, name });
        }
        let early = !self.complete;
        let info =
            SectionInfo { name, instance, version, at, early, iterable, ..Default::default() };
        self.add_section(info)?;
        if iterable {
            self.unknown.insert(number, self.received.sections.len() - 1);
        }
        let body = self.unknown_body(number)?;
        if let Some(section) = self.received.sections.last_mut() {
            section.add_part(body.len, body.bytes);
        }
        Ok(())
    }

    /// Reads a further part of an unknown section, after its head.
    pub(super) fn unknown_part(&mut self, number: u32, last: bool) -> Result<(), ReceiveError> {
        let body = self.unknown_body(number)?;
        let place = self.unknown.get(&number).copied();
        if let Some(section) = place.and_then(|place| self.received.sections.get_mut(place)) {
            section.add_part(body.len, body.bytes);
        }
        if last {
            self.unknown.remove(&number);
        }
        Ok(())
    }

    fn unknown_body(&mut self, number: u32) -> Result<Body, ReceiveError> {
        let Self { stream, kept, unknown, ram_section, complete, is_described, .. } = self;
        let has_parts = |number| *ram_section == Some(number) || unknown.contains_key(&number);
        let may_end = *complete;
        let follows = Follows { has_parts: &has_parts, may_end, is_described: *is_described };
        let body = kept.body(stream, number, &follows)?;
        // `body` has waited for a description. Do not wait again: the guest is paused.
        *is_described &= !body.is_last;
        Ok(body)
    }
}
