//! Actions that guests and viewers can repeat without end do not fill the log. One test, as a
//! process has one logger.

mod common;
#[path = "common/deadline.rs"]
mod deadline;
#[path = "common/rfb.rs"]
mod rfb;
#[path = "common/rfb_decoder.rs"]
mod rfb_decoder;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use common::{BASE, Board, Pc};
use display_vga::VncServer;
use log::{LevelFilter, Log, Metadata, Record};
use memory_region::{ListenerError, MemoryListener, Section, ViewChange};
use rfb::Viewer;

/// The records at the levels that are on by default.
static RECORDS: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Collector;

impl Log for Collector {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        RECORDS.lock().unwrap().push(format!("{}: {}", record.level(), record.args()));
    }

    fn flush(&self) {}
}

/// The records since the last call.
fn records() -> Vec<String> {
    std::mem::take(&mut RECORDS.lock().unwrap())
}

/// An accelerator that refuses changes of the low window once this is set.
struct Refuses(AtomicBool);

impl MemoryListener for Refuses {
    fn name(&self) -> &str {
        "refuses"
    }

    fn commit(&self, change: &ViewChange) -> Result<(), ListenerError> {
        let low = |section: &Section| section.start() < BASE;
        let mut changed = change.added.iter().chain(&change.removed);
        let refuses = self.0.load(Ordering::Relaxed);
        if refuses && changed.any(low) { Err("no slot is free".into()) } else { Ok(()) }
    }

    fn sync(&self, _: &Section) -> Result<(), ListenerError> {
        Ok(())
    }
}

#[test]
fn nobody_fills_the_log() {
    log::set_logger(&Collector).unwrap();
    log::set_max_level(LevelFilter::Info);

    // Viewers beyond the limit, which are all refused.
    let server = VncServer::loopback(0).unwrap().max_viewers(2).start().unwrap();
    let address = server.local_addr().unwrap();
    let viewers = [Viewer::connect(address), Viewer::connect(address)];
    for _ in 0..500 {
        let mut refused = TcpStream::connect(address).unwrap();
        assert_eq!(refused.read(&mut [0]).unwrap_or(0), 0, "one too many");
    }
    let refusals = records();
    assert_eq!(refusals.len(), 1, "{refusals:#?}");
    assert!(refusals[0].starts_with("WARN: vnc: viewer 3 is one too many"), "{refusals:#?}");
    drop((viewers, server));
    assert_eq!(records(), [""; 0]);

    // Viewers that violate the protocol, or disconnect within the handshake.
    let server = VncServer::loopback(0).unwrap().max_viewers(2).start().unwrap();
    let address = server.local_addr().unwrap();
    for n in 0..200 {
        let mut viewer = TcpStream::connect(address).unwrap();
        if n % 2 == 0 {
            viewer.write_all(b"GET / HTTP/1.1\r\n").unwrap();
        }
    }
    drop(server);
    assert_eq!(records(), [""; 0]);

    // A guest that changes modes, with a map that refuses the alias.
    let board = Board::new(1 << 20);
    board.vga.set_mode(640, 480, 8).unwrap();
    board.poke(0xa0000, &[1]);
    let listener = Arc::new(Refuses(false.into()));
    board.map.add_listener(&board.memory, listener.clone()).unwrap();
    listener.0.store(true, Ordering::Relaxed);
    for bank in (1..200).map(|n| n % 4) {
        board.vbe(5, bank);
        board.poke(0xa0000, &[7]);
    }
    let refusals = records();
    let levels: Vec<&str> = refusals.iter().filter_map(|record| record.split(':').next()).collect();
    assert_eq!(levels, ["WARN", "ERROR"], "{refusals:#?}");
}
