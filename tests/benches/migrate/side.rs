//! What the two processes do, one line of words at a time.

use std::io::{self, BufRead, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use machines::link::{Address, Link, Listener, Socket};
use memory_region::MemoryMap;
use migration_ram::{Precopy, ReadTransport, Receiver, WriteTransport};
use ram_block::{RamBlock, ReceiveList, SendList};

use crate::memory::Memory;
use crate::transport::Transport;
use crate::{AnyError, failed};

/// Bytes of a write or a read of the bare copy.
const PIECE: u64 = 1 << 20;

/// Answers each line of standard input with one of standard output.
pub(crate) fn run(side: &str, memory: &Memory) -> Result<(), AnyError> {
    let source = side == "source";
    let block = if source { memory.source()? } else { memory.destination()? };
    // What is copied if there is no such memory: it has been written, as a stream's bytes are.
    let copied = if memory.is_populated() {
        block.clone()
    } else {
        let copied = RamBlock::anonymous("copied", 128 << 20)?;
        copied.write(0, &vec![1; 128 << 20])?;
        copied
    };
    say("ready")?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<_> = line.split_whitespace().collect();
        let answer = match words.as_slice() {
            ["read"] => millis(read(&block)?),
            [job, transport, channels, rest @ ..] => {
                let (transport, channels) = (Transport::parse(transport), channels.parse()?);
                match (source, *job, rest) {
                    (true, "copy", [bytes, to]) => {
                        let sockets = connect(to, channels)?;
                        millis(copy_out(sockets, &copied, bytes.parse()?)?)
                    }
                    (true, "migrate", [to]) => migrate(&block, channels, to)?,
                    (true, "downtime", [aim, rate, to]) => {
                        downtime(&block, to, aim.parse()?, rate.parse()?)?
                    }
                    (false, "copy", [bytes]) => {
                        let listener = listen(transport)?;
                        let sockets = (0..channels).map(|_| listener.accept(None));
                        let sockets = sockets.collect::<Result<_, _>>()?;
                        copy_in(sockets, &copied, bytes.parse()?)?;
                        "done".to_owned()
                    }
                    (false, "migrate", []) => {
                        receive(&block, transport, channels)?;
                        "done".to_owned()
                    }
                    _ => return Err(failed(line)),
                }
            }
            _ => return Err(failed(line)),
        };
        say(&answer)?;
    }
    Ok(())
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

fn millis(time: Duration) -> String {
    (time.as_secs_f64() * 1e3).to_string()
}

fn connect(to: &str, count: usize) -> Result<Vec<Socket>, AnyError> {
    let to: Address = to.parse()?;
    Ok((0..count)
        .map(|_| Socket::connect(&to, Duration::from_secs(10)))
        .collect::<Result<_, _>>()?)
}

/// Says where, then waits for connections.
fn listen(transport: Transport) -> Result<Listener, AnyError> {
    let listener = Listener::bind(&transport.address())?;
    say(&listener.address()?.to_string())?;
    Ok(listener)
}

/// The part of `bytes` that each of `count` sockets carries, in pieces within the block.
fn pieces(
    block: &RamBlock,
    bytes: u64,
    count: usize,
    number: usize,
) -> impl Iterator<Item = (u64, u64)> {
    let (count, number, len) = (count as u64, number as u64, block.len());
    let (start, end) = (bytes * number / count, bytes * (number + 1) / count);
    let mut at = start;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let from = at % len;
        let piece = PIECE.min(end - at).min(len - from);
        at += piece;
        Some((from, from + piece))
    })
}

fn copy_out(sockets: Vec<Socket>, block: &Arc<RamBlock>, bytes: u64) -> Result<Duration, AnyError> {
    let (begin, count) = (Instant::now(), sockets.len());
    in_threads(sockets, |number, mut socket| {
        let mut list = SendList::new();
        for (from, to) in pieces(block, bytes, count, number) {
            list.push_memory(block, from..to)?;
            socket.send(&mut list)?;
        }
        let mut end = [0];
        let mut list = ReceiveList::new();
        list.push_bytes(&mut end);
        socket.receive(&mut list)?;
        Ok(())
    })?;
    Ok(begin.elapsed())
}

