//! Checkpoints of the small PC: memory, vCPU and all chips go back, and the guest runs on from
//! there.
//!
//! What is not compared, as it is time: the time-stamp counter, which counts between two looks,
//! and KVM's clock, which goes on from its value at the checkpoint: it must not be ahead of that by
//! more than the time since.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use integration_tests::harness::{Named, Test, named};
use kvm_accel::DirtyTracking;
use migration_ram::{CheckpointId, Checkpoints, Device, DeviceError, DeviceState};
use mini_pc::{Config, Machine};
use serde_json::Value;

use super::mini_pc::{Watched, firmware, patience};
use super::registers::remove_time;
use crate::on_kvm::MODES;

/// Tests that need the files.
pub fn firmware_tests() -> Vec<Named> {
    let in_modes = MODES.iter().map(|&(mode, tracking)| -> Named {
        let body = move || a_boot_goes_on_from_checkpoints(tracking);
        (format!("{mode}::a_boot_goes_on_from_checkpoints"), Box::new(body))
    });
    let others: [Test; 2] = [
        ("a_chip_that_is_left_out_does_not_go_back", a_chip_that_is_left_out_does_not_go_back),
        ("a_machine_goes_back_beside_its_display", a_machine_goes_back_beside_its_display),
    ];
    in_modes.chain(named(&others)).collect()
}

/// How often a boot is gone back to: `BOOT_RESETS`. Each six of them are of all kinds.
fn resets() -> u64 {
    std::env::var("BOOT_RESETS").map_or(6, |count| count.parse().unwrap())
}

/// SeaBIOS begins with its drivers, ...
const EARLY: &str = "SeaBIOS (version ";
/// ... has found all devices, ...
const LATE: &str = "Booting from Floppy...";
/// ... and is done.
const END: &str = "Retrying in 60 seconds.";

fn small_pc(tracking: DirtyTracking) -> Watched {
    Watched::start(Config { ram: 16 << 20, tracking, ..firmware() })
}

/// All of a machine that stands still, by the names of its blocks and devices.
struct Moment {
    memory: BTreeMap<String, Vec<u8>>,
    devices: BTreeMap<String, Value>,
}

impl Moment {
    fn of(machine: &Machine) -> Self {
        let state = |device: &Arc<dyn Device>| {
            let bytes = device.save().unwrap();
            // The display's is not JSON.
            let state = serde_json::from_slice(&bytes).unwrap_or(Value::from(bytes));
            (device.name().to_owned(), state)
        };
        let devices = machine.devices().iter().map(state).collect();
        let memory = machine.memory().ram_blocks().into_iter().map(|block| {
            let mut bytes = vec![0; usize::try_from(block.len()).unwrap()];
            block.read(0, &mut bytes).unwrap();
            (block.id().to_owned(), bytes)
        });
        Self { devices, memory: memory.collect() }
    }

    /// A checkpoint, the moment in which it was taken, and for how long that was.
    fn take(checkpoints: &mut Checkpoints, machine: &Machine) -> (CheckpointId, Self, Duration) {
        let _paused = machine.pause();
        let start = Instant::now();
        let moment = Self::of(machine);
        (checkpoints.take().unwrap(), moment, start.elapsed())
    }

    /// What is not in `now` what it was in this moment; KVM's clock may be up to `time` ahead.
    fn differs(&self, now: &Self, time: Duration) -> Vec<&str> {
        assert!(self.memory.keys().eq(now.memory.keys()));
        assert!(self.devices.keys().eq(now.devices.keys()));
        let memory = self.memory.iter().filter(|(name, bytes)| now.memory[*name] != **bytes);
        let devices = self.devices.iter().filter(|(name, state)| {
            let [mut before, mut after] = [*state, &now.devices[*name]].map(Value::clone);
            match name.as_str() {
                "chips" => {
                    let clocks = [&mut before, &mut after].map(|chips| chips["clock"].take());
                    let [from, to] = clocks.map(|clock| clock.as_u64().unwrap());
                    let passed = to.checked_sub(from).map(Duration::from_nanos);
                    if passed.is_none_or(|passed| passed > time) {
                        return true;
                    }
                }
                "vcpu" => [&mut before, &mut after].into_iter().for_each(remove_time),
                _ => {}
            }
            before != after
        });
        let names = memory.map(|(name, _)| name).chain(devices.map(|(name, _)| name));
        names.map(String::as_str).collect()
    }
}

