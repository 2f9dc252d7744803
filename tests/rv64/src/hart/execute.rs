//! Executes the instructions of a block.

use std::sync::atomic::{Ordering, fence};

use crate::bus::bus::{Bus, Fault};
use crate::hart::arithmetic::{
    amo_double, amo_word, byte, div, divu, divuw, divw, extended, half, low, mulh, mulhsu, mulhu,
    rem, remu, remuw, remw, word,
};
use crate::hart::blocks::Blocks;
use crate::hart::csr::Environment;
use crate::hart::state::{Exception, Mode, State, Trap, mstatus};
use crate::isa::op::{Kind, Op};

/// How the instructions of a block ended.
#[derive(Debug)]
pub(super) enum End {
    /// At an instruction elsewhere.
    Next,
    /// By an exception of the instruction at `pc`, which has had no other effect.
    Trap(Trap),
    /// By `wfi`.
    Wait,
}

/// How many instructions retired, and what came then.
pub(super) type Ran = (u64, End);

fn load_trap(fault: Fault, address: u64) -> Trap {
    let exception = match fault {
        Fault::Access => Exception::LoadAccessFault,
        Fault::Misaligned => Exception::LoadAddressMisaligned,
    };
    Trap { exception, value: address }
}

fn store_trap(fault: Fault, address: u64) -> Trap {
    let exception = match fault {
        Fault::Access => Exception::StoreAccessFault,
        Fault::Misaligned => Exception::StoreAddressMisaligned,
    };
    Trap { exception, value: address }
}

/// An illegal instruction by the bits from which it was decoded.
#[cold]
fn illegal(op: &Op) -> Trap {
    let bits = match op.kind {
        Kind::Illegal => op.imm.cast_unsigned(),
        Kind::Mret => 0x3020_0073,
        Kind::Wfi => 0x1050_0073,
        // One of Zicsr.
        kind => {
            let funct3 = match kind {
                Kind::Csrrw => 1,
                Kind::Csrrs => 2,
                Kind::Csrrc => 3,
                Kind::Csrrwi => 5,
                Kind::Csrrsi => 6,
                _ => 7,
            };
            let (rd, rs1) = (u32::from(op.rd & 31), u32::from(op.rs1));
            op.imm.cast_unsigned() << 20 | rs1 << 15 | funct3 << 12 | rd << 7 | 0x73
        }
    };
    Trap { exception: Exception::IllegalInstruction, value: bits.into() }
}

/// Until when blocks follow each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// The bus's, when the first block was found.
    pub(super) epoch: u64,
    /// Instructions that may be executed, at least as many as the first block has.
    pub(super) left: u64,
    /// The bits of `mip` for which no interrupt is taken.
    pub(super) pending: u64,
}

/// Executes `ops`, which are at `state.pc`, and then blocks that are known, within the bounds:
/// until code may have changed, or what can interrupt the hart.
#[inline(never)]
pub(super) fn execute<B: Bus>(
    state: &mut State,
    bus: &mut B,
    (blocks, mut ops): (&Blocks, &[Op]),
    bounds: Bounds,
    environment: Environment<'_>,
) -> Ran {
    let Bounds { epoch, left, pending } = bounds;
    let mut retired = 0;
    loop {
        let (count, target) = match once(state, bus, ops, Environment { retired, ..environment }) {
            Ok(ran) => ran,
            Err((count, end)) => return (retired + count as u64, end),
        };
        retired += count as u64;
        // A loop may be one block.
        let again = target == state.pc;
        state.pc = target;
        if bus.epoch() != epoch || environment.lines.pending() != pending {
            return (retired, End::Next);
        }
        if !again {
            let Some(next) = blocks.known(target, epoch) else { return (retired, End::Next) };
            ops = next;
        }
        if left - retired < ops.len() as u64 {
            return (retired, End::Next);
        }
    }
}

