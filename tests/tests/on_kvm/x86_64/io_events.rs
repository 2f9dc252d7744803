//! Writes that signal an eventfd, and writes that KVM gathers.

use std::error::Error;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use iced_x86::code_asm::{al, byte_ptr, rdi};

use integration_tests::harness::Test;
use kvm_accel::{Buses, KvmError, KvmVm, VcpuEvent, VcpuThread};
use machines::guest::{DATA, boot, programs};
use memory_region::vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use memory_region::{AddressSpace, Endianness, IoEventFd, MmioAccess, MmioDevice, RegionId};

use crate::on_kvm::machine::Access::Write;
use crate::on_kvm::machine::{Access, Machine, Recorder, seconds, wait_until};

pub const TESTS: &[Test] = &[
    ("a_doorbell_signals_without_an_exit", a_doorbell_signals_without_an_exit),
    ("a_port_can_be_a_doorbell", a_port_can_be_a_doorbell),
    ("a_doorbell_that_kvm_refuses_is_taken_back", a_doorbell_that_kvm_refuses_is_taken_back),
    ("gathered_writes_arrive_in_order", gathered_writes_arrive_in_order),
    ("gathered_port_writes_arrive_in_order", gathered_port_writes_arrive_in_order),
    ("more_writes_than_the_ring_holds_arrive", more_writes_than_the_ring_holds_arrive),
    ("a_paused_guest_has_nothing_in_the_ring", a_paused_guest_has_nothing_in_the_ring),
    (
        "gathered_writes_are_for_the_map_that_they_were_made_in",
        gathered_writes_are_for_the_map_that_they_were_made_in,
    ),
    ("two_processors_gather_in_one_ring", two_processors_gather_in_one_ring),
    ("a_doorbell_among_gathered_writes_rings", a_doorbell_among_gathered_writes_rings),
    ("ranges_that_overlap_are_gathered_as_one", ranges_that_overlap_are_gathered_as_one),
    ("a_value_to_match_is_the_devices", a_value_to_match_is_the_devices),
    (
        "a_device_that_asks_for_its_own_gathered_writes_gets_them_later",
        a_device_that_asks_for_its_own_gathered_writes_gets_them_later,
    ),
    ("who_hands_over_may_ask_for_it_again", who_hands_over_may_ask_for_it_again),
    (
        "gathered_writes_arrive_when_the_first_processor_is_gone",
        gathered_writes_arrive_when_the_first_processor_is_gone,
    ),
    ("a_device_may_have_its_machine", a_device_may_have_its_machine),
];

const DEVICE: u64 = 0xd000_0000;
const PORT: u64 = 0x310;

fn event(address: u64, size: u8, datamatch: Option<u64>) -> IoEventFd {
    IoEventFd { address, size, datamatch, fd: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()) }
}

/// A machine with a device at [`DEVICE`] in memory and at [`PORT`] of the ports.
fn machine() -> (Machine, Arc<Recorder>, RegionId, RegionId) {
    let machine = Machine::new(16 << 20);
    machine.memory.add_listener(&machine.port_space, machine.vm.pio_listener()).unwrap();
    let device = Recorder::new(0);
    let (registers, ports) = machine
        .memory
        .transaction(|map| {
            let registers = map.mmio("registers", 0x100, device.clone())?;
            let ports = map.mmio("ports", 8, device.clone())?;
            map.add_subregion_overlap(machine.system, DEVICE, registers, 0)?;
            map.add_subregion(machine.ports, PORT, ports)?;
            Ok((registers, ports))
        })
        .unwrap();
    (machine, device, registers, ports)
}

