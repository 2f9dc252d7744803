//! What arrives at devices: sizes, alignment, byte order, and accesses from within.

use std::sync::{Arc, Mutex, OnceLock};

#[cfg(target_os = "linux")]
use memory_region::vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use memory_region::{
    AccessError, AccessSizes, AddressSpace, Endianness, MemoryMap, MmioAccess, MmioDevice, RegionId,
};
#[cfg(target_os = "linux")]
use memory_region::{IoEventFd, MapError};
use proptest::prelude::*;

const SIZE: usize = 64;

/// Registers that are plain memory, and that insist on what they declared.
struct Strict {
    access: MmioAccess,
    bytes: Mutex<[u8; SIZE]>,
}

impl Strict {
    fn check(&self, offset: u64, size: usize) -> std::ops::Range<usize> {
        let AccessSizes { min, max, unaligned } = self.access.implemented;
        assert!((min..=max).contains(&size), "{size} bytes are not implemented");
        assert!(unaligned || offset % size as u64 == 0, "{size} bytes at {offset} are not aligned");
        let offset = usize::try_from(offset).unwrap();
        offset..offset + size
    }
}

impl MmioDevice for Strict {
    fn read(&self, offset: u64, size: usize) -> u64 {
        let bytes = &self.bytes.lock().unwrap()[self.check(offset, size)];
        let mut value = [0; 8];
        match self.access.endianness {
            Endianness::Little => {
                value[..size].copy_from_slice(bytes);
                u64::from_le_bytes(value)
            }
            Endianness::Big => {
                value[8 - size..].copy_from_slice(bytes);
                u64::from_be_bytes(value)
            }
        }
    }

    fn write(&self, offset: u64, size: usize, value: u64) {
        assert_eq!(value & (!0u64).checked_shl(8 * u32::try_from(size).unwrap()).unwrap_or(0), 0);
        let bytes = &mut self.bytes.lock().unwrap()[self.check(offset, size)];
        match self.access.endianness {
            Endianness::Little => bytes.copy_from_slice(&value.to_le_bytes()[..size]),
            Endianness::Big => bytes.copy_from_slice(&value.to_be_bytes()[8 - size..]),
        }
    }

    fn access(&self) -> MmioAccess {
        self.access
    }
}

fn space_of(device: Arc<dyn MmioDevice>) -> (Arc<MemoryMap>, RegionId, Arc<AddressSpace>) {
    let map = MemoryMap::new();
    let (root, region) = map
        .transaction(|map| {
            let root = map.container("root", 0x1000)?;
            let region = map.mmio("device", SIZE as u128, device)?;
            map.add_subregion(root, 0x100, region)?;
            Ok((root, region))
        })
        .unwrap();
    let space = map.address_space("space", root).unwrap();
    (map, region, space)
}

fn sizes() -> impl Strategy<Value = AccessSizes> {
    (0..4u32, 0..4u32, any::<bool>()).prop_map(|(a, b, unaligned)| AccessSizes {
        min: 1 << a.min(b),
        max: 1 << a.max(b),
        unaligned,
    })
}

