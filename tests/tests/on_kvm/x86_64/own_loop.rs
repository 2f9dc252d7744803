//! vCPUs that their owner makes and runs in a loop of his own, over a virtual machine that he
//! keeps.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;

use integration_tests::harness::Test;
use kvm_accel::kvm_bindings::{KVM_EXIT_IO, kvm_userspace_memory_region};
use kvm_accel::kvm_ioctls::{Cap, VcpuExit, VmFd};
use kvm_accel::{
    Buses, DirtyTracking, GuardedVcpu, KickSignal, KvmConfig, KvmError, KvmVm, VcpuRun,
};
use machines::guest::{CODE, DATA, TABLE_PAGES, boot_descriptor, programs};
use memory_region::MapError;
use ram_block::RamBlock;
use vmm_sys_util::signal::{SIGRTMAX, SIGRTMIN, register_signal_handler};

use super::own_machine::{Ends, Mirror, create_vm};
use crate::on_kvm::machine::{Machine, seconds, tracked_by, wait_until};

/// In every way of tracking.
pub const TESTS: &[Test] = &[
    ("a_loop_of_ones_own_loses_nothing", a_loop_of_ones_own_loses_nothing),
    ("a_pause_waits_for_an_exit_of_ones_own", a_pause_waits_for_an_exit_of_ones_own),
    ("a_state_goes_from_one_loop_to_another", a_state_goes_from_one_loop_to_another),
];

/// For which the way is all one.
pub const ONCE: &[Test] = &[
    ("a_virtual_machine_has_one_owner_of_its_slots", a_virtual_machine_has_one_owner_of_its_slots),
    ("a_former_tracking_is_found", a_former_tracking_is_found),
    ("slots_below_the_first_are_the_owners", slots_below_the_first_are_the_owners),
    ("signals_are_nobody_elses", signals_are_nobody_elses),
    ("writes_are_coalesced_for_a_bus_alone", writes_are_coalesced_for_a_bus_alone),
    ("a_bound_stops_a_loop_of_ones_own", a_bound_stops_a_loop_of_ones_own),
    ("only_kvm_says_where_port_data_is", only_kvm_says_where_port_data_is),
    ("a_vcpu_of_another_machine_has_no_ring", a_vcpu_of_another_machine_has_no_ring),
];

const RAM: u64 = 16 << 20;
const PAGE: u64 = 4096;
const PORT: u16 = 0x510;
const PAGES_A_BEAT: u64 = 16;

/// How often the handler of the owner's signal was called.
static SIGNALS: AtomicU64 = AtomicU64::new(0);