fn a_doorbell_signals_without_an_exit() {
    let (machine, device, registers, _) = machine();
    let (any, two, value) = (event(0x10, 0, None), event(0x20, 2, None), event(0x30, 4, Some(7)));
    machine
        .memory
        .transaction(|map| {
            for event in [&any, &two, &value] {
                map.add_ioeventfd(registers, event.clone())?;
            }
            Ok(())
        })
        .unwrap();
    let run = |offset, stored| {
        machine.run(&programs::load_and_store_all_sizes(), &[DEVICE + offset, DATA, stored]);
        let writes = device.accesses().into_iter().filter(|access| matches!(access, Write { .. }));
        writes.map(|access| if let Write { size, .. } = access { size } else { 0 }).collect()
    };
    let sizes: [Vec<usize>; 4] = [run(0x10, 1), run(0x20, 1), run(0x30, 7), run(0x30, 8)];
    assert_eq!(sizes, [vec![], vec![1, 4, 8], vec![1, 2, 8], vec![1, 2, 4, 8]]);
    assert_eq!([&any, &two, &value].map(|event| event.fd.read().unwrap()), [4, 1, 1]);

    // Where the device goes, they go; taken away, the writes arrive.
    machine.memory.transaction(|map| map.set_address(registers, DEVICE + 0x1000)).unwrap();
    assert_eq!(run(0x1010, 1), [0; 0]);
    assert_eq!(any.fd.read().unwrap(), 4);
    machine.memory.transaction(|map| map.remove_ioeventfd(registers, &any)).unwrap();
    assert_eq!(run(0x1010, 1), [1, 2, 4, 8]);
    assert!(any.fd.read().is_err());
}

fn a_port_can_be_a_doorbell() {
    let (machine, device, _, ports) = machine();
    let bell = event(2, 2, None);
    machine.memory.transaction(|map| map.add_ioeventfd(ports, bell.clone())).unwrap();
    machine.run(&programs::access_ports(), &[DATA, DATA + 0x100, PORT + 2, 1]);
    let writes: Vec<_> =
        device.accesses().into_iter().filter(|access| matches!(access, Write { .. })).collect();
    let write = |size, value| Write { offset: 2, size, value };
    assert_eq!(writes, [write(1, 1), write(4, 1)]);
    // One `out` and three words of a string.
    assert_eq!(bell.fd.read().unwrap(), 4);
}

fn a_doorbell_that_kvm_refuses_is_taken_back() {
    let (machine, _, registers, _) = machine();
    let bell = event(0, 2, Some(1));
    // A range that KVM's zones cannot name, also without the eventfd, which KVM takes first.
    let refused = machine.memory.transaction(|map| {
        let large = map.mmio("large", 1 << 33, Recorder::new(0))?;
        map.add_subregion(machine.system, 1 << 34, large)?;
        map.add_ioeventfd(large, bell.clone())?;
        map.set_coalescing(large, std::slice::from_ref(&(0..1 << 33)))
    });
    let refused = refused.unwrap_err();
    let reason = refused.source().and_then(|source| source.downcast_ref());
    assert!(
        matches!(reason, Some(KvmError::CoalescedZone { size: 0x1_ffff_fffe, .. })),
        "{refused:?}"
    );
    let address = kvm_accel::kvm_ioctls::IoEventAddress::Mmio(1 << 34);
    machine.vm.fd().register_ioevent(&bell.fd, &address, 1u16).unwrap(); // free again
    // Somebody else has the place already: KVM has room for one.
    let slots = machine.vm.slots();
    let add = || {
        machine.memory.transaction(|map| {
            map.add_ioeventfd(registers, bell.clone())?;
            let hole = map.mmio("hole", 0x1000, Recorder::new(0))?;
            map.add_subregion_overlap(machine.system, 8 << 20, hole, 1)
        })
    };
    let address = kvm_accel::kvm_ioctls::IoEventAddress::Mmio(DEVICE);
    machine.vm.fd().register_ioevent(&bell.fd, &address, 1u16).unwrap();
    let refused = add().unwrap_err();
    let expected = KvmError::IoEvent {
        address: DEVICE,
        size: 2,
        source: std::io::Error::from_raw_os_error(17), // EEXIST
    };
    assert_eq!(refused.source().unwrap().to_string(), expected.to_string());
    assert_eq!(machine.vm.slots(), slots);
    machine.vm.fd().unregister_ioevent(&bell.fd, &address, 1u16).unwrap();
    add().unwrap();
}