proptest! {
    #![proptest_config(
        ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    /// The device is memory: whatever it declares, an access moves the bytes that it
    /// names, or none of a piece that is not valid.
    #[test]
    fn bytes_arrive_where_they_should_whatever_is_declared(
        (valid, implemented, big) in (sizes(), sizes(), any::<bool>()),
        before in prop::array::uniform32(any::<u8>()),
        (offset, data) in (0..40usize, prop::collection::vec(any::<u8>(), 1..20)),
    ) {
        let endianness = if big { Endianness::Big } else { Endianness::Little };
        let access = MmioAccess { valid, implemented, endianness };
        let mut bytes = [0xee; SIZE];
        bytes[..32].copy_from_slice(&before);
        let device = Arc::new(Strict { access, bytes: Mutex::new(bytes) });
        let (_, _, space) = space_of(device.clone());
        let address = 0x100 + offset as u64;

        let written = space.write(address, &data);
        let after = *device.bytes.lock().unwrap();
        let mut read = vec![0x5c; data.len()];
        let was_read = space.read(address, &mut read);
        prop_assert_eq!(written.is_ok(), was_read.is_ok());
        let too_small =
            |error: &AccessError| matches!(error,
                AccessError::TooSmall { size, .. } if *size < valid.min);
        prop_assert!(written.as_ref().err().is_none_or(too_small), "{written:?}");
        if valid.min == 1 {
            prop_assert!(written.is_ok());
        }
        for at in 0..SIZE {
            if !(offset..offset + data.len()).contains(&at) {
                prop_assert_eq!(after[at], bytes[at], "byte {} changed", at);
                continue;
            }
            let (new, seen) = (data[at - offset], read[at - offset]);
            let arrived = after[at] == new && seen == new;
            let refused = written.is_err() && after[at] == bytes[at] && seen == 0xff;
            prop_assert!(arrived || refused, "byte {}: {:#x} read as {:#x}", at, after[at], seen);
        }
        // A whole access that is valid as it is always arrives.
        let len = data.len();
        let fits = len.is_power_of_two() && (valid.min..=valid.max).contains(&len);
        if fits && (valid.unaligned || offset % len == 0) {
            prop_assert!(written.is_ok());
        }
    }
}

/// Notes the calls of its handlers.
#[derive(Default)]
struct Calls {
    access: MmioAccess,
    calls: Mutex<Vec<(char, u64, usize, u64)>>,
}

impl MmioDevice for Calls {
    fn read(&self, offset: u64, size: usize) -> u64 {
        self.calls.lock().unwrap().push(('r', offset, size, 0));
        0x8877_6655_4433_2211
    }

    fn write(&self, offset: u64, size: usize, value: u64) {
        self.calls.lock().unwrap().push(('w', offset, size, value));
    }

    fn access(&self) -> MmioAccess {
        self.access
    }
}

#[test]
fn accesses_are_split_and_put_together() {
    let calls = |valid, implemented, endianness| {
        let access = MmioAccess { valid, implemented, endianness };
        let device = Arc::new(Calls { access, ..Calls::default() });
        let (_, _, space) = space_of(device.clone());
        let mut eight = [0; 8];
        space.read(0x100, &mut eight).unwrap();
        space.write(0x102, &[1, 2, 3, 4]).unwrap();
        (eight, std::mem::take(&mut *device.calls.lock().unwrap()))
    };
    let any = AccessSizes::default();
    // Two of four bytes, put together in the order of the bus.
    assert_eq!(
        calls(any, AccessSizes::aligned(1, 4), Endianness::Little),
        (
            [0x11, 0x22, 0x33, 0x44, 0x11, 0x22, 0x33, 0x44],
            vec![('r', 0, 4, 0), ('r', 4, 4, 0), ('w', 2, 2, 0x0201), ('w', 4, 2, 0x0403)]
        )
    );
    assert_eq!(
        calls(any, AccessSizes { unaligned: true, ..AccessSizes::aligned(2, 4) }, Endianness::Big),
        (
            [0x44, 0x33, 0x22, 0x11, 0x44, 0x33, 0x22, 0x11],
            vec![('r', 0, 4, 0), ('r', 4, 4, 0), ('w', 2, 4, 0x0102_0304)]
        )
    );
    // Words of eight bytes only: read, changed, written.
    assert_eq!(
        calls(any, AccessSizes::aligned(8, 8), Endianness::Little).1,
        [('r', 0, 8, 0), ('r', 0, 8, 0), ('w', 0, 8, 0x8877_0403_0201_2211)]
    );
}

