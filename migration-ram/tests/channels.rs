//! Several connections, devices, the return path, and cancelled migrations.

#[path = "common/deadline.rs"]
mod deadline;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use memory_region::MemoryMap;
use migration_ram::{
    Device, DeviceError, FnDevice, Framing, IncomingChannels, Migrated, MigrationStatus,
    OutgoingChannels, Precopy, ReadTransport, ReceiveError, Received, Receiver, SendError,
    WriteTransport,
};
use ram_block::{DirtyClient, PageSize, RamBlock, SendList, TransferError};

const PAGES: u64 = 700;

fn page() -> u64 {
    PageSize::host().bytes()
}

fn contents(block: &RamBlock) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(block.len()).unwrap()];
    block.read(0, &mut bytes).unwrap();
    bytes
}

/// Two blocks with a third of their pages zero, the others random.
fn machine() -> (Arc<MemoryMap>, Vec<Arc<RamBlock>>) {
    let blocks: Vec<_> =
        ["ram", "vram"].map(|id| RamBlock::anonymous(id, PAGES * page()).unwrap()).into();
    let mut noise = 88_172_645_463_325_252_u64;
    for block in &blocks {
        for n in (0..PAGES).filter(|n| n % 3 != 0) {
            let bytes: Vec<u8> = (0..page() / 8)
                .flat_map(|_| {
                    noise ^= noise << 13;
                    noise ^= noise >> 7;
                    noise ^= noise << 17;
                    noise.to_le_bytes()
                })
                .collect();
            block.write(n * page(), &bytes).unwrap();
        }
    }
    let memory = MemoryMap::new();
    memory
        .transaction(|map| {
            blocks.iter().try_for_each(|block| map.ram(block.id(), block.clone()).map(drop))
        })
        .unwrap();
    (memory, blocks)
}

fn twins() -> Vec<Arc<RamBlock>> {
    ["vram", "ram"].map(|id| RamBlock::anonymous(id, PAGES * page()).unwrap()).into()
}

fn still() -> Result<(), DeviceError> {
    Ok(())
}

/// A connection for the stream and `channels` more, each with two ends.
fn connections(channels: usize) -> (Vec<UnixStream>, Vec<UnixStream>) {
    (0..=channels).map(|_| UnixStream::pair().unwrap()).unzip()
}

fn receive(mut ends: Vec<UnixStream>, receiver: Receiver<'_>) -> Result<Received, ReceiveError> {
    let answers = ends[0].try_clone().unwrap();
    ends.reverse(); // the receiver accepts any order
    let from = IncomingChannels::several(ends.iter_mut().map(|end| end as &mut dyn ReadTransport));
    receiver.run(from.return_path(&mut &answers))
}

fn send(
    ends: &mut [UnixStream],
    precopy: &Precopy,
    pause: impl FnOnce() -> Result<(), DeviceError>,
) -> Result<Migrated<()>, SendError> {
    let answers = ends[0].try_clone().unwrap();
    let (main, channels) = ends.split_first_mut().unwrap();
    let to = OutgoingChannels::new(main)
        .channels(channels.iter_mut().map(|end| end as &mut dyn WriteTransport));
    precopy.run(to.return_path(&mut &answers), pause, |_| ())
}

