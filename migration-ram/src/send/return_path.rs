//! The receiver's messages on QEMU's return path: a kind and a length, two bytes each, then that
//! many bytes, all big-endian.

use std::io;
use std::time::Duration;

use ram_block::ReceiveList;

use crate::error::SendError;
use crate::host::Instant;
use crate::wire::format::{MIG_RP_MSG_PONG, MIG_RP_MSG_SHUT, MIG_RP_MSG_SWITCHOVER_ACK};
use crate::wire::transport::ReadTransport;

/// Waits for MIG_RP_MSG_SHUT, which ends a migration, for `limit` at most: its value is 0 if the
/// receiver has loaded everything, else the reason of its failure.
pub(crate) fn wait_for_the_end(
    answers: &mut dyn ReadTransport,
    limit: Option<Duration>,
) -> Result<(), SendError> {
    let mut answers = Answers { input: answers, begin: Instant::now(), limit };
    loop {
        let mut head = [0; 4];
        answers.fill(&mut head)?;
        let kind = u16::from_be_bytes([head[0], head[1]]);
        let len = u16::from_be_bytes([head[2], head[3]]);
        match (kind, len) {
            (MIG_RP_MSG_SHUT | MIG_RP_MSG_PONG, 4) => {}
            (MIG_RP_MSG_SWITCHOVER_ACK, 0) => continue,
            _ => return Err(SendError::ReturnPath { kind, len }),
        }
        let mut value = [0; 4];
        answers.fill(&mut value)?;
        match (kind, u32::from_be_bytes(value)) {
            (MIG_RP_MSG_SHUT, 0) => return Ok(()),
            (MIG_RP_MSG_SHUT, reason) => return Err(SendError::Refused { reason }),
            _ => {}
        }
    }
}

struct Answers<'a> {
    input: &'a mut dyn ReadTransport,
    begin: Instant,
    limit: Option<Duration>,
}

impl Answers<'_> {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), SendError> {
        let mut list = ReceiveList::new();
        list.push_bytes(bytes);
        while !list.is_empty() {
            self.wait().map_err(|source| SendError::NoAck { source })?;
            let got = self.input.receive(&mut list);
            let got = got.map_err(|error| SendError::NoAck { source: error.into() })?;
            if got == 0 {
                let source = io::ErrorKind::UnexpectedEof.into();
                return Err(SendError::NoAck { source });
            }
        }
        Ok(())
    }

    /// Waits until the input can be read, or is at its end.
    fn wait(&mut self) -> io::Result<()> {
        let Some(limit) = self.limit else { return Ok(()) };
        if self.input.wait(limit.saturating_sub(self.begin.elapsed()))? {
            return Ok(());
        }
        let text = format!("No answer within {limit:.1?}");
        Err(io::Error::new(io::ErrorKind::TimedOut, text))
    }
}