/// So many writes stay in KVM's ring until somebody asks. A page has room for 170; Linux 6.1
/// counts the free ones modulo that number after they have wrapped, and exits from 86 on.
const GATHERED: u64 = 80;

/// Starts a guest that writes `count` values to the device, and waits until it has.
fn write_many(machine: &Machine, ports: bool, count: u64) -> VcpuThread {
    write_many_at(machine, 0, ports, count)
}

fn write_many_at(machine: &Machine, offset: u64, ports: bool, count: u64) -> VcpuThread {
    let place = if ports { PORT } else { DEVICE } + offset;
    machine.block.write(DATA, &[0; 8]).unwrap();
    let code = programs::store_many_then_wait(ports);
    let guest = machine.start(&code, &[place, count, DATA, DEVICE + 0x80]);
    wait_until("the last write", || machine.words::<1>(DATA) == [1]);
    guest
}

fn written(count: u64) -> Vec<Access> {
    (1..=count).map(|value| Write { offset: 0, size: 4, value }).collect()
}

const LAST: Access = Write { offset: 0x80, size: 1, value: 0xff };

fn arrive_in_order(ports: bool) {
    let (machine, device, registers, port_region) = machine();
    let region = if ports { port_region } else { registers };
    machine
        .memory
        .transaction(|map| map.set_coalescing(region, std::slice::from_ref(&(0..4))))
        .unwrap();
    // Nothing exits: what was written is in the ring, until somebody asks.
    let guest = write_many(&machine, ports, GATHERED);
    assert_eq!(device.accesses(), [], "writes were not gathered");
    machine.vm.flush_coalesced();
    assert_eq!(device.accesses(), written(GATHERED));
    machine.block.write(DATA, &2u64.to_le_bytes()).unwrap();
    guest.join().unwrap();
    assert_eq!(device.accesses(), [LAST]);
    // An exit brings them, and comes after them.
    let guest = write_many(&machine, ports, 50);
    machine.block.write(DATA, &2u64.to_le_bytes()).unwrap();
    guest.join().unwrap();
    assert_eq!(device.accesses(), [written(50), vec![LAST]].concat());
    // Without it every write exits.
    machine.memory.transaction(|map| map.set_coalescing(region, &[])).unwrap();
    let guest = write_many(&machine, ports, 10);
    assert_eq!(device.accesses(), written(10));
    guest.stop().unwrap();
}

fn gathered_writes_arrive_in_order() {
    arrive_in_order(false);
}

fn gathered_port_writes_arrive_in_order() {
    arrive_in_order(true);
}

fn more_writes_than_the_ring_holds_arrive() {
    let (machine, device, registers, _) = machine();
    machine
        .memory
        .transaction(|map| map.set_coalescing(registers, std::slice::from_ref(&(0..4))))
        .unwrap();
    let guest = write_many(&machine, false, 1000);
    machine.vm.flush_coalesced();
    assert_eq!(device.accesses(), written(1000));
    guest.stop().unwrap();
}

fn a_paused_guest_has_nothing_in_the_ring() {
    let (machine, device, registers, _) = machine();
    machine
        .memory
        .transaction(|map| map.set_coalescing(registers, std::slice::from_ref(&(0..4))))
        .unwrap();
    let guest = write_many(&machine, false, 60);
    let paused = machine.vm.pause(seconds(10)).unwrap();
    assert_eq!(device.accesses(), written(60));
    drop(paused);
    guest.stop().unwrap();
}

/// A device that, at its first write, waits until it may go on.
#[derive(Default)]
struct Slow {
    entered: AtomicBool,
    go: AtomicBool,
    values: Mutex<Vec<u64>>,
}

impl MmioDevice for Slow {
    fn read(&self, _: u64, _: usize) -> u64 {
        0
    }

    fn write(&self, _: u64, _: usize, value: u64) {
        self.entered.store(true, Ordering::Release);
        wait_until("the change of the map", || self.go.load(Ordering::Acquire));
        self.values.lock().unwrap().push(value);
    }
}

