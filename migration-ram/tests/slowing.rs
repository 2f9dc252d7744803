//! Guests that dirty more than the link carries, and how they are slowed down.

#[path = "common/deadline.rs"]
mod deadline;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use memory_region::MemoryMap;
use migration_ram::{
    AutoConverge, Buffered, DeviceError, DirtyLimit, Migrated, OutgoingChannels, Precopy,
    SendError, ShutdownHandle, WriteTransport, receive,
};
use ram_block::{PageSize, RamBlock, SendList, TransferError};

const PAGES: u64 = 700;
/// Bytes per second that the link carries, fewer than the guest dirties.
const LINK: u64 = 8 << 20;

fn page() -> u64 {
    PageSize::host().bytes()
}

#[derive(Default)]
struct Reins {
    stop: AtomicBool,
    held: AtomicBool,
    /// Limits that were set, in order.
    limits: Mutex<Vec<Option<u64>>>,
    /// Whether the guest keeps to the limit.
    obeys: AtomicBool,
}

/// A guest that writes all pages repeatedly, unless it is paused or limited.
struct Guest {
    memory: Arc<MemoryMap>,
    ram: Arc<RamBlock>,
    reins: Arc<Reins>,
    writer: JoinHandle<()>,
}

impl Guest {
    fn start() -> Self {
        let memory = MemoryMap::new();
        let ram = RamBlock::anonymous("ram", PAGES * page()).unwrap();
        memory.transaction(|map| map.ram("ram", ram.clone())).unwrap();
        (0..PAGES).for_each(|n| ram.write(n * page(), &[1]).unwrap());
        let reins = Arc::<Reins>::default();
        reins.obeys.store(true, Ordering::Relaxed);
        let writer = std::thread::spawn({
            let (ram, reins) = (ram.clone(), reins.clone());
            move || reins.write(&ram)
        });
        Self { memory, ram, reins, writer }
    }

    /// A migration that must converge, of which every page has contents in the end.
    fn precopy(&self) -> Precopy {
        Precopy::new(self.memory.clone())
            .bandwidth(LINK)
            .downtime(Duration::from_millis(20))
            .max_rounds(3)
            .must_converge(true)
    }

    fn limited(&self) -> Precopy {
        let reins = self.reins.clone();
        self.precopy().max_rounds(20).dirty_limit(DirtyLimit::default(), move |limit| {
            reins.limits.lock().unwrap().push(limit);
            Ok(())
        })
    }

    fn stop(self) {
        self.reins.stop.store(true, Ordering::Relaxed);
        self.writer.join().unwrap();
    }

    /// Whether a limit was set and lifted.
    fn was_let_go(&self) -> bool {
        let limits = self.reins.limits.lock().unwrap();
        limits.len() > 2 && limits[0].is_none() && limits.last() == Some(&None)
    }
}

