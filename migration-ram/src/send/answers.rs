//! What the receiver answers, in QEMU's return path: a kind and a length, two bytes each,
//! then as many bytes, all big-endian.

use std::io;

use ram_block::ReceiveList;

use crate::channel::Input;
use crate::error::SendError;
use crate::format::{ANSWER_PONG, ANSWER_SHUT, ANSWER_SWITCHOVER_ACK};

/// Waits for the answer that ends a migration: the receiver has everything, or says why
/// not.
pub(crate) fn wait_for_the_end(answers: &mut dyn Input) -> Result<(), SendError> {
    loop {
        let mut head = [0; 4];
        fill(answers, &mut head)?;
        let kind = u16::from_be_bytes([head[0], head[1]]);
        let len = u16::from_be_bytes([head[2], head[3]]);
        match (kind, len) {
            (ANSWER_SHUT | ANSWER_PONG, 4) => {}
            (ANSWER_SWITCHOVER_ACK, 0) => continue,
            _ => return Err(SendError::Answer { kind, len }),
        }
        let mut value = [0; 4];
        fill(answers, &mut value)?;
        match (kind, u32::from_be_bytes(value)) {
            (ANSWER_SHUT, 0) => return Ok(()),
            (ANSWER_SHUT, reason) => return Err(SendError::Refused { reason }),
            _ => {}
        }
    }
}

fn fill(answers: &mut dyn Input, bytes: &mut [u8]) -> Result<(), SendError> {
    let mut list = ReceiveList::new();
    let mut left = bytes.len();
    list.bytes(bytes);
    while left > 0 {
        let got = answers.receive(&mut list);
        let got = got.map_err(|error| SendError::NoAnswer { source: error.into() })?;
        if got == 0 {
            let source = io::ErrorKind::UnexpectedEof.into();
            return Err(SendError::NoAnswer { source });
        }
        left -= got;
    }
    Ok(())
}