extern "C" fn count_signal(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// A signal with a handler of the owner's.
fn own_signal() -> KickSignal {
    let signal = SIGRTMIN() + 5;
    register_signal_handler(signal, count_signal).unwrap();
    KickSignal::Existing(signal)
}

/// A vCPU of the owner's, that increments the pages from `first` to `end` of RAM, and beats.
fn beating(machine: &Machine, fd: &VmFd, first: u64, end: u64) -> GuardedVcpu {
    let vcpu = machine.vm.adopt_vcpu(0, fd.create_vcpu(0).unwrap(), None).unwrap();
    let program = programs::increment_pages_and_beat(CODE);
    let arguments = [first, end, PORT.into(), PAGE, PAGES_A_BEAT];
    boot_descriptor(vcpu.fd(), &machine.block, CODE, &program, &arguments);
    vcpu
}

/// Handles exits until it is kicked; `last` is the last number of a beat, and each is the next.
fn run(vcpu: &mut GuardedVcpu, last: &AtomicU32) {
    let mut runs = vcpu.run_loop().unwrap();
    loop {
        match runs.run().unwrap() {
            VcpuRun::Exit(VcpuExit::IoOut(PORT, data)) => {
                let number = u32::from_le_bytes(data.try_into().unwrap());
                assert_eq!(last.swap(number, Ordering::Relaxed) + 1, number);
            }
            VcpuRun::Continue => {}
            VcpuRun::Kicked => return,
            other => panic!("{other:?}"),
        }
    }
}

/// Slots come and go, the machine is paused and the loop is left, while a guest stores and exits.
fn a_loop_of_ones_own_loses_nothing() {
    let fd = create_vm();
    let config = KvmConfig { kick_signal: own_signal(), ..KvmConfig::default() };
    let machine = Machine::over(fd.clone(), RAM, config);
    let mut mirror = Mirror::new(&machine);
    let hole = machine.memory.transaction(|map| {
        let hole = map.alias("hole", machine.ram, 0x40_0000, 0x1_0000)?;
        map.set_enabled(hole, false)?;
        map.add_subregion_overlap(machine.system, 0x80_0000, hole, 1)?;
        Ok::<_, MapError>(hole)
    });
    let hole = hole.unwrap();
    let mut vcpu = beating(&machine, &fd, DATA, RAM);
    let (kicker, last, ended) = (vcpu.kicker(), AtomicU32::new(0), AtomicBool::new(false));
    let signals = SIGNALS.load(Ordering::Relaxed);
    let left = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                run(&mut vcpu, &last);
                left.fetch_add(1, Ordering::Relaxed);
            }
        });
        let _ends = Ends(&ended, vec![kicker.clone()]);
        for round in 0..60 {
            let beats = last.load(Ordering::Relaxed);
            wait_until("a beat", || last.load(Ordering::Relaxed) != beats);
            // RAM is split and joined, which deletes slots that the guest stores to.
            machine.memory.transaction(|map| map.set_enabled(hole, true)).unwrap();
            mirror.harvest(&machine.block);
            machine.memory.transaction(|map| map.set_enabled(hole, false)).unwrap();
            if round % 3 == 0 {
                let still = machine.vm.pause(seconds(5)).unwrap();
                mirror.harvest(&machine.block);
                assert!(mirror.is_whole(&machine.block), "round {round}");
                assert!(mirror.harvest(&machine.block).is_empty(), "a guest that is paused stores");
                drop(still);
            }
            if round % 4 == 0 {
                let before = left.load(Ordering::Relaxed);
                kicker.kick();
                wait_until("the loop to be left", || left.load(Ordering::Relaxed) > before);
            }
        }
    });
    mirror.harvest(&machine.block);
    assert!(mirror.is_whole(&machine.block), "at the end");
    assert!(SIGNALS.load(Ordering::Relaxed) > signals, "the signal was another");
}

fn a_pause_waits_for_an_exit_of_ones_own() {
    let fd = create_vm();
    let machine = Machine::over(fd.clone(), RAM, KvmConfig::default());
    let mut vcpu = beating(&machine, &fd, DATA, DATA + (1 << 20));
    let kicker = vcpu.kicker();
    let mut runs = vcpu.run_loop().unwrap();
    while !matches!(runs.run().unwrap(), VcpuRun::Exit(VcpuExit::IoOut(..))) {}
    // Its owner handles an exit.
    let refused = machine.vm.pause(std::time::Duration::from_millis(20)).unwrap_err();
    assert!(matches!(refused, KvmError::PauseFromVcpu { .. }), "{refused}");
    let elsewhere = || {
        thread::scope(|scope| {
            let pause = || machine.vm.pause(std::time::Duration::from_millis(20)).map(drop);
            scope.spawn(pause).join().unwrap()
        })
    };
    let refused = elsewhere().unwrap_err();
    assert!(matches!(refused, KvmError::PauseTimeout { running: 1, vcpus: 1, .. }), "{refused}");
    #[cfg(target_arch = "x86_64")]
    {
        drop(runs);
        assert!(matches!(vcpu.save().unwrap_err(), KvmError::State { .. }), "half an access");
        elsewhere().unwrap(); // he has left his loop
        // The access that was left completes once he goes on, and not while the machine is paused.
        let still = machine.vm.pause(seconds(5)).unwrap();
        kicker.kick();
        let mut runs = vcpu.run_loop().unwrap();
        assert!(matches!(runs.run().unwrap(), VcpuRun::Kicked));
        drop(runs);
        assert!(vcpu.save().is_err());
        drop(still);
        kicker.kick();
        let mut runs = vcpu.run_loop().unwrap();
        while !matches!(runs.run().unwrap(), VcpuRun::Kicked) {}
        drop(runs);
        vcpu.save().unwrap();
    }
}

