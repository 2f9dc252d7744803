//! Exits, kicks and pauses.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use iced_x86::code_asm::{qword_ptr, rdi};
use integration_tests::harness::Test;
use kvm_accel::kvm_ioctls::VcpuExit;
use kvm_accel::{Buses, KvmError, KvmVm, VcpuEvent, VcpuThread};
use machines::guest::{DATA, boot, programs};
use memory_region::MmioDevice;
use ram_block::DirtyClient;

use super::machine::Access::{Read, Write};
use super::machine::{Machine, Recorder, seconds, wait_until};

pub const TESTS: &[Test] = &[
    ("accesses_reach_devices_in_their_sizes", accesses_reach_devices_in_their_sizes),
    ("port_accesses_reach_devices_one_by_one", port_accesses_reach_devices_one_by_one),
    ("nothing_reads_as_all_ones", nothing_reads_as_all_ones),
    ("a_kick_is_never_lost", a_kick_is_never_lost),
    ("a_paused_guest_stands_still", a_paused_guest_stands_still),
    ("what_stands_still_is_counted", what_stands_still_is_counted),
    ("a_pause_completes_the_access_under_way", a_pause_completes_the_access_under_way),
    ("a_pause_that_takes_too_long_is_given_up", a_pause_that_takes_too_long_is_given_up),
    ("a_device_cannot_wait_for_its_own_processor", a_device_cannot_wait_for_its_own_processor),
    ("a_window_for_interrupts_is_told_of", a_window_for_interrupts_is_told_of),
    ("a_device_may_drop_the_thread_that_calls_it", a_device_may_drop_the_thread_that_calls_it),
    ("string_input_completes_while_slots_change", string_input_completes_while_slots_change),
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

fn port_accesses_reach_devices_one_by_one() {
    let machine = Machine::new(16 << 20);
    let device = Recorder::new(0x4433_2211);
    place_ports(&machine, 0x310, device.clone());
    machine.block.write(DATA, &[0x11, 0x12, 0x21, 0x22, 0x31, 0x32]).unwrap();
    machine.run(&programs::access_ports(), &[DATA, DATA + 0x100, 0x312, 0x0a0b_0c0d]);
    assert_eq!(machine.words::<3>(DATA + 0x100), [0x11, 0x2211, 0x4433_2211]);
    let reads = [1, 2, 4].map(|size| Read { offset: 2, size });
    let write = |size, value| Write { offset: 2, size, value };
    let writes = [write(1, 0x0d), write(2, 0x0c0d), write(4, 0x0a0b_0c0d)];
    let string = [write(2, 0x1211), write(2, 0x2221), write(2, 0x3231)];
    assert_eq!(device.accesses(), [reads, writes, string].concat());
}

fn nothing_reads_as_all_ones() {
    let machine = Machine::new(16 << 20);
    machine.run(&programs::load_and_store_all_sizes(), &[0xd000_0000, DATA, 1]);
    assert_eq!(machine.words::<4>(DATA), [0xff, 0xffff, 0xffff_ffff, u64::MAX]);
    machine.run(&programs::access_ports(), &[DATA, DATA + 0x100, 0xfff0, 1]);
    assert_eq!(machine.words::<3>(DATA + 0x100), [0xff, 0xffff, 0xffff_ffff]);
}

/// Kicks at any moment, each of which must end a run: before it, in the guest, in a
/// device's handler.
fn a_kick_is_never_lost() {
    let machine = Machine::new(16 << 20);
    place_ports(&machine, 0x310, Recorder::new(1));
    let buses = Buses { memory: machine.space.clone(), ports: machine.port_space.clone() };
    let mut vcpu = machine.vm.create_vcpu(0, buses).unwrap();
    boot(&vcpu, &machine.block, &programs::count_port_reads(), &[DATA, 0, 0x310]);
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
    let buses = Buses { memory: machine.space.clone(), ports: machine.port_space.clone() };
    let mut vcpu = machine.vm.create_vcpu(0, buses).unwrap();
    boot(&vcpu, &machine.block, &programs::count_port_reads(), &[DATA, 0, 0x310]);
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
        // What the device has handed out last is in rax, or already added up.
        let regs = vcpu.fd().get_regs().unwrap();
        assert_eq!(regs.rax, device.0.load(Ordering::Acquire), "an answer is not in the register");
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
    let guest = machine.start(&programs::count_port_reads(), &[DATA, 0, 0x310]);
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
    let guest = machine.start(&programs::count_port_reads(), &[DATA, 0, 0x310]);
    wait_until("the refusal", || device.1.get().is_some());
    assert_eq!(
        device.1.get().unwrap(),
        "vCPU 0 cannot wait for itself to stop: pause from another thread"
    );
    guest.stop().unwrap();
}

/// Whoever has the interrupt controller asks when the guest would take an interrupt.
fn a_window_for_interrupts_is_told_of() {
    let machine = Machine::new(16 << 20);
    let code = programs::assemble(|a| {
        let mut again = a.create_label();
        a.sti()?;
        a.set_label(&mut again)?;
        a.inc(qword_ptr(rdi))?;
        a.jmp(again)
    });
    let mut vcpu = machine.privileged(&code, &[DATA]);
    vcpu.run_page().request_interrupt_window(true);
    let told = || VcpuEvent::Unhandled("the window".to_owned());
    // Kicked, if it is not told in time.
    let (in_time, wait) = mpsc::channel::<()>();
    let kicker = vcpu.kicker();
    std::thread::spawn(move || {
        if wait.recv_timeout(seconds(10)) == Err(mpsc::RecvTimeoutError::Timeout) {
            kicker.kick();
        }
    });
    let event = vcpu.run_with(|exit| matches!(exit, VcpuExit::IrqWindowOpen).then(told)).unwrap();
    assert_eq!(event, told());
    drop(in_time);
    // There is nothing to complete.
    vcpu.save().unwrap();
    vcpu.run_page().request_interrupt_window(false);
    let before = machine.counter();
    let guest = vcpu.spawn("vcpu").unwrap();
    wait_until("the guest to go on", || machine.counter() > before);
    assert_eq!(guest.stop().unwrap().1, VcpuEvent::Kicked);
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
    let guest = machine.start(&programs::count_port_reads(), &[DATA, 0, 0x310]);
    *device.0.lock().unwrap() = Some(guest);
    wait_until("the reset", || device.1.load(Ordering::Acquire));
    // It was kicked: it is gone, and no pause waits for it.
    drop(machine.vm.pause(seconds(10)).unwrap());
    let end = machine.counter();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(machine.counter(), end);
}

/// `rep insw` stores what a device answers when KVM completes it, which a pause asks
/// for. Meanwhile the slot that it stores to goes and comes: no store is lost.
fn string_input_completes_while_slots_change() {
    let machine = Machine::new(16 << 20);
    let page = machine.block.page_size().bytes();
    place_ports(&machine, 0x310, Recorder::new(0x5a5a));
    let mut log = machine.memory.claim_log(machine.ram, DirtyClient::MIGRATION).unwrap();
    let hole = machine
        .memory
        .transaction(|map| {
            let hole = map.mmio("hole", u128::from(page), Recorder::new(0))?;
            map.add_subregion_overlap(machine.system, 8 << 20, hole, 1)?;
            Ok(hole)
        })
        .unwrap();
    let pages = 256;
    let end = DATA + (1 + pages) * page;
    let guest = machine.start(&programs::fill_from_port(), &[DATA + page, end, 0x310, page / 2]);
    let (done, paused) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                drop(machine.vm.pause(seconds(10)).unwrap());
                paused.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut mirror = vec![0; usize::try_from(machine.block.len()).unwrap()];
        let mut copy = |machine: &Machine| {
            let harvest = log.snapshot_and_clear(0..machine.block.len());
            for run in harvest.unwrap().commit().runs() {
                let bytes = usize::try_from(run.start * page).unwrap()
                    ..usize::try_from(run.end * page).unwrap();
                machine.block.read(run.start * page, &mut mirror[bytes]).unwrap();
            }
        };
        for round in 0.. {
            if guest.is_finished() && round > 100 {
                break;
            }
            machine.memory.transaction(|map| map.set_enabled(hole, round % 2 == 0)).unwrap();
            copy(&machine);
        }
        done.store(true, Ordering::Release);
        copy(&machine);
        let filled = usize::try_from(DATA + page).unwrap()..usize::try_from(end).unwrap();
        assert!(mirror[filled].iter().all(|byte| *byte == 0x5a), "a store was lost");
    });
    assert!(paused.load(Ordering::Relaxed) > 0);
    assert_eq!(guest.join().unwrap().1, VcpuEvent::Shutdown);
}