/// Executes `ops` once; returns how many of them retired, and where the next instruction is.
#[inline(always)]
fn once<B: Bus>(
    state: &mut State,
    bus: &mut B,
    ops: &[Op],
    environment: Environment<'_>,
) -> Result<(usize, u64), (usize, End)> {
    use Kind::*;
    let start = state.pc;
    let mut rest = ops.iter();
    while let Some(op) = rest.next() {
        let a = state.x.get(op.rs1);
        let b = state.x.get(op.rs2);
        let imm = i64::from(op.imm).cast_unsigned();
        let address = a.wrapping_add(imm);
        // Most instructions need neither of these, nor their number in the block.
        let pc = || start.wrapping_add(op.at.into());
        let next = || pc().wrapping_add(op.len.into());
        macro_rules! set {
            ($value:expr) => {{
                let value = $value;
                state.x.set(op.rd, value)
            }};
        }
        macro_rules! trap {
            ($trap:expr) => {{
                state.pc = pc();
                return Err((ops.len() - rest.len() - 1, End::Trap($trap)));
            }};
        }
        macro_rules! go {
            ($to:expr) => {
                return Ok((ops.len() - rest.len(), $to))
            };
        }
        macro_rules! branch {
            ($condition:expr) => {
                if $condition {
                    go!(pc().wrapping_add(imm))
                }
            };
        }
        macro_rules! load {
            ($integer:ty, $extend:expr) => {
                match bus.load::<$integer>(address) {
                    Ok(value) => set!($extend(value)),
                    Err(fault) => trap!(load_trap(fault, address)),
                }
            };
        }
        macro_rules! store {
            ($value:expr) => {
                match bus.store(address, $value) {
                    Ok(()) => {}
                    Err(fault) => trap!(store_trap(fault, address)),
                }
            };
        }
        macro_rules! reserve {
            ($integer:ty, $extend:expr) => {
                match bus.load_reserved::<$integer>(a) {
                    Ok(value) => set!($extend(value)),
                    Err(fault) => trap!(load_trap(fault, a)),
                }
            };
        }
        macro_rules! modify {
            ($result:expr, $extend:expr) => {
                match $result {
                    Ok(value) => set!($extend(value)),
                    Err(fault) => trap!(store_trap(fault, a)),
                }
            };
        }
        match op.kind {
            Lui => set!(imm),
            Auipc => set!(pc().wrapping_add(imm)),
            Jal => {
                set!(next());
                go!(pc().wrapping_add(imm))
            }
            Jalr => {
                set!(next());
                go!(address & !1)
            }
            Beq => branch!(a == b),
            Bne => branch!(a != b),
            Blt => branch!(a.cast_signed() < b.cast_signed()),
            Bge => branch!(a.cast_signed() >= b.cast_signed()),
            Bltu => branch!(a < b),
            Bgeu => branch!(a >= b),
            Lb => load!(u8, |value: u8| i64::from(value.cast_signed()).cast_unsigned()),
            Lh => load!(u16, |value: u16| i64::from(value.cast_signed()).cast_unsigned()),
            Lw => load!(u32, extended),
            Ld => load!(u64, u64::from),
            Lbu => load!(u8, u64::from),
            Lhu => load!(u16, u64::from),
            Lwu => load!(u32, u64::from),
            Sb => store!(byte(b)),
            Sh => store!(half(b)),
            Sw => store!(low(b)),
            Sd => store!(b),
            Addi => set!(address),
            Slti => set!(u64::from(a.cast_signed() < imm.cast_signed())),
            Sltiu => set!(u64::from(a < imm)),
            Xori => set!(a ^ imm),
            Ori => set!(a | imm),
            Andi => set!(a & imm),
            Slli => set!(a << (imm & 63)),
            Srli => set!(a >> (imm & 63)),
            Srai => set!((a.cast_signed() >> (imm & 63)).cast_unsigned()),
            Addiw => set!(word(address)),
            Slliw => set!(extended(low(a) << (imm & 31))),
            Srliw => set!(extended(low(a) >> (imm & 31))),
            Sraiw => set!(word((word(a).cast_signed() >> (imm & 31)).cast_unsigned())),
            Add => set!(a.wrapping_add(b)),
            Sub => set!(a.wrapping_sub(b)),
            Sll => set!(a << (b & 63)),
            Slt => set!(u64::from(a.cast_signed() < b.cast_signed())),
            Sltu => set!(u64::from(a < b)),
            Xor => set!(a ^ b),
            Srl => set!(a >> (b & 63)),
            Sra => set!((a.cast_signed() >> (b & 63)).cast_unsigned()),
            Or => set!(a | b),
            And => set!(a & b),
            Addw => set!(word(a.wrapping_add(b))),
            Subw => set!(word(a.wrapping_sub(b))),
            Sllw => set!(extended(low(a) << (b & 31))),
            Srlw => set!(extended(low(a) >> (b & 31))),
            Sraw => set!(word((word(a).cast_signed() >> (b & 31)).cast_unsigned())),
            Mul => set!(a.wrapping_mul(b)),
            Mulh => set!(mulh(a, b)),
            Mulhsu => set!(mulhsu(a, b)),
            Mulhu => set!(mulhu(a, b)),
            Div => set!(div(a, b)),
            Divu => set!(divu(a, b)),
            Rem => set!(rem(a, b)),
            Remu => set!(remu(a, b)),
            Mulw => set!(word(a.wrapping_mul(b))),
            Divw => set!(divw(a, b)),
            Divuw => set!(divuw(a, b)),
            Remw => set!(remw(a, b)),
            Remuw => set!(remuw(a, b)),
            LrW => reserve!(u32, extended),
            LrD => reserve!(u64, u64::from),
            // 0 is success.
            ScW => modify!(bus.store_conditional(a, low(b)), |stored: bool| u64::from(!stored)),
            ScD => modify!(bus.store_conditional(a, b), |stored: bool| u64::from(!stored)),
            AmoW(amo) => modify!(bus.amo(a, move |old: u32| amo_word(amo, old, low(b))), extended),
            AmoD(amo) => modify!(bus.amo(a, move |old: u64| amo_double(amo, old, b)), u64::from),
            Fence => fence(Ordering::SeqCst),
            FenceI => bus.fence_i(),
            Csrrw | Csrrs | Csrrc | Csrrwi | Csrrsi | Csrrci => {
                let retired = environment.retired + (ops.len() - rest.len() - 1) as u64;
                let environment = Environment { retired, ..environment };
                if !state.access_csr(*op, environment) {
                    trap!(illegal(op))
                }
                // Another interrupt may be enabled now.
                state.pc = next();
                return Err((ops.len() - rest.len(), End::Next));
            }
            Ecall => {
                let exception = match state.mode {
                    Mode::User => Exception::CallFromUser,
                    Mode::Machine => Exception::CallFromMachine,
                };
                trap!(Trap { exception, value: 0 })
            }
            Ebreak => trap!(Trap { exception: Exception::Breakpoint, value: 0 }),
            Mret => {
                if state.mode != Mode::Machine {
                    trap!(illegal(op))
                }
                state.leave();
                bus.clear_reservation();
                return Err((ops.len() - rest.len(), End::Next));
            }
            Wfi => {
                if state.mode != Mode::Machine && state.mstatus & mstatus::TW != 0 {
                    trap!(illegal(op))
                }
                state.pc = next();
                return Err((ops.len() - rest.len(), End::Wait));
            }
            Illegal => trap!(illegal(op)),
        }
    }
    let end = ops.last().map_or(0, |last| u64::from(last.at) + u64::from(last.len));
    Ok((ops.len(), start.wrapping_add(end)))
}
