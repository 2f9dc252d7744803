//! What a processor has reserved, to store there if nobody else has.

/// What a processor has loaded and reserved: the bytes at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reservation {
    pub(super) address: u64,
    pub(super) size: usize,
    pub(super) bytes: [u8; 8],
}
