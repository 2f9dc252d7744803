//! The few instructions of arm64 that guests consist of, encoded as the architecture's manual says
//! (ARM DDI 0487, chapter C6).

/// A general-purpose register, x0 to x30, or `XZR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct X(pub u32);

/// Reads as zero, and takes what nobody wants.
pub const XZR: X = X(31);

/// A place in a program.
#[derive(Clone, Copy, Debug)]
pub struct Label(usize);

/// A system register: op0, op1, CRn, CRm, op2.
#[derive(Clone, Copy, Debug)]
pub struct System(pub u32, pub u32, pub u32, pub u32, pub u32);

/// How many bytes a load or a store moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// A byte.
    B,
    /// Two bytes.
    H,
    /// Four bytes.
    W,
    /// Eight bytes.
    X,
}

/// When a branch is taken, after [`Asm::cmp`] of unsigned numbers.
#[derive(Clone, Copy, Debug)]
pub enum If {
    /// They are equal.
    Equal = 0,
    /// They differ.
    Differs = 1,
    /// The first is lower.
    Lower = 3,
}

/// A program that is being written.
#[derive(Debug, Default)]
pub struct Asm {
    words: Vec<u32>,
    /// Where each label is.
    labels: Vec<Option<usize>>,
    /// Branches: the instruction, its label, and the lowest bit and the number of bits of its
    /// offset.
    branches: Vec<(usize, Label, u32, u32)>,
}

impl Asm {
    /// A label that is placed later, or was not yet.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// The next instruction is at this label.
    pub fn place(&mut self, label: Label) {
        self.labels[label.0] = Some(self.words.len());
    }

    /// A label at the next instruction.
    pub fn here(&mut self) -> Label {
        let label = self.label();
        self.place(label);
        label
    }