#[test]
fn pages_arrive_over_any_number_of_channels() {
    // With syncs at RAM_SAVE_FLAG_MULTIFD_FLUSH, and at the end of each section.
    let ways = [0, 1, 2, 5, 16].into_iter().flat_map(|n| [(n, false), (n, true)]);
    for (channels, each_section) in ways {
        deadline::in_time(move || {
            let (memory, blocks) = machine();
            let (mut near, far) = connections(channels);
            let mut ends: Vec<_> = far.iter().map(|end| end.try_clone().unwrap()).collect();
            let stop = Arc::new(AtomicBool::new(false));
            // The same few pages over and over, as zeros and as others: in which order they
            // arrive is what the syncs are for.
            let writer = std::thread::spawn({
                let (ram, stop) = (blocks[0].clone(), stop.clone());
                move || {
                    for n in 0u64.. {
                        let byte = if n % 2 == 0 { 0 } else { n.to_le_bytes()[0] };
                        let page_bytes = vec![byte; usize::try_from(page()).unwrap()];
                        ram.write(n % 7 * page(), &page_bytes).unwrap();
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                    }
                }
            });
            let twins = twins();
            let receiver = std::thread::spawn({
                let twins = twins.clone();
                move || receive(far, Receiver::new(&twins))
            });
            let pause = move || {
                stop.store(true, Ordering::Relaxed);
                writer.join().map_err(|_| "the writer panicked".into())
            };
            let precopy = Precopy::new(memory)
                .downtime(Duration::ZERO)
                .max_rounds(40)
                .multifd_flush_after_each_section(each_section);
            let Migrated { stats, .. } = send(&mut near, &precopy, pause).unwrap();
            let received = receiver.join().unwrap().unwrap();
            // The first connection stays open, for further messages of both sides.
            near[0].write_all(b"go").unwrap();
            let mut word = [0; 2];
            ends[0].read_exact(&mut word).unwrap();
            assert_eq!(&word, b"go");
            assert_eq!(received.bytes, stats.bytes, "{channels} channels");
            assert_eq!(received.pages + received.zero_pages, stats.pages());
            assert!(contents(&twins[1]) == contents(&blocks[0]), "{channels} channels");
            assert!(contents(&twins[0]) == contents(&blocks[1]), "{channels} channels");
        });
    }
}

#[test]
fn more_channels_than_there_can_be_are_refused() {
    let (memory, _) = machine();
    let (mut near, far) = connections(17);
    let refused = send(&mut near, &Precopy::new(memory), still);
    assert!(matches!(refused, Err(SendError::TooManyChannels { channels: 17 })));
    let refused = receive(far, Receiver::new(&[]));
    assert!(matches!(refused, Err(ReceiveError::TooManyChannels { channels: 17 })));
}

#[test]
fn whoever_fails_ends_all() {
    // A channel that is not read, or one that is cut, while all others stay open.
    for broken in [0, 1, 2] {
        deadline::in_time(move || {
            let (memory, blocks) = machine();
            let (mut near, mut far) = connections(2);
            let lost = far.remove(broken);
            lost.shutdown(std::net::Shutdown::Both).unwrap();
            let others = far;
            let error = send(&mut near, &Precopy::new(memory.clone()), still).unwrap_err();
            assert!(
                matches!(error, SendError::Write { .. } | SendError::Channel { .. }),
                "{broken}: {error}"
            );
            assert!(!blocks[0].dirty().enabled().contains(DirtyClient::MIGRATION));
            drop(others);

            // The destination: the connection ends within the stream.
            let (mut near, far) = connections(2);
            let twins = twins();
            let receiver = std::thread::spawn({
                let twins = twins.clone();
                move || receive(far, Receiver::new(&twins))
            });
            let cut = near[broken].try_clone().unwrap();
            // All other connections stay open, and the receiver has the pages sent before.
            let (twin, last) = (twins[1].clone(), (PAGES - 2) * page()); // not zero
            let pause = move || {
                while contents(&twin)[usize::try_from(last).unwrap()..].iter().all(|b| *b == 0) {
                    std::thread::yield_now();
                }
                Ok(cut.shutdown(std::net::Shutdown::Both)?)
            };
            let error = send(&mut near, &Precopy::new(memory), pause).unwrap_err();
            let refused = receiver.join().unwrap().unwrap_err();
            assert!(
                matches!(refused, ReceiveError::Truncated { .. } | ReceiveError::Read { .. }),
                "{broken}: {refused}, {error}"
            );
        });
    }
}

#[test]
fn a_cancel_ends_a_migration_that_nobody_takes() {
    for channels in [0, 2] {
        deadline::in_time(move || {
            let (memory, blocks) = machine();
            let (mut near, far) = connections(channels);
            let precopy = Precopy::new(memory.clone());
            let cancel = precopy.cancel();
            let sender = std::thread::spawn({
                let precopy = precopy.clone();
                move || send(&mut near, &precopy, still)
            });
            while !blocks[0].dirty().enabled().contains(DirtyClient::MIGRATION) {
                std::thread::yield_now();
            }
            cancel.cancel();
            assert!(matches!(sender.join().unwrap(), Err(SendError::Cancelled)));
            assert!(!blocks[0].dirty().enabled().contains(DirtyClient::MIGRATION));
            drop(far);

            // The same once more, to the end.
            let (mut near, far) = connections(channels);
            let twins = twins();
            let receiver = std::thread::spawn({
                let twins = twins.clone();
                move || receive(far, Receiver::new(&twins))
            });
            let _ = send(&mut near, &precopy, still).unwrap();
            receiver.join().unwrap().unwrap();
            assert!(contents(&twins[1]) == contents(&blocks[0]));
        });
    }
}

