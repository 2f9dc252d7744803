//! The sections of devices, and what is said of them at the end of the stream.

use ram_block::PageSize;
use serde_json::{Value, json};

use crate::device::{Devices, Framing, MAX_STATE};
use crate::error::SendError;
use crate::format::SECTION_FULL;

use super::stream::SendStream;

impl Devices {
    /// Encodes a section for each device, numbered from `first` on; describes them in the
    /// manner of QEMU.
    pub(super) fn encode(
        &self,
        stream: &mut SendStream<'_>,
        first: u32,
        page: PageSize,
    ) -> Result<String, SendError> {
        let mut described = Vec::new();
        for (id, device) in (first..).zip(&self.0) {
            let (name, instance, version) = (device.name(), device.instance(), device.version());
            let failed = |source| SendError::Device { name: name.to_owned(), instance, source };
            let state = device.save().map_err(failed)?;
            let len = u32::try_from(state.len()).ok().filter(|len| *len <= MAX_STATE);
            let mut fields = Vec::new();
            stream.section_head(SECTION_FULL, id, name, instance, version);
            match (device.framing(), len) {
                (Framing::Counted, Some(len)) => {
                    stream.u32(len);
                    fields.push(field("length", "uint32", 4));
                }
                (Framing::Fixed(expected), Some(len)) if len == expected => {}
                _ => return Err(failed(format!("its state has {} bytes", state.len()).into())),
            }
            stream.bytes(&state);
            stream.footer(id);
            fields.push(field("state", "buffer", state.len()));
            described.push(json!({
                "name": name, "instance_id": instance, "vmsd_name": name, "version": version,
                "fields": fields,
            }));
        }
        if described.is_empty() {
            return Ok(String::new());
        }
        Ok(json!({ "page_size": page.bytes(), "devices": described }).to_string())
    }
}

fn field(name: &str, kind: &str, size: usize) -> Value {
    json!({ "name": name, "type": kind, "size": size })
}
