//! The processor: a vCPU on a thread of its own, that can be stopped to look at and reset.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use kvm_accel::kvm_bindings::{CpuId, KVM_INTERNAL_ERROR_EMULATION, KVM_MAX_CPUID_ENTRIES};
use kvm_accel::kvm_ioctls::Kvm;
use kvm_accel::{Buses, Chips, KvmError, KvmVm, RollBack, Vcpu, VcpuEvent, VcpuKicker, VcpuState};
use memory_region::AddressSpace;

use super::wires::ResetLine;
use machines::demo::AnyError;
use machines::vcpu_device::VcpuDevice;
use migration_ram::{Device, DeviceError};

/// `fwait`: an instruction that the emulator of some KVMs does not know. Where no
/// floating-point exception is unmasked it does nothing.
const FWAIT: u8 = 0x9b;

#[derive(Debug, Default)]
struct Wishes {
    /// How many want the processor to stand still.
    pauses: usize,
    reset: bool,
    stop: bool,
    /// Why it went no further.
    ended: Option<String>,
}

/// What others want of the processor.
#[derive(Debug, Default)]
pub struct Control {
    wishes: Mutex<Wishes>,
    changed: Condvar,
    kicker: OnceLock<VcpuKicker>,
    chips: OnceLock<Arc<Chips>>,
}

impl Control {
    /// Stops the timer among these chips while the processor is to stand still.
    pub fn stops(&self, chips: Arc<Chips>) {
        let _ = self.chips.set(chips);
    }

