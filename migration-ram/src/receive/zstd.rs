//! A stream that is compressed by zstd.

use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

/// The largest window that QEMU's highest level of compression, 20, uses: 32 MiB. As much is
/// what a channel can have allocated.
const WINDOW_LOG: u32 = 25;

/// Decompresses a stream in parts; made with the first of them.
#[derive(Default)]
pub(super) struct Zstd(Option<Decoder<'static>>);

impl Zstd {
    /// Decompresses what it can; says how many bytes it took and how many came. `None` if the
    /// bytes make no sense, or ask for too large a window.
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
