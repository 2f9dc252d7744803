//! Writes the messages of QEMU's return path.

use std::io;
use std::time::Duration;

use crate::error::ReceiveError;
use crate::wire::format::{MIG_RP_MSG_PONG, MIG_RP_MSG_SHUT, MIG_RP_MSG_SWITCHOVER_ACK};
use crate::wire::transport::WriteTransport;

/// The return path to the source, if that opens it.
pub(super) struct Answers<'a> {
    pub(super) back: Option<&'a mut dyn WriteTransport>,
    pub(super) acknowledges: bool,
    /// How long a message may be blocked because the source does not read.
    pub(super) limit: Option<Duration>,
    pub(super) asked: bool,
}

impl Answers<'_> {
    fn send(&mut self, kind: u16, value: &[u8]) -> Result<(), ReceiveError> {
        let Some(back) = self.back.as_mut().filter(|_| self.asked) else { return Ok(()) };
        let len = u16::try_from(value.len()).expect("answers are short");
        let mut list = ram_block::SendList::new();
        list.push_copied(&kind.to_be_bytes());
        list.push_copied(&len.to_be_bytes());
        list.push_copied(value);
        // A message is a few bytes: if there is room for any, there is room for all.
        if let Some(limit) = self.limit {
            let takes =
                back.wait_for_room(limit).map_err(|source| ReceiveError::ReturnPath { source })?;
            if !takes {
                let text = format!("The source read nothing for {limit:.1?}");
                let source = io::Error::new(io::ErrorKind::TimedOut, text);
                return Err(ReceiveError::ReturnPath { source });
            }
        }
        back.send(&mut list).map_err(|error| ReceiveError::ReturnPath { source: error.into() })
    }

    /// The source opens the return path (MIG_CMD_OPEN_RETURN_PATH).
    pub(super) fn open(&mut self) -> Result<(), ReceiveError> {
        self.asked = true;
        if self.acknowledges { self.send(MIG_RP_MSG_SWITCHOVER_ACK, &[]) } else { Ok(()) }
    }

    pub(super) fn pong(&mut self, value: u32) -> Result<(), ReceiveError> {
        self.send(MIG_RP_MSG_PONG, &value.to_be_bytes())
    }

    pub(super) fn shut(&mut self, well: bool) -> Result<(), ReceiveError> {
        self.send(MIG_RP_MSG_SHUT, &u32::from(!well).to_be_bytes())
    }
}