/// While the first of them is handed over the map changes: the others, which are still
/// in the ring, are for the device that was there.
fn gathered_writes_are_for_the_map_that_they_were_made_in() {
    let (machine, device, _, _) = machine();
    let slow = Arc::new(Slow::default());
    let gathers = std::slice::from_ref(&(0..4));
    machine
        .memory
        .transaction(|map| {
            let slow = map.mmio("slow", 0x10, slow.clone())?;
            map.set_coalescing(slow, gathers)?;
            map.add_subregion_overlap(machine.system, DEVICE, slow, 1)
        })
        .unwrap();
    let guest = write_many(&machine, false, 60);
    std::thread::scope(|scope| {
        scope.spawn(|| machine.vm.flush_coalesced());
        wait_until("the first write", || slow.entered.load(Ordering::Acquire));
        let changed = machine.memory.transaction(|map| {
            let other = map.mmio("other", 0x10, device.clone())?;
            map.set_coalescing(other, gathers)?;
            map.add_subregion_overlap(machine.system, DEVICE, other, 2)
        });
        slow.go.store(true, Ordering::Release);
        changed.unwrap();
    });
    assert_eq!(*slow.values.lock().unwrap(), (1..=60).collect::<Vec<u64>>());
    assert_eq!(device.accesses(), []);
    guest.stop().unwrap();
}

/// Two guests write to registers of their own, in one ring: each finds its own order.
fn two_processors_gather_in_one_ring() {
    let (machine, device, registers, _) = machine();
    machine.memory.transaction(|map| map.set_coalescing(registers, &[0..4, 0x40..0x44])).unwrap();
    const COUNT: u64 = 3000;
    let code = programs::store_many_then_wait(false);
    let start = |place, flag| {
        machine.block.write(flag, &[0; 8]).unwrap();
        machine.start(&code, &[place, COUNT, flag, DEVICE + 0x80])
    };
    let guests =
        [(DEVICE, DATA), (DEVICE + 0x40, DATA + 64)].map(|(place, flag)| start(place, flag));
    for flag in [DATA, DATA + 64] {
        wait_until("the last write", || machine.words::<1>(flag) == [1]);
    }
    machine.vm.flush_coalesced();
    let accesses = device.accesses();
    for register in [0, 0x40] {
        let values: Vec<u64> = accesses
            .iter()
            .filter_map(|access| match access {
                Write { offset, value, .. } if *offset == register => Some(*value),
                _ => None,
            })
            .collect();
        assert_eq!(values, (1..=COUNT).collect::<Vec<_>>(), "at {register:#x}");
    }
    for guest in guests {
        guest.stop().unwrap();
    }
}

/// KVM would gather what is for the doorbell, if it heard of the range first: it would not
/// ring before something else makes the guest exit.
fn a_doorbell_among_gathered_writes_rings() {
    for (ports, size, bell_first) in [false, true]
        .into_iter()
        .flat_map(|ports| [(ports, 4), (ports, 0)])
        .flat_map(|(ports, size)| [(ports, size, false), (ports, size, true)])
    {
        let (machine, device, registers, port_region) = machine();
        let region = if ports { port_region } else { registers };
        let bell = event(4, size, None);
        let ring = || machine.memory.transaction(|map| map.add_ioeventfd(region, bell.clone()));
        let gather = || {
            machine
                .memory
                .transaction(|map| map.set_coalescing(region, std::slice::from_ref(&(0..8))))
        };
        if bell_first {
            ring().and_then(|()| gather()).unwrap();
        } else {
            gather().and_then(|()| ring()).unwrap();
        }
        let what = format!("{size} bytes, ports: {ports}, the doorbell first: {bell_first}");
        let guest = write_many_at(&machine, 4, ports, 20);
        assert_eq!(bell.fd.read().unwrap_or(0), 20, "{what}");
        machine.vm.flush_coalesced();
        assert_eq!(device.accesses(), [], "{what}");
        guest.stop().unwrap();
        // Taken away, it leaves all of the range gathered.
        machine.memory.transaction(|map| map.remove_ioeventfd(region, &bell)).unwrap();
        let guest = write_many_at(&machine, 4, ports, 20);
        assert_eq!(device.accesses(), [], "{what}");
        machine.vm.flush_coalesced();
        assert_eq!(device.accesses().len(), 20, "{what}");
        guest.stop().unwrap();
    }
}

