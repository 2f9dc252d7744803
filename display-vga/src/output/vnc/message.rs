//! Parses the messages of viewers (RFC 6143, 7.5, and the community's extensions).
//!
//! Allocates no memory by a length that the viewer claims, except for a text up to
//! [`MAX_CUT_TEXT`].

use std::io::{self, Read};

use thiserror::Error;

use crate::output::input::InputEvent;
use crate::output::vnc::format::{FormatError, PixelFormat};
use crate::picture::surface::Rect;

/// The longest text that is accepted from a viewer's clipboard, in bytes; longer ones are
/// skipped.
pub(crate) const MAX_CUT_TEXT: u32 = 256 << 10;

/// Why the connection to a viewer must be closed.
#[derive(Debug, Error)]
pub(crate) enum MessageError {
    #[error("The connection is lost")]
    Stream(#[from] io::Error),
    #[error("The viewer sent a message of unknown type {0}")]
    Unknown(u8),
    #[error("The viewer sent a QEMU message of unknown type {0}")]
    UnknownQemu(u8),
    #[error("The viewer's pixel format is not supported")]
    Format(#[from] FormatError),
}

/// The encoding of rectangles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Encoding {
    #[default]
    Raw,
    Hextile,
    Zlib,
    Tight,
    Zrle,
}

impl Encoding {
    pub(crate) const COPY_RECT: i32 = 1;
    pub(crate) const DESKTOP_SIZE: i32 = -223;
    pub(crate) const QEMU_KEYS: i32 = -258;
    pub(crate) const EXTENDED_DESKTOP_SIZE: i32 = -308;

    /// Its number on the wire.
    pub(crate) fn number(self) -> i32 {
        match self {
            Self::Raw => 0,
            Self::Hextile => 5,
            Self::Zlib => 6,
            Self::Tight => 7,
            Self::Zrle => 16,
        }
    }

    fn numbered(number: i32) -> Option<Self> {
        let all = [Self::Raw, Self::Hextile, Self::Zlib, Self::Tight, Self::Zrle];
        all.into_iter().find(|encoding| encoding.number() == number)
    }
}

/// A viewer's capabilities, from its SetEncodings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Abilities {
    /// The first supported one, in the viewer's order.
    pub(crate) encoding: Encoding,
    pub(crate) copy_rect: bool,
    pub(crate) desktop_size: bool,
    pub(crate) extended_desktop_size: bool,
    pub(crate) qemu_keys: bool,
    /// 0 (fast) to 9 (small), if the viewer asks for a level.
    pub(crate) compression: Option<u8>,
}

impl Abilities {
    /// Whether the viewer supports resizing.
    pub(crate) fn resizes(&self) -> bool {
        self.desktop_size || self.extended_desktop_size
    }
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    SetPixelFormat(PixelFormat),
    SetEncodings(Abilities),
    UpdateRequest {
        incremental: bool,
        area: Rect,
    },
    Input(InputEvent),
    CutText(String),
    SetDesktopSize,
    /// Valid, and ignored.
    Skipped,
}

/// Reads the next message of `stream`.
pub(crate) fn read(stream: &mut impl Read) -> Result<Message, MessageError> {
    let number = |high, low| u32::from(u16::from_be_bytes([high, low]));
    Ok(match u8::from_be_bytes(bytes(stream)?) {
        0 => {
            let [_, _, _, format @ ..] = bytes::<19>(stream)?;
            Message::SetPixelFormat(PixelFormat::parse(&format)?)
        }
        2 => {
            let [_, high, low] = bytes(stream)?;
            Message::SetEncodings(read_encodings(stream, u16::from_be_bytes([high, low]))?)
        }
        3 => {
            let [incremental, x1, x0, y1, y0, w1, w0, h1, h0] = bytes(stream)?;
            let (x, y) = (number(x1, x0), number(y1, y0));
            let area = Rect { x, y, width: number(w1, w0), height: number(h1, h0) };
            Message::UpdateRequest { incremental: incremental != 0, area }
        }
        4 => {
            let [down, _, _, keysym @ ..] = bytes::<7>(stream)?;
            let keysym = u32::from_be_bytes(keysym);
            Message::Input(InputEvent::Key { keysym, keycode: None, down: down != 0 })
        }
        5 => {
            let [buttons, x1, x0, y1, y0] = bytes(stream)?;
            let (x, y) = (number(x1, x0), number(y1, y0));
            Message::Input(InputEvent::Pointer { x, y, buttons })
        }
        6 => read_cut_text(stream)?,
        251 => {
            let [_, _, _, _, _, screens, _] = bytes(stream)?;
            skip(stream, u64::from(screens) * 16)?;
            Message::SetDesktopSize
        }
        255 => match u8::from_be_bytes(bytes(stream)?) {
            0 => {
                let [d1, d0, rest @ ..] = bytes::<10>(stream)?;
                let [s3, s2, s1, s0, code @ ..] = rest;
                let keysym = u32::from_be_bytes([s3, s2, s1, s0]);
                let keycode = Some(u32::from_be_bytes(code));
                Message::Input(InputEvent::Key { keysym, keycode, down: [d1, d0] != [0, 0] })
            }
            other => return Err(MessageError::UnknownQemu(other)),
        },
        other => return Err(MessageError::Unknown(other)),
    })
}

