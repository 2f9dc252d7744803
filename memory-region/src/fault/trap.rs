//! Accesses that are handed to the caller.

use std::fmt;

/// An access to a [trap](crate::Transaction::trap): the caller's to carry out.
///
/// A device that an interpreter owns, with state behind `&mut`, a `RefCell` or an `Rc`, needs no
/// handler that is `Send` and `Sync`, and no lock: its region is a trap, and the loop of the
/// interpreter calls it.
///
/// ```
/// use memory_region::{AccessError, MemoryMap, Tlb};
///
/// /// Counts what is written to it.
/// #[derive(Default)]
/// struct Counter(u64);
///
/// const COUNTER: u64 = 1;
/// let map = MemoryMap::new();
/// let root = map.transaction(|map| map.trap("counter", 0x100, COUNTER))?;
/// let mut tlb: Tlb = Tlb::new(&map.address_space("hart", root)?);
/// let mut counter = Counter::default();
///
/// for value in [20_u32, 22] {
///     match tlb.store_le(0x10, value) {
///         Ok(()) => {}
///         Err(AccessError::Trap(trap)) if trap.token == COUNTER => {
///             assert_eq!((trap.offset, trap.size), (0x10, 4));
///             counter.0 += trap.value.unwrap_or(0);
///         }
///         Err(error) => return Err(error.into()), // an exception of the processor
///     }
/// }
/// let loaded = match tlb.load_le::<u32>(0x10) {
///     Err(AccessError::Trap(trap)) if trap.token == COUNTER => counter.0,
///     other => other?.into(),
/// };
/// assert_eq!(loaded, 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Trap {
    /// What the region was made with.
    pub token: u64,
    /// The first byte of the access, from the start of the region. May be unaligned.
    pub offset: u64,
    /// How many bytes: 1, 2, 4 or 8.
    pub size: usize,
    /// What is stored, as the caller passed it, in the low `size` bytes; nothing for a load.
    pub value: Option<u64>,
}

impl Trap {
    /// With the bytes of the value in the other order.
    pub(crate) fn swapped(self) -> Self {
        let swap = |value: u64| value.swap_bytes() >> (64 - 8 * self.size);
        Self { value: self.value.map(swap), ..self }
    }
}

impl fmt::Display for Trap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { token, offset, size, .. } = self;
        let what = if self.value.is_some() { "Store" } else { "Load" };
        write!(f, "{what} of {size} bytes at byte {offset:#x} of trap {token:#x}")
    }
}
