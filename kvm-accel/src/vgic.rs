//! The interrupt controller that KVM plays on arm64: a GICv3, and the services that translate
//! messages for it (ITS).
//!
//! What is read, and in which order it is set, is in the kernel's documentation
//! (virt/kvm/devices/arm-vgic-v3.rst and arm-vgic-its.rst); names and offsets of registers are
//! those of the architecture's manual (ARM IHI 0069).

use std::fmt;
use std::sync::Arc;

use kvm_bindings::{
    KVM_DEV_ARM_ITS_CTRL_RESET, KVM_DEV_ARM_ITS_RESTORE_TABLES, KVM_DEV_ARM_ITS_SAVE_TABLES,
    KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_DIST_REGS,
    KVM_DEV_ARM_VGIC_GRP_ITS_REGS, KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, KVM_DEV_ARM_VGIC_GRP_NR_IRQS,
    KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, KVM_DEV_ARM_VGIC_LINE_LEVEL_INFO_SHIFT,
    KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES, KVM_DEV_ARM_VGIC_V3_MPIDR_SHIFT,
    VGIC_LEVEL_INFO_LINE_LEVEL,
};
use kvm_ioctls::DeviceFd;
#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

use crate::error::KvmError;
use crate::sys::ioctl::{device_value, set_device_value};

/// The GICv3 of a virtual machine, with its ITSs, to be stopped with it, saved and restored.
///
/// Its owner makes and initializes the devices, and keeps them as he likes:
///
/// ```no_run
/// use std::sync::Arc;
///
/// use kvm_accel::kvm_ioctls::DeviceFd;
/// use kvm_accel::{KvmError, Vcpu, Vgic, VgicState};
///
/// # fn example(gic: Arc<DeviceFd>, vcpu: &mut Vcpu) -> Result<(), KvmError> {
/// let vgic = Vgic::new(gic, &[vcpu.mpidr()?])?;
/// vgic.stop()?; // the vCPUs are stopped: before the last pages are taken
/// let state: VgicState = vgic.save()?;
/// // On the other side, with memory and before the vCPUs:
/// vgic.restore(&state)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Vgic {
    gic: Arc<DeviceFd>,
    services: Vec<Arc<DeviceFd>>,
    /// Affinities of the vCPUs, as the device's attributes have them.
    vcpus: Vec<u64>,
    /// How many interrupts there are, those of each vCPU's own (32) included.
    interrupts: u32,
}

/// The state of a [`Vgic`]. With the feature `serde` it is serialized by serde, in any format; a
/// state that was received may hold anything: KVM refuses values that it cannot take.
#[derive(Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct VgicState {
    vcpus: Vec<u64>,
    interrupts: u32,
    /// Of the registers in the order in which they are restored; none of those that KVM does not
    /// have, as there are fewer priorities.
    values: Vec<Option<u64>>,
    /// Of each ITS.
    services: Vec<Vec<u64>>,
}

/// A register of the controller's: the group and the attribute by which KVM knows it.
#[derive(Clone, Copy, Debug)]
struct Register {
    group: u32,
    attr: u64,
}

/// A step of restoring.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The register gets the value that it had.
    Carry(Register),
    /// The register gets this value, as what follows only sets bits.
    Set(Register, u64),
}

// Registers of the distributor.
const GICD_CTLR: u64 = 0x0;
const GICD_IIDR: u64 = 0x8;
const GICD_STATUSR: u64 = 0x10;
const GICD_IROUTER: u64 = 0x6000;
// Registers of a redistributor.
const GICR_CTLR: u64 = 0x0;
const GICR_STATUSR: u64 = 0x10;
const GICR_WAKER: u64 = 0x14;
const GICR_PROPBASER: u64 = 0x70;
const GICR_PENDBASER: u64 = 0x78;
/// Its second frame, for interrupts of the vCPU's own.
const SGI_FRAME: u64 = 0x1_0000;
// Registers that the distributor has for shared interrupts, and that frame for a vCPU's own.
const IGROUPR: u64 = 0x80;
const ISENABLER: u64 = 0x100;
const ICENABLER: u64 = 0x180;
const ISPENDR: u64 = 0x200;
const ISACTIVER: u64 = 0x300;
const ICACTIVER: u64 = 0x380;
const IPRIORITYR: u64 = 0x400;
const ICFGR: u64 = 0xc00;
/// Registers of an ITS, in the order in which they are restored: GITS_IIDR, GITS_CBASER,
/// GITS_CREADR, GITS_CWRITER, GITS_BASER0 to 7; and, when its tables are, GITS_CTLR.
const GITS: [u64; 12] =
    [0x4, 0x80, 0x90, 0x88, 0x100, 0x108, 0x110, 0x118, 0x120, 0x128, 0x130, 0x138];
