//! The argument of the parent module, checked by loom, with what is wrong kept to show that the
//! model can see the fault: a value that is dropped while it is read, or never.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::cell::UnsafeCell;
use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use loom::sync::atomic::{AtomicUsize, fence};
use loom::sync::{Arc, Mutex, MutexGuard};
use loom::thread;

use super::*;

impl Address for AtomicUsize {
    fn new(value: usize) -> Self {
        Self::new(value)
    }

    fn load_relaxed(&self) -> usize {
        self.load(Relaxed)
    }

    fn load_acquire(&self) -> usize {
        self.load(Acquire)
    }

    fn store_relaxed(&self, value: usize) {
        self.store(value, Relaxed);
    }

    fn store_release(&self, value: usize) {
        self.store(value, Release);
    }
}

/// Wrong: slots are cleared, and filled, in no order with what was read before.
struct Lax(AtomicUsize);

impl Address for Lax {
    fn new(value: usize) -> Self {
        Self(AtomicUsize::new(value))
    }

    fn load_relaxed(&self) -> usize {
        self.0.load(Relaxed)
    }

    fn load_acquire(&self) -> usize {
        self.0.load(Acquire)
    }

    fn store_relaxed(&self, value: usize) {
        self.0.store(value, Relaxed);
    }

    fn store_release(&self, value: usize) {
        self.0.store(value, Relaxed);
    }
}

/// A barrier that the writer makes a reader pass: an interrupt, which meets the reader between any
/// two of its steps, and by which each knows all that the other did before. Or, where there is
/// none, a fence of each side.
struct Barrier {
    fences: bool,
    wanted: AtomicUsize,
    passed: AtomicUsize,
}

impl Barrier {
    fn new(fences: bool) -> Self {
        Self { fences, wanted: AtomicUsize::new(0), passed: AtomicUsize::new(0) }
    }

    fn pass(&self) {
        if self.fences {
            return fence(SeqCst);
        }
        let wanted = self.wanted.load(Relaxed) + 1;
        self.wanted.store(wanted, Release);
        while self.passed.load(Acquire) < wanted {
            thread::yield_now();
        }
    }

    /// The reader is done, or waits for a lock, until it has which it runs no more: there is nobody
    /// to be interrupted.
    fn leave(&self) {
        self.passed.store(usize::MAX, Release);
    }
}

/// A value, by which loom sees accesses that are not ordered.
struct Object {
    memory: UnsafeCell<()>,
    drops: AtomicUsize,
}

// SAFETY: nothing is accessed but loom's notes of accesses.
unsafe impl Sync for Object {}

impl Object {
    fn new() -> Self {
        Self { memory: UnsafeCell::new(()), drops: AtomicUsize::new(0) }
    }

    fn read(&self) {
        self.memory.with(|_| ());
        assert_eq!(self.drops.load(Relaxed), 0, "read after it was dropped");
    }

