//! Exits that only x86-64 has: of ports, of string instructions, of the window for interrupts.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use iced_x86::code_asm::{qword_ptr, rdi};
use integration_tests::harness::Test;
use kvm_accel::VcpuEvent;
use kvm_accel::kvm_ioctls::VcpuExit;
use machines::guest::{DATA, ENDED, programs};
use memory_region::MmioDevice;
use ram_block::DirtyClient;

use crate::on_kvm::machine::Access::{Read, Write};
use crate::on_kvm::machine::{Machine, Recorder, seconds, wait_until};
use crate::on_kvm::vcpus::place_ports;

pub const TESTS: &[Test] = &[
    ("port_accesses_reach_devices_one_by_one", port_accesses_reach_devices_one_by_one),
    ("no_port_reads_as_all_ones", no_port_reads_as_all_ones),
    ("a_window_for_interrupts_is_told_of", a_window_for_interrupts_is_told_of),
    ("string_input_completes_while_slots_change", string_input_completes_while_slots_change),
    ("what_a_panic_left_waits_for_the_pause", what_a_panic_left_waits_for_the_pause),
];

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

fn no_port_reads_as_all_ones() {
    let machine = Machine::new(16 << 20);
    machine.run(&programs::access_ports(), &[DATA, DATA + 0x100, 0xfff0, 1]);
    assert_eq!(machine.words::<3>(DATA + 0x100), [0xff, 0xffff, 0xffff_ffff]);
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
    assert_eq!(guest.join().unwrap().1, ENDED);
}

/// A device panics before it has answered `rep insw`. The pause has not waited for that, so
/// memory stays as it is until the pause ends, though the vCPU is run again before.
fn what_a_panic_left_waits_for_the_pause() {
    struct PanicsOnce(AtomicBool);
    impl MmioDevice for PanicsOnce {
        fn read(&self, _: u64, _: usize) -> u64 {
            assert!(self.0.swap(true, Ordering::AcqRel), "a fault in the device");
            0x5a5a
        }

        fn write(&self, _: u64, _: usize, _: u64) {}
    }
    let machine = Machine::new(16 << 20);
    let page = machine.block.page_size().bytes();
    place_ports(&machine, 0x310, Arc::new(PanicsOnce(false.into())));
    let place = DATA + page;
    machine.block.write(place, &[0x11; 64]).unwrap();
    let code = programs::fill_from_port();
    let guest = machine.start(&code, &[place, place + 64, 0x310, 32]);
    wait_until("the panic", || guest.is_finished());
    let (vcpu, _) = guest.join().unwrap_err().into_parts();
    let words = || machine.words::<8>(place);
    let before = words();
    let paused = machine.vm.pause(seconds(10)).unwrap();
    // Not even its state may be changed under it.
    assert!(vcpu.save().is_err());
    let guest = vcpu.spawn("vcpu").unwrap();
    // What must not happen gets the time to.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(words(), before, "a store while the machine is paused");
    // A kick gets it out of the wait.
    let (vcpu, event) = guest.stop().unwrap();
    assert_eq!(event, VcpuEvent::Kicked);
    assert_eq!(words(), before);
    let guest = vcpu.spawn("vcpu").unwrap();
    drop(paused);
    wait_until("the end", || guest.is_finished());
    assert_eq!(guest.join().unwrap().1, ENDED);
    assert!(words().iter().zip(before).all(|(now, before)| *now != before), "it was completed");
}
