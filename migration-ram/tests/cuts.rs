//! Connections that are cut, and sides that are killed, at any byte: the survivor's state is
//! correct, and a second migration succeeds.

#[path = "common/deadline.rs"]
mod deadline;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread::Scope;
use std::time::Duration;

use memory_region::{GlobalLogClaim, MemoryMap};
use migration_ram::{
    FnDevice, IncomingChannels, OutgoingChannels, Precopy, Progress, ReadTransport, ReceiveError,
    Received, Receiver, SendError, WriteTransport,
};
use ram_block::{DirtyClient, PageSize, RamBlock};

const PAGES: u64 = 96;

fn page() -> u64 {
    PageSize::host().bytes()
}

fn contents(block: &RamBlock) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(block.len()).unwrap()];
    block.read(0, &mut bytes).unwrap();
    bytes
}

/// A generator of numbers, from a seed: SplitMix64.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Which part fails.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Lost {
    Connection,
    Source,
    Destination,
}

/// A proxy between the two sides: passes so many bytes, then one part fails.
struct Proxy {
    left: AtomicI64,
    lost: Lost,
    /// Ends of the source's connections and of the destination's.
    near: Vec<UnixStream>,
    far: Vec<UnixStream>,
    /// Cancels the source, when that is to be lost.
    kill_source: Box<dyn Fn() + Send + Sync>,
}

impl Proxy {
    fn cut(&self) {
        let shut =
            |ends: &[UnixStream]| ends.iter().for_each(|end| drop(end.shutdown(Shutdown::Both)));
        match self.lost {
            Lost::Connection => {
                shut(&self.near);
                shut(&self.far);
            }
            Lost::Source => {
                shut(&self.far);
                (self.kill_source)();
            }
            Lost::Destination => {
                shut(&self.near);
                // Also its own connections, so that its thread ends.
                shut(&self.far);
            }
        }
    }

    /// Forwards bytes from one end, up to the limit.
    fn pass(&self, mut from: &UnixStream, mut to: &UnixStream) {
        let mut bytes = vec![0; 3000];
        loop {
            let count = from.read(&mut bytes).unwrap_or(0);
            let count_left = i64::try_from(count).unwrap();
            let left = self.left.fetch_sub(count_left, Ordering::AcqRel);
            let passed = usize::try_from(left.clamp(0, count_left)).unwrap();
            let broken = to.write_all(&bytes[..passed]).is_err();
            if left < count_left {
                return self.cut();
            }
            if count == 0 || broken {
                // One side has closed its connection: close the other one's.
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
        }
    }

    fn run<'s>(&'s self, scope: &'s Scope<'s, '_>) {
        for (near, far) in self.near.iter().zip(&self.far) {
            scope.spawn(|| self.pass(near, far));
            scope.spawn(|| self.pass(far, near));
        }
    }
}

/// A machine, and what it has written while it was sent.
struct Machine {
    memory: Arc<MemoryMap>,
    blocks: Vec<Arc<RamBlock>>,
    _vga: GlobalLogClaim,
    numbers: Numbers,
    written: BTreeSet<u64>,
}

impl Machine {
    fn new(seed: u64) -> Self {
        let blocks: Vec<_> =
            ["ram", "vram"].map(|id| RamBlock::anonymous(id, PAGES * page()).unwrap()).into();
        let memory = MemoryMap::new();
        memory
            .transaction(|map| {
                blocks.iter().try_for_each(|block| map.ram(block.id(), block.clone()).map(drop))
            })
            .unwrap();
        let mut numbers = Numbers(seed);
        for block in &blocks {
            for n in (0..PAGES).filter(|n| n % 3 != 0) {
                let bytes: Vec<u8> =
                    (0..page() / 8).flat_map(|_| numbers.next().to_le_bytes()).collect();
                block.write(n * page(), &bytes).unwrap();
            }
        }
        let vga = memory.claim_global_log(DirtyClient::VGA).unwrap();
        Self { memory, blocks, _vga: vga, numbers, written: BTreeSet::new() }
    }

    fn write(&mut self) {
        let number = self.numbers.next();
        let at = number % PAGES;
        self.blocks[0].write(at * page(), &number.to_le_bytes()).unwrap();
        self.written.insert(at);
    }

    /// Sends it over a connection and channels, writing a page after each round.
    fn send(&mut self, precopy: &Precopy, mut ends: Vec<UnixStream>) -> Result<(), SendError> {
        let answers = ends[0].try_clone().unwrap();
        let (main, channels) = ends.split_first_mut().unwrap();
        let channels = channels.iter_mut().map(|end| end as &mut dyn WriteTransport);
        let to = OutgoingChannels::new(main).channels(channels);
        let observe = |now: &Progress| {
            if now.round_ended.is_some_and(|round| !round.paused) {
                self.write();
            }
        };
        precopy.run(to.return_path(&mut &answers), || Ok(()), observe).map(drop)
    }

