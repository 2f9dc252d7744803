//! One vCPU's dirty ring: a list of written pages that KVM fills and we empty.
//!
//! KVM puts an entry in at its *dirty index* and sets its flag to DIRTY. We take entries
//! from our place on and set their flag to RESET. KVM_RESET_DIRTY_RINGS then walks from
//! KVM's *reset index* over the entries that are flagged RESET, write-protects their pages
//! again and clears the flags (KVM API, sections 4.133 and 8.29). Normally our place is
//! the reset index, and between it and the dirty index all entries are DIRTY.
//!
//! # When KVM overruns the ring
//!
//! KVM leaves the guest when the ring is nearly full, but where it emulates instructions it
//! may put in more than the ring has left, and writes over entries that nobody has taken.
//! Those pages are lost, and nobody says so. What is seen of it:
//!
//! - *every* entry of the ring is DIRTY, where some must be free;
//! - KVM says that the ring is full, and nothing is DIRTY at our place;
//! - KVM resets fewer entries than were flagged.
//!
//! After an overrun KVM's two indices are further apart than there are entries between them:
//! the next entries come further on than our place. The ring is *displaced* then, and the
//! whole of it is searched, all before the last entry that is found being flagged
//! RESET, which brings the indices together again. If nothing is found and KVM still calls the
//! ring full, a quarter of the ring is flagged, less than KVM believes to be in use, each time
//! that it does so. Flags that KVM has passed by are taken back before and after that: left
//! there, they would let it free more than is in use, and the ring would be full for ever.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// An entry as KVM writes it (`struct kvm_dirty_gfn`).
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct Entry {
    flags: AtomicU32,
    /// The slot's number; the address space in the upper 16 bits.
    slot: AtomicU32,
    /// The page within the slot.
    page: AtomicU64,
}

/// KVM_DIRTY_GFN_F_DIRTY.
const DIRTY: u32 = 1;
/// KVM_DIRTY_GFN_F_RESET.
const RESET: u32 = 2;

/// What a harvest did to a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Entries that were handed out.
    pub(crate) entries: u64,
    /// Entries that are flagged to be reset: those, and such as were skipped.
    pub(crate) flagged: u64,
    /// Whether entries may have been written over.
    pub(crate) overrun: bool,
}

impl std::ops::AddAssign for Taken {
    fn add_assign(&mut self, other: Self) {
        self.entries += other.entries;
        self.flagged += other.flagged;
        self.overrun |= other.overrun;
    }
}

/// Our side of a ring.
#[derive(Debug)]
pub(crate) struct Ring<E> {
    entries: E,
    /// Our place: the number of the next entry, modulo the ring's size.
    next: usize,
    displaced: bool,
    /// How many entries were handed out so far.
    handed_out: u64,
}

impl<E: AsRef<[Entry]>> Ring<E> {
    /// A ring that is still empty.
    pub(crate) fn new(entries: E) -> Self {
        Self { entries, next: 0, displaced: false, handed_out: 0 }
    }

    fn len(&self) -> usize {
        self.entries.as_ref().len()
    }

    fn entry(&self, distance: usize) -> &Entry {
        &self.entries.as_ref()[(self.next + distance) % self.len()]
    }

    fn is_dirty(&self, distance: usize) -> bool {
        // Acquire: what KVM wrote to the entry before it set the flag.
        self.entry(distance).flags.load(Ordering::Acquire) & DIRTY != 0
    }

    fn advance(&mut self, by: usize) {
        self.next = (self.next + by) % self.len();
    }

    /// Takes all entries: hands out (slot, page) of each.
    pub(crate) fn take(&mut self, mut sink: impl FnMut(u32, u64)) -> Taken {
        if self.displaced {
            return self.take_scattered(sink);
        }
        let mut count = 0;
        while count < self.len() && self.is_dirty(count) {
            let entry = self.entry(count);
            sink(entry.slot.load(Ordering::Relaxed), entry.page.load(Ordering::Relaxed));
            // Release: KVM may write the entry again once it sees this.
            entry.flags.store(RESET, Ordering::Release);
            count += 1;
        }
        self.advance(count);
        self.handed_out += count as u64;
        // KVM leaves some entries free; if there is none, it went round.
        self.displaced = count == self.len();
        let entries = count as u64;
        Taken { entries, flagged: entries, overrun: self.displaced }
    }

    /// Takes entries wherever they are, and flags all up to the last of them.
    fn take_scattered(&mut self, mut sink: impl FnMut(u32, u64)) -> Taken {
        let Some(last) = (0..self.len()).rev().find(|distance| self.is_dirty(*distance)) else {
            return Taken::default();
        };
        let mut entries = 0;
        for distance in 0..=last {
            let entry = self.entry(distance);
            // A free entry may become DIRTY at this moment: then it is handed out.
            let free = !self.is_dirty(distance)
                && entry
                    .flags
                    .compare_exchange(0, RESET, Ordering::AcqRel, Ordering::Acquire)
                    .is_ok();
            if !free && self.is_dirty(distance) {
                sink(entry.slot.load(Ordering::Relaxed), entry.page.load(Ordering::Relaxed));
                entries += 1;
                entry.flags.store(RESET, Ordering::Release);
            }
        }
        self.advance(last + 1);
        self.handed_out += entries;
        // The indices agree again, unless entries were written over once more.
        self.displaced = last + 1 == self.len();
        Taken { entries, flagged: last as u64 + 1, overrun: self.displaced }
    }

    /// How many entries there were so far, those that wait to be taken included, which are
    /// only looked at. After a loss, about so many.
    pub(crate) fn seen(&self) -> u64 {
        let (mut waiting, mut end) = (0, self.len());
        while waiting < end {
            let middle = usize::midpoint(waiting, end);
            if self.is_dirty(middle) {
                waiting = middle + 1;
            } else {
                end = middle;
            }
        }
        self.handed_out + waiting as u64
    }

    /// After a loss: our place may not be KVM's any more.
    pub(crate) fn displace(&mut self) {
        self.displaced = true;
    }

    /// Takes back all flags that KVM did not take.
    pub(crate) fn retract(&mut self) {
        for entry in self.entries.as_ref() {
            // KVM may write over the entry at this moment.
            let _ = entry.flags.compare_exchange(RESET, 0, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// Flags the next quarter of a ring that KVM calls full and in which nothing was found,
    /// to be reset, and [retracted](Self::retract) after that; no other is flagged. If KVM's
    /// place is in it, that is our place from then on. Its vCPU must not be in the guest.
    pub(crate) fn flag_quarter(&mut self) {
        self.retract();
        let quarter = (self.len() / 4).max(1);
        for distance in 0..quarter {
            self.entry(distance).flags.store(RESET, Ordering::Release);
        }
        self.advance(quarter);
        self.displaced = true;
    }
}

#[cfg(test)]
pub(crate) mod paper;
#[cfg(test)]
mod tests;
