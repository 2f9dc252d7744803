//! What the two processes do, one order at a time.

use std::collections::BTreeSet;
use std::io::{self, BufRead};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use machines::link::{Address, Link, Listener};
use memory_region::MemoryMap;
use migration_ram::{DeviceError, FnDevice, Precopy, Progress, Receiver};
use ram_block::{DirtyClaim, DirtyClient, PageSize, RamBlock};

/// The variable that says which side a process is, its seed, and how many channels there are.
pub(crate) const SIDE: &str = "SIDE_OF_A_MIGRATION";

const PAGES: u64 = 96;
const STATE: &[u8] = b"of a device";

/// A generator of numbers, from a seed: SplitMix64.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn page() -> u64 {
    PageSize::host().bytes()
}

fn blocks() -> Vec<Arc<RamBlock>> {
    ["ram", "vram"].map(|id| RamBlock::anonymous(id, PAGES * page()).unwrap()).into()
}

fn checksum(blocks: &[Arc<RamBlock>]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    for block in blocks {
        let mut bytes = vec![0; usize::try_from(block.len()).unwrap()];
        block.read(0, &mut bytes).unwrap();
        sum.update(&bytes);
    }
    sum.finalize()
}

/// Follows the orders of standard input until there are no more.
pub(crate) fn run(side: &str) -> ExitCode {
    let words: Vec<_> = side.split_whitespace().collect();
    let [side, seed, channels] = words.as_slice() else { panic!("{words:?}") };
    let channels = channels.parse().unwrap();
    let mut source = Source::new(seed.parse().unwrap());
    let twins = blocks();
    for order in io::stdin().lock().lines().map_while(Result::ok) {
        match (*side, order.split_once(' ')) {
            ("source", Some(("send", to))) => source.send(&to.parse().unwrap(), channels),
            ("source", None) if order == "check" => source.check(),
            ("destination", Some(("receive", at))) => {
                receive(&twins, &at.parse().unwrap(), channels);
            }
            _ => panic!("{side}: {order}"),
        }
    }
    ExitCode::SUCCESS
}

/// The machine that is sent, and what it has written meanwhile.
struct Source {
    memory: Arc<MemoryMap>,
    blocks: Vec<Arc<RamBlock>>,
    /// Of a display, which watches the blocks all the time.
    _vga: Vec<DirtyClaim>,
    numbers: Numbers,
    written: BTreeSet<u64>,
}

impl Source {
    fn new(seed: u64) -> Self {
        let (memory, blocks, mut numbers) = (MemoryMap::new(), blocks(), Numbers(seed));
        let add = memory.transaction(|map| {
            blocks.iter().try_for_each(|block| map.ram(block.id(), block.clone()).map(drop))
        });
        add.unwrap();
        for block in &blocks {
            for n in (0..PAGES).filter(|n| n % 3 != 0) {
                let bytes: Vec<u8> =
                    (0..page() / 8).flat_map(|_| numbers.next().to_le_bytes()).collect();
                block.write(n * page(), &bytes).unwrap();
            }
        }
        let vga = |block: &Arc<RamBlock>| block.dirty().claim(DirtyClient::VGA).unwrap();
        let vga = blocks.iter().map(vga).collect();
        Self { memory, blocks, _vga: vga, numbers, written: BTreeSet::new() }
    }

    /// Writes a page that has contents: so each machine's stream is as long as the others'.
    fn write(&mut self) {
        let number = self.numbers.next();
        let at = number % (PAGES / 3) * 3 + 1;
        self.blocks[0].write(at * page(), &number.to_le_bytes()).unwrap();
        self.written.insert(at);
    }

    fn send(&mut self, to: &Address, channels: usize) {
        let saved = self.blocks.clone();
        let save = move || {
            println!("saved {}", checksum(&saved));
            Ok(STATE.to_vec())
        };
        let device = FnDevice::new("state", save, |_, _| Ok(()));
        let precopy = Precopy::new(self.memory.clone())
            .device(Arc::new(device))
            .downtime(Duration::ZERO)
            .max_rounds(3);
        let observe = |now: &Progress| {
            if now.round_ended.is_some_and(|round| !round.paused) {
                self.write();
            }
        };
        let mut link = Link::connect(to, channels).unwrap();
        match precopy.run(link.outgoing(), || Ok(()), observe) {
            Ok(_) => {
                // If it is not told, or does not answer, it does not run, nor does this one
                // until somebody says so.
                let told = link.say("go").and_then(|()| link.hear());
                println!("ended left {}", told.is_ok());
            }
            Err(_) => println!("ended failed"),
        }
    }

    /// The machine goes on as if nothing had been: its log is off, and whoever else watches
    /// its pages has missed none.
    fn check(&mut self) {
        (0..5).for_each(|_| self.write());
        let logged =
            |block: &Arc<RamBlock>| block.dirty().enabled().contains(DirtyClient::MIGRATION);
        let vga = (0..PAGES).filter(|n| self.blocks[0].dirty().is_dirty(DirtyClient::VGA, *n));
        let whole = vga.eq(self.written.iter().copied());
        match whole && !self.blocks.iter().any(logged) {
            true => println!("machine runs"),
            false => println!("machine is not as before"),
        }
    }
}

fn receive(blocks: &[Arc<RamBlock>], at: &Address, channels: usize) {
    let listener = Listener::bind(at).unwrap();
    println!("listens {at}");
    let mut link = Link::accept(&listener, channels).unwrap();
    drop(listener);
    let twins = blocks.to_vec();
    let restore = move |_, state: &[u8]| -> Result<(), DeviceError> {
        println!("restored {}", checksum(&twins));
        if state == STATE { Ok(()) } else { Err("another state".into()) }
    };
    let device = FnDevice::new("state", || Ok(STATE.to_vec()), restore);
    let received = Receiver::new(blocks).device(Arc::new(device)).run(link.incoming());
    match received.map(|_| link.hear()) {
        Err(_) => println!("ended failed"),
        Ok(Ok(word)) if word == "go" => {
            let _ = link.say("alive");
            println!("ended runs");
        }
        Ok(_) => println!("ended unclaimed"),
    }
}
