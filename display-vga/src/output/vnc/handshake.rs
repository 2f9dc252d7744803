//! The beginning of a connection (RFC 6143, 7.1 to 7.3): versions 3.3, 3.7 and 3.8.

use std::io::{self, Read, Write};

use thiserror::Error;

use crate::output::vnc::format::PixelFormat;
use crate::output::vnc::message::bytes;
use crate::output::vnc::password::{Password, challenge};

/// Why a handshake fails.
#[derive(Debug, Error)]
pub(crate) enum HandshakeError {
    #[error("The connection is lost, or the viewer takes too long")]
    Stream(#[from] io::Error),
    #[error("The viewer sent {0:?}, which is not a version of the protocol")]
    Version([u8; 12]),
    #[error("The viewer asked for security type {asked}, {offered} was offered")]
    Security { asked: u8, offered: u8 },
    #[error("The viewer sent a wrong password")]
    Password,
    #[error("No random challenge can be generated")]
    Random(#[from] getrandom::Error),
}

/// The versions of the protocol that differ in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Version {
    V3_3,
    V3_7,
    V3_8,
}

const NONE: u8 = 1;
const VNC: u8 = 2;

/// Negotiates version and security, up to and including ClientInit, whose shared flag is
/// ignored: all viewers share the picture.
pub(crate) fn greet(
    stream: &mut (impl Read + Write),
    password: Option<&Password>,
) -> Result<(), HandshakeError> {
    stream.write_all(b"RFB 003.008\n")?;
    let version = parse_version(bytes(stream)?)?;
    let offered = if password.is_some() { VNC } else { NONE };
    if version == Version::V3_3 {
        stream.write_all(&u32::from(offered).to_be_bytes())?;
    } else {
        stream.write_all(&[1, offered])?;
        let [asked] = bytes(stream)?;
        if asked != offered {
            refuse(stream, version, "This security type was not offered")?;
            return Err(HandshakeError::Security { asked, offered });
        }
    }
    if let Some(password) = password {
        let challenge = challenge()?;
        stream.write_all(&challenge)?;
        if !password.accepts(&challenge, &bytes(stream)?) {
            refuse(stream, version, "The password is another")?;
            return Err(HandshakeError::Password);
        }
    }
    if password.is_some() || version >= Version::V3_8 {
        stream.write_all(&0u32.to_be_bytes())?;
    }
    let [_shared] = bytes(stream)?;
    Ok(())
}

fn refuse(stream: &mut impl Write, version: Version, reason: &str) -> io::Result<()> {
    let mut message = 1u32.to_be_bytes().to_vec();
    if version >= Version::V3_8 {
        message.extend(u32::try_from(reason.len()).unwrap_or(0).to_be_bytes());
        message.extend(reason.as_bytes());
    }
    stream.write_all(&message)
}

/// By the specification, an unknown version counts as 3.3. A version newer than 3.8 counts as 3.8,
/// which the server has announced.
fn parse_version(bytes: [u8; 12]) -> Result<Version, HandshakeError> {
    let number = |digits: &[u8]| {
        let digits = std::str::from_utf8(digits).ok()?;
        digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse::<u16>().ok())?
    };
    let (major, minor) = (number(&bytes[4..7]), number(&bytes[8..11]));
    let framed = &bytes[..4] == b"RFB " && bytes[7] == b'.' && bytes[11] == b'\n';
    match (major, minor) {
        (Some(3), Some(8..)) if framed => Ok(Version::V3_8),
        (Some(3), Some(7)) if framed => Ok(Version::V3_7),
        (Some(3), Some(_)) if framed => Ok(Version::V3_3),
        (Some(4..), Some(_)) if framed => Ok(Version::V3_8),
        _ => Err(HandshakeError::Version(bytes)),
    }
}

/// ServerInit: the size in pixels, the format of pixels, the name.
pub(crate) fn server_init((width, height): (u16, u16), name: &str) -> Vec<u8> {
    let mut message = Vec::new();
    message.extend(width.to_be_bytes());
    message.extend(height.to_be_bytes());
    message.extend(PixelFormat::NATIVE.to_bytes());
    message.extend(u32::try_from(name.len()).unwrap_or(0).to_be_bytes());
    message.extend(name.as_bytes());
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A viewer that says `says`, whatever it hears.
    struct Deaf<'a> {
        says: &'a [u8],
        hears: Vec<u8>,
    }

    impl Read for Deaf<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            self.says.read(out)
        }
    }

    impl Write for Deaf<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.hears.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn talk(says: &[u8], password: Option<&str>) -> (Result<(), HandshakeError>, Vec<u8>) {
        let password = password.and_then(Password::new);
        let mut viewer = Deaf { says, hears: Vec::new() };
        let result = greet(&mut viewer, password.as_ref());
        (result, viewer.hears)
    }

    #[test]
    fn each_version_is_spoken_as_it_is() {
        let heard = |says: &[u8]| {
            let (result, heard) = talk(says, None);
            result.unwrap();
            heard
        };
        assert_eq!(heard(b"RFB 003.003\n\x01"), b"RFB 003.008\n\0\0\0\x01");
        assert_eq!(heard(b"RFB 003.005\n\x00"), b"RFB 003.008\n\0\0\0\x01");
        assert_eq!(heard(b"RFB 003.007\n\x01\x01"), b"RFB 003.008\n\x01\x01");
        assert_eq!(heard(b"RFB 003.008\n\x01\x01"), b"RFB 003.008\n\x01\x01\0\0\0\0");
        assert_eq!(heard(b"RFB 003.889\n\x01\x01"), b"RFB 003.008\n\x01\x01\0\0\0\0");
        for bad in [&b"GET / HTTP/1"[..], b"RFB 002.002\n", b"RFB 003.+08\n", b"RFB 003.008 "] {
            assert!(matches!(talk(bad, None).0, Err(HandshakeError::Version(_))));
        }
        let (result, heard) = talk(b"RFB 003.008\n\x02", None);
        assert!(matches!(result, Err(HandshakeError::Security { asked: 2, offered: 1 })));
        assert!(heard.ends_with(b"\0\0\0\x01\0\0\0\x22This security type was not offered"));
    }

    #[test]
    fn who_does_not_know_the_password_stays_outside() {
        let (result, heard) = talk(&[b"RFB 003.008\n\x02", &[0; 17][..]].concat(), Some("secret"));
        assert!(matches!(result, Err(HandshakeError::Password)));
        assert_eq!(heard[12..14], [1, 2]);
        assert!(heard[30..].starts_with(b"\0\0\0\x01\0\0\0"));
        let (result, heard) = talk(&[b"RFB 003.003\n", &[0; 17][..]].concat(), Some("secret"));
        assert!(matches!(result, Err(HandshakeError::Password)));
        assert_eq!((heard.len(), &heard[32..]), (36, &b"\0\0\0\x01"[..]));
        let (result, _) = talk(b"RFB 003.008\n\x01\x01", Some("secret"));
        assert!(matches!(result, Err(HandshakeError::Security { asked: 1, offered: 2 })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_let_in_or_refused(tail in prop::collection::vec(any::<u8>(), 0..40),
            greets: bool) {
            let says = if greets { [b"RFB 003.008\n", &tail[..]].concat() } else { tail };
            let let_in = talk(&says, None).0.is_ok();
            prop_assert_eq!(let_in, greets && says.len() >= 14 && says[12] == NONE);
            prop_assert!(talk(&says, Some("secret")).0.is_err());
        }
    }
}
