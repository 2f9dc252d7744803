//! The palette of a tile with few colours.

/// Colours by number, in the order of their first pixels; at most 256.
#[derive(Debug)]
pub(super) struct Palette {
    colours: Vec<u32>,
    limit: usize,
    /// A hash table: one more than the number of a colour, or 0 if the slot is free.
    slots: [u16; SLOTS],
}

/// Twice the most colours, so that probing is short.
const SLOTS: usize = 512;

impl Palette {
    /// The colours of `values`; `None` if they are more than `limit`.
    pub(super) fn of(values: &[u32], limit: usize) -> Option<Self> {
        let limit = limit.min(SLOTS / 2);
        let mut palette = Self { colours: Vec::new(), limit, slots: [0; SLOTS] };
        let mut last = None;
        for value in values {
            if last != Some(value) {
                palette.add(*value)?;
                last = Some(value);
            }
        }
        Some(palette)
    }

    pub(super) fn colours(&self) -> &[u32] {
        &self.colours
    }

    fn add(&mut self, value: u32) -> Option<()> {
        let slot = self.slot(value);
        if self.slots[slot] == 0 {
            if self.colours.len() == self.limit {
                return None;
            }
            self.colours.push(value);
            self.slots[slot] = u16::try_from(self.colours.len()).ok()?;
        }
        Some(())
    }

    /// The number of a colour, which must be in the palette.
    pub(super) fn number(&self, value: u32) -> u8 {
        let number = usize::from(self.slots[self.slot(value)]).saturating_sub(1);
        u8::try_from(number).unwrap_or(0)
    }

    /// The slot of the colour, or the free one for it.
    fn slot(&self, value: u32) -> usize {
        let mut slot = (value.wrapping_mul(0x9e37_79b1) >> 23) as usize;
        loop {
            let taken = usize::from(self.slots[slot]);
            if taken == 0 || self.colours[taken - 1] == value {
                return slot;
            }
            slot = (slot + 1) % SLOTS;
        }
    }
}

/// Packs the numbers of `values`, `bits` each, from the top bit of a byte on; each row of `width`
/// values begins with a new byte.
pub(super) fn pack(
    palette: &Palette,
    values: &[u32],
    width: usize,
    bits: usize,
    out: &mut Vec<u8>,
) {
    for row in values.chunks(width) {
        for group in row.chunks(8 / bits) {
            let join = |byte: u16, value: &u32| byte << bits | u16::from(palette.number(*value));
            let byte = group.iter().fold(0, join) << (8 - bits * group.len());
            out.push(u8::try_from(byte).unwrap_or(0));
        }
    }
}

/// The runs of equal values: value and length.
pub(super) fn runs(values: &[u32]) -> impl Iterator<Item = (u32, usize)> + '_ {
    values.chunk_by(|a, b| a == b).map(|run| (run[0], run.len()))
}
