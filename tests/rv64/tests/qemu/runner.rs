//! An image of memory that runs many programs in turn and keeps what became of their registers.

use rv64::assemble::{Condition, MRET, Program, addi, csr, csrrs, csrrw, ld, reg::*, sd, sw};

use crate::generate::{BASES, Random, WINDOW, program};

/// Where memory begins; the runner is there.
pub const BASE: u64 = 0x8000_0000;
/// Bytes of the image.
pub const SIZE: usize = 16 << 20;
const CODE: u64 = BASE + (1 << 20);
const WINDOWS: u64 = BASE + (4 << 20);
const RESULTS: u64 = BASE + (10 << 20);
/// One a program: its first instruction, `mstatus`, and x1 to x31.
const STARTS: u64 = BASE + (12 << 20);
const WORDS_OF_A_START: u64 = 33;
/// x0 is `mcause`, then come x1 to x31, `mepc`, `mtval`, and `mstatus`.
const WORDS_OF_A_RESULT: u64 = 35;
const FINISHER: u64 = 0x10_0000;

/// An image and what is in it.
pub struct Image {
    pub bytes: Vec<u8>,
    /// Where it loops when it is done, if it could not power the machine off.
    pub end: u64,
    programs: Vec<(u64, Vec<u8>)>,
}

fn runner() -> (Vec<u8>, u64) {
    let mut p = Program::at(BASE);
    let (handler, next, done, end) = (p.label(), p.label(), p.label(), p.label());
    // All memory for user mode, where there is physical memory protection.
    p.li(T0, u64::MAX);
    p.put(csrrw(ZERO, csr::PMPADDR0, T0));
    p.li(T0, 0x1f);
    p.put(csrrw(ZERO, csr::PMPCFG0, T0));
    p.la(T0, handler);
    p.put(csrrw(ZERO, csr::MTVEC, T0));
    p.li(T0, RESULTS);
    p.put(csrrw(ZERO, csr::MSCRATCH, T0));
    p.li(T5, STARTS);
    p.bind(next);
    // t5 is the start of the next program; it is kept before the result.
    p.put(ld(T0, 0, T5));
    p.branch(Condition::Eq, T0, ZERO, done);
    p.put(csrrw(ZERO, csr::MEPC, T0));
    p.put(ld(T0, 8, T5));
    p.put(csrrw(ZERO, csr::MSTATUS, T0));
    p.put(csrrs(T1, csr::MSCRATCH, ZERO));
    p.put(addi(T2, T5, 2047));
    p.put(addi(T2, T2, 8 * i32::try_from(WORDS_OF_A_START).unwrap() - 2047));
    p.put(sd(T2, 8 * i32::try_from(WORDS_OF_A_RESULT).unwrap(), T1));
    p.put(addi(T6, T5, 8));
    for register in 1..=31 {
        // x31 points to them, and is the last one.
        p.put(ld(register, 8 * i32::from(register), T6));
    }
    p.put(MRET);
    p.align(4);
    p.bind(handler);
    p.put(csrrw(T6, csr::MSCRATCH, T6));
    for register in 1..31 {
        p.put(sd(register, 8 * i32::from(register), T6));
    }
    p.put(csrrs(T0, csr::MSCRATCH, ZERO));
    p.put(sd(T0, 8 * 31, T6));
    for (number, place) in [(csr::MCAUSE, 0), (csr::MEPC, 32), (csr::MTVAL, 33)] {
        p.put(csrrs(T0, number, ZERO));
        p.put(sd(T0, 8 * place, T6));
    }
    p.put(csrrs(T0, csr::MSTATUS, ZERO));
    // MIE, MPIE and MPP.
    p.li(T1, 0x1888);
    p.put(rv64::assemble::and(T0, T0, T1));
    p.put(sd(T0, 8 * 34, T6));
    p.put(ld(T5, 8 * i32::try_from(WORDS_OF_A_RESULT).unwrap(), T6));
    p.put(addi(T6, T6, 8 * i32::try_from(WORDS_OF_A_RESULT).unwrap()));
    p.put(csrrw(ZERO, csr::MSCRATCH, T6));
    p.jump(ZERO, next);
    p.bind(done);
    p.la(T0, end);
    p.put(csrrw(ZERO, csr::MTVEC, T0));
    p.li(T0, FINISHER);
    p.li(T1, 0x5555);
    p.put(sw(T1, 0, T0));
    p.align(4);
    p.bind(end);
    p.jump(ZERO, end);
    let end = p.address_of(end);
    (p.finish(), end)
}

