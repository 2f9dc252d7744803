//! What a disk says of itself.

use super::{HEADS, SECTOR, SECTORS_PER_TRACK};

/// What IDENTIFY DEVICE gives for a disk of so many sectors (ATA/ATAPI-6, section 8.15.8).
pub(super) fn description(sectors: u64) -> Vec<u8> {
    let cylinders = (sectors / (HEADS * SECTORS_PER_TRACK)).clamp(1, 16_383);
    let mut words = [0u64; SECTOR / 2];
    words[0] = 0x0040; // a fixed disk
    words[1] = cylinders;
    words[3] = HEADS;
    words[6] = SECTORS_PER_TRACK;
    let mut text = |at: usize, len: usize, text: &str| {
        let mut bytes = text.bytes().chain(std::iter::repeat(b' '));
        for word in &mut words[at..at + len] {
            let mut byte = || u64::from(bytes.next().unwrap_or(b' '));
            *word = byte() << 8 | byte();
        }
    };
    text(10, 10, "1");
    text(23, 4, "1");
    text(27, 20, "MINI PC DISK");
    words[49] = 1 << 9; // linear addresses
    words[53] = 1;
    words[54] = cylinders;
    words[55] = HEADS;
    words[56] = SECTORS_PER_TRACK;
    let capacity = cylinders * HEADS * SECTORS_PER_TRACK;
    (words[57], words[58]) = (capacity & 0xffff, capacity >> 16);
    (words[60], words[61]) = (sectors & 0xffff, sectors >> 16);
    words[80] = 0x7e; // up to ATA/ATAPI-6
    words[83] = 1 << 14 | 1 << 10; // 48-bit addresses
    words[84] = 1 << 14;
    words[86] = 1 << 10;
    words[87] = 1 << 14;
    (words[100], words[101]) = (sectors & 0xffff, sectors >> 16);
    words.iter().flat_map(|word| u16::try_from(*word).unwrap_or(u16::MAX).to_le_bytes()).collect()
}