    /// The program's bytes.
    ///
    /// # Panics
    ///
    /// If a label was not placed, or is too far away: a mistake in the program.
    pub fn bytes(mut self) -> Vec<u8> {
        for (from, label, shift, bits) in self.branches {
            let to = self.labels[label.0].expect("a label that is placed");
            let offset = i32::try_from(to).unwrap() - i32::try_from(from).unwrap();
            assert!(offset.unsigned_abs() < 1 << (bits - 1), "a label that is near");
            let offset = u32::from_ne_bytes(offset.to_ne_bytes()) & ((1 << bits) - 1);
            self.words[from] |= offset << shift;
        }
        self.words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn word(&mut self, word: u32) {
        self.words.push(word);
    }

    /// A number of 64 bits.
    pub fn mov(&mut self, to: X, value: u64) {
        for (n, part) in (0..4).map(|n| (n, value >> (16 * n) & 0xffff)) {
            let part = u32::try_from(part).expect("16 bits") << 5;
            match n {
                0 => self.word(0xd280_0000 | part | to.0),
                _ if part != 0 => self.word(0xf280_0000 | n << 21 | part | to.0),
                _ => {}
            }
        }
    }

    /// Another register's value.
    pub fn copy(&mut self, to: X, from: X) {
        self.word(0xaa00_03e0 | from.0 << 16 | to.0);
    }

    /// `to = a + number`, of 12 bits.
    pub fn add(&mut self, to: X, a: X, number: u32) {
        self.immediate(0x9100_0000, to, a, number);
    }

    /// `to = a - number`, of 12 bits.
    pub fn sub(&mut self, to: X, a: X, number: u32) {
        self.immediate(0xd100_0000, to, a, number);
    }

    fn immediate(&mut self, base: u32, to: X, a: X, number: u32) {
        assert!(number < 1 << 12, "a number of 12 bits");
        self.word(base | number << 10 | a.0 << 5 | to.0);
    }

    fn registers(&mut self, base: u32, to: X, a: X, b: X) {
        self.word(base | b.0 << 16 | a.0 << 5 | to.0);
    }

    /// `to = a + b`.
    pub fn add_reg(&mut self, to: X, a: X, b: X) {
        self.registers(0x8b00_0000, to, a, b);
    }

    /// `to = a & b`.
    pub fn and(&mut self, to: X, a: X, b: X) {
        self.registers(0x8a00_0000, to, a, b);
    }

    /// `to = a * b`.
    pub fn mul(&mut self, to: X, a: X, b: X) {
        self.registers(0x9b00_7c00, to, a, b);
    }

    /// `to = a >> bits`.
    pub fn lsr(&mut self, to: X, a: X, bits: u32) {
        self.word(0xd340_fc00 | bits << 16 | a.0 << 5 | to.0);
    }

    /// Compares two registers.
    pub fn cmp(&mut self, a: X, b: X) {
        self.registers(0xeb00_0000, XZR, a, b);
    }

    /// Loads from `base + offset`, a multiple of the size; the rest of the register is 0.
    pub fn ldr(&mut self, size: Size, to: X, base: X, offset: u32) {
        self.access(1 << 22, size, to, base, offset);
    }

    /// Stores to `base + offset`, a multiple of the size.
    pub fn str(&mut self, size: Size, from: X, base: X, offset: u32) {
        self.access(0, size, from, base, offset);
    }

    fn access(&mut self, load: u32, size: Size, register: X, base: X, offset: u32) {
        let scale = size as u32;
        assert!(offset & ((1 << scale) - 1) == 0 && offset >> scale < 1 << 12, "{offset}");
        let offset = offset >> scale;
        self.word(0x3900_0000 | scale << 30 | load | offset << 10 | base.0 << 5 | register.0);
    }

    /// Goes on at a label.
    pub fn b(&mut self, label: Label) {
        self.branch(0x1400_0000, label, 0, 26);
    }

    /// Goes on at a label if the last comparison said so.
    pub fn b_if(&mut self, when: If, label: Label) {
        self.branch(0x5400_0000 | when as u32, label, 5, 19);
    }

    /// Goes on at a label if a register is 0.
    pub fn cbz(&mut self, register: X, label: Label) {
        self.branch(0xb400_0000 | register.0, label, 5, 19);
    }

    /// Goes on at a label if a register is not 0.
    pub fn cbnz(&mut self, register: X, label: Label) {
        self.branch(0xb500_0000 | register.0, label, 5, 19);
    }

    fn branch(&mut self, word: u32, label: Label, shift: u32, bits: u32) {
        self.branches.push((self.words.len(), label, shift, bits));
        self.word(word);
    }

    /// Goes on at the address in a register.
    pub fn br(&mut self, register: X) {
        self.word(0xd61f_0000 | register.0 << 5);
    }

    /// Writes a system register, and makes the processor see it.
    pub fn msr(&mut self, to: System, from: X) {
        self.system(0xd500_0000, to, from);
        self.word(0xd503_3fdf); // isb
    }

    /// Reads a system register.
    pub fn mrs(&mut self, to: X, from: System) {
        self.system(0xd520_0000, from, to);
    }

    fn system(&mut self, base: u32, System(op0, op1, crn, crm, op2): System, register: X) {
        self.word(base | op0 << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5 | register.0);
    }

    /// Lets interrupts come (PSTATE.I).
    pub fn enable_interrupts(&mut self) {
        self.word(0xd503_42ff);
    }

    /// Returns from an exception.
    pub fn eret(&mut self) {
        self.word(0xd69f_03e0);
    }

    /// Waits for others.
    pub fn yield_(&mut self) {
        self.word(0xd503_203f);
    }

    /// Calls the firmware.
    pub fn hvc(&mut self) {
        self.word(0xd400_0002);
    }

    /// Ends the program, by the firmware's SYSTEM_OFF (PSCI, ARM DEN 0022).
    pub fn end(&mut self) {
        self.mov(X(0), 0x8400_0008);
        self.hvc();
    }
}
