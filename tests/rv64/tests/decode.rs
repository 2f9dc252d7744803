//! The decoder beside GNU objdump (Debian: `binutils-riscv64-linux-gnu`): every instruction of 16
//! bits, and many of 32 bits, are the same text. `REQUIRE_RISCV_BINUTILS=1` makes it an error if
//! objdump is missing.

use std::process::{Command, ExitCode};

use rv64::{Amo, Kind, Op, SINK, assemble, decode, is_compressed};
use support::Need;

mod support;

const OBJDUMP: &str = "riscv64-linux-gnu-objdump";
/// Mnemonics that we print, but for orderings.
const MNEMONICS: &str = " lui auipc jal jalr beq bne blt bge bltu bgeu lb lh lw ld lbu lhu lwu sb \
    sh sw sd addi slti sltiu xori ori andi slli srli srai addiw slliw srliw sraiw add sub sll slt \
    sltu xor srl sra or and addw subw sllw srlw sraw fence ecall ebreak mul mulh mulhsu mulhu div \
    divu rem remu mulw divw divuw remw remuw lr.w lr.d sc.w sc.d amoswap.w amoadd.w amoxor.w \
    amoand.w amoor.w amomin.w amomax.w amominu.w amomaxu.w amoswap.d amoadd.d amoxor.d amoand.d \
    amoor.d amomin.d amomax.d amominu.d amomaxu.d fence.i csrrw csrrs csrrc csrrwi csrrsi csrrci \
    mret wfi ";

fn main() -> ExitCode {
    let need =
        Need { missing: support::cannot_run(OBJDUMP), required_by: "REQUIRE_RISCV_BINUTILS" };
    let always: &[support::Test] = &[
        ("words_of_the_manual_are_decoded", words_of_the_manual_are_decoded),
        ("what_is_assembled_is_decoded", what_is_assembled_is_decoded),
    ];
    let with_objdump: &[support::Test] = &[
        ("all_of_16_bits_are_as_objdump_prints_them", all_of_16_bits),
        ("many_of_32_bits_are_as_objdump_prints_them", many_of_32_bits),
    ];
    support::run(always, &need, with_objdump)
}

/// Instructions by hand, for where there is no objdump.
fn words_of_the_manual_are_decoded() {
    for (word, text) in [
        (0x1234_52b7, "lui x5,0x12345"),
        (0xffff_f297, "auipc x5,0xfffff"),
        (0xfe20_8ee3, "beq x1,x2,.-4"),
        (0x7fff_f0ef, "jal x1,.+1048574"),
        (0xffc1_2083, "lw x1,-4(x2)"),
        (0xfe11_3c23, "sd x1,-8(x2)"),
        (0x03f1_1093, "slli x1,x2,0x3f"),
        (0x43f1_5093, "srai x1,x2,0x3f"),
        (0x41f1_509b, "sraiw x1,x2,0x1f"),
        (0x0220_91b3, "mulh x3,x1,x2"),
        (0x1000_a1af, "lr.w x3,(x1)"),
        (0x1820_b1af, "sc.d x3,x2,(x1)"),
        (0xe020_b1af, "amomaxu.d x3,x2,(x1)"),
        (0x3020_0073, "mret"),
        (0x3052_9073, "csrrw x0,0x305,x5"),
        (0x0000_100f, "fence.i"),
        (0x0000, "illegal 0x0"),
        (0x0001, "addi x0,x0,0"),    // c.nop
        (0x1161, "addi x2,x2,-8"),   // c.addi sp, -8
        (0x7139, "addi x2,x2,-64"),  // c.addi16sp sp, -64
        (0x0808, "addi x10,x2,16"),  // c.addi4spn a0, sp, 16
        (0x4501, "addi x10,x0,0"),   // c.li a0, 0
        (0x8082, "jalr x0,0(x1)"),   // ret
        (0x9582, "jalr x1,0(x11)"),  // c.jalr a1
        (0xe022, "sd x8,0(x2)"),     // c.sdsp s0, 0(sp)
        (0x60a2, "ld x1,8(x2)"),     // c.ldsp ra, 8(sp)
        (0x8d89, "sub x11,x11,x10"), // c.sub a1, a0
        (0xdd75, "beq x10,x0,.-4"),  // c.beqz a0, .-4
        (0xbff5, "jal x0,.-4"),      // c.j .-4
        (0x9002, "ebreak"),
        (0x2000, "illegal 0x2000"), // c.fld
        (0xffff_ffff, "illegal -0x1"),
    ] {
        let found = decode(word).to_string();
        let wanted = text.replace("-0x1", "0xffffffff");
        assert_eq!(found, wanted, "{word:#x}");
    }
    let op = Op { kind: Kind::AmoW(Amo::Add), rd: SINK, rs1: 1, rs2: 2, len: 4, at: 0, imm: 0 };
    assert_eq!(decode(assemble::amoadd_w(0, 2, 1)), op);
}