impl Image {
    /// An image with `count` random programs.
    pub fn new(seed: u64, count: u64) -> Self {
        let mut random = Random(seed);
        let mut bytes = vec![0; SIZE];
        let (code, end) = runner();
        bytes[..code.len()].copy_from_slice(&code);
        let mut put = |address: u64, data: &[u8]| {
            let at = usize::try_from(address - BASE).unwrap();
            bytes[at..at + data.len()].copy_from_slice(data);
        };
        let mut at = CODE;
        let mut programs = Vec::new();
        for n in 0..count {
            let window = WINDOWS + n * WINDOW;
            for word in 0..WINDOW / 8 {
                put(window + 8 * word, &random.value().to_le_bytes());
            }
            let middle = window + WINDOW / 2;
            let start = STARTS + 8 * WORDS_OF_A_START * n;
            // MPIE off or on, user or machine mode.
            let mstatus = [0, 0x80, 0x1800, 0x1880][usize::try_from(random.below(4)).unwrap()];
            put(start, &at.to_le_bytes());
            put(start + 8, &u64::to_le_bytes(mstatus));
            for register in 1..=31 {
                let value = match BASES.iter().position(|base| u64::from(*base) == register) {
                    Some(0) => middle,
                    Some(1) => middle + 64,
                    // Not for doublewords.
                    Some(_) => middle - 60,
                    None => random.value(),
                };
                put(start + 8 + 8 * register, &value.to_le_bytes());
            }
            let mut code = program(&mut random);
            put(at, &code);
            code.extend(rv64::assemble::EBREAK.to_le_bytes());
            put(at, &code);
            programs.push((at, code.clone()));
            at += code.len() as u64 + 2 * random.below(3);
        }
        assert!(at < WINDOWS, "the programs fit");
        Self { bytes, end, programs }
    }

    /// QEMU 7.2 calls a misaligned AMO a misaligned load (4); the privileged ISA manual wants a
    /// misaligned "Store/AMO" (6): what QEMU made of the image with that put right where ours says
    /// so.
    pub fn corrected(&self, ours: &[u8], mut theirs: Vec<u8>) -> Vec<u8> {
        for n in 0..self.programs.len() as u64 {
            let at = usize::try_from(RESULTS + 8 * WORDS_OF_A_RESULT * n - BASE).unwrap();
            if (ours[at], theirs[at]) == (6, 4) {
                theirs[at] = 6;
            }
        }
        theirs
    }

    /// Panics with what differs between what ours and QEMU made of the image.
    pub fn assert_same(&self, ours: &[u8], theirs: &[u8]) {
        let Some(at) = ours.iter().zip(theirs).position(|(our, their)| our != their) else {
            return;
        };
        let address = BASE + at as u64;
        let program = if address >= RESULTS {
            (address - RESULTS) / (8 * WORDS_OF_A_RESULT)
        } else if address >= WINDOWS {
            (address - WINDOWS) / WINDOW
        } else {
            // One that has changed its code.
            let before = self.programs.iter().filter(|(start, _)| *start <= address);
            (before.count() as u64).saturating_sub(1)
        };
        let (start, code) = &self.programs[usize::try_from(program).unwrap()];
        let word = |memory: &[u8]| {
            let at = at & !7;
            u64::from_le_bytes(memory[at..at + 8].try_into().unwrap())
        };
        println!("program {program}:");
        let mut rest = code.as_slice();
        let mut at = *start;
        while let [a, b, others @ ..] = rest {
            let high = others.get(..2).map_or([0, 0], |high| [high[0], high[1]]);
            let op = rv64::decode(u32::from_le_bytes([*a, *b, high[0], high[1]]));
            println!("  {at:#x}: {op}");
            at += u64::from(op.len);
            rest = &rest[usize::from(op.len).min(rest.len())..];
        }
        let result = RESULTS + 8 * WORDS_OF_A_RESULT * program;
        for n in 0..WORDS_OF_A_RESULT {
            let at = usize::try_from(result + 8 * n - BASE).unwrap();
            let of = |memory: &[u8]| u64::from_le_bytes(memory[at..at + 8].try_into().unwrap());
            let mark = if of(ours) == of(theirs) { ' ' } else { '*' };
            println!("  {mark} {n}: {:#x} {:#x}", of(ours), of(theirs));
        }
        let what = if address >= RESULTS {
            format!("word {} of the result", (address - result) / 8)
        } else {
            format!("the word at {:#x}", address & !7)
        };
        panic!("program {program}: {what} is {:#x}, QEMU's {:#x}", word(ours), word(theirs));
    }
}
