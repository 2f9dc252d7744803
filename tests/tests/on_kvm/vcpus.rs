//! Exits, kicks and pauses.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use integration_tests::harness::Test;
use kvm_accel::{KvmError, KvmVm, VcpuEvent, VcpuThread};
use machines::guest::{DATA, boot, port, programs};
use memory_region::MmioDevice;

use super::machine::Access::{Read, Write};
use super::machine::{Machine, Recorder, seconds, wait_until};

pub const TESTS: &[Test] = &[
    ("accesses_reach_devices_in_their_sizes", accesses_reach_devices_in_their_sizes),
    ("nothing_reads_as_all_ones", nothing_reads_as_all_ones),
    ("a_kick_is_never_lost", a_kick_is_never_lost),
    ("a_paused_guest_stands_still", a_paused_guest_stands_still),
    ("what_stands_still_is_counted", what_stands_still_is_counted),
    ("a_pause_completes_the_access_under_way", a_pause_completes_the_access_under_way),
    ("a_pause_that_takes_too_long_is_given_up", a_pause_that_takes_too_long_is_given_up),
    ("a_device_cannot_wait_for_its_own_processor", a_device_cannot_wait_for_its_own_processor),
    ("a_device_may_drop_the_thread_that_calls_it", a_device_may_drop_the_thread_that_calls_it),
];

fn place_device(machine: &Machine, at: u64, device: Arc<dyn MmioDevice>) {
    machine
        .memory
        .transaction(|map| {
            let region = map.mmio("device", 0x100, device)?;
            map.add_subregion(machine.system, at, region)
        })
        .unwrap();
}

pub fn place_ports(machine: &Machine, at: u64, device: Arc<dyn MmioDevice>) {
    machine
        .memory
        .transaction(|map| {
            let region = map.mmio("ports", 8, device)?;
            map.add_subregion(machine.ports, at, region)
        })
        .unwrap();
}

fn accesses_reach_devices_in_their_sizes() {
    let machine = Machine::new(16 << 20);
    let device = Recorder::new(0x8877_6655_4433_2211);
    place_device(&machine, 0xd000_0000, device.clone());
    let value = 0x0102_0304_0506_0708;
    machine.run(&programs::load_and_store_all_sizes(), &[0xd000_0010, DATA, value]);
    assert_eq!(machine.words::<4>(DATA), [0x11, 0x2211, 0x4433_2211, 0x8877_6655_4433_2211]);
    let sizes = [1, 2, 4, 8];
    let reads = sizes.map(|size| Read { offset: 0x10, size });
    let writes = sizes.map(|size| Write {
        offset: 0x10,
        size,
        value: value & (u64::MAX >> (64 - 8 * size)),
    });
    assert_eq!(device.accesses(), [reads, writes].concat());
}

fn nothing_reads_as_all_ones() {
    let machine = Machine::new(16 << 20);
    machine.run(&programs::load_and_store_all_sizes(), &[0xd000_0000, DATA, 1]);
    assert_eq!(machine.words::<4>(DATA), [0xff, 0xffff, 0xffff_ffff, u64::MAX]);
}

/// Kicks at any moment, each of which must end a run: before it, in the guest, in a
/// device's handler.
fn a_kick_is_never_lost() {
    let machine = Machine::new(16 << 20);
    place_ports(&machine, 0x310, Recorder::new(1));
    let mut vcpu = machine.vcpu();
    boot(&vcpu, &machine.block, &programs::count_port_reads(), &[DATA, 0, port(0x310)]);
    let kicker = vcpu.kicker();
    let returned = Arc::new(AtomicU64::new(0));
    const KICKS: u64 = 2000;
    let runner = std::thread::spawn({
        let returned = returned.clone();
        move || {
            for _ in 0..KICKS {
                assert_eq!(vcpu.run().unwrap(), VcpuEvent::Kicked);
                returned.fetch_add(1, Ordering::Release);
            }
        }
    });
    for kick in 0..KICKS {
        // Now at once, now after the guest has run for a while.
        for _ in 0..(kick * 7919) % 3000 {
            std::hint::spin_loop();
        }
        kicker.kick();
        let deadline = Instant::now() + seconds(10);
        while returned.load(Ordering::Acquire) == kick {
            assert!(Instant::now() < deadline, "kick {kick} was lost");
            std::hint::spin_loop();
        }
    }
    runner.join().unwrap();
    // The guest's own count: each read it completed, once.
    let [sum, count] = machine.words::<2>(DATA);
    assert!(count > 0);
    // The last kick may have come between the two.
    assert!(sum == count || sum == count + 1, "{sum} was read in {count} reads");
}