/// A machine in a loop of one's own is saved, and goes on in another.
fn a_state_goes_from_one_loop_to_another() {
    let (first, second) = (create_vm(), create_vm());
    let machine = Machine::over(first.clone(), RAM, KvmConfig::default());
    let mut vcpu = beating(&machine, &first, DATA, DATA + (1 << 20));
    let last = AtomicU32::new(0);
    let beats = |vcpu: &mut GuardedVcpu, until: u32| {
        let kicker = vcpu.kicker();
        thread::scope(|scope| {
            scope.spawn(|| {
                wait_until("beats", || last.load(Ordering::Relaxed) >= until);
                kicker.kick();
            });
            run(vcpu, &last);
        });
    };
    beats(&mut vcpu, 100);
    let state = vcpu.save().unwrap();
    let there = Machine::over(second.clone(), RAM, KvmConfig::default());
    let mut bytes = vec![0; usize::try_from(RAM).unwrap()];
    machine.block.read(0, &mut bytes).unwrap();
    there.block.write(0, &bytes).unwrap();
    let mut other = there.vm.adopt_vcpu(0, second.create_vcpu(0).unwrap(), None).unwrap();
    other.restore(&state).unwrap();
    let until = last.load(Ordering::Relaxed) + 100;
    beats(&mut other, until);
}

fn a_virtual_machine_has_one_owner_of_its_slots() {
    let fd = create_vm();
    let machine = Machine::over(fd.clone(), RAM, KvmConfig::default());
    let config = KvmConfig { first_slot: 7, ..KvmConfig::default() };
    let refused = KvmVm::over(fd.clone(), config.clone()).unwrap_err();
    assert!(matches!(refused, KvmError::SlotsTaken { first: 0 }), "{refused}");
    // Another virtual machine is another one's.
    KvmVm::over(create_vm(), config.clone()).unwrap();
    drop(machine);
    KvmVm::over(fd, config).unwrap();
}

/// What tracked a virtual machine before is found, or switched off.
fn a_former_tracking_is_found() {
    let of = |tracking| KvmConfig { tracking, ..KvmConfig::default() };
    let ring = DirtyTracking::Ring { entries: 65_536 };
    let fd = create_vm();
    drop(KvmVm::over(fd.clone(), of(ring)).unwrap());
    for tracking in [DirtyTracking::Bitmap, DirtyTracking::ManualProtect, DirtyTracking::Auto, ring]
    {
        let refused = KvmVm::over(fd.clone(), of(tracking)).unwrap_err();
        assert!(matches!(refused, KvmError::Tracking { .. }), "{refused}");
        assert!(refused.to_string().contains("has dirty rings already"), "{refused}");
    }
    let fd = create_vm();
    drop(KvmVm::over(fd.clone(), of(DirtyTracking::ManualProtect)).unwrap());
    tracked_by(DirtyTracking::Bitmap, || {
        let machine = Machine::over(fd, RAM, KvmConfig::default());
        let mut mirror = Mirror::new(&machine);
        machine.store(7, &[DATA + 5 * PAGE]);
        assert!(mirror.harvest(&machine.block).contains(&((DATA + 5 * PAGE) / PAGE)));
        assert!(mirror.harvest(&machine.block).is_empty(), "pages are reported for ever");
        assert!(mirror.is_whole(&machine.block));
    });
}

