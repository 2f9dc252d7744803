//! One vCPU's dirty ring: a list of written pages that KVM fills and we empty.
//!
//! KVM pushes an entry at its *dirty index* and sets the entry's flag to DIRTY. We take entries
//! from `next` on and set their flag to RESET. KVM_RESET_DIRTY_RINGS then walks from KVM's *reset
//! index* over the entries that are flagged RESET, clears their flags and write-protects their
//! pages again (KVM API, sections 4.133 and 8.29). KVM shows neither index. Both are named here by
//! the number of pushes before them; an entry's place in memory is that number modulo the ring's
//! size.
//!
//! # Where KVM's indices are
//!
//! The *reset index* is always known: it moves over entries that we flagged, in order, and stops
//! behind the last one when KVM says that it has reset all of them. `next` is that index.
//!
//! The *dirty index* is known as long as the ring is in order: from `next` on all entries are
//! DIRTY up to the dirty index, and all others are free.
//!
//! # When KVM overruns the ring
//!
//! KVM exits when the ring is nearly full, but where it emulates instructions it may push more than
//! the ring has left, and overwrite entries that were not taken yet, or that are flagged. Those
//! pages are lost, and KVM does not report it.
//!
//! The entry just before the reset index is the *guard*. KVM pushes in order, so it overwrites an
//! entry only after it has pushed the guard, and only the recovery clears the guard's flag:
//! [`take`](Ring::take) stops one entry before it.
//!
//! - If the guard is DIRTY once all entries are read and flagged, KVM has filled the ring to its
//!   end, and may have overwritten entries before they were read: the ring counts as overrun.
//! - If the guard is not DIRTY once KVM has reset what was flagged ([`settle`](Ring::settle)), no
//!   entry had been overwritten until then, wherever KVM pushed in the meantime.
//! - Otherwise KVM pushed the guard after all entries were read and flagged. As a rule it did so
//!   after it had reset them: a vCPU fills the freed entries while our thread waits for a
//!   processor. But it may have pushed over a flagged entry before. If that was before KVM looked
//!   at the entry's flag, the reset ended there, and KVM's count says so. If KVM had looked at the
//!   flag already, it cleared the flag of the new entry, which nobody will find, and perhaps
//!   write-protected the new entry's page instead of the one that was taken. So an entry of
//!   those that were reset which is free, and whose content is not what was taken from it, means
//!   that the ring is overrun; if there is none, nothing is lost. (An entry that KVM is writing
//!   just now looks the same: a needless recovery.)
//!
//! If we or KVM's reset, which runs on our thread, store an entry's flag after KVM pushed over that
//! entry, our checks of the guard and of the content must see that push. That needs a full fence
//! between the store and the check: KVM stores the guard's flag, then (behind a write barrier) the
//! entry's content and (behind another) its flag; we store the entry's flag over it, then read the
//! guard's flag and the content. The tests check this with loom, and that loom finds the loss
//! without the fence.
//!
//! # Recovery
//!
//! An overrun ring is swept: all its flags are cleared, while no vCPU runs guest code. The cleared
//! entries are lost too; the caller marks all pages, after it has write-protected them. KVM's dirty
//! index is not known then: entries that are free, but that KVM counts as used, may lie between
//! `next` and it. The ring is *displaced*.
//!
//! The entries that KVM pushes after a sweep lie in a row that begins at the dirty index. So the
//! first entry from `next` on that is DIRTY is where the index was. The free entries before it are
//! flagged RESET with those that are taken: KVM's reset index then passes them, and the ring is in
//! order again. An entry that KVM has not pushed is never flagged: KVM's reset index would pass its
//! dirty index, and the ring would be full for ever.
//!
//! A sweep that clears a flag is repeated. If a vCPU ran after all, a sweep that was delayed
//! halfway could clear entries in the middle of a row; a sweep that found every flag clear has
//! cleared none.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::sys::dirty_gfn::{DIRTY, Entry, RESET};

/// The entries of a ring, which KVM writes at any time; a trait so that tests can do so too.
pub(crate) trait Entries {
    /// How many there are: a power of two.
    fn count(&self) -> usize;
    /// The flags of an entry; acquires what KVM wrote before it set them.
    fn flags(&self, at: usize) -> u32;
    /// The slot and the page of an entry.
    fn content(&self, at: usize) -> (u32, u64);
    /// Sets the flags of an entry; releases what was read of it before.
    fn set_flags(&self, at: usize, flags: u32);
    /// A full fence.
    fn fence(&self);
}

impl<T: AsRef<[Entry]>> Entries for T {
    fn count(&self) -> usize {
        self.as_ref().len()
    }