impl Reins {
    fn write(&self, ram: &RamBlock) {
        let (mut free_at, mut n) = (Instant::now(), 0u64);
        while !self.stop.load(Ordering::Relaxed) {
            let limit = self.limits.lock().unwrap().last().copied().flatten();
            let now = Instant::now();
            let may = match limit.filter(|_| self.obeys.load(Ordering::Relaxed)) {
                Some(limit) if free_at <= now => {
                    // Unused budget is kept only for a short time.
                    let from = free_at.max(now.checked_sub(Duration::from_millis(5)).unwrap());
                    free_at = from
                        + Duration::from_secs(1) * u32::try_from(page()).unwrap()
                            / u32::try_from(limit).unwrap();
                    true
                }
                limit => limit.is_none(),
            };
            if may && !self.held.load(Ordering::Relaxed) {
                ram.write(n % PAGES * page(), &(n + 1).to_le_bytes()).unwrap();
                n += 1;
            }
            if !may || n % 16 == 0 {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    }
}

fn still() -> Result<(), DeviceError> {
    Ok(())
}

#[test]
fn a_guest_that_outruns_the_link_is_throttled_or_reported() {
    deadline::in_time(|| {
        let guest = Guest::start();
        let refused = guest.precopy().run(&mut Vec::new(), still, |_| ()).unwrap_err();
        assert!(matches!(refused, SendError::NotConverging { rounds: 3, .. }), "{refused}");

        struct Lets(Arc<Reins>);
        impl Drop for Lets {
            fn drop(&mut self) {
                self.0.held.store(false, Ordering::Relaxed);
            }
        }
        let settings = AutoConverge { initial: 90, increment: 9, max: 99 };
        let hold = guest.reins.clone();
        let slowed = guest.precopy().auto_converge(settings, move || {
            hold.held.store(true, Ordering::Relaxed);
            Ok(Lets(hold.clone()))
        });
        let Migrated { stats, .. } = slowed.run(&mut Vec::new(), still, |_| ()).unwrap();
        assert!(stats.converged && stats.throttle >= 90, "{stats:?}");
        let held = guest.reins.held.load(Ordering::Relaxed);
        assert!(!held, "the guest is let go when the throttle ends");
        guest.stop();
    });
}

#[test]
fn a_guest_that_outruns_the_link_is_limited() {
    deadline::in_time(|| {
        let guest = Guest::start();
        let reins = guest.reins.clone();
        let pause = || {
            reins.stop.store(true, Ordering::Relaxed);
            // A write that is under way precedes the last sync.
            while !guest.writer.is_finished() {
                std::thread::yield_now();
            }
            Ok(())
        };
        let mut stream = Vec::new();
        let Migrated { stats, .. } = guest.limited().run(&mut stream, pause, |_| ()).unwrap();
        assert!(stats.converged && stats.throttle == 0, "{stats:?}");
        assert!(guest.was_let_go());
        let limits = guest.reins.limits.lock().unwrap().clone();
        let set = &limits[1..limits.len() - 1];
        assert_eq!(set.last().copied(), Some(stats.dirty_limit));
        // Half of what the link carries, or less if the host is busy.
        assert!(set.iter().all(|limit| limit.is_some_and(|limit| limit <= LINK)), "{set:?}");
        let twin = RamBlock::anonymous("ram", PAGES * page()).unwrap();
        receive(&mut stream.as_slice(), std::slice::from_ref(&twin)).unwrap();
        let contents = |block: &RamBlock| {
            let mut bytes = vec![0; usize::try_from(block.len()).unwrap()];
            block.read(0, &mut bytes).unwrap();
            bytes
        };
        assert!(contents(&guest.ram) == contents(&twin));
    });
}

/// A stream that fails once the flag is set.
struct Breaks<'a>(&'a AtomicBool);

impl WriteTransport for Breaks<'_> {
    fn send(&mut self, list: &mut SendList<'_>) -> Result<(), TransferError> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(TransferError::UnexpectedEof { done: 0, missing: list.len() }),
            false => Vec::new().send(list),
        }
    }

    fn hang_up(&self) -> Option<ShutdownHandle> {
        None
    }
}

#[test]
fn a_limit_is_lifted_however_the_migration_ends() {
    deadline::in_time(|| {
        let guest = Guest::start();
        let clear = || guest.reins.limits.lock().unwrap().clear();

        let precopy = guest.limited();
        let cancel = precopy.cancel();
        let error = precopy.run(&mut Vec::new(), still, |now| {
            if now.dirty_limit.is_some() {
                cancel.cancel();
            }
        });
        assert!(matches!(error, Err(SendError::Cancelled)), "{error:?}");
        assert!(guest.was_let_go());
        clear();

        let broken = AtomicBool::new(false);
        let error = guest.limited().run(&mut Breaks(&broken), still, |now| {
            broken.store(now.dirty_limit.is_some(), Ordering::Relaxed);
        });
        assert!(matches!(error, Err(SendError::Write { .. })), "{error:?}");
        assert!(guest.was_let_go());
        clear();

        let error = guest.limited().run(&mut Vec::new(), || Err::<(), _>("it runs".into()), |_| ());
        assert!(matches!(error, Err(SendError::Pause(_))), "{error:?}");
        assert!(guest.was_let_go());
        clear();

        // The guest ignores the limit: rounds count once it is set.
        guest.reins.obeys.store(false, Ordering::Relaxed);
        let error = guest.limited().max_rounds(2).run(&mut Vec::new(), still, |_| ());
        assert!(matches!(error, Err(SendError::NotConverging { .. })), "{error:?}");
        assert!(guest.was_let_go());
        guest.stop();
    });
}

