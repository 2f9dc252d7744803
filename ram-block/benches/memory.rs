//! The cost of finding zero pages and data, and of moving memory through a socket.
//!
//! `cargo bench -p ram-block --bench memory [-- --all]`
//!
//! Medians of five rounds, or of three where those take longer than a row's part of three
//! minutes, unless `--all` is given. 4 GiB of memory are needed.

use std::error::Error;
use std::hint::black_box;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ram_block::{HugePages, PageSize, RamBlock, ReceiveList, SendList};

type AnyError = Box<dyn Error>;

const ROUNDS: usize = 5;
/// What a row may take, of some 25, for more rounds than a median needs.
const ROW_TIME: Duration = Duration::from_secs(5);
const GIB: u64 = 1 << 30;
const PAGE: u64 = 4096;

fn median<T>(mut work: impl FnMut() -> Result<T, AnyError>) -> Result<Duration, AnyError> {
    let is_limited = !std::env::args().any(|argument| argument == "--all");
    let mut times = Vec::new();
    while times.len() < ROUNDS {
        if is_limited && times.len() >= 3 && times.iter().sum::<Duration>() > ROW_TIME {
            break;
        }
        let start = Instant::now();
        black_box(work()?);
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times[times.len() / 2])
}

#[allow(clippy::cast_precision_loss)] // for people
fn print(name: &str, bytes: u64, time: Duration) {
    let speed = bytes as f64 / time.as_secs_f64() / 1e9;
    println!("{name:<64}{:>10.3} ms{speed:>8.1} GB/s", time.as_secs_f64() * 1e3);
}

fn zero_pages(ram: &RamBlock) -> Result<u32, AnyError> {
    let mut zero = 0;
    for offset in (0..ram.len()).step_by(64 * 4096) {
        zero += ram.zero_mask(offset, PageSize::new(PAGE)?, 64)?.count_ones();
    }
    Ok(zero)
}

/// Which pages are zero, next to a plain read of as much memory.
fn zeros() -> Result<(), AnyError> {
    let mut words = vec![1u64; usize::try_from(GIB / 8)?];
    words.fill(0);
    let read = median(|| Ok(words.iter().fold(0, |any, word| any | word)))?;
    print("plain read, 1 GiB", GIB, read);
    drop(words);
    for huge in [HugePages::Default, HugePages::Transparent] {
        let ram = RamBlock::builder("ram", GIB).huge_pages(huge).anonymous()?;
        let name = |what: &str| format!("{what}, 1 GiB ({:?} pages)", ram.huge_pages());
        if huge == HugePages::Default {
            zero_pages(&ram)?;
            print(&name("zero_mask, never written"), GIB, median(|| zero_pages(&ram))?);
        }
        ram.populate(0..GIB)?;
        print(&name("zero_mask, all zero"), GIB, median(|| zero_pages(&ram))?);
        for (at, what) in [(8, "first line"), (300, "fifth line"), (4090, "last line")] {
            for offset in (0..GIB).step_by(4096) {
                ram.write(offset + at, &[1])?;
            }
            let name = name(&format!("zero_mask, something in the {what}"));
            print(&name, GIB, median(|| zero_pages(&ram))?);
            for offset in (0..GIB).step_by(4096) {
                ram.write(offset + at, &[0])?;
            }
        }
    }
    Ok(())
}

/// Where there is data.
fn extents() -> Result<(), AnyError> {
    let look = |name: &str, ram: &RamBlock| -> Result<(), AnyError> {
        let count = ram.data_extents(0..ram.len()).count();
        let time = median(|| Ok(ram.data_extents(0..ram.len()).count()))?;
        let name = format!("data_extents, {name}: {count}");
        println!("{name:<64}{:>10.3} ms", time.as_secs_f64() * 1e3);
        Ok(())
    };
    for (name, memfd) in [("anonymous", false), ("memfd", true)] {
        let block = |len| {
            let builder = RamBlock::builder("ram", len);
            if memfd { builder.memfd() } else { builder.anonymous() }
        };
        let ram = block(32 * GIB)?;
        look(&format!("{name} 32 GiB untouched"), &ram)?;
        for offset in (0..ram.len()).step_by(16 << 20) {
            ram.write(offset, &[1])?;
        }
        look(&format!("{name} 32 GiB, a page of 16 MiB"), &ram)?;
        let ram = block(2 * GIB)?;
        for offset in (0..ram.len()).step_by(8192) {
            ram.write(offset, &[1])?;
        }
        look(&format!("{name} 2 GiB, every other page"), &ram)?;
        ram.populate(0..ram.len())?;
        look(&format!("{name} 2 GiB populated"), &ram)?;
    }
    let builder = RamBlock::builder("ram", 2 * GIB).huge_pages(HugePages::Transparent);
    let ram = builder.anonymous()?;
    ram.populate(0..ram.len())?;
    look("huge pages 2 GiB populated", &ram)
}

