//! The keys of a PC's keyboard, by the X11 key symbols in which viewers speak of them.

/// A key: its make code in scan code set 1, and whether 0xE0 goes before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub(crate) code: u8,
    pub(crate) extended: bool,
}

/// The rows of a keyboard for the United States, each with its first make code; below each
/// character what the key gives with Shift.
const ROWS: [(u8, &str, &str); 4] = [
    (0x02, "1234567890-=", "!@#$%^&*()_+"),
    (0x10, "qwertyuiop[]", "QWERTYUIOP{}"),
    (0x1e, "asdfghjkl;'`", "ASDFGHJKL:\"~"),
    (0x2b, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
];

/// Keys without a character: their symbols (X11's keysymdef.h), make codes and whether those
/// are extended.
const OTHERS: &[(u32, u8, bool)] = &[
    (0xff1b, 0x01, false), // Escape
    (0xff08, 0x0e, false), // BackSpace
    (0xff09, 0x0f, false), // Tab
    (0xff0d, 0x1c, false), // Return
    (0x0020, 0x39, false), // space
    (0xffe3, 0x1d, false), // Control_L
    (0xffe4, 0x1d, true),  // Control_R
    (0xffe1, 0x2a, false), // Shift_L
    (0xffe2, 0x36, false), // Shift_R
    (0xffe9, 0x38, false), // Alt_L
    (0xffea, 0x38, true),  // Alt_R
    (0xfe03, 0x38, true),  // ISO_Level3_Shift
    (0xffe5, 0x3a, false), // Caps_Lock
    (0xffbe, 0x3b, false), // F1
    (0xffbf, 0x3c, false),
    (0xffc0, 0x3d, false),
    (0xffc1, 0x3e, false),
    (0xffc2, 0x3f, false),
    (0xffc3, 0x40, false),
    (0xffc4, 0x41, false),
    (0xffc5, 0x42, false),
    (0xffc6, 0x43, false),
    (0xffc7, 0x44, false), // F10
    (0xffc8, 0x57, false), // F11
    (0xffc9, 0x58, false), // F12
    (0xff7f, 0x45, false), // Num_Lock
    (0xff14, 0x46, false), // Scroll_Lock
    (0xff50, 0x47, true),  // Home
    (0xff52, 0x48, true),  // Up
    (0xff55, 0x49, true),  // Page_Up
    (0xff51, 0x4b, true),  // Left
    (0xff53, 0x4d, true),  // Right
    (0xff57, 0x4f, true),  // End
    (0xff54, 0x50, true),  // Down
    (0xff56, 0x51, true),  // Page_Down
    (0xff63, 0x52, true),  // Insert
    (0xffff, 0x53, true),  // Delete
    (0xff8d, 0x1c, true),  // KP_Enter
    (0xffaa, 0x37, false), // KP_Multiply
    (0xffad, 0x4a, false), // KP_Subtract
    (0xffab, 0x4e, false), // KP_Add
    (0xffaf, 0x35, true),  // KP_Divide
    (0xff61, 0x37, true),  // Print
    (0xffeb, 0x5b, true),  // Super_L
    (0xffec, 0x5c, true),  // Super_R
    (0xff67, 0x5d, true),  // Menu
    // What X11 makes of keys with Shift.
    (0xfe20, 0x0f, false), // ISO_Left_Tab
    (0xffe7, 0x38, false), // Meta_L
    (0xffe8, 0x38, true),  // Meta_R
    // The numeric keypad, with Num Lock and without.
    (0xffb7, 0x47, false), // KP_7, KP_Home
    (0xff95, 0x47, false),
    (0xffb8, 0x48, false), // KP_8, KP_Up
    (0xff97, 0x48, false),
    (0xffb9, 0x49, false), // KP_9, KP_Page_Up
    (0xff9a, 0x49, false),
    (0xffb4, 0x4b, false), // KP_4, KP_Left
    (0xff96, 0x4b, false),
    (0xffb5, 0x4c, false), // KP_5, KP_Begin
    (0xff9d, 0x4c, false),
    (0xffb6, 0x4d, false), // KP_6, KP_Right
    (0xff98, 0x4d, false),
    (0xffb1, 0x4f, false), // KP_1, KP_End
    (0xff9c, 0x4f, false),
    (0xffb2, 0x50, false), // KP_2, KP_Down
    (0xff99, 0x50, false),
    (0xffb3, 0x51, false), // KP_3, KP_Page_Down
    (0xff9b, 0x51, false),
    (0xffb0, 0x52, false), // KP_0, KP_Insert
    (0xff9e, 0x52, false),
    (0xffae, 0x53, false), // KP_Decimal, KP_Delete
    (0xff9f, 0x53, false),
];

/// Scan code set 2's make codes, by those of set 1; 0 where no key has that.
const SET_2: [u8; 0x5e] = [
    0x00, 0x76, 0x16, 0x1e, 0x26, 0x25, 0x2e, 0x36, 0x3d, 0x3e, 0x46, 0x45, 0x4e, 0x55, 0x66, 0x0d,
    0x15, 0x1d, 0x24, 0x2d, 0x2c, 0x35, 0x3c, 0x43, 0x44, 0x4d, 0x54, 0x5b, 0x5a, 0x14, 0x1c, 0x1b,
    0x23, 0x2b, 0x34, 0x33, 0x3b, 0x42, 0x4b, 0x4c, 0x52, 0x0e, 0x12, 0x5d, 0x1a, 0x22, 0x21, 0x2a,
    0x32, 0x31, 0x3a, 0x41, 0x49, 0x4a, 0x59, 0x7c, 0x11, 0x29, 0x58, 0x05, 0x06, 0x04, 0x0c, 0x03,
    0x0b, 0x83, 0x0a, 0x01, 0x09, 0x77, 0x7e, 0x6c, 0x75, 0x7d, 0x7b, 0x6b, 0x73, 0x74, 0x79, 0x69,
    0x72, 0x7a, 0x70, 0x71, 0x84, 0x60, 0x61, 0x78, 0x07, 0x00, 0x00, 0x1f, 0x27, 0x2f,
];

impl Key {
    /// The key that gives this X11 key symbol, if there is one. Viewers send Shift as a key
    /// of its own.
    pub fn from_keysym(symbol: u32) -> Option<Self> {
        if let Some((_, code, extended)) = OTHERS.iter().find(|(other, ..)| *other == symbol) {
            return Some(Self { code: *code, extended: *extended });
        }
        let wanted = char::from_u32(symbol)?;
        ROWS.iter().find_map(|(first, plain, shifted)| {
            let at = [plain, shifted].into_iter().find_map(|row| row.find(wanted))?;
            Some(Self { code: first + u8::try_from(at).ok()?, extended: false })
        })
    }

    /// The key of this make code in set 1, with 0x80 added to it where 0xE0 goes before it.
    pub fn from_scan_code(code: u32) -> Option<Self> {
        let byte = u8::try_from(code).ok()?;
        let key = Self { code: byte & 0x7f, extended: byte & 0x80 != 0 };
        SET_2.get(usize::from(key.code)).filter(|code| **code != 0).map(|_| key)
    }

    /// What the keyboard sends when the key goes down or up, in scan code set 1.
    pub(crate) fn set_1(self, down: bool) -> impl Iterator<Item = u8> {
        let code = if down { self.code } else { self.code | 0x80 };
        self.extended.then_some(0xe0).into_iter().chain([code])
    }

    /// The same in set 2.
    pub(crate) fn set_2(self, down: bool) -> impl Iterator<Item = u8> {
        let code = SET_2.get(usize::from(self.code)).copied().unwrap_or(0);
        let extended = self.extended.then_some(0xe0).into_iter();
        extended.chain((!down).then_some(0xf0)).chain([code])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_the_codes_of_the_manual() {
        let both = |symbol| {
            let key = Key::from_keysym(symbol).unwrap();
            (key.set_1(true).collect::<Vec<_>>(), key.set_2(false).collect::<Vec<_>>())
        };
        assert_eq!(both(u32::from('a')), (vec![0x1e], vec![0xf0, 0x1c]));
        assert_eq!(both(u32::from('Z')), (vec![0x2c], vec![0xf0, 0x1a]));
        assert_eq!(both(u32::from('?')), (vec![0x35], vec![0xf0, 0x4a]));
        assert_eq!(both(0xff52), (vec![0xe0, 0x48], vec![0xe0, 0xf0, 0x75]));
        assert_eq!(both(0xffc9), (vec![0x58], vec![0xf0, 0x07]));
        assert_eq!(
            Key::from_keysym(0xff52).unwrap().set_1(false).collect::<Vec<_>>(),
            [0xe0, 0xc8]
        );
        assert_eq!(Key::from_keysym(0x1234_5678), None);
        assert_eq!(Key::from_scan_code(0xc8), Key::from_keysym(0xff52));
        assert_eq!([0, 0x59, 0x5e, 0x11e].map(Key::from_scan_code), [None; 4]);
        // Three more keys of later keyboards, and a keypad's.
        assert_eq!(both(0xffeb), (vec![0xe0, 0x5b], vec![0xe0, 0xf0, 0x1f]));
        assert_eq!(both(0xff67), (vec![0xe0, 0x5d], vec![0xe0, 0xf0, 0x2f]));
        assert_eq!(both(0xffb7), (vec![0x47], vec![0xf0, 0x6c]));
        assert_eq!(both(0xffaf), (vec![0xe0, 0x35], vec![0xe0, 0xf0, 0x4a]));
        for (symbol, code, extended) in OTHERS {
            let scan_code = u32::from(*code) | if *extended { 0x80 } else { 0 };
            assert_eq!(Key::from_scan_code(scan_code), Key::from_keysym(*symbol));
            assert!(Key::from_scan_code(scan_code).is_some(), "{symbol:#x}");
        }
        // No two keys have the same code.
        let plain: Vec<_> = ROWS.iter().flat_map(|(_, row, _)| row.chars()).collect();
        let codes: std::collections::BTreeSet<_> = plain
            .iter()
            .map(|character| Key::from_keysym(u32::from(*character)).unwrap().code)
            .collect();
        assert_eq!(codes.len(), plain.len());
    }
}
