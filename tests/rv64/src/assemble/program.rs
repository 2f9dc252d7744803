//! A program under construction: instructions, data, and labels.

use crate::assemble::encode::{addi, addiw, auipc, b_type, i_type, j_type, lui, slli};

/// A place in a program, which may be used before it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

#[derive(Clone, Copy, Debug)]
enum Use {
    Branch { bits: u32, rs1: u8, rs2: u8 },
    Jump { rd: u8 },
    Address { rd: u8 },
}

/// The conditions of branches.
#[allow(missing_docs)] // the manual's mnemonics
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    Eq = 0,
    Ne = 1,
    Lt = 4,
    Ge = 5,
    Ltu = 6,
    Geu = 7,
}

/// A program that is assembled to run at one address.
///
/// ```
/// use rv64::assemble::{Condition, Program, addi, reg, WFI};
/// use rv64::{Bus, Exit, Hart, VecBus};
///
/// let mut p = Program::at(0x8000_0000);
/// p.li(reg::A0, 10);
/// p.li(reg::A1, 0);
/// let again = p.here();
/// p.put(addi(reg::A1, reg::A1, 3));
/// p.put(addi(reg::A0, reg::A0, -1));
/// p.branch(Condition::Ne, reg::A0, reg::ZERO, again);
/// p.put(WFI);
///
/// let mut bus = VecBus::new(0x8000_0000, 1 << 12);
/// let code = p.finish();
/// bus.bytes[..code.len()].copy_from_slice(&code);
/// let mut hart = Hart::new(0, 0x8000_0000);
/// assert_eq!(hart.run(&mut bus, 1000).0, Exit::Wait);
/// assert_eq!(hart.state.x.get(reg::A1), 30);
/// ```
#[derive(Clone, Debug)]
pub struct Program {
    base: u64,
    bytes: Vec<u8>,
    labels: Vec<Option<usize>>,
    uses: Vec<(usize, Label, Use)>,
}

impl Program {
    /// An empty program for `base`.
    pub fn at(base: u64) -> Self {
        Self { base, bytes: Vec::new(), labels: Vec::new(), uses: Vec::new() }
    }

    /// The address of what is put next.
    pub fn address(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }

    /// A place that [`bind`](Self::bind) makes known later.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Makes `label` the place of what is put next.
    pub fn bind(&mut self, label: Label) {
        self.labels[label.0] = Some(self.bytes.len());
    }

    /// The place of what is put next.
    pub fn here(&mut self) -> Label {
        let label = self.label();
        self.bind(label);
        label
    }

    /// The address of a label.
    ///
    /// # Panics
    ///
    /// If it is not bound.
    pub fn address_of(&self, label: Label) -> u64 {
        self.base + self.labels[label.0].expect("the label is bound") as u64
    }

    /// An instruction of 32 bits.
    pub fn put(&mut self, word: u32) {
        self.bytes.extend(word.to_le_bytes());
    }

    /// An instruction of 16 bits.
    pub fn put_compressed(&mut self, parcel: u16) {
        self.bytes.extend(parcel.to_le_bytes());
    }

    /// Data.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// Zeros up to a multiple of `alignment`.
    pub fn align(&mut self, alignment: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(alignment), 0);
    }

    fn put_use(&mut self, label: Label, r#use: Use) {
        self.uses.push((self.bytes.len(), label, r#use));
        self.put(0);
        if matches!(r#use, Use::Address { .. }) {
            self.put(0);
        }
    }

    /// A branch to `to`, up to 4 KiB away.
    pub fn branch(&mut self, condition: Condition, rs1: u8, rs2: u8, to: Label) {
        let bits = 0x63 | (condition as u32) << 12;
        self.put_use(to, Use::Branch { bits, rs1, rs2 });
    }

    /// `jal rd, to`, up to 1 MiB away.
    pub fn jump(&mut self, rd: u8, to: Label) {
        self.put_use(to, Use::Jump { rd });
    }

    /// The address of a label (`la`), two instructions.
    pub fn la(&mut self, rd: u8, to: Label) {
        self.put_use(to, Use::Address { rd });
    }

    /// A constant, in up to eight instructions.
    pub fn li(&mut self, rd: u8, value: u64) {
        let value = value.cast_signed();
        // Twelve bits with a sign.
        let low = i32::try_from(value << 52 >> 52).unwrap_or(0);
        let rest = value.wrapping_sub(i64::from(low));
        if rest == 0 {
            return self.put(addi(rd, 0, low));
        }
        if let Ok(upper) = i32::try_from(rest) {
            self.put(lui(rd, upper >> 12));
            if low != 0 {
                self.put(addiw(rd, rd, low));
            }
            return;
        }
        // 0x7fff_f800 and the like, of which the rest is 2^31, come here, too.
        self.li(rd, (rest >> 12).cast_unsigned());
        self.put(slli(rd, rd, 12));
        if low != 0 {
            self.put(addi(rd, rd, low));
        }
    }

    /// The bytes.
    ///
    /// # Panics
    ///
    /// If a label was used and not bound, or is too far away.
    pub fn finish(mut self) -> Vec<u8> {
        for (at, label, r#use) in std::mem::take(&mut self.uses) {
            let to = self.labels[label.0].expect("a label is bound that is used");
            let offset = i32::try_from(to as i64 - at as i64).expect("the label is near");
            let reach = match r#use {
                Use::Branch { .. } => 1 << 12,
                Use::Jump { .. } => 1 << 20,
                Use::Address { .. } => 1 << 30,
            };
            assert!((-reach..reach).contains(&offset), "the label is {offset} bytes away");
            let words = match r#use {
                Use::Branch { bits, rs1, rs2 } => vec![b_type(bits, rs1, rs2, offset)],
                Use::Jump { rd } => vec![j_type(0x6f, rd, offset)],
                Use::Address { rd } => {
                    // The lower half is signed.
                    let upper = (offset + 0x800) >> 12;
                    vec![auipc(rd, upper), i_type(0x13, rd, rd, offset - (upper << 12))]
                }
            };
            for (word, place) in words.iter().zip(self.bytes[at..].chunks_exact_mut(4)) {
                place.copy_from_slice(&word.to_le_bytes());
            }
        }
        self.bytes
    }
}