#[test]
fn who_cannot_limit_says_so_at_once() {
    deadline::in_time(|| {
        let guest = Guest::start();
        let refuses = |_| Err("no rings".into());
        let precopy = guest.precopy().dirty_limit(DirtyLimit::default(), refuses);
        let mut stream = Vec::new();
        let error = precopy.run(&mut stream, still, |_| ()).unwrap_err();
        assert!(matches!(error, SendError::DirtyLimit(_)), "{error}");
        assert!(stream.is_empty());

        // Or later: then the limit is lifted, which may be in force.
        let reins = guest.reins.clone();
        let late = guest.precopy().dirty_limit(DirtyLimit::default(), move |limit| {
            reins.limits.lock().unwrap().push(limit);
            if limit.is_some() { Err("no thread".into()) } else { Ok(()) }
        });
        let error = late.run(&mut Vec::new(), still, |_| ()).unwrap_err();
        assert!(matches!(error, SendError::DirtyLimit(_)), "{error}");
        assert!(guest.was_let_go());

        let settings = DirtyLimit { percent: 0, ..DirtyLimit::default() };
        let precopy = guest.precopy().dirty_limit(settings, |_| Ok(()));
        let error = precopy.run(&mut Vec::new(), still, |_| ()).unwrap_err();
        assert!(matches!(error, SendError::DirtyLimitSettings(_)), "{error}");
        guest.stop();
    });
}

/// A connection, and a device that writes one page after each send.
struct WritesOne(Arc<RamBlock>);

impl WriteTransport for WritesOne {
    fn send(&mut self, list: &mut SendList<'_>) -> Result<(), TransferError> {
        Vec::new().send(list)?;
        self.0.write(0, &[1]).unwrap();
        Ok(())
    }
}

/// A guest whose rest never fits the downtime of zero, but that dirties less than half of what is
/// sent, as each round sends more than its one page: it is not slowed down, and its rounds count.
#[test]
fn a_guest_that_writes_little_does_not_migrate_for_ever() {
    deadline::in_time(|| {
        let memory = MemoryMap::new();
        let ram = RamBlock::anonymous("ram", PAGES * page()).unwrap();
        memory.transaction(|map| map.ram("ram", ram.clone())).unwrap();
        let precopy = Precopy::new(memory).downtime(Duration::ZERO).max_rounds(3);
        let throttled = precopy.clone().auto_converge(AutoConverge::default(), still);
        let limited = precopy.dirty_limit(DirtyLimit::default(), |_| Ok(()));
        for precopy in [throttled, limited] {
            let (mut main, mut channels) = (WritesOne(ram.clone()), vec![Vec::new(); 8]);
            let channels = channels.iter_mut().map(|channel| channel as &mut dyn WriteTransport);
            let to = OutgoingChannels::new(&mut main).channels(channels);
            let Migrated { stats, .. } = precopy.run(to, still, |_| ()).unwrap();
            assert_eq!((stats.rounds.len(), stats.converged), (4, false), "{stats:?}");
            assert_eq!((stats.throttle, stats.dirty_limit), (0, None));
        }
    });
}

/// A link that carries so many bytes fast, and then few per second.
struct Tiring {
    fast: u64,
    rate: f64,
}

impl std::io::Write for Tiring {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let len = bytes.len().min(1 << 16);
        let rate = if self.fast > 0 { 100e6 } else { self.rate };
        self.fast = self.fast.saturating_sub(len as u64);
        #[allow(clippy::cast_precision_loss)]
        std::thread::sleep(Duration::from_secs_f64(len as f64 / rate));
        Ok(len)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The bandwidth of the first second does not hold for the next ones; 300 ms of downtime are
/// allowed.
#[test]
fn a_link_that_becomes_slow_is_not_trusted() {
    deadline::in_time(|| {
        let memory = MemoryMap::new();
        let ram = RamBlock::anonymous("ram", 136 << 20).unwrap();
        (0..ram.pages()).for_each(|n| ram.write(n * page(), &[1]).unwrap());
        memory.transaction(|map| map.ram("ram", ram.clone())).unwrap();
        let mut link = Buffered(Tiring { fast: 101_000_000, rate: 6e6 });
        let Migrated { stats, .. } =
            Precopy::new(memory).run(&mut link, || Ok(()), |_| ()).unwrap();
        assert!(stats.converged);
        // By what was left to send, as a busy host may take longer for it: 800 ms' worth.
        let left = stats.rounds.last().unwrap().bytes;
        assert!(left < 4_800_000, "{left} bytes at the end");
    });
}
