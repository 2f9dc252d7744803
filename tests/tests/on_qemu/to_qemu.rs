//! What we send, QEMU takes.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use integration_tests::harness::Test;
use integration_tests::qemu::{Program, Qemu, connect, release};
use memory_region::MemoryMap;
use migration_ram::{Deadlines, Migrated, OutgoingChannels, Precopy, SendError, WriteTransport};
use ram_block::RamBlock;

use super::fill::{Fill, PAGE};
use super::{TestOf, assert_same};

pub(crate) const TESTS: &[Test] = &[
    ("to_qemu::one_stream_arrives", one_stream_arrives),
    ("to_qemu::its_answer_is_waited_for", its_answer_is_waited_for),
    ("to_qemu::two_channels_arrive", two_channels_arrive),
    ("to_qemu::a_pc_takes_its_ram", a_pc_takes_its_ram),
    ("to_qemu::what_it_refuses_is_an_error", what_it_refuses_is_an_error),
];

/// Those that each version of QEMU has to pass.
pub(crate) const TESTS_OF_ANY: &[TestOf] =
    &[("to_qemu::channels_waited_for_in_another_way_end", channels_waited_for_in_another_way_end)];

const LEN: u64 = 64 << 20;

/// A machine of random, zero and repeated pages.
fn machine(block: &str) -> (Arc<MemoryMap>, Arc<RamBlock>) {
    let memory = MemoryMap::new();
    let ram = RamBlock::anonymous(block, LEN).unwrap();
    memory.transaction(|map| map.ram(block, ram.clone())).unwrap();
    for number in 0..LEN / PAGE as u64 {
        if let Some(page) = Fill::Mixed.page(7, number) {
            ram.write(number * PAGE as u64, &page).unwrap();
        }
    }
    (memory, ram)
}

/// Sends it; some pages are written again while the second round is on its way.
fn send<'a>(precopy: &Precopy, ram: &RamBlock, to: impl Into<OutgoingChannels<'a>>) {
    let Migrated { stats, .. } = precopy
        .run(
            to,
            || Ok(()),
            |now| {
                // A page that was random becomes zero, one that was zero is written.
                if now.rounds == 1 {
                    ram.write(0, &[0; PAGE]).unwrap();
                    ram.write(4 * PAGE as u64 + 77, b"late").unwrap();
                }
            },
        )
        .unwrap();
    assert_eq!(stats.rounds.last().unwrap().pages, 2);
}

fn contents(ram: &RamBlock) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(ram.len()).unwrap()];
    ram.read(0, &mut bytes).unwrap();
    bytes
}

fn incoming(name: &str) -> Qemu {
    Qemu::start(name, &["-machine", "none", "-m", "64", "-incoming", "unix:{dir}/in"]).unwrap()
}

const DEFERRED: &[&str] = &["-machine", "none", "-m", "64", "-incoming", "defer"];

/// Our ends of a stream, its answers and its channels.
struct Ends {
    out: UnixStream,
    back: UnixStream,
    channels: Vec<UnixStream>,
}

/// Makes a QEMU that was started [`DEFERRED`] wait for a stream with two channels.
fn with_two_channels(qemu: &mut Qemu) -> Ends {
    qemu.capabilities(&["multifd", "return-path"]).unwrap();
    qemu.incoming(&format!("unix:{}", qemu.path("in").display())).unwrap();
    let out = connect(&qemu.path("in")).unwrap();
    let back = out.try_clone().unwrap();
    let channels = (0..2).map(|_| connect(&qemu.path("in")).unwrap()).collect();
    Ends { out, back, channels }
}

impl Ends {
    fn outgoing(&mut self) -> OutgoingChannels<'_> {
        OutgoingChannels::new(&mut self.out)
            .channels(self.channels.iter_mut().map(|channel| channel as &mut dyn WriteTransport))
            .return_path(&mut self.back)
    }
}