/// A transport; whenever something is sent, the guest writes, so that each round finds new pages.
struct Writing(Arc<RamBlock>);

impl WriteTransport for Writing {
    fn send(&mut self, list: &mut SendList<'_>) -> Result<(), TransferError> {
        self.0.write(0, &[1]).unwrap();
        Vec::new().send(list)
    }
}

/// A second migration that is refused, as the first is under way, does not touch its cancel.
#[test]
fn a_refused_migration_takes_nobodys_cancel() {
    deadline::in_time(|| {
        let (memory, blocks) = machine();
        let precopy = Precopy::new(memory).downtime(Duration::ZERO);
        let cancel = precopy.cancel();
        let result = precopy.run(&mut Writing(blocks[0].clone()), still, |_| {
            cancel.cancel();
            let refused = precopy.run(&mut Vec::new(), still, |_| ()).unwrap_err();
            assert!(matches!(refused, SendError::Log(_)), "{refused}");
        });
        assert!(matches!(result, Err(SendError::Cancelled)), "{result:?}");
    });
}

/// Keeps the state that it was given, and counts how often.
#[derive(Default)]
struct Holder {
    states: Mutex<Vec<(u32, Vec<u8>)>>,
    refuses: bool,
    framing: Option<Framing>,
}

impl Device for Holder {
    fn name(&self) -> &str {
        "holder"
    }

    fn version(&self) -> u32 {
        3
    }

    fn framing(&self) -> Framing {
        self.framing.unwrap_or(Framing::LengthPrefixed)
    }

    fn save(&self) -> Result<Vec<u8>, DeviceError> {
        Ok(b"twelve bytes".to_vec())
    }

    fn restore(&self, version: u32, state: &[u8]) -> Result<(), DeviceError> {
        if self.refuses {
            return Err("not this one".into());
        }
        self.states.lock().unwrap().push((version, state.to_vec()));
        Ok(())
    }
}

fn device(name: &str) -> Arc<dyn Device> {
    Arc::new(FnDevice::new(name, || Ok(vec![1, 2, 3]), |_, _| Ok(())))
}

#[test]
fn devices_travel_behind_ram() {
    let (memory, _) = machine();
    for framing in [Framing::LengthPrefixed, Framing::Fixed(12)] {
        let framing = Some(framing);
        let mut stream = Vec::new();
        let precopy = Precopy::new(memory.clone())
            .device(Arc::new(Holder { framing, ..Holder::default() }))
            .device(device("other"));
        let _ = precopy.run(&mut stream, still, |_| ()).unwrap();

        let holder = Arc::new(Holder { framing, ..Holder::default() });
        let receiver = Receiver::new(&twins()).device(device("other")).device(holder.clone());
        let received = receiver.run(&mut stream.as_slice()).unwrap();
        assert_eq!(*holder.states.lock().unwrap(), [(3, b"twelve bytes".to_vec())]);
        let sections: Vec<_> = received.sections.iter().map(|s| (&*s.name, s.len)).collect();
        assert_eq!(sections, [("holder", 12), ("other", 3)]);
        let described: serde_json::Value = serde_json::from_slice(&received.description).unwrap();
        assert_eq!(described["devices"][0]["name"], "holder");

        // A device that is unknown here, one that is missing, one that refuses, one that is older.
        let refused = |receiver: Receiver<'_>| receiver.run(&mut stream.as_slice()).unwrap_err();
        let error = refused(Receiver::new(&twins()).device(holder.clone()));
        assert!(matches!(&error, ReceiveError::UnknownSection { name, .. } if name == "other"));
        let all = || Receiver::new(&twins()).device(device("other"));
        let error = refused(all().device(holder.clone()).device(device("third")));
        assert!(matches!(&error, ReceiveError::MissingDevice { name, .. } if name == "third"));
        let refuses = Holder { refuses: true, framing, ..Holder::default() };
        let error = refused(all().device(Arc::new(refuses)));
        assert!(matches!(&error, ReceiveError::Device { name, .. } if name == "holder"), "{error}");
        let older = FnDevice::new("holder", || Ok(Vec::new()), |_, _| Ok(()));
        let error = refused(all().device(Arc::new(older)));
        assert!(matches!(error, ReceiveError::DeviceVersion { found: 3, known: 1, .. }), "{error}");

        // Unknown sections can be skipped at any place.
        for receiver in [Receiver::new(&twins()), Receiver::new(&twins()).device(holder.clone())] {
            let kept = receiver.keep_unknown_sections(true).run(&mut stream.as_slice()).unwrap();
            let names: Vec<_> = kept.sections.iter().map(|s| s.name.as_str()).collect();
            assert_eq!(names, ["holder", "other"]);
            assert_eq!(kept.description, received.description);
        }
    }
}