fn a_paused_guest_stands_still() {
    let machine = Machine::new(16 << 20);
    let page = machine.block.page_size().bytes();
    let arguments = [DATA + page, DATA + 2 * page, page, DATA];
    let guest = machine.start(&programs::increment_pages(), &arguments);
    for _ in 0..200 {
        let beat = machine.words::<1>(DATA);
        wait_until("a pass", || machine.words::<1>(DATA) != beat);
        let first = machine.vm.pause(seconds(10)).unwrap();
        let second = machine.vm.pause(seconds(10)).unwrap();
        let stopped = machine.words::<1>(DATA);
        drop(first);
        for _ in 0..2000 {
            assert_eq!(machine.words::<1>(DATA), stopped, "a paused guest goes on");
        }
        drop(second);
    }
    // A kick ends the run of a paused processor too.
    let paused = machine.vm.pause(seconds(10)).unwrap();
    assert_eq!(guest.stop().unwrap().1, VcpuEvent::Kicked);
    drop(paused);
}

/// The times that two vCPUs stand still add up, whoever else pauses meanwhile, and each guest
/// that runs gets one signal for it.
fn what_stands_still_is_counted() {
    let machine = Machine::new(16 << 20);
    let page = machine.block.page_size().bytes();
    let start = |n: u64| {
        let at = DATA + 4 * n * page;
        machine.start(&programs::increment_pages(), &[at + page, at + 2 * page, page, at])
    };
    let beats = || [0, 1].map(|n| machine.words::<1>(DATA + 4 * n * page));
    let wait_for_both = || {
        let before = beats();
        wait_until("a pass of both", || beats().iter().zip(before).all(|(now, b)| *now != b));
    };
    let guests = [start(0), start(1)];
    wait_for_both();
    let before = machine.vm.dirty_log_stats();
    let (mut least, mut most) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..20 {
        let asked = Instant::now();
        let first = machine.vm.pause(seconds(10)).unwrap();
        let still = Instant::now();
        let second = machine.vm.pause(seconds(10)).unwrap();
        wait_until("a moment", || still.elapsed() > Duration::from_millis(5));
        drop(first);
        // Those that still stand are in it.
        let so_far = machine.vm.dirty_log_stats().blocked - before.blocked;
        assert!(so_far >= least + 2 * Duration::from_millis(5), "{so_far:?}");
        least += 2 * still.elapsed();
        drop(second);
        wait_for_both();
        most += 2 * asked.elapsed();
    }
    let after = machine.vm.dirty_log_stats();
    let stood_still = after.blocked - before.blocked;
    assert!(least <= stood_still && stood_still <= most, "{least:?}, {stood_still:?}, {most:?}");
    // A signal that was long on its way is followed by another.
    let kicks = after.kicks - before.kicks;
    assert!((1..=50).contains(&kicks), "{kicks} signals");
    for guest in guests {
        guest.stop().unwrap();
    }
    let idle = machine.vm.dirty_log_stats();
    drop(machine.vm.pause(seconds(10)).unwrap());
    let now = machine.vm.dirty_log_stats();
    assert_eq!((now.kicks, now.blocked), (idle.kicks, idle.blocked), "nobody runs");
}

/// A port read that the device has answered is in the guest's register when the guest
/// stands still: the next read counts it.
fn a_pause_completes_the_access_under_way() {
    struct Counter(AtomicU64);
    impl MmioDevice for Counter {
        fn read(&self, _: u64, _: usize) -> u64 {
            self.0.fetch_add(1, Ordering::AcqRel) + 1
        }

        fn write(&self, _: u64, _: usize, _: u64) {}
    }
    let machine = Machine::new(16 << 20);
    let device = Arc::new(Counter(AtomicU64::new(0)));
    place_ports(&machine, 0x310, device.clone());
    let mut vcpu = machine.vcpu();
    boot(&vcpu, &machine.block, &programs::count_port_reads(), &[DATA, 0, port(0x310)]);
    for _ in 0..200 {
        let kicker = vcpu.kicker();
        let before = device.0.load(Ordering::Acquire);
        let runner = std::thread::spawn(move || {
            assert_eq!(vcpu.run().unwrap(), VcpuEvent::Kicked);
            vcpu
        });
        wait_until("a read", || device.0.load(Ordering::Acquire) > before);
        kicker.kick();
        vcpu = runner.join().unwrap();
        // What the device has handed out last is in its register, or already added up.
        let read = programs::port_was_read(&vcpu);
        assert_eq!(read, device.0.load(Ordering::Acquire), "an answer is not in the register");
    }
}