    fn end(&self) {
        self.memory.with_mut(|_| ());
        assert_eq!(self.drops.fetch_add(1, Relaxed), 0, "dropped twice");
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Wrong {
    Nothing,
    /// W2 is left out.
    NoFirstBarrier,
    /// W5 is left out.
    NoSecondBarrier,
    /// R3 is left out.
    NoSecondLook,
    /// W4 comes after W6.
    LateFlag,
    /// W6 is left out if no reader is found any more to be flagged.
    NoThirdLook,
    /// R5 comes before R4.
    EarlyLookAtTheFlag,
    /// A reader that has to fence does so as it begins, but not between R4 and R5.
    NoFenceAsItLeaves,
}

/// A cell, with two values at addresses 1 and 2.
struct World<A: Address> {
    wrong: Wrong,
    current: AtomicUsize,
    objects: [Object; 2],
    readers: Mutex<Readers<Arc<Record<A>>, usize>>,
    barriers: Vec<Barrier>,
}

impl<A: Address + 'static> World<A> {
    /// With so many readers, and their records.
    fn new(readers: usize, fences: bool, wrong: Wrong) -> (Arc<Self>, Vec<Arc<Record<A>>>) {
        let records: Vec<_> = (0..readers).map(|_| Arc::new(Record::new(fences))).collect();
        let mut list = Readers::new();
        records.iter().for_each(|record| list.add(record.clone()));
        let world = Self {
            wrong,
            current: AtomicUsize::new(1),
            objects: [Object::new(), Object::new()],
            readers: Mutex::new(list),
            barriers: (0..readers).map(|_| Barrier::new(fences)).collect(),
        };
        (Arc::new(world), records)
    }

    fn drop_values(&self, addresses: Vec<usize>) {
        addresses.into_iter().for_each(|address| self.objects[address - 1].end());
    }

    /// Passes the barriers of all readers but one.
    fn barrier(&self, but: Option<usize>) {
        let others = self.barriers.iter().enumerate().filter(|(at, _)| Some(*at) != but);
        others.for_each(|(_, barrier)| barrier.pass());
    }

    /// Replaces the first value by the second, as a thread that is a reader too, perhaps.
    fn replace(&self, by: Option<usize>) {
        let former = self.current.swap(2, AcqRel); // W1
        if self.wrong != Wrong::NoFirstBarrier {
            self.barrier(by); // W2
        }
        let mut readers = self.readers.lock().unwrap();
        let unread = match self.wrong {
            Wrong::NoSecondBarrier => readers.retire(vec![(former, former)], || ()),
            Wrong::NoThirdLook => {
                readers.left.push((former, former));
                let mut unread = readers.take_unread_now(&[former]);
                let found = readers.readers_of(former);
                if found.filter(|slot| slot.set_waited_for(true)).count() > 0 {
                    self.barrier(by);
                    unread.extend(readers.take_unread_now(&[former]));
                }
                unread
            }
            Wrong::LateFlag => {
                readers.left.push((former, former));
                let mut unread = readers.take_unread_now(&[former]);
                self.barrier(by);
                unread.extend(readers.take_unread_now(&[former]));
                readers.readers_of(former).for_each(|slot| assert!(slot.set_waited_for(true)));
                unread
            }
            _ => readers.retire(vec![(former, former)], || self.barrier(by)),
        };
        drop(readers);
        self.drop_values(unread);
    }
}

/// One reader of a world.
struct Reader<A: Address> {
    world: Arc<World<A>>,
    record: Arc<Record<A>>,
    at: usize,
    met: Cell<usize>,
}

impl<A: Address + 'static> Reader<A> {
    fn new(world: &Arc<World<A>>, records: &[Arc<Record<A>>], at: usize) -> Self {
        Self { world: world.clone(), record: records[at].clone(), at, met: Cell::new(0) }
    }

    /// The interrupt, if it comes now.
    fn meet(&self) {
        let barrier = &self.world.barriers[self.at];
        if barrier.fences {
            return;
        }
        let wanted = barrier.wanted.load(Acquire);
        if wanted != self.met.replace(wanted) {
            barrier.passed.store(wanted, Release);
        }
    }

    fn light_fence(&self) {
        match self.world.barriers[self.at].fences {
            true => fence(SeqCst),
            false => self.meet(),
        }
    }

    fn current(&self) -> *mut () {
        self.meet();
        let current = std::ptr::without_provenance_mut(self.world.current.load(Acquire));
        self.meet();
        current
    }

    /// As `cell::leave` and `thread::leave_slowly`.
    fn leave(&self, slot: usize, address: usize, is_last: bool) {
        let (world, slot) = (&self.world, &self.record.slots()[slot]);
        let has_no_fence = world.wrong == Wrong::NoFenceAsItLeaves;
        self.meet();
        let early = slot.is_waited_for();
        self.meet();
        let late = slot.leave(|| self.meet())
            && slot.is_waited_for_after(|| {
                if !has_no_fence {
                    self.light_fence()
                }
            });
        let is_waited_for = if world.wrong == Wrong::EarlyLookAtTheFlag { early } else { late };
        if is_last {
            world.barriers[self.at].leave();
        }
        if is_waited_for {
            let mut readers = self.lock(is_last);
            let unread = readers.left_by(slot, address, || world.barrier(Some(self.at)));
            drop(readers);
            world.drop_values(unread);
        }
    }