#[test]
fn impossible_sizes_are_refused() {
    let map = MemoryMap::new();
    for (min, max) in [(0, 4), (3, 4), (4, 2), (1, 16)] {
        let sizes = AccessSizes { min, max, unaligned: true };
        for access in [
            MmioAccess { valid: sizes, ..MmioAccess::default() },
            MmioAccess { implemented: sizes, ..MmioAccess::default() },
        ] {
            let device = Arc::new(Calls { access, ..Calls::default() });
            let refused = map.transaction(|map| map.mmio("odd", 8, device)).unwrap_err();
            assert_eq!(
                refused.to_string(),
                format!(
                    "The device of \"odd\" wants accesses of {min} to {max} bytes; both are 1, 2, \
                        4 or 8"
                )
            );
        }
    }
}

/// A device with a lock, that uses the bus while it holds it.
struct UsesBus {
    space: OnceLock<Arc<AddressSpace>>,
    reaches: u64,
    lock: Mutex<Vec<Result<u8, AccessError>>>,
}

impl UsesBus {
    fn new(reaches: u64) -> Arc<Self> {
        Arc::new(Self { space: OnceLock::new(), reaches, lock: Mutex::default() })
    }
}

impl MmioDevice for UsesBus {
    fn read(&self, _: u64, _: usize) -> u64 {
        let mut seen = self.lock.lock().unwrap();
        let mut byte = [0];
        let result = self.space.get().unwrap().read(self.reaches, &mut byte);
        seen.push(result.map(|()| byte[0]));
        u64::from(byte[0]) >> 1
    }

    fn write(&self, _: u64, _: usize, value: u64) {
        let mut seen = self.lock.lock().unwrap();
        let result = self.space.get().unwrap().write(self.reaches, &value.to_le_bytes()[..1]);
        seen.push(result.map(|()| 0));
    }
}

#[test]
fn a_device_that_reaches_itself_is_answered() {
    let device = UsesBus::new(0x104);
    let (map, _, space) = space_of(device.clone());
    device.space.set(space.clone()).unwrap();
    let mut byte = [0];
    space.read(0x100, &mut byte).unwrap();
    assert_eq!(byte, [0x7f]);
    space.write(0x100, &[1]).unwrap();
    let seen = std::mem::take(&mut *device.lock.lock().unwrap());
    assert_eq!(seen.len(), 2);
    for result in seen {
        assert!(
            matches!(&result,
                Err(AccessError::Reentered { address: 0x104, len: 1, name }) if name == "device"),
            "{result:?}"
        );
    }

    // By way of another device, too.
    let (there, back) = (UsesBus::new(0x140), UsesBus::new(0x180));
    let root = space.root();
    map.transaction(|map| {
        let back = map.mmio("back", 0x10, back.clone())?;
        let there = map.mmio("there", 0x10, there.clone())?;
        map.add_subregion(root, 0x140, back)?;
        map.add_subregion(root, 0x180, there)
    })
    .unwrap();
    there.space.set(space.clone()).unwrap();
    back.space.set(space.clone()).unwrap();
    space.read(0x180, &mut byte).unwrap();
    assert_eq!(byte, [0x3f]); // all ones, halved twice on the way
    let seen = std::mem::take(&mut *back.lock.lock().unwrap());
    assert!(matches!(&seen[..], [Err(AccessError::Reentered { name, .. })] if name == "there"));
    assert!(matches!(&there.lock.lock().unwrap()[..], [Ok(0x7f)]));
}

/// While one thread is in the handler, another's access arrives.
#[cfg(not(target_family = "wasm"))] // has no threads
#[test]
fn other_threads_reach_a_device_that_is_busy() {
    struct Meets(std::sync::Barrier);
    impl MmioDevice for Meets {
        fn read(&self, _: u64, _: usize) -> u64 {
            self.0.wait(); // both are in the handler
            7
        }

        fn write(&self, _: u64, _: usize, _: u64) {}
    }
    let (_map, _, space) = space_of(Arc::new(Meets(std::sync::Barrier::new(2))));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut byte = [0];
                space.read(0x100, &mut byte).unwrap();
                assert_eq!(byte, [7]);
            });
        }
    });
}