/// Sends by one thread and receives by another; both are done when it returns.
fn transfer(
    send: impl FnOnce(&UnixStream) -> Result<(), AnyError> + Send,
    receive: impl FnOnce(&UnixStream) -> Result<(), AnyError>,
) -> Result<(), AnyError> {
    let (near, far) = UnixStream::pair()?;
    thread::scope(|scope| {
        let sender = scope.spawn(move || send(&near).map_err(|error| error.to_string()));
        receive(&far)?;
        sender.join().map_err(|_| "the sender panicked")?.map_err(Into::into)
    })
}

/// The pages of a block through a socket: as they lie, and each with a header before it.
fn lists() -> Result<(), AnyError> {
    let block = || -> Result<Arc<RamBlock>, AnyError> {
        let ram = RamBlock::anonymous("ram", GIB)?;
        let page: Vec<u8> = (0..=255).cycle().take(4096).collect();
        for offset in (0..GIB).step_by(4096) {
            ram.write(offset, &page)?;
        }
        Ok(ram)
    };
    let (from, to) = (block()?, block()?);
    let mut source = vec![1; usize::try_from(GIB)?];
    source.fill(2);
    let bare = median(|| {
        transfer(
            |mut socket| Ok(source.chunks(1 << 18).try_for_each(|part| socket.write_all(part))?),
            |mut socket| {
                let mut buffer = vec![0; 1 << 18];
                for _ in 0..GIB >> 18 {
                    socket.read_exact(&mut buffer)?;
                }
                Ok(())
            },
        )
    })?;
    print("bare write and read of 256 KiB, 1 GiB", GIB, bare);
    drop(source);

    let whole = median(|| {
        transfer(
            |socket| {
                let mut list = SendList::new();
                list.push_memory(&from, 0..GIB)?;
                Ok(list.write_to_fd(socket.as_fd())?)
            },
            |socket| {
                let mut list = ReceiveList::new();
                list.push_memory(&to, 0..GIB)?;
                Ok(list.read_exact_from_fd(socket.as_fd())?)
            },
        )
    })?;
    print("lists, one piece", GIB, whole);

    for pages in [1, 8, 64, 512] {
        let batches = || (0..GIB).step_by(4096 * pages);
        let time = median(|| {
            transfer(
                |socket| {
                    let mut list = SendList::new();
                    for batch in (0..GIB).step_by(64 * 4096) {
                        for offset in (batch..batch + 64 * PAGE).step_by(4096) {
                            list.push_copied(&offset.to_be_bytes());
                            list.push_memory(&from, offset..offset + PAGE)?;
                        }
                        list.write_to_fd(socket.as_fd())?;
                    }
                    Ok(())
                },
                |socket| {
                    let mut heads = vec![[0; 8]; pages];
                    for batch in batches() {
                        let mut list = ReceiveList::new();
                        for (head, n) in heads.iter_mut().zip(0..) {
                            list.push_bytes(head);
                            list.push_memory(&to, batch + n * PAGE..batch + (n + 1) * PAGE)?;
                        }
                        list.read_exact_from_fd(socket.as_fd())?;
                    }
                    Ok(())
                },
            )
        })?;
        print(&format!("lists, a header before each page, {pages} a read"), GIB, time);
    }
    Ok(())
}

fn main() -> Result<(), AnyError> {
    zeros()?;
    extents()?;
    lists()
}
