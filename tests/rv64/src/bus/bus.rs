//! What a hart asks of its memory.

use ram_block::Scalar;

/// Why an access failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing answers, or not to such an access: an access fault.
    Access,
    /// An atomic access that is not at a multiple of its size.
    Misaligned,
}

/// Bytes of a page of code at least.
pub(super) const CODE_PAGE: u64 = 4096;

/// A page of code that is about to be decoded and kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodePage {
    /// Its number.
    pub page: usize,
    /// Where the address is in its memory.
    pub offset: u64,
    /// How often the page was written so far.
    pub generation: u64,
    /// How many bytes from the address on are of the page.
    pub len: u64,
}

/// The memory of one hart, and its devices. Integers are little-endian, addresses physical.
///
/// # How decoded code stays current
///
/// [`watch_code`](Self::watch_code) comes before the code is read. A write to the page from then on
/// makes what was decoded of it no longer [current](Self::is_current), and so does a change of the
/// memory map that moves it; both change the [`epoch`](Self::epoch), which is one number for all
/// pages, and so is cheap to compare before each block of instructions. A block that a hart
/// is executing is not left: `fence.i`, without which a program may not rely on anything, ends one.
pub trait Bus {
    /// Loads an integer at any address.
    ///
    /// # Errors
    ///
    /// [`Fault::Access`].
    fn load<T: Scalar>(&mut self, address: u64) -> Result<T, Fault>;

    /// Stores an integer at any address.
    ///
    /// # Errors
    ///
    /// [`Fault::Access`].
    fn store<T: Scalar>(&mut self, address: u64, value: T) -> Result<(), Fault>;

    /// Loads 16 bits of code at an even address.
    ///
    /// # Errors
    ///
    /// [`Fault::Access`].
    fn fetch(&mut self, address: u64) -> Result<u16, Fault>;

    /// Replaces an integer by what `update` makes of it, sequentially consistent; returns what was
    /// there.
    ///
    /// # Errors
    ///
    /// [`Fault`]; devices take no atomic accesses.
    fn amo<T: Scalar>(&mut self, address: u64, update: impl FnMut(T) -> T) -> Result<T, Fault>;

    /// Loads an integer and reserves it. Accesses that follow are not performed before it.
    ///
    /// # Errors
    ///
    /// [`Fault`].
    fn load_reserved<T: Scalar>(&mut self, address: u64) -> Result<T, Fault>;

    /// Stores an integer if it is reserved, sequentially consistent; returns whether it was.
    ///
    /// # Errors
    ///
    /// [`Fault`].
    fn store_conditional<T: Scalar>(&mut self, address: u64, value: T) -> Result<bool, Fault>;

    /// Ends the reservation.
    fn clear_reservation(&mut self);

    /// Makes the stores of this hart visible to its own fetches, as `fence.i` does.
    fn fence_i(&mut self);

    /// Watches the page that has `pc`, if writes to it are found: without that its code is not
    /// kept.
    fn watch_code(&mut self, pc: u64) -> Option<CodePage>;

    /// Whether `page`, of which the code at `pc` was decoded, is still there and was not written.
    fn is_current(&mut self, pc: u64, page: &CodePage) -> bool;

    /// Changes after any page has changed or moved.
    fn epoch(&self) -> u64;
}