    #[inline]
    fn flags(&self, at: usize) -> u32 {
        self.as_ref()[at].flags.load(Ordering::Acquire)
    }

    #[inline]
    fn content(&self, at: usize) -> (u32, u64) {
        let entry = &self.as_ref()[at];
        (entry.slot.load(Ordering::Relaxed), entry.page.load(Ordering::Relaxed))
    }

    #[inline]
    fn set_flags(&self, at: usize, flags: u32) {
        self.as_ref()[at].flags.store(flags, Ordering::Release);
    }

    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

/// What is known of the entries from `next` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// DIRTY up to KVM's dirty index, free behind it.
    Aligned,
    /// Free up to KVM's dirty index, which is not known; entries that KVM pushes from then on are
    /// DIRTY.
    Displaced,
    /// Some were overwritten, and nothing else is known.
    Overrun,
}

/// How often a sweep is repeated before it is left to the next recovery.
const MAX_SWEEPS: usize = 8;

/// Our side of a ring.
#[derive(Debug)]
pub(crate) struct Ring<E> {
    entries: E,
    /// The index of the first entry that is not flagged, modulo the ring's size.
    next: usize,
    /// How many entries before `next` are flagged and not known to be reset. KVM's reset index
    /// is among them or at `next`.
    flagged: usize,
    order: Order,
    /// How many entries were taken so far.
    handed_out: u64,
    /// Incremented before and after KVM resets entries; read by the vCPU.
    moves: Arc<AtomicU64>,
}

impl<E: Entries> Ring<E> {
    /// A ring that is still empty.
    pub(crate) fn new(entries: E) -> Self {
        let order = Order::Aligned;
        Self { entries, next: 0, flagged: 0, order, handed_out: 0, moves: Arc::default() }
    }

    /// The index of the entry `distance` behind `next`.
    fn at(&self, distance: usize) -> usize {
        (self.next + distance) % self.entries.count()
    }

    /// The entry before KVM's reset index, or before the first index where that may be.
    fn guard(&self) -> usize {
        self.at(self.entries.count() - 1 - self.flagged)
    }

    fn is_dirty(&self, distance: usize) -> bool {
        self.entries.flags(self.at(distance)) & DIRTY != 0
    }

    /// How many entries lie between `next` and the guard.
    fn capacity(&self) -> usize {
        self.entries.count() - 1 - self.flagged
    }

    /// The distance of the DIRTY entry before which none is DIRTY, if there is one.
    fn first_dirty(&self) -> Option<usize> {
        let mut first = (0..self.capacity()).find(|distance| self.is_dirty(*distance))?;
        // KVM may have pushed earlier entries after the scan passed them. Pushes become visible in
        // order: a thread that sees one sees those before it.
        while first > 0 && self.is_dirty(first - 1) {
            first -= 1;
        }
        Some(first)
    }

    /// Takes all entries and flags them RESET: passes (slot, page) of each to `sink`. Returns how
    /// many. Whether some were overwritten is known after a reset and [`settle`](Self::settle),
    /// which needs what was passed to `sink`.
    pub(crate) fn take(&mut self, mut sink: impl FnMut(u32, u64)) -> usize {
        let first = match self.order {
            Order::Aligned => 0,
            Order::Displaced => match self.first_dirty() {
                Some(first) => first,
                None => return 0,
            },
            Order::Overrun => return 0,
        };
        // KVM counts the free entries before `first` as used.
        (0..first).for_each(|distance| self.entries.set_flags(self.at(distance), RESET));
        let mut end = first;
        while end < self.capacity() && self.is_dirty(end) {
            let (slot, page) = self.entries.content(self.at(end));
            sink(slot, page);
            self.entries.set_flags(self.at(end), RESET);
            end += 1;
        }
        // KVM keeps some entries free; if none but the guard was free, it may have gone round.
        self.order = if end == self.capacity() { Order::Overrun } else { Order::Aligned };
        self.flag(end);
        if end > 0 {
            self.check_guard();
        }
        let taken = end - first;
        self.handed_out += taken as u64;
        taken
    }

    /// Counts the next `count` entries as flagged.
    fn flag(&mut self, count: usize) {
        self.flagged += count;
        self.next = self.at(count);
    }

    /// Flags a quarter of a displaced ring that KVM calls full and in which nothing is DIRTY. KVM
    /// counts more entries than a quarter as used: its limit is the size less 64, or less 576 with
    /// PML, and it refuses rings that are smaller than this reserve. Since KVM called the ring
    /// full, its vCPU must not have been in the guest, nor KVM's reset index have moved.
    pub(crate) fn skip_quarter(&mut self) {
        let quarter = (self.entries.count() / 4).min(self.capacity());
        (0..quarter).for_each(|distance| self.entries.set_flags(self.at(distance), RESET));
        self.flag(quarter);
    }

