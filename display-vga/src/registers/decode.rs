//! Decodes the registers into a mode.

use crate::modes::limits::{LEGACY_BYTES, VbeError};
use crate::modes::linear::{Format, Linear};
use crate::modes::mode::{Mode, ModeKind};
use crate::modes::planes::{Planes, Shift};
use crate::modes::raster::Raster;
use crate::modes::text::{Cursor, Look, Text};
use crate::registers::register_file::{Registers, attribute, crtc, graphics, sequencer};

/// Addresses of a plane of 64 KiB.
const PLANE_MASK: u32 = 0xffff;

impl Registers {
    /// The current mode, with `vram` bytes of video memory; `None` if the screen is off.
    pub(crate) fn mode(&self, vram: u64) -> Result<Option<Mode>, VbeError> {
        let screen_off = self.sequencer[sequencer::CLOCKING_MODE] & sequencer::SCREEN_OFF != 0
            || self.attribute_index & attribute::SCREEN_ON == 0;
        if self.vbe.is_enabled() {
            let linear = self.vbe.described(vram)?;
            return Ok((!screen_off).then(|| self.vbe_mode(linear, vram)));
        }
        // CRTC mode control bit 7: without sync pulses a monitor shows nothing.
        let running = self.crtc[crtc::MODE_CONTROL] & 0x80 != 0;
        Ok((running && !screen_off).then(|| self.vga_mode()))
    }

    /// The colours of 8-bit indices.
    fn palette256(&self) -> Box<[u32]> {
        let wide = self.vbe.wide_dac();
        (0..=u8::MAX).map(|index| self.dac.colour(index, wide)).collect()
    }

    /// The colours of 4-bit indices, through the attribute controller's palette.
    fn palette16(&self) -> [u32; 16] {
        let wide = self.vbe.wide_dac();
        let select = self.attribute[attribute::COLOUR_SELECT];
        let select_45 = self.attribute[attribute::MODE_CONTROL] & 0x80 != 0;
        let enabled = usize::from(self.attribute[attribute::PLANE_ENABLE] & 0xf);
        std::array::from_fn(|number| {
            let entry = self.attribute[number & enabled] & 0x3f;
            let low = if select_45 { entry & 0xf | (select & 3) << 4 } else { entry };
            self.dac.colour(low | (select & 0xc) << 4, wide)
        })
    }

    fn vbe_mode(&self, linear: Linear, vram: u64) -> Mode {
        let (width, height) = (linear.width, linear.height);
        let kind = match linear.format {
            Format::Planar => ModeKind::Planes(Planes {
                raster: linear.raster(vram),
                shift: Shift::Single,
                dots: 1,
                palette: self.palette16().into(),
                bytes: linear.visible(),
            }),
            Format::Indexed => ModeKind::Linear(Linear { palette: self.palette256(), ..linear }),
            _ => ModeKind::Linear(linear),
        };
        Mode { width, height, kind }
    }

    fn vga_mode(&self) -> Mode {
        let crtc = |register: usize| u32::from(self.crtc[register]);
        let clocking = self.sequencer[sequencer::CLOCKING_MODE];
        let halved = u32::from(clocking >> 3 & 1);
        let characters = crtc(crtc::HORIZONTAL_DISPLAY_END) + 1;
        let height = (self.vertical_display_end() + 1) << (crtc(crtc::MODE_CONTROL) >> 2 & 1);
        if self.graphics[graphics::MISCELLANEOUS] & 1 == 0 {
            let dots = if clocking & 1 != 0 { 8 } else { 9 };
            let look = self.look(dots, 1 << halved);
            let width = characters * look.width();
            let text = Text {
                raster: self.raster(dots, look.scale),
                columns: characters,
                cursor: self.cursor(),
                blinks: self.attribute[attribute::MODE_CONTROL] & 8 != 0,
                look,
            };
            return Mode { width, height, kind: ModeKind::Text(text) };
        }
        let (shift, palette): (_, Box<[u32]>) = match self.graphics[graphics::MODE] >> 5 & 3 {
            0 => (Shift::Single, self.palette16().into()),
            1 => (Shift::Interleaved, self.palette16().into()),
            _ => (Shift::Packed, self.palette256()),
        };
        let dots = (8 / shift.pixels()) << halved;
        let raster = self.raster(8, dots);
        let width = (characters * 8) << halved;
        let bytes = 0..LEGACY_BYTES;
        Mode {
            width,
            height,
            kind: ModeKind::Planes(Planes { raster, shift, dots, palette, bytes }),
        }
    }