/// The last two slots that KVM has, beside one of the owner's.
fn slots_below_the_first_are_the_owners() {
    let fd = create_vm();
    let count = fd.check_extension_int(Cap::NrMemslots);
    let first_slot = u32::try_from(count - 2).unwrap();
    let own = RamBlock::anonymous("own", PAGE).unwrap();
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 1 << 30,
        memory_size: PAGE,
        userspace_addr: own.host_address() as u64,
    };
    // SAFETY: the block lives until the machine is dropped.
    #[allow(unsafe_code)]
    unsafe {
        fd.set_user_memory_region(region).unwrap();
    }
    let config = KvmConfig { first_slot, ..KvmConfig::default() };
    let machine = Machine::over(fd.clone(), RAM, config);
    let mut vcpu = beating(&machine, &fd, DATA, DATA + (1 << 20));
    let regs = kvm_accel::kvm_bindings::kvm_regs {
        rdi: 1 << 30,
        rsi: (1 << 30) + PAGE,
        ..vcpu.fd().get_regs().unwrap()
    };
    vcpu.fd().set_regs(&regs).unwrap();
    let mut runs = vcpu.run_loop().unwrap();
    while !matches!(runs.run().unwrap(), VcpuRun::Exit(VcpuExit::IoOut(..))) {}
    drop(runs);
    let mut byte = [0];
    own.read(0, &mut byte).unwrap();
    assert_eq!(u64::from(byte[0]), PAGES_A_BEAT, "the guest stores to its owner's slot");
    let add = |at: u64| {
        machine.memory.transaction(|map| {
            let more = map.ram("more", RamBlock::anonymous(&format!("more {at:x}"), PAGE)?)?;
            map.add_subregion(machine.system, at, more)
        })
    };
    add(1 << 32).unwrap();
    let refused = add(1 << 33).unwrap_err();
    let mut source: &dyn std::error::Error = &refused;
    while let Some(next) = source.source() {
        source = next;
    }
    assert!(source.to_string().contains("needs 3 slots, KVM has 2"), "{source}");
    // The map's RAM cannot be where the owner's slot is.
    assert!(add(1 << 30).is_err());
    let none = KvmConfig { first_slot: u32::try_from(count).unwrap(), ..KvmConfig::default() };
    let refused = KvmVm::over(create_vm(), none).unwrap_err();
    assert!(matches!(refused, KvmError::SlotLimit { .. }), "{refused}");
    drop((vcpu, machine, fd));
    drop(own);
}

fn signals_are_nobody_elses() {
    let with = |kick_signal| {
        KvmVm::over(create_vm(), KvmConfig { kick_signal, ..KvmConfig::default() }).map(drop)
    };
    let (own, free) = (SIGRTMIN() + 5, SIGRTMIN() + 6);
    own_signal();
    let refused = with(KickSignal::Install(own)).unwrap_err();
    assert!(matches!(refused, KvmError::SignalTaken { signal } if signal == own), "{refused}");
    with(KickSignal::Existing(own)).unwrap();
    let refused = with(KickSignal::Existing(free)).unwrap_err();
    assert!(matches!(refused, KvmError::SignalUnhandled { signal } if signal == free), "{refused}");
    with(KickSignal::Install(free)).unwrap();
    with(KickSignal::Install(free)).unwrap(); // it is ours now
    with(KickSignal::Existing(free)).unwrap();
    for wrong in [0, -1, SIGRTMAX() + 1, i32::MAX, libc::SIGKILL] {
        let refused = with(KickSignal::Install(wrong)).unwrap_err();
        assert!(matches!(refused, KvmError::Signal { signal, .. } if signal == wrong), "{refused}");
    }
}

fn writes_are_coalesced_for_a_bus_alone() {
    let coalesce = |machine: &Machine| {
        machine.memory.transaction(|map| {
            let device =
                map.mmio("device", PAGE.into(), crate::on_kvm::machine::Recorder::new(0))?;
            map.add_subregion(machine.system, 1 << 32, device)?;
            map.set_coalescing(device, std::slice::from_ref(&(0..PAGE)))
        })
    };
    let adopt = |machine: &Machine, fd: &VmFd, id: u64, buses: Option<&Buses>| {
        machine.vm.adopt_vcpu(id, fd.create_vcpu(id).unwrap(), buses)
    };
    // The vCPU first, and then the range.
    let fd = create_vm();
    let machine = Machine::over(fd.clone(), RAM, KvmConfig::default());
    let _vcpu = adopt(&machine, &fd, 0, None).unwrap();
    let refused = coalesce(&machine).unwrap_err();
    assert!(matches!(refused, MapError::Refused { .. }), "{refused}");
    let buses = Buses { memory: machine.space.clone(), ports: machine.port_space.clone() };
    let _other = adopt(&machine, &fd, 1, Some(&buses)).unwrap();
    coalesce(&machine).unwrap();
    let _third = adopt(&machine, &fd, 2, None).unwrap();
    // The range first.
    let fd = create_vm();
    let machine = Machine::over(fd.clone(), RAM, KvmConfig::default());
    coalesce(&machine).unwrap();
    let refused = adopt(&machine, &fd, 0, None).unwrap_err();
    assert!(matches!(refused, KvmError::NoBus), "{refused}");
}