    fn lock(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wish(&self, wish: impl FnOnce(&mut Wishes)) {
        wish(&mut self.lock());
        self.changed.notify_all();
        if let Some(kicker) = self.kicker.get() {
            kicker.kick();
        }
    }

    /// The line that resets the machine.
    pub fn reset_line(self: &Arc<Self>) -> ResetLine {
        let control = self.clone();
        ResetLine::new(move || control.wish(|wishes| wishes.reset = true))
    }

    /// Waits while the processor is to stand still.
    fn wait_to_run(&self) {
        let mut wishes = self.lock();
        while wishes.pauses > 0 && !wishes.stop {
            wishes = self.changed.wait(wishes).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Calls `act` unless the processor is to stand still, which it is not before `act` is
    /// done.
    pub fn unless_paused<T>(&self, act: impl FnOnce() -> T) -> Option<T> {
        let wishes = self.lock();
        (wishes.pauses == 0).then(act)
    }

    /// Why the processor went no further, if so.
    pub fn ended(&self) -> Option<String> {
        self.lock().ended.clone()
    }

    /// Lets `change` stop or start the timer.
    fn change_timer(&self, change: impl FnOnce(&Chips) -> Result<(), KvmError>) {
        if let Some(Err(error)) = self.chips.get().map(|chips| change(chips)) {
            log::error!("The timer: {error}");
        }
    }
}

/// A reset that was asked for, and is still to come.
impl Device for Control {
    fn name(&self) -> &str {
        "reset line"
    }

    fn version(&self) -> u32 {
        1
    }

    fn save(&self) -> Result<Vec<u8>, DeviceError> {
        Ok(serde_json::to_vec(&self.lock().reset)?)
    }

    fn restore(&self, _: u32, state: &[u8]) -> Result<(), DeviceError> {
        let mut wishes = self.lock();
        if let Some(reason) = &wishes.ended {
            return Err(format!("The processor has stopped for good: {reason}").into());
        }
        wishes.reset = serde_json::from_slice(state)?;
        Ok(())
    }
}

/// What a reset does, beside the vCPU.
type OnReset = Box<dyn Fn(&Vcpu) -> Result<(), AnyError> + Send>;

/// The processor of a machine.
pub struct Processor {
    vcpu: Arc<Mutex<Vcpu>>,
    space: Arc<AddressSpace>,
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

/// As long as this is kept, the processor and the timer stand still.
#[derive(Debug)]
#[must_use = "the processor goes on when this is dropped"]
pub struct Paused(Arc<Control>);

impl Paused {
    /// The machine has moved away: its processor never runs here again.
    pub fn for_good(self) {
        self.0.lock().stop = true;
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        let mut wishes = self.0.lock();
        wishes.pauses -= 1;
        if wishes.pauses == 0 {
            self.0.change_timer(Chips::start);
        }
        drop(wishes);
        self.0.changed.notify_all();
    }
}

impl Processor {
    /// A processor like the host's, as after power-on. It stands still until it is started.
    ///
    /// # Errors
    ///
    /// If KVM makes none.
    pub fn new(vm: &Arc<KvmVm>, buses: Buses, control: Arc<Control>) -> Result<Self, AnyError> {
        let space = buses.memory.clone();
        let vcpu = vm.create_vcpu(0, buses)?;
        let mut cpuid = Kvm::new()?.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        alone(&mut cpuid);
        without_a_northbridge(&mut cpuid);
        vcpu.fd().set_cpuid2(&cpuid)?;
        let _ = control.kicker.set(vcpu.kicker());
        let vcpu = Arc::new(Mutex::new(vcpu));
        Ok(Self { vcpu, space, control, thread: None })
    }

    /// The vCPU; waits for as long as it runs.
    pub fn vcpu(&self) -> MutexGuard<'_, Vcpu> {
        lock(&self.vcpu)
    }

    /// Its state, to be saved and restored while it stands still.
    pub fn device(&self) -> Arc<dyn Device> {
        // At once: what runs at a reset, and after an exit, asks KVM for registers.
        Arc::new(VcpuDevice::new(self.vcpu.clone(), RollBack::Now))
    }

    /// Lets it run, with `on_reset` called at each reset after the vCPU's own.
    ///
    /// # Errors
    ///
    /// If its state cannot be had, or there is no thread for it.
    pub fn start(&mut self, at_reset: VcpuState, on_reset: OnReset) -> Result<(), AnyError> {
        let (vcpu, space, control) = (self.vcpu.clone(), self.space.clone(), self.control.clone());
        let body = move || {
            let result = run(&vcpu, &space, &control, &at_reset, &on_reset);
            if let Err(error) = result {
                control.lock().ended = Some(error.to_string());
            }
        };
        self.thread = Some(std::thread::Builder::new().name("vcpu0".to_owned()).spawn(body)?);
        Ok(())
    }

    /// Stops the processor for as long as the result is kept. The access under way is
    /// complete then. Not for the handlers of its devices, which it would wait for.
    pub fn pause(&self) -> Paused {
        self.control.wish(|wishes| wishes.pauses += 1);
        drop(self.vcpu()); // it is free when the thread has seen the wish
        // Under the lock, so that the end of another pause does not come in between.
        let wishes = self.control.lock();
        self.control.change_timer(Chips::stop);
        drop(wishes);
        Paused(self.control.clone())
    }
}

/// Lets `cpuid`, which is of one of the host's processors, speak of one that is alone
/// (Intel's manual, volume 2, and AMD's, volume 3: CPUID).
fn alone(cpuid: &mut CpuId) {
    const THREADS: u32 = 1 << 28;
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            // Number 0, of one; and no threads beside it.
            1 => {
                entry.ebx = entry.ebx & 0xffff | 1 << 16;
                entry.edx &= !THREADS;
            }
            // How many share a cache, and a package; less one.
            4 => entry.eax &= 0x3fff,
            // How many there are at each level, and the number.
            0xb | 0x1f => (entry.eax, entry.ebx, entry.edx) = (0, entry.ebx.min(1), 0),
            // The same, as AMD has it.
            0x8000_0008 => entry.ecx &= !0xf0ff,
            0x8000_001d => entry.eax &= 0x3fff,
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (0, 0, 0),
            _ => {}
        }
    }
}

/// Lets `cpuid` speak of family 0Fh where it speaks of one of AMD's families from 17h on (AMD's
/// manual, volume 3, CPUID).
///
/// Programs look for the thermal sensor of those in the northbridge, which here is another, and
/// memtest86+ converts what it finds there with floating point that not every KVM knows.
fn without_a_northbridge(cpuid: &mut CpuId) {
    const EXTENDED: u32 = 0xfff << 16; // of family and model
    let names = cpuid.as_slice().iter().find(|entry| entry.function == 0);
    let amd = names.is_some_and(|name| name.ebx == u32::from_le_bytes(*b"Auth"));
    for entry in cpuid.as_mut_slice() {
        let family = (entry.eax >> 8 & 0xf) + (entry.eax >> 20 & 0xff);
        if amd && matches!(entry.function, 1 | 0x8000_0001) && family >= 0x17 {
            entry.eax &= !EXTENDED;
        }
    }
}

/// Runs the vCPU until there is no going on.
fn run(
    vcpu: &Mutex<Vcpu>,
    space: &AddressSpace,
    control: &Control,
    at_reset: &VcpuState,
    on_reset: &OnReset,
) -> Result<(), AnyError> {
    let (mut shutdowns, mut resets) = (0u64, 0u64);
    loop {
        control.wait_to_run();
        let mut vcpu = lock(vcpu);
        // Whoever pauses waits for the vCPU: either he is seen here, or his kick lets the
        // vCPU return before it has run.
        let mut wishes = control.lock();
        if wishes.stop {
            return Ok(());
        }
        if wishes.pauses > 0 {
            continue;
        }
        let mut reset = std::mem::take(&mut wishes.reset);
        drop(wishes);
        if !reset {
            match vcpu.run()? {
                VcpuEvent::Kicked => {}
                VcpuEvent::Shutdown => {
                    let level = log_level(shutdowns, log::Level::Warn);
                    log::log!(level, "The processor has shut down (a triple fault): reset");
                    shutdowns += 1;
                    reset = true;
                }
                VcpuEvent::InternalError(KVM_INTERNAL_ERROR_EMULATION) => {
                    skip_fwait(&vcpu, space)?;
                }
                event => return Err(format!("The processor stopped: {event:?}").into()),
            }
        }
        if reset {
            log::log!(log_level(resets, log::Level::Info), "The machine is reset");
            resets += 1;
            vcpu.restore(at_reset)?;
            on_reset(&vcpu)?;
        }
    }
}

/// The level for what a guest can do without end: the first time counts.
fn log_level(before: u64, first: log::Level) -> log::Level {
    if before == 0 { first } else { log::Level::Debug }
}

/// Goes on behind an instruction that KVM does not know, if it is `fwait`.
fn skip_fwait(vcpu: &Vcpu, space: &AddressSpace) -> Result<(), AnyError> {
    let mut registers = vcpu.fd().get_regs()?;
    let special = vcpu.fd().get_sregs()?;
    let address = special.cs.base.wrapping_add(registers.rip);
    let translation = vcpu.fd().translate_gva(address)?;
    let mut code = [0; 8];
    if translation.valid != 0 {
        // Bytes beyond the end of memory are of no interest here.
        let _ = space.read(translation.physical_address, &mut code);
    }
    if code[0] != FWAIT {
        let [rip, at] = [registers.rip, translation.physical_address];
        return Err(format!(
            "KVM does not know the instruction {code:02x?} at {rip:#x} (physical {at:#x})"
        )
        .into());
    }
    log::debug!("fwait at {:#x} is skipped", registers.rip);
    registers.rip = registers.rip.wrapping_add(1);
    Ok(vcpu.fd().set_regs(&registers)?)
}

fn lock(vcpu: &Mutex<Vcpu>) -> MutexGuard<'_, Vcpu> {
    vcpu.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Processor {
    fn drop(&mut self) {
        self.control.wish(|wishes| wishes.stop = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Processor").field("control", &self.control).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use kvm_accel::kvm_bindings::kvm_cpuid_entry2;

    use super::*;

    /// What is shown of a processor of this maker with this signature.
    fn shown(maker: &[u8; 4], signature: u32) -> [u32; 2] {
        let entry =
            |function, eax, ebx| kvm_cpuid_entry2 { function, eax, ebx, ..Default::default() };
        let entries = [
            entry(0, 16, u32::from_le_bytes(*maker)),
            entry(1, signature, 0),
            entry(0x8000_0001, signature, 0),
        ];
        let mut cpuid = CpuId::from_entries(&entries).unwrap();
        without_a_northbridge(&mut cpuid);
        [1, 2].map(|n| cpuid.as_slice()[n].eax)
    }

    #[test]
    fn only_processors_with_a_northbridge_of_their_own_are_shown_as_older() {
        assert_eq!(shown(b"Auth", 0x00a0_0f11), [0xf11; 2], "family 19h");
        assert_eq!(shown(b"Auth", 0x0080_0f12), [0xf12; 2], "family 17h");
        assert_eq!(shown(b"Auth", 0x0070_0f01), [0x0070_0f01; 2], "family 16h");
        assert_eq!(shown(b"Genu", 0x000c_06f2), [0x000c_06f2; 2], "another maker's");
    }
}