fn read_encodings(stream: &mut impl Read, count: u16) -> io::Result<Abilities> {
    let mut abilities = Abilities::default();
    let mut preferred = None;
    for _ in 0..count {
        match i32::from_be_bytes(bytes(stream)?) {
            Encoding::COPY_RECT => abilities.copy_rect = true,
            Encoding::DESKTOP_SIZE => abilities.desktop_size = true,
            Encoding::EXTENDED_DESKTOP_SIZE => abilities.extended_desktop_size = true,
            Encoding::QEMU_KEYS => abilities.qemu_keys = true,
            level @ -256..=-247 => abilities.compression = u8::try_from(level + 256).ok(),
            number => preferred = preferred.or(Encoding::numbered(number)),
        }
    }
    abilities.encoding = preferred.unwrap_or_default();
    Ok(abilities)
}

/// Reads a text in Latin-1. A negative length is that of an extended clipboard, which the server
/// does not offer.
fn read_cut_text(stream: &mut impl Read) -> io::Result<Message> {
    let [_, _, _, length @ ..] = bytes::<7>(stream)?;
    let length = i32::from_be_bytes(length);
    if length < 0 || length.unsigned_abs() > MAX_CUT_TEXT {
        skip(stream, length.unsigned_abs().into())?;
        return Ok(Message::Skipped);
    }
    let mut text = Vec::new();
    stream.take(length.unsigned_abs().into()).read_to_end(&mut text)?;
    if text.len() < length.unsigned_abs() as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Message::CutText(text.into_iter().map(char::from).collect()))
}

pub(crate) fn bytes<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn skip(stream: &mut impl Read, length: u64) -> io::Result<()> {
    let skipped = io::copy(&mut stream.take(length), &mut io::sink())?;
    if skipped == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(bytes: &[u8]) -> Message {
        let mut rest = bytes;
        let message = read(&mut rest).unwrap();
        assert!(rest.is_empty(), "{} bytes are left", rest.len());
        message
    }

    #[test]
    fn messages_are_as_the_specification_has_them() {
        let native = PixelFormat::NATIVE;
        let format = [&[0, 9, 9, 9][..], &native.to_bytes()].concat();
        assert_eq!(one(&format), Message::SetPixelFormat(native));
        let area = Rect { x: 0x102, y: 0x304, width: 0x506, height: 0x708 };
        let request = Message::UpdateRequest { incremental: true, area };
        assert_eq!(one(&[3, 1, 1, 2, 3, 4, 5, 6, 7, 8]), request);
        let key = InputEvent::Key { down: true, keysym: 0xff0d, keycode: None };
        assert_eq!(one(&[4, 1, 0, 0, 0, 0, 0xff, 0x0d]), Message::Input(key));
        let key = InputEvent::Key { down: false, keysym: 0x61, keycode: Some(0x1e) };
        assert_eq!(one(&[255, 0, 0, 0, 0, 0, 0, 0x61, 0, 0, 0, 0x1e]), Message::Input(key));
        let pointer = InputEvent::Pointer { buttons: 5, x: 0x102, y: 0x304 };
        assert_eq!(one(&[5, 5, 1, 2, 3, 4]), Message::Input(pointer));
        let text = Message::CutText("caf\u{e9}".to_owned());
        assert_eq!(one(&[6, 0, 0, 0, 0, 0, 0, 4, b'c', b'a', b'f', 0xe9]), text);
        let size = [&[251, 0, 4, 0, 3, 0, 2, 0][..], &[7; 32]].concat();
        assert_eq!(one(&size), Message::SetDesktopSize);
    }

    #[test]
    fn the_first_known_encoding_is_taken() {
        let encodings = |numbers: &[i32]| {
            let count = u16::try_from(numbers.len()).unwrap().to_be_bytes();
            let mut bytes = vec![2, 0, count[0], count[1]];
            bytes.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
            match one(&bytes) {
                Message::SetEncodings(abilities) => abilities,
                other => panic!("{other:?}"),
            }
        };
        let abilities = encodings(&[1, 24, 16, 5, 0, -223, -308, -258, -250]);
        let expected = Abilities {
            encoding: Encoding::Zrle,
            copy_rect: true,
            desktop_size: true,
            extended_desktop_size: true,
            qemu_keys: true,
            compression: Some(6),
        };
        assert_eq!(abilities, expected);
        assert_eq!(encodings(&[]), Abilities::default());
        assert_eq!(encodings(&[0, 7]).encoding, Encoding::Raw);
        assert_eq!(encodings(&[7, 0]).encoding, Encoding::Tight);
    }

    #[test]
    fn texts_too_long_or_of_another_kind_are_skipped() {
        let long = MAX_CUT_TEXT + 1;
        let bytes = [&[6, 0, 0, 0][..], &long.to_be_bytes(), &vec![b'a'; long as usize]].concat();
        assert_eq!(one(&bytes), Message::Skipped);
        assert_eq!(one(&[6, 0, 0, 0, 0xff, 0xff, 0xff, 0xfd, 1, 2, 3]), Message::Skipped);
        let mut endless = io::repeat(6).chain(io::empty()).take(1 << 20);
        assert!(matches!(read(&mut endless), Err(MessageError::Stream(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_messages_or_errors(
            bytes in prop::collection::vec(any::<u8>(), 0..600),
            kinds in prop::collection::vec(prop::sample::select(vec![0u8, 2, 3, 4, 5, 6, 251, 255]),
                1..8),
        ) {
            let mut streams = vec![bytes.clone()];
            for kind in kinds {
                streams.push([&[kind][..], &bytes].concat());
            }
            for stream in streams {
                let mut rest = &stream[..];
                loop {
                    let before = rest.len();
                    match read(&mut rest) {
                        Ok(Message::CutText(text)) => prop_assert!(text.chars().count() <= before),
                        Ok(_) => prop_assert!(rest.len() < before),
                        Err(_) => break,
                    }
                }
            }
        }
    }
}
