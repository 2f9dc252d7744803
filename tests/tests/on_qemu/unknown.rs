//! Devices of QEMU's that are not known here: RAM arrives all the same, and their sections can
//! be sent on to another QEMU, whose guest goes on.

use std::fs::File;
use std::os::unix::net::UnixStream;

use integration_tests::qemu::{Program, Qemu, connect};
use memory_region::MemoryMap;
use migration_ram::{OutgoingChannels, Precopy, SectionInfo, WriteTransport};
use serde_json::{Value, json};

use super::describe::described_len;
use super::fill::PAGE;
use super::from_qemu::{Arrived, COUNTED, check, migrate_stopped, receive, running, start, take};
use super::{TestOf, wait_until};

pub(crate) const TESTS: &[TestOf] = &[
    ("unknown::a_stream_without_description_arrives", a_stream_without_description_arrives),
    ("unknown::an_iterable_section_arrives", an_iterable_section_arrives),
    ("unknown::a_section_before_ram_arrives", a_section_before_ram_arrives),
    ("unknown::a_machine_is_sent_on", a_machine_is_sent_on),
];

const SILENT: &[&str] =
    &["-machine", "pc,suppress-vmdesc=on", "-accel", "tcg", "-m", "64,maxmem=128M"];
const DESCRIBED: &[&str] = &["-machine", "pc", "-accel", "tcg", "-m", "64,maxmem=128M"];

/// Gives the machine's disk a bitmap, which migrates as an iterable section besides RAM's.
fn add_bitmap(qemu: &mut Qemu) {
    let bitmap = json!({ "node": "disk", "name": "bitmap" });
    qemu.execute("block-dirty-bitmap-add", bitmap).unwrap();
    qemu.capabilities(&["dirty-bitmaps"]).unwrap();
}

fn section<'a>(arrived: &'a Arrived, name: &str) -> Option<&'a SectionInfo> {
    arrived.0.sections.iter().find(|section| section.name == name)
}

/// What QEMU says of its devices is what came.
fn check_sections(arrived: &Arrived, described: bool) {
    let received = &arrived.0;
    let kept = |section: &SectionInfo| {
        let len: usize = section.parts().unwrap().map(<[u8]>::len).sum();
        len as u64 == section.len
    };
    assert!(received.sections.iter().all(kept));
    for name in ["timer", "cpu", "fw_cfg", "0000:00:02.0/vga", "globalstate"] {
        assert!(section(arrived, name).is_some(), "no section {name}");
    }
    if !described {
        assert!(received.description.is_empty());
        return;
    }
    let description: Value = serde_json::from_slice(&received.description).unwrap();
    let whole: Vec<_> = received.sections.iter().filter(|section| !section.iterable).collect();
    for section in &whole {
        let (name, instance) = (&section.name, section.instance);
        assert_eq!(described_len(&description, name, instance), Some(section.len), "{name}");
    }
    assert_eq!(whole.len(), description["devices"].as_array().unwrap().len());
}

/// What QEMU sends over so many channels, once it was compared with what QEMU has.
fn arrives(qemu: &mut Qemu, channels: usize) -> Arrived {
    qemu.capabilities(&["return-path"]).unwrap();
    if channels > 0 {
        qemu.capabilities(&["multifd"]).unwrap();
    }
    let receiving = receive(qemu, 1 + channels, true);
    migrate_stopped(qemu);
    let arrived = receiving.join().unwrap();
    check(qemu, &arrived);
    arrived
}

/// From a file, and from connections that QEMU keeps open until it is answered.
fn a_stream_without_description_arrives(program: &Program) {
    for (arguments, described) in [(SILENT, false), (DESCRIBED, true)] {
        let mut qemu = running(program, "silent", arguments).unwrap();
        let path = qemu.path("stream");
        qemu.execute("stop", json!({})).unwrap();
        qemu.migrate(&format!("exec:cat > {}", path.display())).unwrap();
        qemu.wait_migrated().unwrap();
        let arrived = take(&mut File::open(&path).unwrap());
        check(&mut qemu, &arrived);
        check_sections(&arrived, described);
        assert_eq!(arrived.0.bytes, std::fs::metadata(&path).unwrap().len());
        for channels in [0, 2] {
            let mut qemu = running(program, "silent", arguments).unwrap();
            check_sections(&arrives(&mut qemu, channels), described);
        }
    }
}

