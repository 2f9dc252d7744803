//! Reading a stream, with its place in every error.

use std::io::{self, Read};

use crate::error::ReceiveError;

/// What is read at once, in bytes.
const BUFFER: usize = 1 << 18;

pub(crate) struct StreamReader<R: Read> {
    input: io::BufReader<R>,
    /// Bytes consumed.
    at: u64,
}

impl<R: Read> StreamReader<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input: io::BufReader::with_capacity(BUFFER, input), at: 0 }
    }

    /// Bytes consumed so far.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// Fills `buffer`, which holds (a part of) `what`.
    pub(crate) fn bytes(
        &mut self,
        buffer: &mut [u8],
        what: &'static str,
    ) -> Result<(), ReceiveError> {
        let at = self.at;
        self.input.read_exact(buffer).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => ReceiveError::Truncated { at, what },
            _ => ReceiveError::Read { at, source },
        })?;
        self.at += buffer.len() as u64;
        Ok(())
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, ReceiveError> {
        let mut bytes = [0; 1];
        self.bytes(&mut bytes, what)?;
        Ok(bytes[0])
    }

    pub(crate) fn u16(&mut self, what: &'static str) -> Result<u16, ReceiveError> {
        let mut bytes = [0; 2];
        self.bytes(&mut bytes, what)?;
        Ok(u16::from_be_bytes(bytes))
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, ReceiveError> {
        let mut bytes = [0; 4];
        self.bytes(&mut bytes, what)?;
        Ok(u32::from_be_bytes(bytes))
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, ReceiveError> {
        let mut bytes = [0; 8];
        self.bytes(&mut bytes, what)?;
        Ok(u64::from_be_bytes(bytes))
    }

    /// A number that must have one value.
    pub(crate) fn expect(
        &mut self,
        what: &'static str,
        found: u64,
        expected: u64,
        at: u64,
    ) -> Result<(), ReceiveError> {
        if found == expected {
            Ok(())
        } else {
            Err(ReceiveError::Unexpected { at, what, found, expected })
        }
    }

    /// Text of `len` bytes, at most `most`.
    pub(crate) fn text(
        &mut self,
        len: u32,
        most: u32,
        what: &'static str,
    ) -> Result<String, ReceiveError> {
        let at = self.at;
        let refused = ReceiveError::Name { at, len: u64::from(len) };
        if len > most {
            return Err(refused);
        }
        let mut bytes = vec![0; len as usize];
        self.bytes(&mut bytes, what)?;
        String::from_utf8(bytes).map_err(|_| refused)
    }

    /// A name with its length in one byte.
    pub(crate) fn name(&mut self, what: &'static str) -> Result<String, ReceiveError> {
        let len = self.u8(what)?;
        self.text(u32::from(len), u32::from(u8::MAX), what)
    }

    /// Skips `len` bytes.
    pub(crate) fn skip(&mut self, len: u64, what: &'static str) -> Result<(), ReceiveError> {
        let at = self.at;
        let skipped = io::copy(&mut self.input.by_ref().take(len), &mut io::sink());
        let skipped = skipped.map_err(|source| ReceiveError::Read { at, source })?;
        self.at += skipped;
        if skipped < len { Err(ReceiveError::Truncated { at: self.at, what }) } else { Ok(()) }
    }
}
