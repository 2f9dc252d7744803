//! What a hart is: its registers, and what traps do to them.

use crate::hart::lines::Interrupt;
use crate::hart::registers::Registers;

/// Bits of `mstatus` (privileged ISA manual, "Machine Status Registers").
pub(super) mod mstatus {
    pub const MIE: u64 = 1 << 3;
    pub const MPIE: u64 = 1 << 7;
    pub const MPP: u64 = 3 << 11;
    pub const MPRV: u64 = 1 << 17;
    pub const TW: u64 = 1 << 21;
    /// User mode has 64 bits.
    pub const UXL_64: u64 = 2 << 32;
}

/// Exceptions by their codes (privileged ISA manual, "Machine Cause Register"). Instruction
/// addresses are never misaligned: with the C extension they have to be even only, which jumps see
/// to.
#[allow(missing_docs)] // the manual's names
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exception {
    InstructionAccessFault = 1,
    IllegalInstruction = 2,
    Breakpoint = 3,
    LoadAddressMisaligned = 4,
    LoadAccessFault = 5,
    StoreAddressMisaligned = 6,
    StoreAccessFault = 7,
    CallFromUser = 8,
    CallFromMachine = 11,
}

/// An exception and what `mtval` is set to: the address of an access that failed, the bits of an
/// illegal instruction, and otherwise 0, as QEMU does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap {
    /// Which.
    pub exception: Exception,
    /// The new `mtval`.
    pub value: u64,
}

/// The privilege modes that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// U
    User = 0,
    /// M
    Machine = 3,
}

impl Mode {
    /// The mode of two bits, as `mstatus.MPP` has them: those that do not exist are taken for U.
    pub(super) fn of_bits(bits: u64) -> Self {
        if bits & 3 == 3 { Self::Machine } else { Self::User }
    }
}

/// The architectural state of a hart, but for its number and its [inputs](crate::Lines).
#[allow(missing_docs)] // the manual's names
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub x: Registers,
    pub pc: u64,
    pub mode: Mode,
    pub mstatus: u64,
    pub mtvec: u64,
    pub mepc: u64,
    pub mcause: u64,
    pub mtval: u64,
    pub mie: u64,
    pub mscratch: u64,
    pub mcounteren: u64,
    /// Instructions retired, `minstret`; it is `mcycle`, too.
    pub instret: u64,
}

impl State {
    /// How many words [`to_words`](Self::to_words) gives.
    pub const WORDS: usize = 32 + 11;

    /// After a reset, in machine mode at `pc`.
    pub fn new(pc: u64) -> Self {
        Self {
            x: Registers::default(),
            pc,
            mode: Mode::Machine,
            mstatus: mstatus::UXL_64 | mstatus::MPP,
            mtvec: 0,
            mepc: 0,
            mcause: 0,
            mtval: 0,
            mie: 0,
            mscratch: 0,
            mcounteren: 0,
            instret: 0,
        }
    }

    /// The interrupt that is taken before the next instruction, if any, by the bits of `mip`.
    #[inline(always)]
    pub(super) fn interrupt(&self, mip: u64) -> Option<Interrupt> {
        let ready = mip & self.mie;
        let enabled = self.mode == Mode::User || self.mstatus & mstatus::MIE != 0;
        if ready == 0 || !enabled {
            return None;
        }
        // From the highest priority down: "Machine Interrupt Registers".
        let by_priority = [Interrupt::External, Interrupt::Software, Interrupt::Timer];
        by_priority.into_iter().find(|interrupt| ready & interrupt.bit() != 0)
    }

    /// Goes to the handler of an interrupt.
    pub(super) fn enter_interrupt(&mut self, interrupt: Interrupt) {
        let code = interrupt as u64;
        let is_vectored = self.mtvec & 3 == 1;
        self.enter(1 << 63 | code, 0, if is_vectored { 4 * code } else { 0 });
    }

    /// Goes to the handler of an exception of the instruction at `pc`.
    pub(super) fn enter_trap(&mut self, trap: Trap) {
        self.enter(trap.exception as u64, trap.value, 0);
    }

    fn enter(&mut self, cause: u64, value: u64, offset: u64) {
        self.mepc = self.pc;
        self.mcause = cause;
        self.mtval = value;
        let was_enabled = self.mstatus & mstatus::MIE != 0;
        self.mstatus &= !(mstatus::MIE | mstatus::MPIE | mstatus::MPP);
        self.mstatus |= (self.mode as u64) << 11;
        if was_enabled {
            self.mstatus |= mstatus::MPIE;
        }
        self.mode = Mode::Machine;
        self.pc = (self.mtvec & !3).wrapping_add(offset);
    }

    /// Returns from a handler, as `mret` does.
    pub(super) fn leave(&mut self) {
        self.mode = Mode::of_bits(self.mstatus >> 11);
        let was_enabled = self.mstatus & mstatus::MPIE != 0;
        self.mstatus &= !(mstatus::MIE | mstatus::MPP);
        self.mstatus |= mstatus::MPIE;
        if was_enabled {
            self.mstatus |= mstatus::MIE;
        }
        if self.mode != Mode::Machine {
            self.mstatus &= !mstatus::MPRV;
        }
        self.pc = self.mepc;
    }

    /// All of it as numbers, for [`from_words`](Self::from_words).
    pub fn to_words(&self) -> [u64; Self::WORDS] {
        let mut words = [0; Self::WORDS];
        words[..32].copy_from_slice(self.x.all());
        words[32..].copy_from_slice(&[
            self.pc,
            self.mode as u64,
            self.mstatus,
            self.mtvec,
            self.mepc,
            self.mcause,
            self.mtval,
            self.mie,
            self.mscratch,
            self.mcounteren,
            self.instret,
        ]);
        words
    }

    /// The state of such numbers. They are taken as they are: a state that no hart could have is
    /// no danger to the host.
    pub fn from_words(words: &[u64; Self::WORDS]) -> Self {
        let (registers, rest) = words.split_at(32);
        let mut x = Registers::default();
        let mut values = [0; 32];
        values.copy_from_slice(registers);
        x.set_all(&values);
        let mut others = [0; 11];
        others.copy_from_slice(rest);
        let [pc, mode, mstatus, mtvec, mepc, mcause, mtval, mie, mscratch, mcounteren, instret] =
            others;
        Self {
            x,
            pc: pc & !1,
            mode: Mode::of_bits(mode),
            mstatus,
            mtvec,
            mepc: mepc & !1,
            mcause,
            mtval,
            mie,
            mscratch,
            mcounteren,
            instret,
        }
    }
}