#[cfg(panic = "unwind")]
#[test]
fn a_handler_that_panics_has_left() {
    struct Panics;
    impl MmioDevice for Panics {
        fn read(&self, offset: u64, _: usize) -> u64 {
            assert_eq!(offset, 0, "a fault in the device");
            7
        }

        fn write(&self, _: u64, _: usize, _: u64) {}
    }
    let (_map, _, space) = space_of(Arc::new(Panics));
    let read = |address| {
        let mut byte = [0];
        space.read(address, &mut byte).map(|()| byte[0])
    };
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| read(0x101))).is_err());
    assert_eq!(read(0x100).unwrap(), 7);
}

#[cfg(target_os = "linux")] // has eventfds
fn event(address: u64, size: u8, datamatch: Option<u64>) -> IoEventFd {
    IoEventFd { address, size, datamatch, fd: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()) }
}

#[cfg(target_os = "linux")] // has eventfds
/// How often it was signalled since the last call.
fn signals(event: &IoEventFd) -> u64 {
    event.fd.read().unwrap_or(0)
}

#[cfg(target_os = "linux")] // has eventfds
#[test]
fn a_write_that_matches_signals_instead_of_the_handler() {
    let device = Arc::new(Calls::default());
    let (map, region, space) = space_of(device.clone());
    let (any, one) = (event(0, 0, None), event(8, 2, Some(0x0102)));
    map.transaction(|map| {
        map.add_ioeventfd(region, any.clone())?;
        map.add_ioeventfd(region, one.clone())
    })
    .unwrap();
    let at: Vec<_> = space.view().ioeventfds().iter().map(|event| event.address).collect();
    assert_eq!(at, [0x100, 0x108]);
    space.write(0x100, &[1]).unwrap();
    space.write(0x100, &[1, 2, 3, 4]).unwrap();
    assert_eq!(signals(&any), 2);
    space.write(0x108, &[2, 1]).unwrap();
    assert_eq!(signals(&one), 1);
    assert_eq!(*device.calls.lock().unwrap(), []);
    // Another value, another size, another place, a read.
    space.write(0x108, &[3, 1]).unwrap();
    space.write(0x108, &[2, 1, 0, 0]).unwrap();
    space.write(0x101, &[1]).unwrap();
    space.read(0x100, &mut [0]).unwrap();
    assert_eq!([signals(&one), signals(&any)], [0, 0]);
    assert_eq!(device.calls.lock().unwrap().len(), 4);

    assert!(map.transaction(|map| map.remove_ioeventfd(region, &one)).unwrap());
    assert!(!map.transaction(|map| map.remove_ioeventfd(region, &one)).unwrap());
    let refused = map.transaction(|map| map.add_ioeventfd(space.root(), event(0, 0, None)));
    assert!(matches!(refused, Err(MapError::NoDevice { .. })));
}

/// One that could never be signalled, or that an accelerator could not tell from another.
#[cfg(target_os = "linux")] // has eventfds
#[test]
fn an_eventfd_that_is_no_doorbell_is_refused() {
    let valid = AccessSizes::aligned(2, 4);
    let access = MmioAccess { valid, ..MmioAccess::default() };
    let (map, region, _) = space_of(Arc::new(Calls { access, ..Calls::default() }));
    let add = |event: IoEventFd| match map.transaction(|map| map.add_ioeventfd(region, event)) {
        Ok(()) => "",
        Err(MapError::EventFd { reason, .. }) => reason,
        Err(other) => panic!("{other}"),
    };
    let (outside, none) = ("it lies outside the region", "no write has this size");
    let not_taken = "the device takes no such write";
    for (address, size, datamatch, reason) in [
        (0, 3, None, none),
        (0, 16, None, none),
        (61, 4, None, outside),
        (64, 0, None, outside),
        (u64::MAX, 8, None, outside),
        (0, 0, Some(0), "writes of any size have no one value"),
        (0, 2, Some(0x1_0000), "no write of this size has the value"),
        (0, 1, None, not_taken),
        (0, 8, Some(u64::MAX), not_taken),
        (2, 4, None, not_taken),
    ] {
        assert_eq!(add(event(address, size, datamatch)), reason, "{size} bytes at {address}");
    }
    let meets = "there is one already for some of these writes";
    for (address, size, datamatch, reason) in [
        (8, 2, Some(0xffff), ""),
        (8, 2, Some(0xffff), meets),
        (8, 2, None, meets),
        (8, 2, Some(1), ""),
        (8, 4, Some(1), ""),
        (8, 0, None, meets),
        (16, 4, None, ""),
        (16, 4, Some(1), meets),
        (16, 2, Some(1), ""),
        (24, 0, None, ""),
        (24, 0, None, meets),
        (24, 4, Some(1), meets),
        // Another address is another write, whatever its bytes.
        (10, 0, None, ""),
    ] {
        assert_eq!(add(event(address, size, datamatch)), reason, "{size} bytes at {address}");
    }
    assert_eq!(
        map.transaction(|map| map.add_ioeventfd(region, event(0, 3, None)))
            .unwrap_err()
            .to_string(),
        "No ioeventfd for writes of 3 bytes at 0x0 of \"device\": no write has this size"
    );
}

