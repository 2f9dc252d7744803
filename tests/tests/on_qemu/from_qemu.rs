//! What QEMU sends, we take.

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use iced_x86::code_asm::{CodeAssembler, ax, byte_ptr, ds};
use integration_tests::harness::Test;
use integration_tests::qemu::{Program, Qemu};
use migration_ram::{BlockTarget, IncomingChannels, ReadTransport, Received, Receiver};
use ram_block::RamBlock;
use serde_json::{Value, json};

use super::describe::described_len;
use super::fill::{Fill, PAGE};
use super::{assert_same, wait_until};

pub(crate) const TESTS: &[Test] = &[
    ("from_qemu::a_pc_that_runs_arrives", a_pc_that_runs_arrives),
    ("from_qemu::a_pc_that_stands_still_arrives", a_pc_that_stands_still_arrives),
    ("from_qemu::a_file_has_all_sections", a_file_has_all_sections),
    ("from_qemu::our_refusal_is_heard", our_refusal_is_heard),
];

const LEN: u64 = 64 << 20;
/// Where random, zero and repeated pages lie, which the guest leaves alone.
pub(super) const FILLED: u64 = 16 << 20;
const FILLED_LEN: u64 = 12 << 20;
/// The guest increments the first byte of each of these pages, in order, for ever.
pub(super) const COUNTED: std::ops::Range<u64> = 0x2_0000..0x9_0000;

/// The first sector of a disk: a real-mode program that counts.
pub(super) fn boot_sector() -> Vec<u8> {
    let mut code = CodeAssembler::new(16).unwrap();
    let segment = |address: u64| i32::try_from(address >> 4).unwrap();
    let (mut round, mut next) = (code.create_label(), code.create_label());
    code.set_label(&mut round).unwrap();
    code.mov(ax, segment(COUNTED.start)).unwrap();
    code.set_label(&mut next).unwrap();
    code.mov(ds, ax).unwrap();
    code.inc(byte_ptr(0)).unwrap();
    code.add(ax, segment(PAGE as u64)).unwrap();
    code.cmp(ax, segment(COUNTED.end)).unwrap();
    code.jb(next).unwrap();
    code.jmp(round).unwrap();
    let mut sector = code.assemble(0x7c00).unwrap();
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector
}

/// A PC whose BIOS has booted the program, which is at work.
fn running_pc(name: &str, accelerator: &str) -> std::io::Result<Qemu> {
    let arguments = ["-machine", "pc", "-accel", accelerator, "-m", "64"];
    running(&Program::default(), name, &arguments)
}

/// As `running_pc`, of any QEMU and machine.
pub(super) fn running(program: &Program, name: &str, arguments: &[&str]) -> std::io::Result<Qemu> {
    let mut qemu = start(program, name, arguments)?;
    wait_until("the guest counts", || qemu.memory(COUNTED.end - PAGE as u64, 1).unwrap() != [0]);
    Ok(qemu)
}

/// A PC with the program on its disk.
pub(super) fn start(program: &Program, name: &str, arguments: &[&str]) -> std::io::Result<Qemu> {
    let mut disk = boot_sector();
    disk.resize(1 << 20, 0);
    let pages = (0..FILLED_LEN / PAGE as u64)
        .flat_map(|number| Fill::Mixed.page(3, number).unwrap_or([0; PAGE]));
    let files = [("disk", &disk[..]), ("pages", &pages.collect::<Vec<_>>())];
    let loader = format!("loader,force-raw=on,addr={FILLED},file={{dir}}/pages");
    let drive = "driver=file,node-name=file,filename={dir}/disk";
    let raw = "driver=raw,node-name=disk,file=file";
    let disk = ["-blockdev", drive, "-blockdev", raw, "-device", "ide-hd,drive=disk"];
    let rest = ["-vga", "std", "-device", &loader];
    program.start_with(name, &[arguments, &disk, &rest].concat(), &files)
}

pub(super) type Arrived = (Received, Vec<Arc<RamBlock>>);

/// Takes what comes over `connections` connections, in a thread.
pub(super) fn receive(qemu: &Qemu, connections: usize, answers: bool) -> JoinHandle<Arrived> {
    let listener = UnixListener::bind(qemu.path("out")).unwrap();
    std::thread::spawn(move || {
        let accept = |_| listener.accept().unwrap().0;
        let mut sockets: Vec<_> = (0..connections).map(accept).collect();
        let mut back = sockets[0].try_clone().unwrap();
        let inputs = sockets.iter_mut().map(|socket| socket as &mut dyn ReadTransport);
        let from = IncomingChannels::several(inputs);
        take(if answers { from.return_path(&mut back) } else { from })
    })
}