fn a_bound_stops_a_loop_of_ones_own() {
    tracked_by(DirtyTracking::Ring { entries: 1024 }, || {
        let fd = create_vm();
        let machine = Machine::over(fd.clone(), RAM, KvmConfig::default());
        let mut mirror = Mirror::new(&machine);
        let mut vcpu = beating(&machine, &fd, DATA, RAM);
        for bound in [1024, 1100, 2048, 3000] {
            mirror.harvest(&machine.block);
            machine.vm.set_dirty_bound(Some(bound)).unwrap();
            let mut runs = vcpu.run_loop().unwrap();
            while !matches!(runs.run().unwrap(), VcpuRun::DirtyBound) {}
            assert!(matches!(runs.run().unwrap(), VcpuRun::DirtyBound));
            drop(runs);
            let pages = mirror.harvest(&machine.block).len() as u64;
            assert!(
                (bound.saturating_sub(1024 + TABLE_PAGES)..=bound).contains(&pages),
                "{pages} of {bound}"
            );
            assert!(mirror.is_whole(&machine.block));
        }
        // Whoever calls again at his bound is paused, and kicked, all the same.
        machine.vm.set_dirty_bound(Some(1024)).unwrap();
        let kicker = vcpu.kicker();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut runs = vcpu.run_loop().unwrap();
                while !matches!(runs.run().unwrap(), VcpuRun::Kicked) {}
            });
            for _ in 0..20 {
                drop(machine.vm.pause(seconds(5)).unwrap());
            }
            kicker.kick();
        });
    });
}

/// What KVM shares with a vCPU of a virtual machine without rings is no ring.
fn a_vcpu_of_another_machine_has_no_ring() {
    tracked_by(DirtyTracking::Ring { entries: 1024 }, || {
        let machine = Machine::over(create_vm(), RAM, KvmConfig::default());
        let stray = create_vm().create_vcpu(0).unwrap();
        let refused = machine.vm.adopt_vcpu(0, stray, None).unwrap_err();
        assert!(matches!(refused, KvmError::CreateVcpu { id: 0, .. }), "{refused}");
    });
}

/// Whoever has a descriptor to himself can write to the page that KVM shares: what he says there
/// of a port access is not followed.
fn only_kvm_says_where_port_data_is() {
    let fd = create_vm();
    let machine = Machine::over(fd.clone(), RAM, KvmConfig::default());
    let device = crate::on_kvm::machine::Recorder::new(0x5a);
    crate::on_kvm::vcpus::place_ports(&machine, PORT.into(), device.clone());
    let mut stray = fd.create_vcpu(0).unwrap();
    let page = stray.get_kvm_run();
    page.exit_reason = KVM_EXIT_IO;
    page.__bindgen_anon_1.io.data_offset = 1 << 40;
    page.__bindgen_anon_1.io.size = 1;
    page.__bindgen_anon_1.io.count = 1;
    page.__bindgen_anon_1.io.port = PORT;
    let mut vcpu = machine.vm.adopt_vcpu(0, stray, None).unwrap();
    let mut runs = vcpu.run_loop().unwrap();
    runs.access_ports(&machine.port_space);
    drop(runs);
    assert_eq!(device.accesses(), []);
    // What KVM says is: as often as it is asked for.
    let program = programs::increment_pages_and_beat(CODE);
    let arguments = [DATA, DATA + (1 << 20), PORT.into(), PAGE, PAGES_A_BEAT];
    boot_descriptor(vcpu.fd(), &machine.block, CODE, &program, &arguments);
    let mut runs = vcpu.run_loop().unwrap();
    while !matches!(runs.run().unwrap(), VcpuRun::Exit(VcpuExit::IoOut(..))) {}
    runs.access_ports(&machine.port_space);
    let write = crate::on_kvm::machine::Access::Write { offset: 0, size: 4, value: 1 };
    assert_eq!(device.accesses(), [write]);
    while !matches!(runs.run().unwrap(), VcpuRun::Continue | VcpuRun::Exit(_)) {}
}