    /// How many entries are flagged and not known to be reset.
    pub(crate) fn flagged(&self) -> usize {
        self.flagged
    }

    /// The count that [`count_move`](Self::count_move) raises.
    pub(crate) fn moves(&self) -> &Arc<AtomicU64> {
        &self.moves
    }

    /// Tells the vCPU that KVM's reset index is about to move, or has moved.
    pub(crate) fn count_move(&self) {
        if self.flagged > 0 {
            self.moves.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Whether KVM has pushed the guard.
    fn has_passed_guard(&self) -> bool {
        // Between the stores of flags and this check; see the module.
        self.entries.fence();
        self.entries.flags(self.guard()) & DIRTY != 0
    }

    /// Checks whether entries may have been overwritten, while KVM has reset none of those that are
    /// flagged.
    pub(crate) fn check_guard(&mut self) {
        if self.has_passed_guard() {
            self.order = Order::Overrun;
        }
    }

    /// Notes that KVM has reset all flagged entries, of which `taken` was taken, in their order.
    pub(crate) fn settle(&mut self, taken: &[(u32, u64)]) {
        if self.has_passed_guard() && !self.is_intact(taken) {
            self.order = Order::Overrun;
        }
        self.flagged = 0;
    }

    /// Whether `taken` is what all flagged entries had, and KVM has cleared the flag of none that
    /// it had pushed over.
    fn is_intact(&self, taken: &[(u32, u64)]) -> bool {
        let before = self.entries.count() - self.flagged;
        let mut entries = (before..).map(|distance| self.at(distance)).zip(taken);
        self.flagged > 0
            && taken.len() == self.flagged
            && entries.all(|(at, taken)| {
                self.entries.flags(at) & DIRTY != 0 || self.entries.content(at) == *taken
            })
    }

    /// Notes that entries were overwritten.
    pub(crate) fn overrun(&mut self) {
        self.order = Order::Overrun;
    }

    pub(crate) fn is_overrun(&self) -> bool {
        self.order == Order::Overrun
    }

    pub(crate) fn is_displaced(&self) -> bool {
        self.order == Order::Displaced
    }

    /// Flags those entries again that KVM may not have reset, as it may have overwritten the flag;
    /// no vCPU runs. KVM has pushed each of them, and resets those that it has not reset yet.
    pub(crate) fn flag_again(&self) {
        let before = self.entries.count() - self.flagged;
        (0..self.flagged).for_each(|n| self.entries.set_flags(self.at(before + n), RESET));
    }

    /// Called when KVM has reset all that it would, after [`flag_again`](Self::flag_again); no vCPU
    /// runs. Clears the flags of entries that KVM had reset before. If KVM has pushed over one, the
    /// reset may have stopped there: the ring is overrun, and the flags stay.
    pub(crate) fn settle_again(&mut self) {
        let before = self.entries.count() - self.flagged;
        let mut places = (0..self.flagged).map(|n| self.at(before + n));
        if places.any(|at| self.entries.flags(at) & DIRTY != 0) {
            self.order = Order::Overrun;
            return;
        }
        (0..self.flagged).for_each(|n| self.entries.set_flags(self.at(before + n), 0));
        self.settle(&[]);
    }

    /// Clears all flags of an overrun ring, while no vCPU runs: it is displaced then. A ring that
    /// KVM still pushes to stays overrun.
    pub(crate) fn sweep(&mut self) {
        if self.flagged > 0 {
            return; // KVM's reset index is not known
        }
        let clear = |entries: &E| {
            let used = (0..entries.count()).filter(|at| entries.flags(*at) != 0);
            used.map(|at| entries.set_flags(at, 0)).count()
        };
        if (0..MAX_SWEEPS).any(|_| clear(&self.entries) == 0) {
            self.order = Order::Displaced;
        }
    }

    /// How many entries were taken so far.
    pub(crate) fn handed_out(&self) -> u64 {
        self.handed_out
    }

    /// How many entries the ring has.
    pub(crate) fn count(&self) -> u64 {
        self.entries.count() as u64
    }

    /// How many entries KVM has pushed so far, including those that are not taken yet, which are
    /// only counted. After a loss, approximate.
    pub(crate) fn seen(&self) -> u64 {
        let (mut waiting, mut end) = (0, self.capacity());
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
}

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