/// The value is the register's; on the bus, where accelerators look, it is bytes.
#[cfg(target_os = "linux")] // has eventfds
#[test]
fn a_value_to_match_has_the_byte_order_of_the_device() {
    for (endianness, bytes, on_bus) in
        [(Endianness::Little, [0x34, 0x12], 0x1234), (Endianness::Big, [0x12, 0x34], 0x3412)]
    {
        let access = MmioAccess { endianness, ..MmioAccess::default() };
        let device = Arc::new(Calls { access, ..Calls::default() });
        let (map, region, space) = space_of(device.clone());
        let bell = event(8, 2, Some(0x1234));
        map.transaction(|map| map.add_ioeventfd(region, bell.clone())).unwrap();
        assert_eq!(space.view().ioeventfds()[0].datamatch, Some(on_bus));
        space.write(0x108, &bytes).unwrap();
        assert_eq!((signals(&bell), device.calls.lock().unwrap().len()), (1, 0));
        let [first, second] = bytes;
        space.write(0x108, &[second, first]).unwrap();
        assert_eq!((signals(&bell), device.calls.lock().unwrap().len()), (0, 1));
        assert!(map.transaction(|map| map.remove_ioeventfd(region, &bell)).unwrap());
    }
}

/// A long write is looked at as the device takes it: what is for a doorbell rings it, and the
/// rest arrives.
#[cfg(target_os = "linux")] // has eventfds
#[test]
fn a_long_write_rings_and_goes_on() {
    let valid = AccessSizes::aligned(1, 4);
    let access = MmioAccess { valid, ..MmioAccess::default() };
    let device = Arc::new(Calls { access, ..Calls::default() });
    let (map, region, space) = space_of(device.clone());
    let (any, four, one) = (event(4, 0, None), event(12, 4, Some(0x0f0e_0d0c)), event(16, 1, None));
    map.transaction(|map| {
        [&any, &four, &one].into_iter().try_for_each(|e| map.add_ioeventfd(region, e.clone()))
    })
    .unwrap();
    let data: Vec<u8> = (0..20).collect();
    space.write(0x100, &data).unwrap();
    assert_eq!([&any, &four, &one].map(signals), [1, 1, 0]);
    let calls = std::mem::take(&mut *device.calls.lock().unwrap());
    let pieces = [('w', 0, 4, 0x0302_0100), ('w', 8, 4, 0x0b0a_0908), ('w', 16, 4, 0x1312_1110)];
    assert_eq!(calls, pieces);
    // From the middle of one, nothing is that doorbell's.
    space.write(0x106, &data[..8]).unwrap();
    assert_eq!([&any, &four, &one].map(signals), [0, 0, 0]);
    assert_eq!(device.calls.lock().unwrap().len(), 3);
}

