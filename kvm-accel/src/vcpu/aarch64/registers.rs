//! The registers of a vCPU as KVM lists them (KVM API, KVM_GET_REG_LIST and KVM_GET_ONE_REG), each
//! of the size that its number says.

use std::io;
use std::mem::offset_of;

use kvm_bindings::{
    KVM_REG_ARM_COPROC_MASK, KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_ARM64_SVE,
    KVM_REG_ARM64_SYSREG, KVM_REG_SIZE_MASK, KVM_REG_SIZE_SHIFT, KVM_REG_SIZE_U64,
    KVM_REG_SIZE_U512, kvm_regs, user_pt_regs,
};
use kvm_ioctls::VcpuFd;
#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

use crate::sys::ioctl;

/// The number of a system register of 64 bits, as the architecture's manual encodes it.
const fn system(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    let encoded = op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2;
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG as u64 | encoded
}

/// MPIDR_EL1: where the vCPU is among the others.
pub(super) const MPIDR: u64 = system(3, 0, 0, 0, 5);
/// The program counter. Numbers of core registers count words of 32 bits in `struct kvm_regs`.
pub(super) const PC: u64 = {
    let offset = offset_of!(kvm_regs, regs) + offset_of!(user_pt_regs, pc);
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64 | (offset / 4) as u64
};
/// The guest's virtual counter (KVM_REG_ARM_TIMER_CNT, whose number is that of CNTV_CVAL_EL0).
pub(super) const TIMER_CNT: u64 = system(3, 3, 14, 3, 2);
/// The lengths that SVE's vectors may have (KVM_REG_ARM64_SVE_VLS): 512 bits.
pub(super) const SVE_VLS: u64 =
    KVM_REG_ARM64 | KVM_REG_SIZE_U512 | KVM_REG_ARM64_SVE as u64 | 0xffff;

/// Registers and their values, in KVM's order.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub(super) struct Registers {
    numbers: Vec<u64>,
    /// The values one after the other, each of its register's size.
    values: Vec<u8>,
}

/// A register's size in bytes.
fn size(number: u64) -> usize {
    1 << ((number & KVM_REG_SIZE_MASK) >> KVM_REG_SIZE_SHIFT)
}

impl Registers {
    /// All registers that KVM lists for a vCPU.
    pub(super) fn read(vcpu: &VcpuFd) -> io::Result<Self> {
        let numbers = ioctl::register_list(vcpu)?;
        let mut values = vec![0; numbers.iter().map(|number| size(*number)).sum()];
        let mut left = &mut values[..];
        for number in &numbers {
            let (value, rest) = std::mem::take(&mut left).split_at_mut(size(*number));
            vcpu.get_one_reg(*number, value).map_err(|error| naming(*number, &error))?;
            left = rest;
        }
        Ok(Self { numbers, values })
    }

    /// The value of a register of 64 bits, if it is among these.
    pub(super) fn get(&self, number: u64) -> Option<u64> {
        self.bytes(number)?.try_into().ok().map(u64::from_ne_bytes)
    }

    /// The bytes of a register, if it is among these.
    pub(super) fn bytes(&self, number: u64) -> Option<&[u8]> {
        self.iter().find(|(found, _)| *found == number).map(|(_, value)| value)
    }

    /// Numbers and values.
    fn iter(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let mut left = &self.values[..];
        self.numbers.iter().map_while(move |number| {
            // Of a state that was received, there may be fewer values than numbers.
            let (value, rest) = left.split_at_checked(size(*number))?;
            left = rest;
            Some((*number, value))
        })
    }

    /// Whether there are as many bytes as the registers have.
    pub(super) fn is_whole(&self) -> bool {
        self.numbers.iter().map(|number| size(*number)).sum::<usize>() == self.values.len()
    }

    /// Gives them to a vCPU. One that has its value already is not set, which KVM refuses for some
    /// that cannot change, except for the counter, which goes on meanwhile.
    ///
    /// When a vCPU runs for the first time, KVM settles what it is (without an interrupt controller
    /// in the kernel, ID registers tell of none from then on), and changes no ID register any more:
    /// `has_run` leaves these as they are.
    pub(super) fn write(&self, vcpu: &VcpuFd, has_run: bool) -> io::Result<()> {
        let mut now = [0; MAX_BYTES];
        for (number, value) in self.iter() {
            let Some(now) = now.get_mut(..value.len()) else {
                let why = format!("register {number:#x} of {} bytes is none", value.len());
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            };
            let has = vcpu.get_one_reg(number, now).is_ok() && now == value;
            if has && number != TIMER_CNT {
                continue;
            }
            match vcpu.set_one_reg(number, value) {
                Err(error) if error.errno() == libc::EBUSY && has_run && is_id(number) => {}
                result => drop(result.map_err(|error| naming(number, &error))?),
            }
        }
        Ok(())
    }
}

/// The size of the largest registers that KVM has, of 2,048 bits.
const MAX_BYTES: usize = 256;

/// Whether it is one of the ID registers, op0 3, op1 0, CRn 0 and CRm 1 to 7 (ARM DDI 0487, D23).
fn is_id(number: u64) -> bool {
    (system(3, 0, 0, 1, 0)..=system(3, 0, 0, 7, 7)).contains(&number)
}

/// KVM's error, and for which register.
fn naming(number: u64, error: &kvm_ioctls::Error) -> io::Error {
    let kind = if number & u64::from(KVM_REG_ARM_COPROC_MASK) == u64::from(KVM_REG_ARM64_SYSREG) {
        "system register"
    } else {
        "register"
    };
    io::Error::other(format!("KVM refuses {kind} {number:#x}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_kernels_header() {
        assert_eq!(MPIDR, 0x6030_0000_0013_c005);
        assert_eq!(PC, 0x6030_0000_0010_0040);
        assert_eq!(TIMER_CNT, 0x6030_0000_0013_df1a);
        assert_eq!(SVE_VLS, 0x6060_0000_0015_ffff);
        let id_pfr1 = 0x6030_0000_0013_c009;
        assert_eq!([id_pfr1, MPIDR, TIMER_CNT, PC].map(is_id), [true, false, false, false]);
    }

    #[test]
    fn what_is_received_may_be_too_short_or_too_long() {
        let (numbers, value) = (vec![PC, MPIDR], [1, 0, 0, 0, 0, 0, 0, 0]);
        let of = |values: Vec<u8>| Registers { numbers: numbers.clone(), values };
        let whole = of([value, value].concat());
        assert!(whole.is_whole());
        assert_eq!(
            (whole.get(PC), whole.get(MPIDR), whole.get(TIMER_CNT)),
            (Some(1), Some(1), None)
        );
        let short = of(value.to_vec());
        assert!(!short.is_whole());
        assert_eq!((short.get(PC), short.get(MPIDR)), (Some(1), None));
        assert!(!of([value, value, value].concat()).is_whole());
        assert!(!of(vec![1; 15]).is_whole());
    }
}
