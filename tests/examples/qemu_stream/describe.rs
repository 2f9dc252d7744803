//! What a sender says of its devices' sections: QEMU's description, in JSON.

use serde_json::Value;

/// The bytes of a device's state by the description's fields, if it has the device.
///
/// A field's `size` is in bytes, of one element if it has an `array_len`. A subsection has a
/// head of six bytes and its name (QEMU's `docs/devel/migration`).
pub(crate) fn described_len(description: &Value, name: &str, instance: u32) -> Option<u64> {
    let devices = description["devices"].as_array()?;
    let device = devices.iter().find(|device| {
        device["name"].as_str() == Some(name)
            && device["instance_id"].as_u64() == Some(instance.into())
    })?;
    state_len(device)
}

fn state_len(state: &Value) -> Option<u64> {
    let list = |name: &str| state[name].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut len = 0u64;
    for field in list("fields") {
        let count = field["array_len"].as_u64().unwrap_or(1);
        len = len.checked_add(field["size"].as_u64()?.checked_mul(count)?)?;
    }
    for subsection in list("subsections") {
        let name = subsection["vmsd_name"].as_str()?;
        len = len.checked_add(6 + name.len() as u64)?.checked_add(state_len(subsection)?)?;
    }
    Some(len)
}