/// KVM takes off every range that has the one which it is told of.
fn ranges_that_overlap_are_gathered_as_one() {
    let (machine, device, registers, _) = machine();
    let gather = |ranges: &[std::ops::Range<u64>]| {
        machine.memory.transaction(|map| map.set_coalescing(registers, ranges)).unwrap();
    };
    gather(&[0..0x10, 0..4, 2..8, 0x10..0x20]);
    gather(&[0..0x10, 0x10..0x20]);
    let guest = write_many(&machine, false, 20);
    assert_eq!(device.accesses(), [], "writes were not gathered");
    machine.vm.flush_coalesced();
    assert_eq!(device.accesses(), written(20));
    guest.stop().unwrap();
    gather(std::slice::from_ref(&(4..0x20)));
    let guest = write_many(&machine, false, 20);
    assert_eq!(device.accesses(), written(20), "writes were gathered");
    guest.stop().unwrap();
}

/// The doorbell of a device with big-endian registers: what a little-endian guest stores is
/// swapped before it is looked at.
fn a_value_to_match_is_the_devices() {
    struct Big(Arc<Recorder>);
    impl MmioDevice for Big {
        fn read(&self, offset: u64, size: usize) -> u64 {
            self.0.read(offset, size)
        }

        fn write(&self, offset: u64, size: usize, value: u64) {
            self.0.write(offset, size, value);
        }

        fn access(&self) -> MmioAccess {
            MmioAccess { endianness: Endianness::Big, ..MmioAccess::default() }
        }
    }
    let (machine, device, _, _) = machine();
    let bell = event(0, 4, Some(0x1122_3344));
    let place = DEVICE + 0x1000;
    machine
        .memory
        .transaction(|map| {
            let big = map.mmio("big", 0x10, Arc::new(Big(device.clone())))?;
            map.add_ioeventfd(big, bell.clone())?;
            map.add_subregion_overlap(machine.system, place, big, 0)
        })
        .unwrap();
    for (stored, rings, arrives) in [(0x4433_2211, 1, 0), (0x1122_3344, 0, 1)] {
        let arguments = [place, DATA, stored];
        machine.run(&programs::load_and_store_all_sizes(), &arguments);
        assert_eq!(bell.fd.read().unwrap_or(0), rings);
        let accesses = device.accesses();
        let four = |access: &&Access| matches!(access, Write { size: 4, .. });
        assert_eq!(accesses.iter().filter(four).count(), arrives, "{accesses:x?}");
    }
}

fn a_device_that_asks_for_its_own_gathered_writes_gets_them_later() {
    /// Looks at what was gathered when its second register is written.
    struct Looks(Arc<KvmVm>, Arc<Recorder>);
    impl MmioDevice for Looks {
        fn read(&self, _: u64, _: usize) -> u64 {
            0
        }

        fn write(&self, offset: u64, size: usize, value: u64) {
            if offset == 8 {
                self.0.flush_coalesced();
            } else {
                self.1.write(offset, size, value);
            }
        }
    }
    let (machine, device, _, _) = machine();
    machine
        .memory
        .transaction(|map| {
            let looks = Arc::new(Looks(machine.vm.clone(), device.clone()));
            let looks = map.mmio("looks", 0x10, looks)?;
            map.set_coalescing(looks, std::slice::from_ref(&(0..4)))?;
            map.add_subregion_overlap(machine.system, DEVICE, looks, 1)
        })
        .unwrap();
    let guest = write_many(&machine, false, 60);
    machine.space.write(DEVICE + 8, &[1]).unwrap();
    assert_eq!(device.accesses(), [], "handed over to a device that is busy");
    machine.vm.flush_coalesced();
    assert_eq!(device.accesses(), written(60));
    guest.stop().unwrap();
}