/// A device may ring its own doorbell; what is not for it is not carried out.
#[cfg(target_os = "linux")] // has eventfds
#[test]
fn a_device_that_rings_its_own_doorbell_is_heard() {
    let device = UsesBus::new(0x110);
    let (map, region, space) = space_of(device.clone());
    device.space.set(space.clone()).unwrap();
    let bell = event(0x10, 1, None);
    map.transaction(|map| map.add_ioeventfd(region, bell.clone())).unwrap();
    space.write(0x100, &[1]).unwrap();
    assert!(matches!(device.lock.lock().unwrap()[..], [Ok(0)]));
    assert_eq!(signals(&bell), 1);
}

#[cfg(target_os = "linux")] // has eventfds
#[test]
fn gathered_ranges_are_those_that_show() {
    let (map, region, space) = space_of(Arc::new(Calls::default()));
    map.transaction(|map| map.set_coalescing(region, &[0..8, 16..64])).unwrap();
    let shown = || space.view().coalesced().iter().map(|r| (r.start, r.last)).collect::<Vec<_>>();
    assert_eq!(shown(), [(0x100, 0x107), (0x110, 0x13f)]);
    map.transaction(|map| {
        let cover = map.mmio("cover", 0x10, Arc::new(Calls::default()))?;
        map.add_subregion_overlap(space.root(), 0x118, cover, 1)
    })
    .unwrap();
    assert_eq!(shown(), [(0x100, 0x107), (0x110, 0x117), (0x128, 0x13f)]);
    map.transaction(|map| map.set_coalescing(region, &[])).unwrap();
    assert_eq!(shown(), []);
    #[allow(clippy::reversed_empty_ranges)]
    for range in [60..65, 5..5, 9..3] {
        let refused = map.transaction(|map| map.set_coalescing(region, &[range]));
        assert!(matches!(refused, Err(MapError::Coalescing { size: 64, .. })), "{refused:?}");
    }
}

#[cfg(target_os = "linux")] // has eventfds
#[derive(Clone, Debug)]
enum Tell {
    Gather(Vec<std::ops::Range<u64>>),
    Ring(u64, u8),
}

#[cfg(target_os = "linux")] // has eventfds
proptest! {
    #![proptest_config(
        ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    /// Whatever the ranges and the eventfds, and whichever come first: what accelerators are
    /// told is each byte once, none of an eventfd's, and nothing that was not asked for.
    #[test]
    fn gathered_bytes_are_those_of_the_ranges_without_the_eventfds(
        steps in prop::collection::vec(prop_oneof![
            prop::collection::vec((0..SIZE as u64, 1..20u64), 0..6).prop_map(|ranges| Tell::Gather(
                ranges.into_iter().map(|(at, len)| at..(at + len).min(SIZE as u64)).collect())),
            (0..SIZE as u64, 0..5usize)
                .prop_map(|(at, size)| Tell::Ring(at, [0, 1, 2, 4, 8][size])),
        ], 1..8),
    ) {
        let (map, region, space) = space_of(Arc::new(Calls::default()));
        let (mut gathered, mut bells) = (Vec::new(), Vec::new());
        for step in steps {
            match step {
                Tell::Gather(ranges) => {
                    map.transaction(|map| map.set_coalescing(region, &ranges)).unwrap();
                    gathered = ranges;
                }
                Tell::Ring(at, size) => {
                    let added = event(at, size, None);
                    if map.transaction(|map| map.add_ioeventfd(region, added)).is_ok() {
                        bells.push(at..at + u64::from(size.max(1)));
                    }
                }
            }
            let view = space.view();
            let pairs = || view.coalesced().windows(2);
            prop_assert!(pairs().all(|pair| pair[0].last < pair[1].start), "{view:?}");
            for byte in 0..SIZE as u64 {
                let is_in = |ranges: &[std::ops::Range<u64>]| ranges.iter()
                    .any(|range| range.contains(&byte));
                let at = 0x100 + byte;
                let told = view.coalesced().iter().any(|r| (r.start..=r.last).contains(&at));
                prop_assert_eq!(told, is_in(&gathered) && !is_in(&bells), "byte {}", byte);
            }
        }
    }
}
