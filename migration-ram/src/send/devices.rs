//! The sections of devices, and their description at the end of the stream (QEMU: vmdesc).

use std::sync::Arc;

use ram_block::PageSize;
use serde_json::{Value, json};

use crate::devices::device::{Devices, Framing, MAX_STATE};
use crate::devices::section_info::SectionInfo;
use crate::error::SendError;
use crate::wire::format::{SECTION_END, SECTION_FULL, SECTION_PART, SECTION_START};
use crate::wire::writer::SendStream;

impl Devices {
    /// Encodes a section for each device, numbered from `first` on, and then those of `sections`
    /// that follow RAM; returns their description in JSON, in the form of QEMU's.
    pub(super) fn encode(
        &self,
        stream: &mut SendStream<'_>,
        first: u32,
        sections: &[Arc<SectionInfo>],
        page: PageSize,
    ) -> Result<String, SendError> {
        let mut described = Vec::new();
        let mut ids = first..;
        for (device, id) in self.0.iter().zip(&mut ids) {
            let (name, instance, version) = (device.name(), device.instance(), device.version());
            let failed = |source| SendError::Device { name: name.to_owned(), instance, source };
            let state = device.save().map_err(failed)?;
            let len = u32::try_from(state.len()).ok().filter(|len| *len <= MAX_STATE);
            let mut fields = Vec::new();
            stream.section_head(SECTION_FULL, id, name, instance, version);
            match (device.framing(), len) {
                (Framing::LengthPrefixed, Some(len)) => {
                    stream.u32(len);
                    fields.push(field("length", "uint32", 4));
                }
                (Framing::Fixed(expected), Some(len)) if len == expected => {}
                _ => return Err(failed(format!("its state has {} bytes", state.len()).into())),
            }
            stream.bytes(&state);
            stream.footer(id);
            fields.push(field("state", "buffer", state.len() as u64));
            described.push(json!({
                "name": name, "instance_id": instance, "vmsd_name": name, "version": version,
                "fields": fields,
            }));
        }
        for (section, id) in sections.iter().filter(|section| !goes_first(section)).zip(ids) {
            encode_kept(stream, section, id);
            described.push(json!({
                "name": section.name, "instance_id": section.instance, "vmsd_name": section.name,
                "version": section.version, "fields": [field("state", "buffer", section.len)],
            }));
        }
        if described.is_empty() {
            return Ok(String::new());
        }
        Ok(json!({ "page_size": page.bytes(), "devices": described }).to_string())
    }
}

/// Encodes those of `sections` that precede RAM, numbered from `first` on.
pub(super) fn encode_first(stream: &mut SendStream<'_>, first: u32, sections: &[Arc<SectionInfo>]) {
    for (section, id) in sections.iter().filter(|section| goes_first(section)).zip(first..) {
        encode_kept(stream, section, id);
    }
}

/// Whether a section precedes RAM: loading RAM may depend on a full section that was sent before
/// it.
fn goes_first(section: &SectionInfo) -> bool {
    section.early && !section.iterable
}

fn encode_kept(stream: &mut SendStream<'_>, section: &SectionInfo, id: u32) {
    let Some(parts) = section.parts() else { return }; // checked before anything is sent
    let last = parts.len() - 1;
    for (n, part) in parts.enumerate() {
        match (n, section.iterable) {
            (0, iterable) => {
                let kind = if iterable { SECTION_START } else { SECTION_FULL };
                let SectionInfo { name, instance, version, .. } = section;
                stream.section_head(kind, id, name, *instance, *version);
            }
            (n, _) => {
                stream.u8(if n == last { SECTION_END } else { SECTION_PART });
                stream.u32(id);
            }
        }
        stream.bytes(part);
        stream.footer(id);
    }
}

fn field(name: &str, kind: &str, size: u64) -> Value {
    json!({ "name": name, "type": kind, "size": size })
}
