//! Control and status registers: the privileged ISA manual, "CSR Listing".

use crate::hart::lines::Lines;
use crate::hart::state::{Mode, State, mstatus};
use crate::isa::op::{Kind, Op};

/// What CSRs show that is not in the [`State`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Environment<'a> {
    /// `mhartid`
    pub(super) hart: u64,
    /// `mip` and `time`
    pub(super) lines: &'a Lines,
    /// Instructions before this one that [`State::instret`] does not have yet.
    pub(super) retired: u64,
}

/// RV64 with A, C, I, M and U.
const MISA: u64 = 2 << 62 | 1 << 0 | 1 << 2 | 1 << 8 | 1 << 12 | 1 << 20;
/// The bits of `mie` that can be set.
const INTERRUPTS: u64 = 1 << 3 | 1 << 7 | 1 << 11;
const MSTATUS: u64 = mstatus::MIE | mstatus::MPIE | mstatus::MPP | mstatus::MPRV | mstatus::TW;
/// `cycle`, `time` and `instret`.
const COUNTERS: u64 = 7;

impl State {
    /// Executes an instruction of Zicsr; false if it is illegal.
    pub(super) fn access_csr(&mut self, op: Op, environment: Environment<'_>) -> bool {
        let number = op.imm.cast_unsigned() & 0xfff;
        let is_privileged = self.mode as u64 >= u64::from(number >> 8 & 3);
        let is_immediate = matches!(op.kind, Kind::Csrrwi | Kind::Csrrsi | Kind::Csrrci);
        let operand = if is_immediate { op.rs1.into() } else { self.x.get(op.rs1) };
        let is_swap = matches!(op.kind, Kind::Csrrw | Kind::Csrrwi);
        // The others write unless their operand's field is 0, whatever the operand is.
        let writes = is_swap || op.rs1 != 0;
        let is_read_only = number >> 10 == 3;
        if !is_privileged || writes && is_read_only {
            return false;
        }
        let Some(old) = self.read_csr(number, environment) else { return false };
        if writes {
            let new = match op.kind {
                Kind::Csrrs | Kind::Csrrsi => old | operand,
                Kind::Csrrc | Kind::Csrrci => old & !operand,
                _ => operand,
            };
            self.write_csr(number, new, environment);
        }
        self.x.set(op.rd, old);
        true
    }

    /// A CSR that can be accessed in machine mode.
    fn read_csr(&self, number: u32, environment: Environment<'_>) -> Option<u64> {
        let is_user = self.mode == Mode::User;
        if is_user && self.mcounteren >> (number & 31) & 1 == 0 {
            return None;
        }
        Some(match number {
            0x300 => self.mstatus,
            0x301 => MISA,
            0x304 => self.mie,
            0x305 => self.mtvec,
            0x306 => self.mcounteren,
            // No counter can be inhibited, and no other event be counted.
            0x320 | 0x323..=0x33f | 0xb03..=0xb1f | 0xc03..=0xc1f => 0,
            0x340 => self.mscratch,
            0x341 => self.mepc,
            0x342 => self.mcause,
            0x343 => self.mtval,
            0x344 => environment.lines.pending(),
            // Physical memory protection without an entry.
            0x3a0..=0x3ef => 0,
            0xb00 | 0xb02 | 0xc00 | 0xc02 => self.instret.wrapping_add(environment.retired),
            0xc01 => environment.lines.time(),
            // mvendorid, marchid, mimpid and mconfigptr, which are not implemented.
            0xf11..=0xf13 | 0xf15 => 0,
            0xf14 => environment.hart,
            _ => return None,
        })
    }

    fn write_csr(&mut self, number: u32, value: u64, environment: Environment<'_>) {
        match number {
            0x300 => {
                let mut value = value & MSTATUS;
                // Only U and M can be kept.
                if value & mstatus::MPP != mstatus::MPP {
                    value &= !mstatus::MPP;
                }
                self.mstatus = self.mstatus & !MSTATUS | value;
            }
            0x304 => self.mie = value & INTERRUPTS,
            // Of the modes 0 and 1, with a base that is a multiple of 4.
            0x305 => self.mtvec = value & !2,
            0x306 => self.mcounteren = value & COUNTERS,
            0x340 => self.mscratch = value,
            0x341 => self.mepc = value & !1,
            0x342 => self.mcause = value,
            0x343 => self.mtval = value,
            // The next instruction reads what was written: this one is not counted.
            0xb00 | 0xb02 => {
                self.instret = value.wrapping_sub(environment.retired).wrapping_sub(1);
            }
            // Others have no bits that can be written.
            _ => {}
        }
    }
}