/// Goes back to checkpoints of two moments of a boot: from its end, with a reset of the machine
/// that is still to come, and from the beginning of the next boot.
fn a_boot_goes_on_from_checkpoints(tracking: DirtyTracking) {
    let mut pc = small_pc(tracking);
    let devices = pc.machine.devices().to_vec();
    let mut checkpoints = Checkpoints::new(pc.machine.memory(), devices).unwrap();
    let moments = [EARLY, LATE].map(|text| {
        pc.wait_for(text);
        let _paused = pc.machine.pause();
        (Moment::take(&mut checkpoints, &pc.machine), pc.text())
    });
    let end = pc.wait_for(END);
    let reset = |pc: &Watched| pc.machine.ports().write(0xcf9, &[0x06]).unwrap();
    for case in 0..resets() {
        if case % 6 == 2 {
            reset(&pc);
            pc.wait("the next boot", |rows| !rows.iter().any(|row| row.contains(END)));
        }
        let paused = pc.machine.pause();
        if case % 6 == 4 {
            reset(&pc);
        }
        let ((to, moment, taking), text) = &moments[usize::from(case % 4 != 0)];
        let start = Instant::now();
        let stats = checkpoints.restore(*to).unwrap();
        let now = Moment::of(&pc.machine);
        let differs = moment.differs(&now, *taking + start.elapsed());
        assert_eq!(differs, [""; 0], "case {case}, {stats:?}");
        assert_eq!(now.devices["reset line"], Value::from(false), "case {case}");
        assert_eq!(pc.text(), *text, "case {case}");
        drop(paused);
        assert_eq!(pc.wait_for(END), end, "case {case}");
    }
}

/// A device that can be left out.
struct LeftOut(Arc<dyn Device>, AtomicBool);

impl Device for LeftOut {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn version(&self) -> u32 {
        self.0.version()
    }

    fn save(&self) -> Result<Vec<u8>, DeviceError> {
        self.0.save()
    }

    fn restore(&self, version: u32, state: &[u8]) -> Result<(), DeviceError> {
        self.0.restore(version, state)
    }

    fn checkpoint(&self) -> Result<DeviceState, DeviceError> {
        self.0.checkpoint()
    }

    fn roll_back(&self, state: &DeviceState) -> Result<(), DeviceError> {
        if self.1.load(Ordering::Relaxed) { Ok(()) } else { self.0.roll_back(state) }
    }
}

/// The comparison of the other test misses no device.
fn a_chip_that_is_left_out_does_not_go_back() {
    let mut pc = small_pc(DirtyTracking::Auto);
    let device = |device: &Arc<dyn Device>| Arc::new(LeftOut(device.clone(), false.into()));
    let devices: Vec<Arc<LeftOut>> = pc.machine.devices().iter().map(device).collect();
    let all = devices.iter().map(|device| device.clone() as Arc<dyn Device>).collect();
    let mut checkpoints = Checkpoints::new(pc.machine.memory(), all).unwrap();
    // It has hardly begun.
    let (first, before, taking) = Moment::take(&mut checkpoints, &pc.machine);
    pc.wait_for(END);
    let (last, after, _) = Moment::take(&mut checkpoints, &pc.machine);
    let _paused = pc.machine.pause();
    let mut left_out = Vec::new();
    for device in devices {
        let start = Instant::now();
        device.1.store(true, Ordering::Relaxed);
        checkpoints.restore(first).unwrap();
        let now = Moment::of(&pc.machine);
        let time = taking + start.elapsed();
        let differs = before.differs(&now, time);
        let is_other = before.differs(&after, time).contains(&device.name());
        let expected = if is_other { vec![device.name()] } else { Vec::new() };
        assert_eq!(differs, expected);
        left_out.extend(differs.into_iter().map(str::to_owned));
        device.1.store(false, Ordering::Relaxed);
        checkpoints.restore(last).unwrap();
    }
    for name in ["pci", "vga", "fw_cfg", "chips", "vcpu"] {
        assert!(left_out.iter().any(|other| other == name), "{name} of {left_out:?}");
    }
}

/// The display follows while its machine goes back and forth.
fn a_machine_goes_back_beside_its_display() {
    let mut pc = small_pc(DirtyTracking::Auto);
    let devices = pc.machine.devices().to_vec();
    let mut checkpoints = Checkpoints::new(pc.machine.memory(), devices).unwrap();
    let moments = [EARLY, LATE, END].map(|text| {
        pc.wait_for(text);
        let _paused = pc.machine.pause();
        (checkpoints.take().unwrap(), pc.text())
    });
    let _paused = pc.machine.pause();
    for case in 0..100 {
        let (to, text) = &moments[case % 3];
        let (screen, is_back) = (&mut pc.screen, &AtomicBool::new(false));
        std::thread::scope(|scope| {
            let display = scope.spawn(move || {
                let mut refreshes = 0;
                while !is_back.load(Ordering::Relaxed) {
                    screen.refresh().unwrap();
                    refreshes += 1;
                }
                refreshes
            });
            checkpoints.restore(*to).unwrap();
            is_back.store(true, Ordering::Relaxed);
            let _refreshes: u64 = display.join().unwrap();
        });
        assert_eq!(pc.text(), *text, "case {case}");
        let deadline = Instant::now() + patience();
        // The cursor may blink between two looks.
        while Some(pc.screen.surface()) != pc.machine.vga().screenshot().unwrap().as_ref() {
            assert!(Instant::now() < deadline, "the picture is not what video memory shows");
            pc.screen.refresh().unwrap();
        }
    }
}
