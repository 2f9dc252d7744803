//! Saves and restores the device's registers, for a migration or snapshot.
//!
//! Version 1, all numbers little-endian: u32 version; u64 bytes of video memory; then the
//! fields of [`Registers`] in their order, except for the latches, which precede the VBE
//! registers; flags as one byte, the VBE registers as u16.

use thiserror::Error;

use crate::registers::register_file::Registers;
use crate::registers::vbe;

/// The version that is written, and the only one that is read.
const VERSION: u32 = 1;

/// Why a state cannot be restored; the device is unchanged.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)] // of fields: the messages say what they are
pub enum StateError {
    /// It is of another version.
    #[error("A state of version {found} was given, version {VERSION} is known")]
    Version { found: u32 },
    /// It does not have the length of its version.
    #[error("A state of {found} bytes was given, version {VERSION} has {expected}")]
    Length { found: usize, expected: usize },
    /// It is of a device with more or less video memory.
    #[error("The state is of a VGA with {found} bytes of video memory, this one has {vram}")]
    VideoMemory { found: u64, vram: u64 },
    /// A field's value is out of range.
    #[error("Field \"{field}\" of the state is {found}, at most {most} is possible")]
    Value { field: &'static str, found: u32, most: u32 },
}

/// Calls `each` with every field of `registers`, in the order of the format.
fn each_field(registers: &mut Registers, mut each: impl FnMut(&mut [u8])) {
    let r = registers;
    let mut byte = |value: &mut u8| each(std::slice::from_mut(value));
    byte(&mut r.miscellaneous);
    byte(&mut r.feature_control);
    byte(&mut r.sequencer_index);
    r.sequencer.iter_mut().for_each(&mut byte);
    byte(&mut r.crtc_index);
    r.crtc.iter_mut().for_each(&mut byte);
    byte(&mut r.graphics_index);
    r.graphics.iter_mut().for_each(&mut byte);
    byte(&mut r.attribute_index);
    r.attribute.iter_mut().for_each(&mut byte);
    flag(&mut r.attribute_data, &mut byte);
    for value in [&mut r.dac.mask, &mut r.dac.read_index, &mut r.dac.write_index] {
        byte(value);
    }
    byte(&mut r.dac.component);
    flag(&mut r.dac.reading, &mut byte);
    r.dac.pending.iter_mut().for_each(&mut byte);
    r.dac.palette.iter_mut().flatten().for_each(&mut byte);
    r.latches.iter_mut().for_each(&mut byte);
    for value in std::iter::once(&mut r.vbe.index).chain(&mut r.vbe.registers) {
        let mut bytes = value.to_le_bytes();
        each(&mut bytes);
        *value = u16::from_le_bytes(bytes);
    }
}

fn flag(value: &mut bool, byte: &mut impl FnMut(&mut u8)) {
    let mut number = u8::from(*value);
    byte(&mut number);
    *value = number != 0;
}

const HEADER: usize = 12;

pub(crate) fn save(registers: &Registers, vram: u64) -> Vec<u8> {
    let mut bytes = VERSION.to_le_bytes().to_vec();
    bytes.extend(vram.to_le_bytes());
    each_field(&mut registers.clone(), |field| bytes.extend_from_slice(field));
    bytes
}

pub(crate) fn restore(state: &[u8], vram: u64) -> Result<Registers, StateError> {
    let mut registers = Registers::default();
    let mut expected = HEADER;
    each_field(&mut registers, |field| expected += field.len());
    let length = StateError::Length { found: state.len(), expected };
    // Check the version before the length: another version may have another length.
    let (version, rest) = state.split_first_chunk().ok_or(length.clone())?;
    let version = u32::from_le_bytes(*version);
    if version != VERSION {
        return Err(StateError::Version { found: version });
    }
    if state.len() != expected {
        return Err(length);
    }
    let (found, mut rest) = rest.split_first_chunk().ok_or(length)?;
    let found = u64::from_le_bytes(*found);
    if found != vram {
        return Err(StateError::VideoMemory { found, vram });
    }
    each_field(&mut registers, |field| {
        let (value, after) = rest.split_at(field.len());
        field.copy_from_slice(value);
        rest = after;
    });
    check(&registers, state, vram)?;
    Ok(registers)
}

fn check(registers: &Registers, state: &[u8], vram: u64) -> Result<(), StateError> {
    let bank = u32::from(registers.vbe.get(vbe::BANK));
    let banks = u32::try_from(vram >> 16).unwrap_or(u32::MAX);
    for (field, found, most) in [
        ("sequencer index", u32::from(registers.sequencer_index), 7),
        ("graphics index", u32::from(registers.graphics_index), 0xf),
        (
            "graphics read map",
            u32::from(registers.graphics[crate::registers::register_file::graphics::READ_MAP]),
            3,
        ),
        ("attribute index", u32::from(registers.attribute_index), 0x3f),
        ("palette component", u32::from(registers.dac.component), 2),
        ("bank", bank, banks.saturating_sub(1)),
    ] {
        if found > most {
            return Err(StateError::Value { field, found, most });
        }
    }
    // Saving again must give the same bytes: this detects flags other than 0 or 1.
    let again = save(registers, vram);
    match again.iter().zip(state).find(|(again, given)| again != given) {
        Some((_, given)) => {
            Err(StateError::Value { field: "flag", found: u32::from(*given), most: 1 })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VRAM: u64 = 1 << 20;

    #[test]
    fn what_is_no_state_is_refused_by_name() {
        let state = save(&crate::registers::text_mode::registers(), VRAM);
        assert_eq!(restore(&state, VRAM), Ok(crate::registers::text_mode::registers()));
        let mut newer = state.clone();
        newer[0] = 2;
        assert_eq!(restore(&newer, VRAM), Err(StateError::Version { found: 2 }));
        for len in 0..state.len() {
            let expected = StateError::Length { found: len, expected: state.len() };
            assert_eq!(restore(&state[..len], VRAM), Err(expected));
        }
        let long = [&state[..], &[0]].concat();
        assert!(matches!(restore(&long, VRAM), Err(StateError::Length { .. })));
        // The VBE registers are the last ones, ten of them.
        let mut beyond = state.clone();
        beyond[state.len() - 20 + 2 * usize::from(vbe::BANK)] = 16;
        let bank = StateError::Value { field: "bank", found: 16, most: 15 };
        assert_eq!(restore(&beyond, VRAM), Err(bank));
        let other = StateError::VideoMemory { found: VRAM, vram: VRAM * 2 };
        assert_eq!(restore(&state, VRAM * 2), Err(other));
    }

    proptest! {
        /// Any bytes are refused, or restored unchanged.
        #[test]
        fn a_state_is_taken_whole_or_not(
            changes in prop::collection::vec((HEADER..900usize, any::<u8>()), 0..4),
        ) {
            let mut state = save(&Registers::default(), VRAM);
            for (at, value) in changes {
                let at = at % (state.len() - HEADER) + HEADER;
                state[at] = value;
            }
            match restore(&state, VRAM) {
                Ok(registers) => prop_assert_eq!(save(&registers, VRAM), state),
                Err(error) => prop_assert!(matches!(error, StateError::Value { .. }), "{}", error),
            }
        }
    }
}
