//! The DAC: a palette of 256 entries of three components, and the port accesses to it.

/// Entries of the palette.
pub(crate) const COLOURS: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dac {
    pub(crate) mask: u8,
    pub(crate) read_index: u8,
    pub(crate) write_index: u8,
    /// The component of the next access: 0 red, 1 green, 2 blue.
    pub(crate) component: u8,
    /// Whether the read index was written last.
    pub(crate) reading: bool,
    /// Components of the entry that is being written.
    pub(crate) pending: [u8; 2],
    /// Red, green, blue; 6 bits each, or 8 with the VBE registers' 8-bit DAC.
    pub(crate) palette: [[u8; 3]; COLOURS],
}

impl Default for Dac {
    fn default() -> Self {
        Self {
            mask: 0xff,
            read_index: 0,
            write_index: 0,
            component: 0,
            reading: false,
            pending: [0; 2],
            palette: [[0; 3]; COLOURS],
        }
    }
}

impl Dac {
    pub(crate) fn start_reading(&mut self, index: u8) {
        (self.read_index, self.component, self.reading) = (index, 0, true);
    }

    pub(crate) fn start_writing(&mut self, index: u8) {
        (self.write_index, self.component, self.reading) = (index, 0, false);
    }

    pub(crate) fn read(&mut self, wide: bool) -> u8 {
        let value = self.palette[usize::from(self.read_index)][usize::from(self.component)];
        self.component += 1;
        if self.component == 3 {
            self.component = 0;
            self.read_index = self.read_index.wrapping_add(1);
        }
        if wide { value } else { value & 0x3f }
    }

    pub(crate) fn write(&mut self, value: u8) {
        match self.pending.get_mut(usize::from(self.component)) {
            Some(pending) => {
                *pending = value;
                self.component += 1;
            }
            None => {
                let [red, green] = self.pending;
                self.palette[usize::from(self.write_index)] = [red, green, value];
                self.write_index = self.write_index.wrapping_add(1);
                self.component = 0;
            }
        }
    }

    /// The colour of an index, as the bytes 0, red, green, blue from the top.
    pub(crate) fn colour(&self, index: u8, wide: bool) -> u32 {
        let [red, green, blue] = self.palette[usize::from(index & self.mask)];
        // Widens 6 bits to 8; 63 becomes 255.
        let widen = |level: u8| {
            let level = level & 0x3f;
            level << 2 | level >> 4
        };
        let level = |level: u8| if wide { level } else { widen(level) };
        u32::from_be_bytes([0, level(red), level(green), level(blue)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_taken_with_its_third_component() {
        let mut dac = Dac::default();
        dac.start_writing(255);
        for value in [1, 2, 3, 0x3f, 0, 0x20, 9] {
            dac.write(value);
        }
        assert_eq!(
            (dac.palette[255], dac.palette[0], dac.palette[1]),
            ([1, 2, 3], [63, 0, 32], [0; 3])
        );
        dac.start_reading(255);
        assert_eq!([(); 6].map(|()| dac.read(false)), [1, 2, 3, 63, 0, 32]);
        assert_eq!(dac.colour(0, false), 0x00ff_0082);
        dac.mask = 0xfe;
        assert_eq!(dac.colour(1, false), 0x00ff_0082);
        assert_eq!(dac.colour(0, true), 0x003f_0020);
        // Of eight bits, six are read unless all count.
        dac.start_writing(7);
        (0..3).for_each(|_| dac.write(0xff));
        dac.start_reading(7);
        assert_eq!([dac.read(false), dac.read(true)], [0x3f, 0xff]);
    }
}
