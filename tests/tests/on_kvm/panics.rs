//! Devices that panic while a processor is in their handlers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use integration_tests::harness::Test;
use kvm_accel::{KvmError, VcpuThread};
use machines::guest::{DATA, ENDED, port, programs};
use memory_region::MmioDevice;

use super::machine::{Machine, seconds, wait_until};
use super::vcpus::place_ports;

pub const TESTS: &[Test] = &[
    ("a_device_that_panics_ends_its_processor_only", a_device_that_panics_ends_its_processor_only),
    ("a_panic_of_another_device_loses_no_exit", a_panic_of_another_device_loses_no_exit),
];

fn a_device_that_panics_ends_its_processor_only() {
    struct PanicsOnce(AtomicBool);
    impl MmioDevice for PanicsOnce {
        fn read(&self, _: u64, _: usize) -> u64 {
            assert!(self.0.swap(true, Ordering::AcqRel), "a fault in the device");
            1
        }

        fn write(&self, _: u64, _: usize, _: u64) {}
    }
    let machine = Machine::new(16 << 20);
    place_ports(&machine, 0x310, Arc::new(PanicsOnce(false.into())));
    let guest = machine.start(&programs::count_port_reads(), &[DATA, 0, port(0x310)]);
    wait_until("the panic", || guest.is_finished());
    // The thread is gone, its handle is not: a pause does not wait for it.
    drop(machine.vm.pause(seconds(10)).unwrap());
    let (vcpu, error) = guest.join().unwrap_err().into_parts();
    assert_eq!(error.to_string(), "The thread of vCPU 0 panicked: a fault in the device");
    // The vCPU goes on, if it is let.
    let guest = vcpu.spawn("vcpu").unwrap();
    wait_until("a read", || machine.counter() > 0);
    guest.stop().unwrap();
}

/// Gathered writes are handed over at an exit, which is another device's: it gets the access
/// though the first one panics, and so does the caller the event.
fn a_panic_of_another_device_loses_no_exit() {
    /// Panics at each gathered write, and answers.
    struct Panics;
    impl MmioDevice for Panics {
        fn read(&self, _: u64, _: usize) -> u64 {
            0x5a
        }

        fn write(&self, _: u64, _: usize, _: u64) {
            panic!("a fault in the device");
        }
    }
    let machine = Machine::new(16 << 20);
    let device = 0xd000_0000;
    machine
        .memory
        .transaction(|map| {
            let region = map.mmio("device", 0x100, Arc::new(Panics))?;
            map.set_coalescing(region, std::slice::from_ref(&(0..0x10)))?;
            map.add_subregion(machine.system, device, region)
        })
        .unwrap();
    let panicked = |guest: VcpuThread| {
        let (vcpu, error) = guest.join().unwrap_err().into_parts();
        assert!(matches!(error, KvmError::Panicked { .. }), "{error}");
        vcpu
    };
    // A read: KVM has still to complete it, so the state is not whole.
    let code = programs::store_load_and_store();
    let vcpu = panicked(machine.start(&code, &[device, DATA]));
    assert!(vcpu.save().is_err(), "a state in the middle of an access");
    assert_eq!(machine.counter(), 0);
    // An event: it is what the next run returns.
    let mut vcpu = panicked(vcpu.spawn("vcpu").unwrap());
    assert_eq!(machine.counter(), 0x5a, "what the guest has read");
    assert!(vcpu.save().is_err(), "a state without the event");
    assert_eq!(vcpu.run().unwrap(), ENDED);
}
