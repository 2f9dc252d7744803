//! Loops of their owners' that end in every way, on any thread, beside threads that pause, change
//! slots, add vCPUs and bound what is dirty.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use integration_tests::harness::Test;
use kvm_accel::kvm_ioctls::{VcpuExit, VmFd};
use kvm_accel::{DirtyTracking, GuardedVcpu, KvmConfig, KvmError, RollBack, VcpuKicker, VcpuRun};
use machines::guest::{CODE, DATA, boot_descriptor, programs};
use memory_region::MapError;

use super::own_machine::{Ends, Mirror, create_vm};
use crate::on_kvm::machine::{Machine, seconds, tracked_by, wait_until};

/// In every way of tracking.
pub const TESTS: &[Test] = &[
    ("loops_that_end_in_every_way_lose_nothing", loops_that_end_in_every_way_lose_nothing),
    ("two_vcpus_change_their_owners", two_vcpus_change_their_owners),
    ("what_waits_for_a_run_waits_for_the_next", what_waits_for_a_run_waits_for_the_next),
];

/// With rings.
pub const ONCE: &[Test] = &[
    ("a_bound_holds_beside_syncs_and_new_vcpus", a_bound_holds_beside_syncs_and_new_vcpus),
    ("a_bound_that_is_removed_lets_all_go_on", a_bound_that_is_removed_lets_all_go_on),
    ("a_bound_holds_for_string_instructions", a_bound_holds_for_string_instructions),
];

const RAM: u64 = 16 << 20;
/// More pages for each vCPU than the bounds below.
const LARGE_RAM: u64 = 64 << 20;
const LARGE_SHARE: u64 = 16 << 20;
const PAGE: u64 = 4096;
const PORT: u16 = 0x510;
/// Of each vCPU: its code, and the pages that it increments.
const SHARE: u64 = 1 << 20;
const ENTRIES: u32 = 1024;

/// A vCPU of the owner's, that increments pages of its own, and beats after every 16.
fn beating(machine: &Machine, fd: &VmFd, id: u64) -> GuardedVcpu {
    beating_over(machine, fd, id, SHARE)
}

fn beating_over(machine: &Machine, fd: &VmFd, id: u64, share: u64) -> GuardedVcpu {
    let vcpu = machine.vm.adopt_vcpu(id, fd.create_vcpu(id).unwrap(), None).unwrap();
    let code = DATA + share * id;
    let program = programs::increment_pages_and_beat(code);
    let arguments = [code + PAGE, code + share, PORT.into(), PAGE, 16];
    boot_descriptor(vcpu.fd(), &machine.block, code, &program, &arguments);
    vcpu
}

/// Numbers that look random.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % below
    }
}