const GITS_CTLR: u64 = 0x0;
/// ICC_SRE_EL1, ICC_CTLR_EL1, ICC_IGRPEN0_EL1, ICC_IGRPEN1_EL1, ICC_PMR_EL1, ICC_BPR0_EL1,
/// ICC_BPR1_EL1: op1 0, then CRn, CRm and op2.
const ICC: [(u64, u64, u64); 7] =
    [(12, 12, 5), (12, 12, 4), (12, 12, 6), (12, 12, 7), (4, 6, 0), (12, 8, 3), (12, 12, 3)];
/// ICC_AP0R0_EL1 to 3 and ICC_AP1R0_EL1 to 3.
const ICC_ACTIVE: [(u64, u64, u64); 8] = [
    (12, 8, 4),
    (12, 8, 5),
    (12, 8, 6),
    (12, 8, 7),
    (12, 9, 0),
    (12, 9, 1),
    (12, 9, 2),
    (12, 9, 3),
];

const CONTROLLER: &str = "interrupt controller";
const SERVICE: &str = "interrupt translation service";

fn failed<T>(part: &'static str, result: std::io::Result<T>) -> Result<T, KvmError> {
    result.map_err(|source| KvmError::Chip { part, source })
}

fn differs(what: &str, found: &dyn fmt::Debug, expected: &dyn fmt::Debug) -> KvmError {
    let why = format!("the state has {what} {found:?}, where there are {expected:?}");
    KvmError::Chip { part: CONTROLLER, source: std::io::Error::other(why) }
}

impl Vgic {
    /// The GICv3 that is `gic`, which is initialized, for vCPUs with these values of MPIDR_EL1
    /// ([`Vcpu::mpidr`](crate::Vcpu::mpidr)), all there are.
    ///
    /// # Errors
    ///
    /// [`KvmError::Chip`] if it is no such device.
    pub fn new(gic: Arc<DeviceFd>, mpidrs: &[u64]) -> Result<Self, KvmError> {
        let interrupts = device_value(&gic, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0);
        let interrupts = u32::try_from(failed(CONTROLLER, interrupts)?).unwrap_or(0);
        // Affinity levels 3 and 2 to 0.
        let affinity = |mpidr: &u64| (mpidr >> 8 & 0xff00_0000) | mpidr & 0xff_ffff;
        let vcpus = mpidrs.iter().map(affinity).collect();
        Ok(Self { gic, services: Vec::new(), vcpus, interrupts })
    }

    /// The same with an ITS, which is initialized. Add them in the same order on both sides.
    #[must_use]
    pub fn with_its(mut self, its: Arc<DeviceFd>) -> Self {
        self.services.push(its);
        self
    }

    /// Writes the tables that the guest has given to the controller to guest memory, where they
    /// are a part of its state. KVM logs the pages as written: call this when the vCPUs are
    /// stopped, before the last pages are taken.
    ///
    /// # Errors
    ///
    /// [`KvmError::Chip`] if KVM refuses; that a vCPU runs may be the reason.
    pub fn stop(&self) -> Result<(), KvmError> {
        for its in &self.services {
            let save = KVM_DEV_ARM_ITS_SAVE_TABLES.into();
            failed(SERVICE, set_device_value(its, KVM_DEV_ARM_VGIC_GRP_CTRL, save, 0))?;
        }
        let save = KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES.into();
        failed(CONTROLLER, set_device_value(&self.gic, KVM_DEV_ARM_VGIC_GRP_CTRL, save, 0))
    }

    /// The state, while no vCPU runs.
    ///
    /// # Errors
    ///
    /// [`KvmError::Chip`] if KVM refuses.
    pub fn save(&self) -> Result<VgicState, KvmError> {
        let mut values = Vec::new();
        for step in self.steps() {
            let Step::Carry(register) = step else { continue };
            let found = device_value(&self.gic, register.group, register.attr);
            values.push(match found {
                Err(_) if register.may_be_missing() => None,
                found => Some(named(register, found)?),
            });
        }
        let service = |its: &Arc<DeviceFd>| {
            let registers = GITS.iter().chain([&GITS_CTLR]);
            let read = |offset| device_value(its, KVM_DEV_ARM_VGIC_GRP_ITS_REGS, offset);
            failed(SERVICE, registers.map(|offset| read(*offset)).collect())
        };
        Ok(VgicState {
            vcpus: self.vcpus.clone(),
            interrupts: self.interrupts,
            values,
            services: self.services.iter().map(service).collect::<Result<_, _>>()?,
        })
    }