#[test]
fn a_device_that_fails_ends_the_migration() {
    let (memory, blocks) = machine();
    let failing = FnDevice::new("rtc", || Err("no clock".into()), |_, _| Ok(()));
    let precopy = Precopy::new(memory.clone()).device(Arc::new(failing));
    let error = precopy.run(&mut Vec::new(), still, |_| ()).unwrap_err();
    assert!(matches!(&error, SendError::Device { name, .. } if name == "rtc"), "{error}");
    assert!(!blocks[0].dirty().enabled().contains(DirtyClient::MIGRATION));
    for name in ["", "ram", &"x".repeat(256)] {
        let precopy = Precopy::new(memory.clone()).device(device(name));
        let error = precopy.run(&mut Vec::new(), still, |_| ()).unwrap_err();
        assert!(matches!(error, SendError::DeviceName { .. }), "{error}");
    }
    let twice = Precopy::new(memory).device(device("a")).device(device("a"));
    let error = twice.run(&mut Vec::new(), still, |_| ()).unwrap_err();
    assert!(matches!(error, SendError::DeviceName { .. }), "{error}");
}

/// The receiver has all of RAM, and a device's `restore` fails: the source is told on the return
/// path, and keeps running.
#[test]
fn the_source_hears_how_it_ended() {
    deadline::in_time(|| {
        let (memory, blocks) = machine();
        let (mut near, far) = connections(0);
        let receiver = std::thread::spawn(move || {
            let refuses = Holder { refuses: true, ..Holder::default() };
            receive(far, Receiver::new(&twins()).device(Arc::new(refuses)))
        });
        let precopy = Precopy::new(memory).device(Arc::new(Holder::default()));
        let error = send(&mut near, &precopy, still).unwrap_err();
        assert!(matches!(error, SendError::Refused { reason: 1 }), "{error}");
        assert!(receiver.join().unwrap().is_err());
        assert!(!blocks[0].dirty().enabled().contains(DirtyClient::MIGRATION));
    });
}

/// Each part of the downtime is at least as long as its steps.
#[test]
fn downtime_is_told_in_its_parts() {
    const PART: Duration = Duration::from_millis(3);
    let stats = deadline::in_time(|| {
        let device = |saves: Duration, restores: Duration| {
            let save = move || {
                std::thread::sleep(saves);
                Ok(b"state".to_vec())
            };
            Arc::new(FnDevice::new("slow", save, move |_, _: &[u8]| {
                std::thread::sleep(restores);
                Ok(())
            }))
        };
        let (mut here, there) = connections(0);
        let receiver = std::thread::spawn(move || {
            receive(there, Receiver::new(&twins()).device(device(Duration::ZERO, 2 * PART)))
        });
        let pause = || {
            std::thread::sleep(PART);
            Ok(())
        };
        let precopy = Precopy::new(machine().0).device(device(3 * PART, Duration::ZERO));
        let migrated = send(&mut here, &precopy, pause).unwrap();
        receiver.join().unwrap().unwrap();
        migrated.stats
    });
    let parts = stats.downtime_parts;
    let least = (PART, stats.rounds[1].time, 3 * PART, 2 * PART);
    assert!(parts.pause >= least.0 && parts.pages >= least.1, "{parts}");
    assert!(parts.devices >= least.2 && parts.answer >= least.3, "{parts}");
    let all = parts.pause + parts.sync + parts.pages + parts.devices + parts.answer;
    assert!(all <= stats.downtime, "{parts}: {:?}", stats.downtime);
}