    /// The raster of characters that are `dots` wide, with `scale` pixels of the picture per dot.
    fn raster(&self, dots: u32, scale: u32) -> Raster {
        let crtc = |register: usize| u32::from(self.crtc[register]);
        let preset = crtc(crtc::PRESET_ROW_SCAN);
        let maximum = crtc(crtc::MAXIMUM_SCAN_LINE);
        let control = crtc(crtc::MODE_CONTROL);
        let panning = u32::from(self.attribute[attribute::PANNING]);
        let shift256 = self.graphics[graphics::MISCELLANEOUS] & 1 != 0
            && self.graphics[graphics::MODE] & 0x40 != 0;
        let pan = match dots {
            9 if panning >= 8 => 0,
            9 => panning + 1,
            _ if shift256 => (panning & 7) / 2,
            _ => panning & 7,
        } * scale;
        // The position of the interleave bits (address bits 13 and 14) in the counter depends on
        // its address mode: doubleword, byte or word.
        let shift = match (crtc(crtc::UNDERLINE) & 0x40 != 0, control & 0x40 != 0) {
            (true, _) => 2,
            (false, true) => 0,
            (false, false) => 1,
        };
        let byte_pan = preset >> 5 & 3;
        // Below the split the start address is 0, and panning continues unless the attribute
        // controller (mode control bit 5) resets it, too.
        let pans_below = self.attribute[attribute::MODE_CONTROL] & 0x20 == 0;
        let interleave = |bit: u32, address: u32| {
            if control & bit == 0 { 1 << (address - shift) } else { 0 }
        };
        Raster {
            start: self.crtc_pair(crtc::START_ADDRESS_HIGH, crtc::START_ADDRESS_LOW) + byte_pan,
            step: crtc(crtc::OFFSET) * 2,
            mask: PLANE_MASK,
            row_scans: (maximum & 0x1f) + 1,
            doubled: maximum & 0x80 != 0,
            preset: preset & 0x1f,
            pan,
            split: (self.line_compare() + 1) << (control >> 2 & 1),
            split_start: if pans_below { byte_pan } else { 0 },
            split_pan: if pans_below { pan } else { 0 },
            interleave: [interleave(1, 13), interleave(2, 14)],
        }
    }

    fn look(&self, dots: u32, scale: u32) -> Look {
        let map = self.sequencer[sequencer::CHARACTER_MAP];
        // Maps of 8 KiB: the first four are 16 KiB apart, the other four between them.
        let font = |low: u8, high: u8| u32::from(low & 3) << 14 | u32::from(high & 1) << 13;
        let control = self.attribute[attribute::MODE_CONTROL];
        let monochrome = control & 2 != 0;
        Look {
            dots,
            scale,
            fonts: [font(map, map >> 4), font(map >> 2, map >> 5)],
            line_graphics: control & 4 != 0,
            underline: monochrome.then(|| u32::from(self.crtc[crtc::UNDERLINE] & 0x1f)),
            palette: self.palette16(),
        }
    }

    fn cursor(&self) -> Option<Cursor> {
        let (start, end) = (self.crtc[crtc::CURSOR_START], self.crtc[crtc::CURSOR_END]);
        let (first, last) = (u32::from(start & 0x1f), u32::from(end & 0x1f));
        let address = self.crtc_pair(crtc::CURSOR_HIGH, crtc::CURSOR_LOW);
        (start & 0x20 == 0 && first <= last).then_some(Cursor { address, first, last })
    }
}