/// A device whose handler waits until it is let go.
struct Stuck {
    entered: AtomicBool,
    go: AtomicBool,
}

impl MmioDevice for Stuck {
    fn read(&self, _: u64, _: usize) -> u64 {
        self.entered.store(true, Ordering::Release);
        wait_until("the end of the handler", || self.go.load(Ordering::Acquire));
        1
    }

    fn write(&self, _: u64, _: usize, _: u64) {}
}

fn a_pause_that_takes_too_long_is_given_up() {
    let machine = Machine::new(16 << 20);
    let device = Arc::new(Stuck { entered: false.into(), go: false.into() });
    place_ports(&machine, 0x310, device.clone());
    let guest = machine.start(&programs::count_port_reads(), &[DATA, 0, port(0x310)]);
    wait_until("the handler", || device.entered.load(Ordering::Acquire));
    let refused = machine.vm.pause(Duration::from_millis(50)).unwrap_err();
    assert!(matches!(refused, KvmError::PauseTimeout { running: 1, vcpus: 1, .. }), "{refused}");
    // A change of the map needs the guest out of its code only, which it is.
    let hole = machine.memory.transaction(|map| {
        let hole = map.mmio("hole", 0x1000, Recorder::new(0))?;
        map.add_subregion_overlap(machine.system, 8 << 20, hole, 1)
    });
    hole.unwrap();
    device.go.store(true, Ordering::Release);
    let count = machine.words::<2>(DATA);
    wait_until("the guest to go on", || machine.words::<2>(DATA) != count);
    drop(machine.vm.pause(seconds(10)).unwrap());
    guest.stop().unwrap();
}

fn a_device_cannot_wait_for_its_own_processor() {
    struct Pauses(OnceLock<Arc<KvmVm>>, OnceLock<String>);
    impl MmioDevice for Pauses {
        fn read(&self, _: u64, _: usize) -> u64 {
            let refused = self.0.get().unwrap().pause(seconds(10)).unwrap_err();
            let _ = self.1.set(refused.to_string());
            0
        }

        fn write(&self, _: u64, _: usize, _: u64) {}
    }
    let machine = Machine::new(16 << 20);
    let device = Arc::new(Pauses(OnceLock::new(), OnceLock::new()));
    let _ = device.0.set(machine.vm.clone());
    place_ports(&machine, 0x310, device.clone());
    let guest = machine.start(&programs::count_port_reads(), &[DATA, 0, port(0x310)]);
    wait_until("the refusal", || device.1.get().is_some());
    assert_eq!(
        device.1.get().unwrap(),
        "vCPU 0 cannot wait for itself to stop: pause from another thread"
    );
    guest.stop().unwrap();
}

fn a_device_may_drop_the_thread_that_calls_it() {
    /// A reset by dropping the processors.
    #[derive(Default)]
    struct Reset(Mutex<Option<VcpuThread>>, AtomicBool);
    impl MmioDevice for Reset {
        fn read(&self, _: u64, _: usize) -> u64 {
            let Some(own) = self.0.lock().unwrap().take() else { return 0 };
            drop(own);
            self.1.store(true, Ordering::Release);
            1
        }

        fn write(&self, _: u64, _: usize, _: u64) {}
    }
    let machine = Machine::new(16 << 20);
    let device = Arc::new(Reset::default());
    place_ports(&machine, 0x310, device.clone());
    let guest = machine.start(&programs::count_port_reads(), &[DATA, 0, port(0x310)]);
    *device.0.lock().unwrap() = Some(guest);
    wait_until("the reset", || device.1.load(Ordering::Acquire));
    // It was kicked: it is gone, and no pause waits for it.
    drop(machine.vm.pause(seconds(10)).unwrap());
    let end = machine.counter();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(machine.counter(), end);
}