fn an_iterable_section_arrives(program: &Program) {
    for (arguments, described) in [(SILENT, false), (DESCRIBED, true)] {
        for channels in [0, 2] {
            let mut qemu = running(program, "bitmap", arguments).unwrap();
            add_bitmap(&mut qemu);
            let arrived = arrives(&mut qemu, channels);
            check_sections(&arrived, described);
            let bitmap = section(&arrived, "dirty-bitmap").unwrap();
            assert!(bitmap.iterable && bitmap.early && bitmap.len > 10, "{bitmap:?}");
            assert!(bitmap.parts().unwrap().len() >= 2);
        }
    }
}

/// QEMU from 8.0 on sends a device's state before RAM, if RAM depends on it.
fn early(program: &Program, arguments: &[&'static str]) -> Option<Vec<&'static str>> {
    let memory = ["-object", "memory-backend-ram,id=more,size=32M"];
    let device = ["-device", "virtio-mem-pci,id=vm0,memdev=more,requested-size=0"];
    let knows = program.release().unwrap() >= (8, 0);
    knows.then(|| [arguments, &memory, &device].concat())
}

fn a_section_before_ram_arrives(program: &Program) {
    for (arguments, described) in [(SILENT, false), (DESCRIBED, true)] {
        let Some(arguments) = early(program, arguments) else { return };
        for channels in [0, 2] {
            let mut qemu = running(program, "early", &arguments).unwrap();
            qemu.capabilities(&["return-path"]).unwrap();
            if channels > 0 {
                qemu.capabilities(&["multifd"]).unwrap();
            }
            let receiving = receive(&qemu, 1 + channels, true);
            migrate_stopped(&mut qemu);
            let arrived = receiving.join().unwrap();
            check(&mut qemu, &arrived);
            check_sections(&arrived, described);
            let early = arrived.0.sections.iter().filter(|section| section.early);
            let early: Vec<_> = early.map(|section| section.name.as_str()).collect();
            assert!(early.iter().any(|name| name.contains("virtio-mem")), "{early:?}");
        }
    }
}

/// All of a PC: what is not known here, too.
fn a_machine_is_sent_on(program: &Program) {
    for channels in [0, 2] {
        let mut arguments = early(program, SILENT).unwrap_or_else(|| SILENT.to_vec());
        let mut first = running(program, "first", &arguments).unwrap();
        add_bitmap(&mut first);
        first.capabilities(&["return-path"]).unwrap();
        let receiving = receive(&first, 1, true);
        migrate_stopped(&mut first);
        let arrived = receiving.join().unwrap();
        check(&mut first, &arrived);

        arguments.extend(["-incoming", "defer"]);
        let mut second = start(program, "second", &arguments).unwrap();
        second.capabilities(&["return-path", "dirty-bitmaps"]).unwrap();
        if channels > 0 {
            second.capabilities(&["multifd"]).unwrap();
        }
        second.incoming(&format!("unix:{}", second.path("in").display())).unwrap();
        send_on(&second, &arrived, channels);
        second.wait_migrated().unwrap();
        check(&mut second, &arrived);
        let nodes = second.execute("query-named-block-nodes", json!({})).unwrap();
        let bitmaps = nodes
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|node| node["dirty-bitmaps"].as_array().cloned().unwrap_or_default());
        assert!(bitmaps.into_iter().any(|bitmap| bitmap["name"] == "bitmap"), "{nodes}");
        // Its processor goes on where the first one's stood.
        let at = COUNTED.end - PAGE as u64;
        let before = second.memory(at, 1).unwrap();
        second.execute("cont", json!({})).unwrap();
        wait_until("the guest counts on", || second.memory(at, 1).unwrap() != before);
    }
}

fn send_on(to: &Qemu, (received, blocks): &Arrived, channels: usize) {
    let memory = MemoryMap::new();
    let add = memory.transaction(|map| {
        blocks.iter().try_for_each(|block| map.ram(block.id(), block.clone()).map(drop))
    });
    add.unwrap();
    let mut precopy = Precopy::new(memory).machine(&received.machine);
    for section in &received.sections {
        precopy = precopy.section(section.clone());
    }
    let mut out = connect(&to.path("in")).unwrap();
    let mut back = out.try_clone().unwrap();
    let mut channels: Vec<UnixStream> =
        (0..channels).map(|_| connect(&to.path("in")).unwrap()).collect();
    let to = OutgoingChannels::new(&mut out)
        .channels(channels.iter_mut().map(|channel| channel as &mut dyn WriteTransport))
        .return_path(&mut back);
    let _ = precopy.run(to, || Ok(()), |_| ()).unwrap();
}