fn one_stream_arrives() {
    let mut qemu = incoming("in");
    let mut out = connect(&qemu.path("in")).unwrap();
    let (memory, ram) = machine("ram");
    send(&Precopy::new(memory), &ram, &mut out);
    qemu.wait_migrated().unwrap();
    assert_same("RAM", &qemu.memory(0, LEN).unwrap(), &contents(&ram));
}

fn its_answer_is_waited_for() {
    let mut qemu = incoming("answer");
    qemu.capabilities(&["return-path"]).unwrap();
    let mut out = connect(&qemu.path("in")).unwrap();
    let mut back = out.try_clone().unwrap();
    let (memory, ram) = machine("ram");
    send(&Precopy::new(memory), &ram, OutgoingChannels::new(&mut out).return_path(&mut back));
    // It has everything, or it would not have said so.
    qemu.wait_migrated().unwrap();
    assert_same("RAM", &qemu.memory(0, LEN).unwrap(), &contents(&ram));
}

fn two_channels_arrive() {
    let mut qemu = Qemu::start("two", DEFERRED).unwrap();
    let mut ends = with_two_channels(&mut qemu);
    let (memory, ram) = machine("ram");
    let to = ends.outgoing();
    // As this QEMU's is, whatever machine it has.
    let precopy = Precopy::new(memory);
    send(&precopy.multifd_flush_after_each_section(release().unwrap() < (8, 1)), &ram, to);
    qemu.wait_migrated().unwrap();
    assert_same("RAM", &qemu.memory(0, LEN).unwrap(), &contents(&ram));
}

/// From 8.1 on QEMU waits for the channels where the stream says so, and for ever if that never
/// does; earlier ones refuse to be told.
fn channels_waited_for_in_another_way_end(program: &Program) {
    let mut qemu = program.start_with("wrong", DEFERRED, &[]).unwrap();
    let mut ends = with_two_channels(&mut qemu);
    let to = ends.outgoing();
    let (memory, ram) = machine("ram");
    let waits_by_itself = program.release().unwrap() < (8, 1);
    let limit = Duration::from_secs(2);
    let error = Precopy::new(memory)
        .multifd_flush_after_each_section(!waits_by_itself)
        .deadlines(Deadlines::none().idle(limit).answer(limit))
        .run(to, || Ok(()), |_| ())
        .unwrap_err();
    if !waits_by_itself {
        let SendError::TimedOut { channel: Some(_), waited, .. } = &error else {
            panic!("{error}");
        };
        assert!(*waited >= limit && error.to_string().contains("on channel"), "{error}");
    }
    assert!(ram.dirty().enabled().is_empty());
}

fn a_pc_takes_its_ram() {
    let pc = ["-machine", "pc-i440fx-7.2", "-m", "64", "-S", "-incoming", "unix:{dir}/in"];
    let mut qemu = Qemu::start("pc", &pc).unwrap();
    let mut out = connect(&qemu.path("in")).unwrap();
    let (memory, ram) = machine("pc.ram");
    send(&Precopy::new(memory).machine("pc-i440fx-7.2"), &ram, &mut out);
    qemu.wait_migrated().unwrap();
    let expected = contents(&ram);
    // Below 1 MiB there is a window of other memory.
    for part in [0..0xa_0000usize, 0x10_0000..expected.len()] {
        let found = qemu.memory(part.start as u64, part.len() as u64).unwrap();
        assert_same("RAM", &found, &expected[part]);
    }
}

fn what_it_refuses_is_an_error() {
    let qemu = incoming("refuses");
    let mut out = connect(&qemu.path("in")).unwrap();
    let mut back = out.try_clone().unwrap();
    let (memory, ram) = machine("unknown.ram");
    let precopy = Precopy::new(memory);
    let to = OutgoingChannels::new(&mut out).return_path(&mut back);
    let error = precopy.run(to, || Ok(()), |_| ()).unwrap_err();
    // It hangs up, which is seen while writing or while waiting for its answer.
    let text = error.to_string();
    assert!(text.contains("broke") || text.contains("whether it has everything"), "{text}");
    assert!(ram.dirty().enabled().is_empty());
}
