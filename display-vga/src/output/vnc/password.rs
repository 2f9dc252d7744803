//! VNC authentication (RFC 6143, 7.2.2): a challenge encrypted with DES.

use des::Des;
use des::cipher::{Array, BlockCipherEncrypt, KeyInit};

/// A password of at most eight bytes.
pub(crate) struct Password(Des);

impl Password {
    /// `None` if `text` is empty, or has a character that is not in Latin-1. Only the first eight
    /// characters count.
    pub(crate) fn new(text: &str) -> Option<Self> {
        let mut key = [0; 8];
        let mut characters = text.chars().map(|character| u8::try_from(u32::from(character)));
        if text.is_empty() || characters.clone().any(|byte| byte.is_err()) {
            return None;
        }
        for (byte, character) in key.iter_mut().zip(characters.by_ref().flatten()) {
            // VNC's DES keys have the bits of each byte reversed, as in the first implementation.
            *byte = character.reverse_bits();
        }
        Some(Self(Des::new(&Array(key))))
    }

    /// Whether `response` is `challenge` encrypted with it.
    pub(crate) fn accepts(&self, challenge: &[u8; 16], response: &[u8; 16]) -> bool {
        let mut difference = 0;
        for (challenge, response) in challenge.chunks_exact(8).zip(response.chunks_exact(8)) {
            let mut block = Array([0; 8]);
            block.copy_from_slice(challenge);
            self.0.encrypt_block(&mut block);
            difference |= block.iter().zip(response).fold(0, |all, (a, b)| all | (a ^ b));
        }
        difference == 0
    }
}

/// A challenge of sixteen random bytes.
pub(crate) fn challenge() -> Result<[u8; 16], getrandom::Error> {
    let mut challenge = [0; 16];
    getrandom::fill(&mut challenge)?;
    Ok(challenge)
}