/// Handlers of gathered writes that hand over what is gathered, on three processors that take
/// turns at it: it does nothing, and nobody waits for himself.
fn who_hands_over_may_ask_for_it_again() {
    struct Asks(Weak<KvmVm>, AtomicU64);
    impl MmioDevice for Asks {
        fn read(&self, _: u64, _: usize) -> u64 {
            0
        }

        fn write(&self, offset: u64, _: usize, _: u64) {
            if offset < 0x40 {
                self.1.fetch_add(1, Ordering::Relaxed);
                self.0.upgrade().unwrap().flush_coalesced();
            }
        }
    }
    let (machine, _, _, _) = machine();
    let asks = Arc::new(Asks(Arc::downgrade(&machine.vm), 0.into()));
    machine
        .memory
        .transaction(|map| {
            let region = map.mmio("asks", 0x100, asks.clone())?;
            map.set_coalescing(region, std::slice::from_ref(&(0..0x40)))?;
            map.add_subregion_overlap(machine.system, DEVICE, region, 1)
        })
        .unwrap();
    // A gathered store, and one that is not and makes the guest exit, for ever.
    let code = programs::assemble(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(byte_ptr(rdi), al)?;
        a.mov(byte_ptr(rdi + 0x80), al)?;
        a.jmp(again)
    });
    // Who waits for himself cannot be stopped either.
    let guests = ManuallyDrop::new([0, 1, 2].map(|_| machine.start(&code, &[DEVICE])));
    let mut count = 0;
    for _ in 0..50 {
        wait_until("more writes", || asks.1.load(Ordering::Relaxed) > count + 10_000);
        count = asks.1.load(Ordering::Relaxed);
    }
    for guest in ManuallyDrop::into_inner(guests) {
        guest.stop().unwrap();
    }
}

/// Each processor may have the bus for itself, and the first one may go.
fn gathered_writes_arrive_when_the_first_processor_is_gone() {
    let (machine, device, registers, _) = machine();
    let whole = std::slice::from_ref(&(0..0x10));
    machine.memory.transaction(|map| map.set_coalescing(registers, whole)).unwrap();
    let own = |space: &AddressSpace| Arc::new(space.clone());
    let vcpu = |id| {
        let buses = Buses { memory: own(&machine.space), ports: own(&machine.port_space) };
        machine.vm.create_vcpu(id, buses).unwrap()
    };
    let (first, second) = (vcpu(0), vcpu(1));
    drop(first);
    let code = programs::assemble(|a| {
        a.mov(byte_ptr(rdi), al)?;
        a.hlt()
    });
    boot(&second, &machine.block, &code, &[DEVICE]);
    assert_eq!(second.spawn("vcpu").unwrap().join().unwrap().1, VcpuEvent::Shutdown);
    assert_eq!(device.accesses().len(), 1);
}

/// A machine that gathers does not keep the devices that keep it.
fn a_device_may_have_its_machine() {
    let (machine, _, _, _) = machine();
    struct Has(#[allow(dead_code)] Arc<KvmVm>);
    impl MmioDevice for Has {
        fn read(&self, _: u64, _: usize) -> u64 {
            0
        }

        fn write(&self, _: u64, _: usize, _: u64) {}
    }
    machine
        .memory
        .transaction(|map| {
            let has = map.mmio("has", 0x10, Arc::new(Has(machine.vm.clone())))?;
            map.set_coalescing(has, std::slice::from_ref(&(0..4)))?;
            map.add_subregion_overlap(machine.system, DEVICE, has, 1)
        })
        .unwrap();
    write_many(&machine, false, 10).stop().unwrap();
    let vm = Arc::downgrade(&machine.vm);
    drop(machine);
    assert_eq!(vm.strong_count(), 0, "the machine and its device keep each other");
}