    /// Makes the controller what it was when a state was saved, of this virtual machine or of
    /// another with as many vCPUs and interrupts, while no vCPU runs.
    ///
    /// Restore guest memory and what raises interrupts before this.
    ///
    /// # Errors
    ///
    /// [`KvmError::Chip`] if the state is of another number of vCPUs, interrupts or ITSs, or if KVM
    /// refuses a value.
    pub fn restore(&self, state: &VgicState) -> Result<(), KvmError> {
        let steps = self.steps();
        let carried = steps.iter().filter(|step| matches!(step, Step::Carry(_))).count();
        if state.vcpus != self.vcpus {
            return Err(differs("vCPUs", &state.vcpus, &self.vcpus));
        }
        if state.interrupts != self.interrupts {
            return Err(differs("interrupts", &state.interrupts, &self.interrupts));
        }
        if state.values.len() != carried {
            return Err(differs("registers", &state.values.len(), &carried));
        }
        let found = state.services.iter().filter(|values| values.len() == GITS.len() + 1).count();
        if (found, state.services.len()) != (self.services.len(), self.services.len()) {
            return Err(differs("translation services", &found, &self.services.len()));
        }
        let mut values = state.values.iter();
        let set = |Register { group, attr }, value| set_device_value(&self.gic, group, attr, value);
        for step in steps {
            match step {
                // Also where it reads so: a register that clears bits reads as those that are set.
                Step::Set(register, value) => named(register, set(register, value))?,
                Step::Carry(register) => {
                    let Some(value) = values.next().copied().flatten() else { continue };
                    // What has its value is left alone: KVM changes some that are set (the
                    // attributes of memory that tables are in).
                    let now = device_value(&self.gic, register.group, register.attr);
                    if !now.is_ok_and(|now| now == value) {
                        named(register, set(register, value))?;
                    }
                }
            }
        }
        for (its, values) in self.services.iter().zip(&state.services) {
            failed(SERVICE, restore_its(its, values))?;
        }
        Ok(())
    }

    /// The steps of restoring the controller, in their order.
    fn steps(&self) -> Vec<Step> {
        let distributor = |offset| Register::distributor(offset);
        // Its revision first, which says what the others mean.
        let mut steps = vec![
            Step::Carry(distributor(GICD_IIDR)),
            Step::Carry(distributor(GICD_CTLR)),
            Step::Carry(distributor(GICD_STATUSR)),
        ];
        for vcpu in &self.vcpus {
            let register = |offset| Register::of_vcpu(*vcpu, offset);
            // The tables of messages are read when their controller is switched on, and cannot be
            // moved while it is.
            steps.push(Step::Set(register(GICR_CTLR), 0));
            let halves = [GICR_PROPBASER, GICR_PENDBASER].map(|low| [low, low + 4]);
            let offsets = [&[GICR_WAKER], halves.as_flattened(), &[GICR_CTLR, GICR_STATUSR]];
            steps.extend(offsets.concat().into_iter().map(|offset| Step::Carry(register(offset))));
            steps.extend(interrupts(&|offset| register(SGI_FRAME + offset), 0));
            steps.push(Step::Carry(Register::level(*vcpu, 0)));
            steps.extend(pending(&|offset| register(SGI_FRAME + offset), 0));
        }
        for first in (32..self.interrupts).step_by(32) {
            steps.extend(interrupts(&distributor, first));
            for interrupt in u64::from(first)..u64::from(self.interrupts.min(first + 32)) {
                let low = GICD_IROUTER + 8 * interrupt;
                steps.extend([low, low + 4].map(|offset| Step::Carry(distributor(offset))));
            }
            steps.push(Step::Carry(Register::level(0, first)));
            steps.extend(pending(&distributor, first));
        }
        for vcpu in &self.vcpus {
            let all = ICC.iter().chain(&ICC_ACTIVE);
            steps.extend(all.map(|register| Step::Carry(Register::system(*vcpu, *register))));
        }
        steps
    }
}

