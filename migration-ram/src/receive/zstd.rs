//! Decompresses a channel's zstd stream.

use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

/// The largest window of QEMU's highest compression level, 20: 32 MiB. It bounds the memory that
/// a stream can make each channel allocate.
const WINDOW_LOG: u32 = 25;

/// Decompresses a stream in parts; the decoder is created at the first one.
#[derive(Default)]
pub(super) struct Zstd(Option<Decoder<'static>>);

impl Zstd {
    /// Decompresses as much as fits; returns how many bytes it consumed and produced. `None` if
    /// the input is malformed, or needs too large a window.
    pub(super) fn step(&mut self, input: &[u8], out: &mut [u8]) -> Option<(usize, usize)> {
        let decoder = match &mut self.0 {
            Some(decoder) => decoder,
            none => {
                let mut decoder = Decoder::new().ok()?;
                decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG)).ok()?;
                none.insert(decoder)
            }
        };
        let (mut input, mut out) = (InBuffer::around(input), OutBuffer::around(out));
        decoder.run(&mut input, &mut out).ok()?;
        Some((input.pos(), out.pos()))
    }
}