/// Runs some exits, and ends in one of several ways. Each beat is the next number, however the loop
/// before was left.
fn run_a_while(vcpu: &mut GuardedVcpu, last: &AtomicU32, numbers: &mut Numbers) {
    let (mut exits, way) = (numbers.next(30), numbers.next(4));
    let mut runs = vcpu.run_loop().unwrap();
    loop {
        match runs.run().unwrap() {
            VcpuRun::Exit(VcpuExit::IoOut(PORT, data)) => {
                let number = u32::from_le_bytes(data.try_into().unwrap());
                assert_eq!(last.swap(number, Ordering::Relaxed) + 1, number);
                if exits == 0 {
                    match way {
                        0 => return, // in the middle of the exit
                        1 => resume_unwind(Box::new("a panic of the handler's")),
                        _ => {}
                    }
                }
                exits = exits.saturating_sub(1);
            }
            VcpuRun::Continue => {}
            VcpuRun::Kicked => return,
            VcpuRun::DirtyBound => {
                thread::yield_now();
                return;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Runs loops until `ended`, every other one on a thread of its own.
fn run_loops(vcpu: &mut GuardedVcpu, last: &AtomicU32, ended: &AtomicBool) {
    let mut numbers = Numbers(vcpu.id());
    while !ended.load(Ordering::Relaxed) {
        let moves = numbers.next(2) == 0;
        let mut work = || {
            let result = catch_unwind(AssertUnwindSafe(|| run_a_while(vcpu, last, &mut numbers)));
            match result {
                Err(panic) if !panic.is::<&str>() => resume_unwind(panic),
                _ => {}
            }
        };
        if moves {
            thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|e| resume_unwind(e));
        } else {
            work();
        }
    }
}

fn loops_that_end_in_every_way_lose_nothing() {
    let fd = create_vm();
    let machine = Machine::over(fd.clone(), RAM, KvmConfig::default());
    let has_rings = matches!(machine.vm.dirty_tracking().tracking, DirtyTracking::Ring { .. });
    let mut mirror = Mirror::new(&machine);
    let hole = machine.memory.transaction(|map| {
        let hole = map.alias("hole", machine.ram, 0x40_0000, 0x1_0000)?;
        map.set_enabled(hole, false)?;
        map.add_subregion_overlap(machine.system, 0xc0_0000, hole, 1)?;
        Ok::<_, MapError>(hole)
    });
    let hole = hole.unwrap();
    let (ended, lasts) = (AtomicBool::new(false), [const { AtomicU32::new(0) }; 5]);
    thread::scope(|scope| {
        let mut ends = Ends(&ended, Vec::new());
        let mut numbers = Numbers(7);
        for (id, last) in lasts.iter().enumerate() {
            // One more, while the others run.
            let mut vcpu = beating(&machine, &fd, id as u64);
            ends.1.push(vcpu.kicker());
            let ended = &ended;
            scope.spawn(move || run_loops(&mut vcpu, last, ended));
            for round in 0..15 {
                match numbers.next(5) {
                    0 => {
                        for on in [true, false] {
                            let set = machine.memory.transaction(|map| map.set_enabled(hole, on));
                            set.unwrap();
                        }
                    }
                    1 => {
                        let still = machine.vm.pause(seconds(10)).unwrap();
                        mirror.harvest(&machine.block);
                        assert!(mirror.is_whole(&machine.block), "vCPU {id}, round {round}");
                        assert!(mirror.harvest(&machine.block).is_empty(), "one that is paused");
                        drop(still);
                    }
                    2 if has_rings => {
                        let entries = 65_536 * 5;
                        machine.vm.set_dirty_bound(Some(entries + numbers.next(3000))).unwrap();
                    }
                    3 => ends.1.iter().for_each(VcpuKicker::kick),
                    _ => drop(mirror.harvest(&machine.block)),
                }
            }
            if has_rings {
                machine.vm.set_dirty_bound(None).unwrap();
            }
            for last in &lasts[..=id] {
                let before = last.load(Ordering::Relaxed);
                wait_until("a beat", || last.load(Ordering::Relaxed) != before);
            }
        }
    });
    mirror.harvest(&machine.block);
    assert!(mirror.is_whole(&machine.block), "at the end");
}

/// What is swapped is each a whole vCPU: its number, its thread and its access under way.
fn two_vcpus_change_their_owners() {
    let fd = create_vm();
    let machine = Machine::over(fd.clone(), RAM, KvmConfig::default());
    let mut mirror = Mirror::new(&machine);
    let [mut one, mut other] = [0, 1].map(|id| beating(&machine, &fd, id));
    let lasts = [const { AtomicU32::new(0) }; 2];
    let mut numbers = Numbers(3);
    for _ in 0..40 {
        let last = |vcpu: &GuardedVcpu| &lasts[usize::try_from(vcpu.id()).unwrap()];
        let seeds = [numbers.next(1 << 20), numbers.next(1 << 20)];
        thread::scope(|scope| {
            for (vcpu, seed) in [&mut one, &mut other].into_iter().zip(seeds) {
                let last = last(vcpu);
                scope.spawn(move || {
                    let mut numbers = Numbers(seed);
                    let kicker = vcpu.kicker();
                    thread::scope(|scope| {
                        scope.spawn(|| {
                            thread::sleep(std::time::Duration::from_millis(seed % 3));
                            kicker.kick();
                        });
                        let run = AssertUnwindSafe(|| run_a_while(vcpu, last, &mut numbers));
                        if let Err(panic) = catch_unwind(run) {
                            assert!(panic.is::<&str>(), "{panic:?}");
                        }
                    });
                });
            }
        });
        mirror.harvest(&machine.block);
        assert!(mirror.is_whole(&machine.block));
        std::mem::swap(&mut one, &mut other);
    }
}

/// A machine whose vCPUs have small rings.
fn with_small_rings(body: impl FnOnce(&Machine, &Arc<VmFd>)) {
    tracked_by(DirtyTracking::Ring { entries: ENTRIES }, || {
        let fd = create_vm();
        let machine = Machine::over(fd.clone(), LARGE_RAM, KvmConfig::default());
        body(&machine, &fd);
    });
}

/// Runs until the bound; an exit is handled, and others are told of it.
fn run_to_bound(vcpu: &mut GuardedVcpu, beats: &AtomicU64) {
    let mut runs = vcpu.run_loop().unwrap();
    loop {
        match runs.run().unwrap() {
            VcpuRun::Exit(_) => drop(beats.fetch_add(1, Ordering::Relaxed)),
            VcpuRun::Continue => {}
            VcpuRun::DirtyBound => return,
            other => panic!("nobody asked for {other:?}"),
        }
    }
}

fn a_bound_holds_beside_syncs_and_new_vcpus() {
    with_small_rings(|machine, fd| {
        let mut mirror = Mirror::new(machine);
        let mut vcpus: Vec<_> =
            (0..3).map(|id| beating_over(machine, fd, id, LARGE_SHARE)).collect();
        let (mut spare, beats) = (Vec::new(), AtomicU64::new(0));
        let mut numbers = Numbers(11);
        for round in 0..30_u64 {
            let entries = u64::from(ENTRIES) * (vcpus.len() + spare.len()) as u64;
            let refused = machine.vm.set_dirty_bound(Some(entries - 1)).unwrap_err();
            let is_told = matches!(refused, KvmError::DirtyBound { least, .. } if least == entries);
            assert!(is_told, "{refused}");
            mirror.harvest(&machine.block);
            let bound = entries + numbers.next(3000);
            machine.vm.set_dirty_bound(Some(bound)).unwrap();
            let all = Mutex::new(std::collections::BTreeSet::new());
            let adopts = round % 8 == 5;
            thread::scope(|scope| {
                for vcpu in &mut vcpus {
                    scope.spawn(|| run_to_bound(vcpu, &beats));
                }
                for _ in 0..numbers.next(4) {
                    all.lock().unwrap().extend(mirror.harvest(&machine.block));
                }
                if adopts {
                    // With its ring, the bound may be too little.
                    let id = 10 + round;
                    let fd = fd.create_vcpu(id).unwrap();
                    spare.push(machine.vm.adopt_vcpu(id, fd, None).unwrap());
                }
            });
            all.lock().unwrap().extend(mirror.harvest(&machine.block));
            assert!(mirror.is_whole(&machine.block));
            let pages = all.into_inner().unwrap().len() as u64;
            assert!(pages <= bound, "round {round}: {pages} of {bound}");
        }
        assert!(beats.load(Ordering::Relaxed) > 100);
        assert_eq!(machine.vm.dirty_log_stats().ring_overruns, 0);
    });
}

fn a_bound_that_is_removed_lets_all_go_on() {
    with_small_rings(|machine, fd| {
        let mut mirror = Mirror::new(machine);
        let mut vcpus: Vec<_> =
            (0..2).map(|id| beating_over(machine, fd, id, LARGE_SHARE)).collect();
        let kickers: Vec<_> = vcpus.iter().map(GuardedVcpu::kicker).collect();
        let (ended, lasts) = (AtomicBool::new(false), [const { AtomicU32::new(0) }; 2]);
        let bounded = AtomicU64::new(0);
        thread::scope(|scope| {
            let _ends = Ends(&ended, kickers);
            for (vcpu, last) in vcpus.iter_mut().zip(&lasts) {
                scope.spawn(|| {
                    while !ended.load(Ordering::Relaxed) {
                        let mut runs = vcpu.run_loop().unwrap();
                        loop {
                            match runs.run().unwrap() {
                                VcpuRun::Exit(_) => drop(last.fetch_add(1, Ordering::Relaxed)),
                                VcpuRun::Continue => {}
                                VcpuRun::Kicked => break,
                                VcpuRun::DirtyBound => {
                                    bounded.fetch_add(1, Ordering::Relaxed);
                                    break;
                                }
                                other => panic!("{other:?}"),
                            }
                        }
                        thread::yield_now();
                    }
                });
            }
            for round in 0..20 {
                let before = bounded.load(Ordering::Relaxed);
                machine.vm.set_dirty_bound(Some(2 * u64::from(ENTRIES))).unwrap();
                if round % 2 == 0 {
                    // Else in the middle.
                    wait_until("both at the bound", || {
                        bounded.load(Ordering::Relaxed) > before + 20
                    });
                    let still = machine.vm.pause(seconds(10)).unwrap();
                    mirror.harvest(&machine.block);
                    assert!(mirror.is_whole(&machine.block), "round {round}");
                    drop(still);
                }
                machine.vm.set_dirty_bound(None).unwrap();
                for last in &lasts {
                    let before = last.load(Ordering::Relaxed);
                    wait_until("beats", || last.load(Ordering::Relaxed) > before + 100);
                }
            }
        });
        mirror.harvest(&machine.block);
        assert!(mirror.is_whole(&machine.block));
    });
}

/// From the port `dx`, or from MMIO: a few bytes at the end of each page and the begin of the next,
/// over and over.
fn straddle(from_port: bool) -> Vec<u8> {
    use iced_x86::code_asm::{r8, r9, rcx, rdi, rsi};
    programs::assemble(|a| {
        let (mut pass, mut next) = (a.create_label(), a.create_label());
        a.set_label(&mut pass)?;
        a.mov(rdi, r8)?;
        a.set_label(&mut next)?;
        a.mov(rcx, 16u64)?;
        if from_port {
            a.rep().insw()?;
        } else {
            a.mov(rcx, 4u64)?;
            a.mov(rsi, 0xc000_0000u64)?;
            a.rep().movsq()?;
        }
        a.add(rdi, i32::try_from(PAGE - 32).unwrap())?;
        a.cmp(rdi, r9)?;
        a.jb(next)?;
        a.jmp(pass)
    })
}

fn a_bound_holds_for_string_instructions() {
    for from_port in [true, false] {
        with_small_rings(|machine, fd| {
            let mut mirror = Mirror::new(machine);
            let mut vcpu = machine.vm.adopt_vcpu(0, fd.create_vcpu(0).unwrap(), None).unwrap();
            let arguments = [0, 0, PORT.into(), 0, DATA + PAGE - 16, LARGE_RAM - PAGE];
            boot_descriptor(vcpu.fd(), &machine.block, CODE, &straddle(from_port), &arguments);
            let (mut byte, mut accesses) = (0_u8, 0_u64);
            for bound in [1024, 1100, 1777, 2600] {
                mirror.harvest(&machine.block);
                machine.vm.set_dirty_bound(Some(bound)).unwrap();
                let mut runs = vcpu.run_loop().unwrap();
                loop {
                    match runs.run().unwrap() {
                        VcpuRun::Exit(VcpuExit::IoIn(PORT, data))
                        | VcpuRun::Exit(VcpuExit::MmioRead(_, data)) => {
                            byte = byte.wrapping_add(1);
                            data.fill(byte);
                            accesses += 1;
                        }
                        VcpuRun::Continue => {}
                        VcpuRun::DirtyBound => break,
                        other => panic!("{other:?}"),
                    }
                }
                drop(runs);
                let pages = mirror.harvest(&machine.block).len() as u64;
                assert!(mirror.is_whole(&machine.block));
                // A page counts with each store that KVM emulates.
                assert!((1..=bound).contains(&pages), "{pages} of {bound}");
            }
            assert!(accesses > 100, "{accesses}");
            assert_eq!(machine.vm.dirty_log_stats().ring_overruns, 0);
        });
    }
}

/// Registers that the next run would take: the vCPU is kicked before it enters its guest. They are
/// those that it has all the same, until others are put back.
fn what_waits_for_a_run_waits_for_the_next() {
    let fd = create_vm();
    let machine = Machine::over(fd.clone(), RAM, KvmConfig::default());
    let mut vcpu = beating(&machine, &fd, 0);
    let kicker = vcpu.kicker();
    let last = |vcpu: &mut GuardedVcpu, beats: u32| {
        let (mut runs, mut number) = (vcpu.run_loop().unwrap(), 0);
        for _ in 0..beats {
            number = loop {
                if let VcpuRun::Exit(VcpuExit::IoOut(PORT, data)) = runs.run().unwrap() {
                    break u32::from_le_bytes(data.try_into().unwrap());
                }
            };
        }
        // What is under way completes.
        kicker.kick();
        while !matches!(runs.run().unwrap(), VcpuRun::Kicked) {}
        number
    };
    let kicked_at_once = |vcpu: &mut GuardedVcpu| {
        kicker.kick();
        assert!(matches!(vcpu.run_loop().unwrap().run().unwrap(), VcpuRun::Kicked));
    };
    assert_eq!(last(&mut vcpu, 5), 5);
    let first = vcpu.save().unwrap();
    assert_eq!(last(&mut vcpu, 7), 12);
    let second = vcpu.save().unwrap();
    let place = |vcpu: &GuardedVcpu| serde_json::to_value(vcpu.save().unwrap()).unwrap();
    let (at_first, at_second) = (serde_json::to_value(&first).unwrap(), place(&vcpu));
    let same = |one: &serde_json::Value, other: &serde_json::Value| {
        ["registers", "special", "events"].iter().all(|part| one[part] == other[part])
    };
    assert!(!same(&at_first, &at_second));
    for _ in 0..3 {
        vcpu.roll_back(&first, RollBack::WithNextRun).unwrap();
        kicked_at_once(&mut vcpu);
        kicked_at_once(&mut vcpu);
        assert!(same(&place(&vcpu), &at_first));
        // Others, at once: those that waited do not come back with the next run.
        vcpu.roll_back(&second, RollBack::Now).unwrap();
        kicked_at_once(&mut vcpu);
        assert!(same(&place(&vcpu), &at_second));
        assert_eq!(last(&mut vcpu, 1), 13);
        vcpu.roll_back(&first, RollBack::WithNextRun).unwrap();
        kicked_at_once(&mut vcpu);
        assert_eq!(last(&mut vcpu, 2), 7);
    }
}