/// How 32 interrupts from `first` on are set up.
fn interrupts(register: &dyn Fn(u64) -> Register, first: u32) -> Vec<Step> {
    let first = u64::from(first);
    // A bit, two bits and a byte for each.
    let bits = |base| register(base + first / 8);
    let mut steps = vec![Step::Set(bits(ICENABLER), u32::MAX.into()), Step::Carry(bits(IGROUPR))];
    let two = (0..8).step_by(4).map(|offset| ICFGR + first / 4 + offset);
    let bytes = (0..32).step_by(4).map(|offset| IPRIORITYR + first + offset);
    let offsets = two.chain(bytes).chain([ISENABLER + first / 8]);
    steps.extend(offsets.map(|offset| Step::Carry(register(offset))));
    steps
}

/// What 32 interrupts from `first` on are doing.
fn pending(register: &dyn Fn(u64) -> Register, first: u32) -> [Step; 3] {
    let bits = |base| register(base + u64::from(first) / 8);
    [
        // Of an owner's access, all bits are taken as they are.
        Step::Carry(bits(ISPENDR)),
        Step::Set(bits(ICACTIVER), u32::MAX.into()),
        Step::Carry(bits(ISACTIVER)),
    ]
}

fn restore_its(its: &DeviceFd, values: &[u64]) -> std::io::Result<()> {
    let control = |what: u32| set_device_value(its, KVM_DEV_ARM_VGIC_GRP_CTRL, what.into(), 0);
    let set = |offset, value| set_device_value(its, KVM_DEV_ARM_VGIC_GRP_ITS_REGS, offset, value);
    control(KVM_DEV_ARM_ITS_CTRL_RESET)?;
    for (offset, value) in GITS.iter().zip(values) {
        set(*offset, *value)?;
    }
    control(KVM_DEV_ARM_ITS_RESTORE_TABLES)?;
    values.last().map_or(Ok(()), |value| set(GITS_CTLR, *value))
}

fn named<T>(register: Register, result: std::io::Result<T>) -> Result<T, KvmError> {
    result.map_err(|error| {
        let why = format!("KVM refuses {register}: {error}");
        KvmError::Chip { part: CONTROLLER, source: std::io::Error::other(why) }
    })
}

impl Register {
    fn distributor(offset: u64) -> Self {
        Self { group: KVM_DEV_ARM_VGIC_GRP_DIST_REGS, attr: offset }
    }

    /// Of a vCPU's redistributor.
    fn of_vcpu(vcpu: u64, offset: u64) -> Self {
        let attr = vcpu << KVM_DEV_ARM_VGIC_V3_MPIDR_SHIFT | offset;
        Self { group: KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, attr }
    }

    /// Of a vCPU's interface: a system register.
    fn system(vcpu: u64, (crn, crm, op2): (u64, u64, u64)) -> Self {
        let encoded = 3 << 14 | crn << 7 | crm << 3 | op2;
        let attr = vcpu << KVM_DEV_ARM_VGIC_V3_MPIDR_SHIFT | encoded;
        Self { group: KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, attr }
    }

    /// The lines of 32 interrupts.
    fn level(vcpu: u64, first: u32) -> Self {
        let info = u64::from(VGIC_LEVEL_INFO_LINE_LEVEL) << KVM_DEV_ARM_VGIC_LINE_LEVEL_INFO_SHIFT;
        let attr = vcpu << KVM_DEV_ARM_VGIC_V3_MPIDR_SHIFT | info | u64::from(first);
        Self { group: KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, attr }
    }

    /// Those of active priorities are as many as the processor has bits for priorities.
    fn may_be_missing(self) -> bool {
        let is = |register: &(u64, u64, u64)| Self::system(0, *register).attr == self.attr & 0xffff;
        self.group == KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS && ICC_ACTIVE.iter().any(is)
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (of, offset) = (self.attr >> 32, self.attr & 0xffff_ffff);
        match self.group {
            KVM_DEV_ARM_VGIC_GRP_DIST_REGS => write!(f, "the distributor's register {offset:#x}"),
            KVM_DEV_ARM_VGIC_GRP_REDIST_REGS => {
                write!(f, "register {offset:#x} of redistributor {of:#x}")
            }
            KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS => {
                write!(f, "system register {offset:#x} of interface {of:#x}")
            }
            _ => write!(f, "the lines from {} on of {of:#x}", offset & 0x3ff),
        }
    }
}

impl fmt::Debug for VgicState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VgicState")
            .field("vcpus", &self.vcpus)
            .field("interrupts", &self.interrupts)
            .field("services", &self.services.len())
            .finish_non_exhaustive()
    }
}