/// Every block of the stream.
pub(super) fn take<'a>(from: impl Into<IncomingChannels<'a>>) -> Arrived {
    let blocks = Mutex::default();
    let make = |id: &str, len: u64| {
        let block = RamBlock::anonymous(id, len).unwrap();
        let blocks: &Mutex<Vec<_>> = &blocks;
        blocks.lock().unwrap().push(block.clone());
        BlockTarget::Memory(block)
    };
    let receiver = Receiver::new(&[]).on_unknown_block(make).keep_unknown_sections(true);
    let received = receiver.run(from).unwrap();
    (received, blocks.into_inner().unwrap())
}

pub(super) fn parameters(qemu: &mut Qemu, parameters: Value) {
    qemu.execute("migrate-set-parameters", parameters).unwrap();
}

/// Sends the running machine in several rounds; says whether there were as many. On a busy host
/// the guest may have no turn for so long that it has written nothing, and the end has come.
fn migrate(qemu: &mut Qemu) -> bool {
    // What the guest writes all the time takes longer to send than it may stand still.
    parameters(qemu, json!({ "downtime-limit": 1, "max-bandwidth": 32 << 20 }));
    let uri = format!("unix:{}", qemu.path("out").display());
    qemu.migrate(&uri).unwrap();
    wait_until("several rounds", || {
        let state = qemu.execute("query-migrate", json!({})).unwrap();
        assert_ne!(state["status"], "failed", "{state}");
        // Deltas are of pages that were written in two rounds after the first one.
        let deltas = state["xbzrle-cache"]["pages"].as_u64() != Some(0);
        let rounds = state["ram"]["dirty-sync-count"].as_u64();
        state["status"] == "completed" || rounds > Some(3) && deltas
    });
    parameters(qemu, json!({ "downtime-limit": 2000, "max-bandwidth": 100u64 << 30 }));
    let state = qemu.wait_migrated().unwrap();
    let deltas = state["xbzrle-cache"]["pages"].as_u64() != Some(0);
    state["ram"]["dirty-sync-count"].as_u64() >= Some(3) && deltas
}

/// Sends it while it stands still: with TCG, QEMU 7.2 misses what its guest writes from the
/// second round on. Another QEMU does not get these pages either.
pub(super) fn migrate_stopped(qemu: &mut Qemu) -> bool {
    qemu.execute("stop", json!({})).unwrap();
    qemu.migrate(&format!("unix:{}", qemu.path("out").display())).unwrap();
    qemu.wait_migrated().unwrap();
    true
}

/// RAM is what the source, which stands still, has.
pub(super) fn check(qemu: &mut Qemu, (received, blocks): &Arrived) {
    let ram = blocks.iter().find(|block| block.id() == "pc.ram").unwrap();
    assert_eq!(ram.len(), LEN);
    let read = |start: u64, len: u64| {
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        ram.read(start, &mut bytes).unwrap();
        bytes
    };
    for part in [0..0xa_0000, 0x10_0000..LEN] {
        let len = part.end - part.start;
        assert_same("RAM", &read(part.start, len), &qemu.memory(part.start, len).unwrap());
    }
    for number in 0..FILLED_LEN / PAGE as u64 {
        let expected = Fill::Mixed.page(3, number).unwrap_or([0; PAGE]);
        let found = read(FILLED + number * PAGE as u64, PAGE as u64);
        assert_same("filled pages", &found, &expected);
    }
    // Up to where the guest is in its round, one more than behind that.
    let counted = COUNTED.step_by(PAGE).map(|at| read(at, 1)[0]).collect::<Vec<_>>();
    let (first, last) = (counted[0], counted[counted.len() - 1]);
    assert!(first == last || first == last.wrapping_add(1), "{counted:?}");
    assert!(counted.is_sorted_by_key(|count| first.wrapping_sub(*count)), "{counted:?}");
    assert!(received.pages > FILLED_LEN / PAGE as u64 / 2);
    assert!(received.zero_pages > LEN / PAGE as u64 / 2);
}

/// In each way: over one connection or channels as well, answered or not.
fn arrives(name: &str, accelerator: &str, send: fn(&mut Qemu) -> bool) {
    let ways: [Way<'_>; 9] = [
        (&[], 1, false),
        (&["xbzrle"], 1, false),
        (&["xbzrle", "compress"], 1, true),
        (&["multifd", "zlib"], 3, true),
        (&["multifd", "zstd"], 3, true),
        (&["return-path"], 1, true),
        (&["multifd"], 3, false),
        (&["multifd", "return-path"], 3, true),
        // Which it does not turn to unless it is told to.
        (&["postcopy-ram"], 1, true),
    ];
    let zstd = |way: &Way<'_>| way.0.contains(&"zstd");
    let ways = ways.into_iter().filter(|way| cfg!(feature = "zstd") || !zstd(way));
    for way in ways {
        wait_until("a migration in several rounds", || arrives_by(way, name, accelerator, send));
    }
}