    fn precopy(&self) -> Precopy {
        let state = FnDevice::new("state", || Ok(b"of a device".to_vec()), |_, _| Ok(()));
        let precopy = Precopy::new(self.memory.clone()).device(Arc::new(state));
        precopy.downtime(Duration::ZERO).max_rounds(3)
    }

    /// The machine runs on as before the migration: its log is off, and another client of the log
    /// has missed no page.
    fn is_as_before(&self) {
        for block in &self.blocks {
            assert!(!block.dirty().enabled().contains(DirtyClient::MIGRATION));
        }
        let vga = (0..PAGES).filter(|n| self.blocks[0].dirty().is_dirty(DirtyClient::VGA, *n));
        assert!(vga.eq(self.written.iter().copied()));
    }

    fn equals(&self, twins: &[Arc<RamBlock>]) -> bool {
        self.blocks.iter().zip(twins).all(|(block, twin)| contents(block) == contents(twin))
    }
}

/// The destination: its blocks, and how often its device was restored.
struct Twin {
    blocks: Vec<Arc<RamBlock>>,
    restored: Arc<AtomicI64>,
}

impl Twin {
    fn new() -> Self {
        let block = |id| RamBlock::anonymous(id, PAGES * page()).unwrap();
        Self { blocks: ["ram", "vram"].map(block).into(), restored: Arc::default() }
    }

    fn receive(&self, mut ends: Vec<UnixStream>) -> Result<Received, ReceiveError> {
        let restored = self.restored.clone();
        let restore = move |_, state: &[u8]| {
            assert_eq!(state, b"of a device");
            restored.fetch_add(1, Ordering::AcqRel);
            Ok(())
        };
        let device = FnDevice::new("state", || Ok(Vec::new()), restore);
        let answers = ends[0].try_clone().unwrap();
        let from =
            IncomingChannels::several(ends.iter_mut().map(|end| end as &mut dyn ReadTransport));
        Receiver::new(&self.blocks).device(Arc::new(device)).run(from.return_path(&mut &answers))
    }
}

/// Pairs of connected sockets.
fn pairs(count: usize) -> (Vec<UnixStream>, Vec<UnixStream>) {
    (0..count).map(|_| UnixStream::pair().unwrap()).unzip()
}

/// One migration through a proxy that passes `bytes` bytes; returns how many passed.
fn cut_after(bytes: i64, lost: Lost, channels: usize, seed: u64) -> i64 {
    let (mut machine, twin) = (Machine::new(seed), Twin::new());
    let (source, near) = pairs(1 + channels);
    let (far, destination) = pairs(1 + channels);
    let precopy = machine.precopy();
    let cancel = precopy.cancel();
    let proxy = Proxy {
        left: AtomicI64::new(bytes),
        lost,
        near,
        far,
        kill_source: Box::new(move || cancel.cancel()),
    };
    let (sent, received) = std::thread::scope(|scope| {
        proxy.run(scope);
        let receiving = scope.spawn(|| twin.receive(destination));
        let sent = machine.send(&precopy, source);
        (sent, receiving.join().unwrap())
    });
    machine.is_as_before();
    let restored = twin.restored.load(Ordering::Acquire);
    let what = format!("{lost:?} after {bytes} bytes: {sent:?}, {received:?}");
    match (&sent, &received) {
        (Ok(()), Err(_)) => panic!("a lost migration has succeeded: {what}"),
        (_, Ok(_)) => assert!(restored == 1 && machine.equals(&twin.blocks), "{what}"),
        (Err(_), Err(_)) => assert!(restored == 0, "{what}"),
    }
    let passed = bytes - proxy.left.load(Ordering::Acquire);
    // The machine runs on, and is sent again to a destination that has a part of it already.
    (0..5).for_each(|_| machine.write());
    let (source, destination) = pairs(1 + channels);
    let precopy = machine.precopy();
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| twin.receive(destination));
        machine.send(&precopy, source).unwrap();
        receiving.join().unwrap().unwrap();
    });
    machine.is_as_before();
    assert!(machine.equals(&twin.blocks), "the second try, {what}");
    passed
}

fn cuts(lost: Lost) {
    deadline::in_time(move || {
        for channels in [0, 2] {
            let all = cut_after(i64::MAX / 2, lost, channels, 1);
            let mut numbers = Numbers(all.unsigned_abs());
            for seed in 0..34 {
                // At any byte, or near the end, at the acknowledgement.
                let most = if seed % 4 == 3 { 200 } else { all.unsigned_abs() };
                let before_the_end = i64::try_from(numbers.next() % most).unwrap();
                cut_after(all - before_the_end, lost, channels, seed);
            }
        }
    });
}

#[test]
fn a_connection_is_cut() {
    cuts(Lost::Connection);
}

#[test]
fn the_source_is_killed() {
    cuts(Lost::Source);
}

#[test]
fn the_destination_is_killed() {
    cuts(Lost::Destination);
}