fn copy_in(sockets: Vec<Socket>, block: &Arc<RamBlock>, bytes: u64) -> Result<(), AnyError> {
    let count = sockets.len();
    in_threads(sockets, |number, mut socket| {
        let mut list = ReceiveList::new();
        for (from, to) in pieces(block, bytes, count, number) {
            list.push_memory(block, from..to)?;
            while !list.is_empty() {
                if socket.receive(&mut list)? == 0 {
                    return Err(failed("the copy ended early"));
                }
            }
        }
        let mut list = SendList::new();
        list.push_bytes(&[1]);
        Ok(socket.send(&mut list)?)
    })
}

fn in_threads(
    sockets: Vec<Socket>,
    work: impl Fn(usize, Socket) -> Result<(), AnyError> + Sync,
) -> Result<(), AnyError> {
    let work = &work;
    std::thread::scope(|scope| {
        let sockets = sockets.into_iter().enumerate();
        let threads: Vec<_> =
            sockets.map(|(number, socket)| scope.spawn(move || work(number, socket))).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(failed("a thread panicked")))
        })
    })
}

fn map_of(block: &Arc<RamBlock>) -> Result<Arc<MemoryMap>, AnyError> {
    let memory = MemoryMap::new();
    memory.transaction(|map| map.ram("ram", block.clone()))?;
    Ok(memory)
}

/// Connections for pages besides the first, which has them if it is the only one.
fn besides(channels: usize) -> usize {
    if channels == 1 { 0 } else { channels }
}

fn migrate(block: &Arc<RamBlock>, channels: usize, to: &str) -> Result<String, AnyError> {
    let precopy = Precopy::new(map_of(block)?);
    let mut link = Link::connect(&to.parse()?, besides(channels))?;
    let begin = Instant::now();
    let migrated = precopy.run(link.outgoing(), || Ok(()), |_| ())?;
    Ok(format!("{} {}", millis(begin.elapsed()), migrated.stats.bytes))
}

fn receive(block: &Arc<RamBlock>, transport: Transport, channels: usize) -> Result<(), AnyError> {
    let mut link = Link::accept(&listen(transport)?, besides(channels))?;
    Receiver::new(std::slice::from_ref(block)).discard_contents(true).run(link.incoming())?;
    Ok(())
}

/// Sends while pages are written at a rate of `rate` bytes a second.
fn downtime(block: &Arc<RamBlock>, to: &str, aim: u64, rate: u64) -> Result<String, AnyError> {
    let precopy = Precopy::new(map_of(block)?).downtime(Duration::from_millis(aim));
    let mut link = Link::connect(&to.parse()?, 0)?;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (block, stop) = (block.clone(), stop.clone());
        std::thread::spawn(move || write_pages(&block, rate, &stop))
    };
    let pause = || {
        stop.store(true, Ordering::Release);
        writer.join().map_err(|_| "the writer panicked".into())
    };
    let migrated = precopy.run(link.outgoing(), pause, |_| ())?;
    let stats = &migrated.stats;
    Ok(format!("{} {}", millis(stats.downtime), stats.rounds.len()))
}

/// One word in each page of the block, over and over.
fn write_pages(block: &RamBlock, rate: u64, stop: &AtomicBool) {
    let page = block.page_size().bytes();
    let (begin, mut written) = (Instant::now(), 0u64);
    while !stop.load(Ordering::Acquire) {
        let due = u64::try_from(begin.elapsed().as_millis()).unwrap_or(0) * rate / 1000;
        while written < due {
            let at = written / page * page % block.len();
            if block.write(at, &written.to_le_bytes()).is_err() {
                return;
            }
            written += page;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Reads all of the block once, into a buffer that stays in the cache.
fn read(block: &RamBlock) -> Result<Duration, AnyError> {
    let mut buffer = vec![0; 16 << 10];
    let begin = Instant::now();
    for at in (0..block.len()).step_by(buffer.len()) {
        block.read(at, &mut buffer)?;
        std::hint::black_box(&buffer);
    }
    Ok(begin.elapsed())
}