    /// A thread that waits for the lock can be interrupted, unless it is known to be done.
    fn lock(&self, is_done: bool) -> MutexGuard<'_, Readers<Arc<Record<A>>, usize>> {
        loop {
            match self.world.readers.try_lock() {
                Ok(readers) => return readers,
                Err(_) if is_done || self.world.barriers[self.at].fences => {
                    return self.world.readers.lock().unwrap();
                }
                Err(_) => self.meet(),
            }
            thread::yield_now();
        }
    }

    /// Reads the value in a slot, and calls `within` meanwhile.
    fn read(&self, slot: usize, is_last: bool, within: impl FnOnce()) {
        let address = loop {
            let announced =
                self.record.slots()[slot].announce(|| self.current(), || self.light_fence());
            match announced {
                Err(found) if self.world.wrong != Wrong::NoSecondLook => {
                    self.leave(slot, found.addr(), false);
                }
                Ok(value) | Err(value) => break value.addr(),
            }
        };
        self.meet();
        within();
        self.world.objects[address - 1].read();
        self.leave(slot, address, is_last);
    }
}

fn model(preemptions: usize, body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(body);
}

/// Readers, beside a writer: the replaced value is dropped once all are done, and not before.
fn readers_beside_a_writer<A: Address + 'static>(count: usize, fences: bool, wrong: Wrong) {
    let (world, records) = World::<A>::new(count, fences, wrong);
    let threads: Vec<_> = (0..count)
        .map(|at| {
            let reader = Reader::new(&world, &records, at);
            thread::spawn(move || reader.read(0, true, || ()))
        })
        .collect();
    world.replace(None);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(world.objects[0].drops.load(Relaxed), 1, "not dropped");
    assert_eq!(world.objects[1].drops.load(Relaxed), 0, "the current value was dropped");
}

#[test]
fn a_value_is_dropped_by_the_writer_or_by_its_reader() {
    for fences in [false, true] {
        model(4, move || readers_beside_a_writer::<AtomicUsize>(1, fences, Wrong::Nothing));
    }
}

#[test]
fn a_value_is_dropped_by_the_last_of_its_readers() {
    // By fences, which take fewer steps than interrupts.
    model(3, || readers_beside_a_writer::<AtomicUsize>(2, true, Wrong::Nothing));
}

/// A reader replaces the value that it reads, from within a read within a read, beside another one.
#[test]
fn a_reader_replaces_what_it_reads() {
    model(2, || {
        let (world, records) = World::<AtomicUsize>::new(2, false, Wrong::Nothing);
        let other = Reader::new(&world, &records, 1);
        let other = thread::spawn(move || other.read(0, true, || ()));
        let reader = Reader::new(&world, &records, 0);
        // Nobody waits for it but itself.
        world.barriers[0].leave();
        reader.read(0, false, || {
            reader.read(1, false, || world.replace(Some(0)));
            reader.read(1, false, || ());
        });
        other.join().unwrap();
        assert_eq!(world.objects[0].drops.load(Relaxed), 1, "not dropped");
    });
}

#[test]
fn the_model_sees_wrong_orders() {
    use Wrong::*;
    for (wrong, fences) in [
        (NoFirstBarrier, false),
        (NoFirstBarrier, true),
        (NoSecondBarrier, false),
        (NoSecondBarrier, true),
        (NoSecondLook, false),
        (NoSecondLook, true),
        (EarlyLookAtTheFlag, true),
        (NoFenceAsItLeaves, true),
        (LateFlag, true),
        (NoThirdLook, true),
    ] {
        let check = || model(4, move || readers_beside_a_writer::<AtomicUsize>(1, fences, wrong));
        assert!(catch_unwind(AssertUnwindSafe(check)).is_err(), "{wrong:?}, {fences}");
    }
    let check = || model(4, || readers_beside_a_writer::<Lax>(1, false, Nothing));
    assert!(catch_unwind(AssertUnwindSafe(check)).is_err(), "slots without an order");
}