fn what_is_assembled_is_decoded() {
    use assemble::*;
    for imm in [-2048, -1, 0, 1, 2047] {
        assert_eq!(decode(addi(1, 2, imm)).to_string(), format!("addi x1,x2,{imm}"));
        assert_eq!(decode(ld(1, imm, 2)).to_string(), format!("ld x1,{imm}(x2)"));
        assert_eq!(decode(sd(1, imm, 2)).to_string(), format!("sd x1,{imm}(x2)"));
    }
    for (value, steps) in
        [(0, 1), (u64::MAX, 1), (0x7fff_f800, 4), (0x8000_0000, 2), (0x0123_4567_89ab_cdef, 8)]
    {
        let mut program = Program::at(0);
        program.li(5, value);
        program.put(WFI);
        let code = program.finish();
        assert!(code.len() <= 4 * (steps + 1), "{value:#x} takes {} bytes", code.len());
        let mut bus = rv64::VecBus::new(0, 64);
        bus.bytes[..code.len()].copy_from_slice(&code);
        let mut hart = rv64::Hart::new(0, 0);
        hart.run(&mut bus, 16);
        assert_eq!(hart.state.x.get(5), value);
    }
}

/// What objdump prints of each instruction: its address and text.
fn objdump(name: &str, bytes: &[u8]) -> Vec<(u64, String)> {
    let path = std::env::temp_dir().join(format!("rv64-{name}-{}", std::process::id()));
    std::fs::write(&path, bytes).unwrap();
    let arguments = ["-z", "-b", "binary", "-m", "riscv:rv64", "-M", "no-aliases,numeric", "-D"];
    let output = Command::new(OBJDUMP).args(arguments).arg(&path).output().unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let line = |line: &str| {
        let (address, rest) = line.split_once(":\t")?;
        let text = rest.split_once('\t')?.1;
        Some((u64::from_str_radix(address.trim(), 16).ok()?, text.trim().to_owned()))
    };
    text.lines().filter_map(line).collect()
}

/// An absolute target as one that is relative, as we print it.
fn relative(target: &str, address: u64) -> String {
    let target = target.trim_start_matches("0x");
    let target = u64::from_str_radix(target, 16).unwrap();
    format!(".{:+}", target.wrapping_sub(address).cast_signed())
}

/// The instruction of 32 bits that one of 16 bits expands to: "RVC Instruction Set Listings".
fn expanded(mnemonic: &str, operands: &[&str]) -> (String, Vec<String>) {
    let short = mnemonic.trim_start_matches("c.").trim_end_matches("64");
    let own = |operands: &[&str]| operands.iter().map(|text| (*text).to_owned()).collect();
    let twice = |name: &str| (name.to_owned(), own(&[operands[0], operands[0], operands[1]]));
    match short {
        "unimp" => ("illegal".to_owned(), own(&["0x0"])),
        "addi4spn" => ("addi".to_owned(), own(operands)),
        "lwsp" | "ldsp" | "swsp" | "sdsp" => (short[..2].to_owned(), own(operands)),
        "lw" | "ld" | "sw" | "sd" | "lui" | "ebreak" => (short.to_owned(), own(operands)),
        "addi16sp" => twice("addi"),
        "slli" | "srli" | "srai" if operands.len() == 1 => {
            (short.to_owned(), own(&[operands[0], operands[0], "0x0"]))
        }
        "nop" => ("addi".to_owned(), own(&["x0", "x0", "0"])),
        "li" => ("addi".to_owned(), own(&[operands[0], "x0", operands[1]])),
        "mv" => ("add".to_owned(), own(&[operands[0], "x0", operands[1]])),
        "j" => ("jal".to_owned(), own(&["x0", operands[0]])),
        "beqz" | "bnez" => (short[..3].to_owned(), own(&[operands[0], "x0", operands[1]])),
        "jr" => ("jalr".to_owned(), own(&["x0", &format!("0({})", operands[0])])),
        "jalr" => ("jalr".to_owned(), own(&["x1", &format!("0({})", operands[0])])),
        other => twice(other),
    }
}