/// Capabilities, connections, and whether it is answered.
type Way<'a> = (&'a [&'a str], usize, bool);

/// Whether it was sent as it was to be; what was sent has arrived.
fn arrives_by(way: Way<'_>, name: &str, accelerator: &str, send: fn(&mut Qemu) -> bool) -> bool {
    let (capabilities, connections, answers) = way;
    let mut qemu = match running_pc(name, accelerator) {
        Ok(qemu) => qemu,
        Err(error) if accelerator == "kvm" => {
            println!("QEMU does not run on KVM here: {error}");
            return true;
        }
        Err(error) => panic!("{error}"),
    };
    // That is a parameter.
    let (compression, capabilities): (Vec<_>, Vec<_>) =
        capabilities.iter().partition(|name| ["zlib", "zstd"].contains(*name));
    for name in &compression {
        parameters(&mut qemu, json!({ "multifd-compression": name }));
    }
    qemu.capabilities(&capabilities).unwrap();
    let receiving = receive(&qemu, connections, answers);
    let as_wanted = send(&mut qemu);
    let arrived = receiving.join().unwrap();
    check(&mut qemu, &arrived);
    // What was asked for was done.
    let deltas = capabilities.contains(&"xbzrle") && accelerator == "kvm";
    if as_wanted {
        assert_eq!(arrived.0.delta_pages > 0, deltas, "{capabilities:?}");
    }
    let bytes = arrived.0.pages * PAGE as u64;
    let small = capabilities.contains(&"compress") || !compression.is_empty();
    assert_eq!(arrived.0.bytes < bytes * 9 / 10, small, "{capabilities:?}");
    as_wanted
}

fn a_pc_that_runs_arrives() {
    arrives("running", "kvm", migrate);
}

fn a_pc_that_stands_still_arrives() {
    arrives("still", "tcg", migrate_stopped);
}

fn a_file_has_all_sections() {
    let mut qemu = running_pc("file", "tcg").unwrap();
    let path = qemu.path("stream");
    qemu.execute("stop", json!({})).unwrap();
    qemu.migrate(&format!("exec:cat > {}", path.display())).unwrap();
    qemu.wait_migrated().unwrap();
    let arrived = take(&mut File::open(&path).unwrap());
    check(&mut qemu, &arrived);

    let (received, _) = arrived;
    assert!(received.machine.starts_with("pc-i440fx-"), "{}", received.machine);
    assert_eq!(received.bytes, std::fs::metadata(&path).unwrap().len());
    // QEMU's own account of its devices: the same ones, in the same order, as long.
    let description: Value = serde_json::from_slice(&received.description).unwrap();
    let devices = description["devices"].as_array().unwrap();
    assert!(devices.len() > 20, "{} devices", devices.len());
    let described: Vec<_> = devices
        .iter()
        .map(|device| {
            let name = device["name"].as_str().unwrap();
            let instance = u32::try_from(device["instance_id"].as_u64().unwrap()).unwrap();
            (name, instance, described_len(&description, name, instance).unwrap())
        })
        .collect();
    let found: Vec<_> = received
        .sections
        .iter()
        .map(|section| (section.name.as_str(), section.instance, section.len))
        .collect();
    assert_eq!(found, described);
    for name in ["timer", "cpu", "fw_cfg", "0000:00:02.0/vga", "globalstate"] {
        assert!(found.iter().any(|(found, ..)| *found == name), "no section {name}");
    }
}

fn our_refusal_is_heard() {
    let mut qemu = running_pc("refused", "tcg").unwrap();
    qemu.capabilities(&["return-path"]).unwrap();
    let listener = UnixListener::bind(qemu.path("out")).unwrap();
    let receiving = std::thread::spawn(move || {
        let mut socket = listener.accept().unwrap().0;
        let mut back = socket.try_clone().unwrap();
        Receiver::new(&[]).run(IncomingChannels::new(&mut socket).return_path(&mut back)).map(drop)
    });
    let uri = format!("unix:{}", qemu.path("out").display());
    qemu.migrate(&uri).unwrap();
    let error = receiving.join().unwrap().unwrap_err();
    assert!(error.to_string().contains("there is no block \"pc.ram\" here"), "{error}");
    assert!(qemu.wait_migrated().is_err());
    // Its guest goes on.
    let count = |qemu: &mut Qemu| qemu.memory(COUNTED.start, 1).unwrap();
    let before = count(&mut qemu);
    wait_until("the guest counts on", || count(&mut qemu) != before);
}
