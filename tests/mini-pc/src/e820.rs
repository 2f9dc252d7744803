//! Which addresses have RAM, as firmware and kernels are told ("e820", after the BIOS call).

use super::layout::Layout;

/// RAM.
pub const RAM: u32 = 1;
/// Where conventional memory ends: above is the extended BIOS data area.
const CONVENTIONAL_END: u64 = 0x9_fc00;
const HIGH_MEMORY: u64 = 1 << 20;

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// What is there: [`RAM`], or 2 if it is not to be used.
    pub kind: u32,
}

/// What a kernel that is started without firmware finds.
pub fn ranges(layout: &Layout) -> Vec<Range> {
    let ram = |start: u64, end: u64| Range { start, len: end - start, kind: RAM };
    let mut ranges = vec![ram(0, CONVENTIONAL_END), ram(HIGH_MEMORY, layout.low_ram())];
    ranges.extend(above_4_gib(layout));
    ranges
}

/// What firmware does not find by itself: RAM above 4 GiB, in the format of fw_cfg's file
/// "etc/e820" (start, length, kind, little-endian).
pub fn file(layout: &Layout) -> Vec<u8> {
    let low = Range { start: 0, len: layout.low_ram(), kind: RAM };
    let ranges = std::iter::once(low).chain(above_4_gib(layout));
    let bytes = ranges.flat_map(|Range { start, len, kind }| {
        [start.to_le_bytes().as_slice(), &len.to_le_bytes(), &kind.to_le_bytes()].concat()
    });
    bytes.collect()
}

fn above_4_gib(layout: &Layout) -> Option<Range> {
    let len = layout.high_ram();
    (len > 0).then_some(Range { start: 1 << 32, len, kind: RAM })
}