/// The text as we print it; None for an instruction that is not of RV64IMAC.
fn as_ours(text: &str, address: u64) -> Option<String> {
    let text = text.split(" #").next().unwrap_or(text); // the absolute address
    let (mnemonic, operands) = text.split_once('\t').unwrap_or((text, ""));
    let operands: Vec<&str> =
        operands.split(',').map(str::trim).filter(|text| !text.is_empty()).collect();
    let is_double = ["c.fld", "c.fsd", "c.fldsp", "c.fsdsp"].contains(&mnemonic);
    if mnemonic.starts_with('.') || is_double {
        return None;
    }
    let is_short = mnemonic.starts_with("c.");
    let own = || operands.iter().map(|text| (*text).to_owned()).collect();
    let (mut name, mut operands) =
        if is_short { expanded(mnemonic, &operands) } else { (mnemonic.to_owned(), own()) };
    if name.starts_with("amo") || name.starts_with("lr.") || name.starts_with("sc.") {
        for ordering in [".aqrl", ".aq", ".rl"] {
            name = name.trim_end_matches(ordering).to_owned();
        }
    }
    if name.starts_with("fence") && name != "fence.i" {
        (name, operands) = ("fence".to_owned(), Vec::new());
    }
    if name == "illegal" {
        return None;
    }
    if !MNEMONICS.contains(&format!(" {name} ")) {
        return None;
    }
    if ["jal", "beq", "bne", "blt", "bge", "bltu", "bgeu"].contains(&name.as_str()) {
        let last = operands.last_mut().unwrap();
        *last = relative(last, address);
    }
    if name.starts_with("csr") {
        // Known registers have names.
        operands[1] = "csr".to_owned();
    }
    Some(if operands.is_empty() { name } else { format!("{name} {}", operands.join(",")) })
}

fn compare(name: &str, words: &[u32]) {
    let len = |word: u32| if is_compressed(word.to_le_bytes()[0].into()) { 2 } else { 4 };
    let bytes: Vec<u8> =
        words.iter().flat_map(|word| word.to_le_bytes().into_iter().take(len(*word))).collect();
    let found = objdump(name, &bytes);
    assert_eq!(found.len(), words.len(), "objdump prints other instructions");
    let mut legal = 0;
    for ((address, text), word) in found.iter().zip(words) {
        let op = decode(*word);
        let mut ours = op.to_string();
        if op.is_csr() {
            let parts: Vec<&str> = ours.split(',').collect();
            ours = format!("{},csr,{}", parts[0], parts[2]);
        }
        let ours = Some(ours).filter(|_| op.kind != Kind::Illegal);
        // objdump takes a reserved encoding for an instruction: c.addi16sp of 0.
        let is_reserved = *word == 0x6101;
        // Implementations shall ignore reserved fields of fences ("Memory Ordering Instructions").
        if matches!(op.kind, Kind::Fence | Kind::FenceI) || is_reserved {
            continue;
        }
        assert_eq!(ours, as_ours(text, *address), "{word:#x} is \"{text}\"");
        legal += usize::from(ours.is_some());
    }
    println!("{name}: {} instructions, {legal} of them legal", words.len());
}

fn all_of_16_bits() {
    let all = 0..=u16::MAX;
    let words: Vec<u32> = all.filter(|parcel| is_compressed(*parcel)).map(u32::from).collect();
    compare("16", &words);
}

fn many_of_32_bits() {
    // Of each major opcode, with all values of funct3 and funct7, and other bits at random.
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        u32::try_from(state >> 32).unwrap()
    };
    let mut words = Vec::new();
    for opcode in (0..32).map(|opcode| opcode << 2 | 3) {
        // Longer instructions, and the opcodes of other extensions.
        if matches!(opcode, 0x1f | 0x3f | 0x5f | 0x7f) {
            continue;
        }
        for funct in 0..1 << 10 {
            let (funct3, funct7) = (funct & 7, funct >> 3);
            for _ in 0..3 {
                let others = random() & 0x01ff_8f80;
                words.push(funct7 << 25 | others | funct3 << 12 | opcode);
            }
        }
    }
    words.extend([0x73, 0x10_0073, 0x3020_0073, 0x1050_0073, 0x100f, 0x1000_202f, 0x1000_302f]);
    compare("32", &words);
}