#[test]
fn a_receiver_that_says_nothing_is_no_success() {
    deadline::in_time(|| {
        let (memory, _) = machine();
        let (mut near, mut far) = connections(0);
        let taker = std::thread::spawn(move || {
            let mut far = far.remove(0);
            Receiver::new(&twins()).run(&mut far) // no return path
        });
        let error = send(&mut near, &Precopy::new(memory), still).unwrap_err();
        taker.join().unwrap().unwrap();
        assert!(matches!(error, SendError::NoAck { .. }), "{error}");
    });
}

#[test]
fn progress_adds_up() {
    let (memory, blocks) = machine();
    let mut states = Vec::new();
    let mut last = None;
    let Migrated { stats, .. } = Precopy::new(memory)
        .run(&mut Vec::new(), still, |now| {
            states.push(now.state);
            last = Some(now.clone());
        })
        .unwrap();
    let last = last.unwrap();
    assert_eq!(states, [MigrationStatus::Active, MigrationStatus::Completed]);
    assert_eq!(last.total, blocks.iter().map(|block| block.len()).sum::<u64>());
    assert_eq!((last.remaining, last.percent()), (0, 100));
    assert_eq!(last.transferred, stats.bytes);
    assert_eq!(last.normal_pages + last.zero_pages, stats.pages());
    let json = serde_json::to_value(last.query_migrate()).unwrap();
    assert_eq!(json["status"], "completed");
    assert_eq!(json["ram"]["normal-bytes"], last.normal_pages * 4096);
    assert_eq!(json["ram"]["transferred"], stats.bytes);
    assert!(json["downtime"].is_u64() && json["expected-downtime"].is_null());
    let (before, within) = (&json["ram"]["precopy-bytes"], &json["ram"]["downtime-bytes"]);
    assert_eq!(before.as_u64().unwrap() + within.as_u64().unwrap(), stats.bytes);
    assert!(within.as_u64() > Some(0) && within.as_u64() < before.as_u64());
}

/// QEMU from 8.1 on, with `switchover-ack`, acknowledges the switchover before the end.
#[test]
fn an_answer_before_the_last_one_is_no_error() {
    let (memory, _) = machine();
    let mut stream = Vec::new();
    let mut answers: &[u8] = b"\0\x07\0\0\0\x01\0\x04\0\0\0\0";
    let to = OutgoingChannels::new(&mut stream).return_path(&mut answers);
    let migrated = Precopy::new(memory).run(to, still, |_| ()).unwrap();
    assert_eq!(migrated.stats.bytes, stream.len() as u64);
}

#[test]
fn channels_have_pages_of_4_kib() {
    deadline::in_time(|| {
        let stream = b"QEVM\0\0\0\x03\x07\0\0\0\0\x05\x1econfiguration/target-page-bits";
        let mut stream = &[&stream[..], b"\0\0\0\x01\0\0\0\x0d\0"].concat()[..];
        let (mut near, mut channel) = UnixStream::pair().unwrap();
        near.write_all(&[&b"\x11\x22\x33\x44\0\0\0\x01"[..], &[0; 56]].concat()).unwrap();
        let inputs: [&mut dyn ReadTransport; 2] = [&mut stream, &mut channel];
        let error = Receiver::new(&[]).run(IncomingChannels::several(inputs)).unwrap_err();
        assert!(matches!(error, ReceiveError::Unsupported { found: 8192, .. }), "{error}");
    });
}

/// A source that sends no description, keeps its connection and waits for an answer.
#[test]
fn a_description_that_does_not_follow_is_not_waited_for() {
    deadline::in_time(|| {
        let memory = MemoryMap::new();
        let ram = RamBlock::anonymous("ram", page()).unwrap();
        memory.transaction(|map| map.ram("ram", ram.clone())).unwrap();
        let mut stream = Vec::new();
        Precopy::new(memory).run(&mut stream, still, |_| ()).map(drop).unwrap();
        let described = stream.len();
        let end = stream.iter().rposition(|byte| *byte == 6).unwrap();
        stream.truncate(end);
        let (mut near, mut far) = UnixStream::pair().unwrap();
        near.write_all(&stream).unwrap();
        let twin = RamBlock::anonymous("ram", page()).unwrap();
        let received = Receiver::new(&[twin]).expect_vmdesc(false).run(&mut far).unwrap();
        assert_eq!(received.bytes, end as u64);
        assert!(end < described);
    });
}

/// The stream of a source with `switchover-ack`, as far as it goes before it is answered.
#[test]
fn who_waits_to_switch_over_is_told_that_it_may() {
    let stream = b"QEVM\0\0\0\x03\x08\0\x01\0\0";
    let shut: &[u8] = b"\0\x01\0\x04\0\0\0\x01"; // the stream breaks off
    let acknowledged: &[u8] = b"\0\x07\0\0";
    for (acknowledge, answers) in [(false, shut.to_vec()), (true, [acknowledged, shut].concat())] {
        let (mut input, mut back) = (&stream[..], Vec::new());
        let incoming = IncomingChannels::from(&mut input).return_path(&mut back);
        let receiver = Receiver::new(&[]).acknowledge_switchover(acknowledge);
        receiver.run(incoming).unwrap_err();
        assert_eq!(back, answers);
    }
}

/// A cancel after everything was sent, while the source waits for the acknowledgement: the
/// destination may have everything, so the error must not be `Cancelled`.
#[test]
fn a_cancel_behind_the_last_byte_says_that_all_may_be_there() {
    deadline::in_time(|| {
        let (memory, _) = machine();
        let precopy = Precopy::new(memory);
        let cancel = precopy.cancel();
        let (mut near, mut far) = UnixStream::pair().unwrap();
        let (mut back, silent) = UnixStream::pair().unwrap();
        let receiving = std::thread::spawn(move || {
            let received = Receiver::new(&twins()).run(&mut far);
            cancel.cancel();
            received
        });
        let to = OutgoingChannels::new(&mut near).return_path(&mut back);
        let error = precopy.run(to, still, |_| ()).unwrap_err();
        assert!(matches!(error, SendError::NoAck { .. }), "{error}");
        receiving.join().unwrap().unwrap();
        drop(silent);
    });
}

/// How many RAM_SAVE_FLAG_MULTIFD_FLUSH records and how many sections the stream of a machine of
/// that name has, with a channel.
fn flushes_and_sections(machine_name: &str) -> (usize, usize) {
    let (memory, _) = machine();
    let mut stream = Vec::new();
    let (mut channel, mut far) = UnixStream::pair().unwrap();
    let drain = std::thread::spawn(move || std::io::copy(&mut far, &mut std::io::sink()).unwrap());
    let to = OutgoingChannels::new(&mut stream).channels([&mut channel as &mut dyn WriteTransport]);
    let _ = Precopy::new(memory).machine(machine_name).run(to, still, |_| ()).unwrap();
    drop(channel);
    drain.join().unwrap();
    let count = |what: &[u8]| stream.windows(what.len()).filter(|at| *at == what).count();
    let end = [&0x10u64.to_be_bytes()[..], b"\x7e\0\0\0\x02"].concat();
    (count(&[&0x200u64.to_be_bytes()[..], &end].concat()), count(&end))
}

/// QEMU from 8.1 on waits for channels at RAM_SAVE_FLAG_MULTIFD_FLUSH; earlier versions wait at
/// the end of each section, and refuse that flag.
#[test]
fn channels_are_waited_for_at_every_section_as_the_version_has_it() {
    deadline::in_time(|| {
        for (name, says) in [("none", true), ("pc-q35-8.1", true), ("pc-q35-8.0", false)] {
            let (flushes, sections) = flushes_and_sections(name);
            assert!(sections >= 3, "{sections}");
            assert_eq!(flushes, if says { sections } else { 0 }, "{name}");
        }
    });
}
