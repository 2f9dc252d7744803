//! A translator on watched pages: decoded blocks never outlive the code they came from.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use machines::deadline::seconds;
use machines::riscv::assemble::{ECALL, add, addi, beq, bne, jal, jalr, lui, lw, sw};
use machines::riscv::{Cpu, Invalidation, Stop};
use proptest::prelude::*;
use ram_block::vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use ram_block::{DirtyClient, RamBlock};

const RAM: u64 = 1 << 20;

fn ram_with(at: u64, code: &[u32]) -> Arc<RamBlock> {
    let ram = RamBlock::anonymous("ram", RAM).unwrap();
    let bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    ram.write(at, &bytes).unwrap();
    ram
}

fn ram_bytes(ram: &RamBlock) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(RAM).unwrap()];
    ram.read(0, &mut bytes).unwrap();
    bytes
}

/// Adds a constant that the program itself writes into the instruction, 1,000 times.
fn self_modifying() -> Vec<u32> {
    const TARGET: i32 = 24;
    vec![
        addi(5, 0, 1000),
        lui(6, 1 << 20), // one more in an addi's immediate
        lw(7, 0, TARGET),
        add(7, 7, 6), // loop:
        sw(7, 0, TARGET),
        addi(5, 5, -1),
        addi(10, 10, 0), // the target
        bne(5, 0, -16),
        ECALL,
    ]
}

#[test]
fn a_self_modifying_program_runs_as_without_a_cache() {
    // 1 + 2 + ... + 1,000, as the immediate has 12 bits with a sign.
    let expected = (1..=1000).sum::<u32>();
    let run = |mut cpu: Cpu| (cpu.run(1 << 20), cpu.registers[10], cpu.blocks_decoded());
    let ram = || ram_with(0, &self_modifying());
    assert_eq!(run(Cpu::decoding(ram())), (Stop::Call(32), expected, 0));
    let (stop, sum, blocks) = run(Cpu::caching(ram(), Invalidation::Watched).unwrap());
    assert_eq!((stop, sum), (Stop::Call(32), expected));
    assert!((1000..3000).contains(&blocks), "{blocks} blocks decoded");
    // Without reports the first decoded zero is added again and again.
    let (stop, sum, _) = run(Cpu::caching(ram(), Invalidation::Never).unwrap());
    assert_eq!(stop, Stop::Call(32));
    assert_ne!(sum, expected, "the test cannot see stale code");
}

#[test]
fn code_that_stays_is_decoded_once_whatever_is_written_elsewhere() {
    let ram = ram_with(
        0,
        &[
            lui(5, 4096),
            lui(6, 100 << 12),
            sw(6, 5, 0), // loop: to the next page
            addi(6, 6, -1),
            bne(6, 0, -8),
            ECALL,
        ],
    );
    let _log = ram.dirty().claim(DirtyClient::MIGRATION).unwrap();
    let mut cpu = Cpu::caching(ram.clone(), Invalidation::Watched).unwrap();
    assert_eq!(cpu.run(u64::MAX), Stop::Call(20));
    assert_eq!(cpu.blocks_decoded(), 3);
    let dirty = |page| ram.dirty().is_dirty(DirtyClient::MIGRATION, page);
    assert!(dirty(1) && !dirty(0), "stores reach the other clients as ever");
}

/// Instructions that keep a random program busy around its own code: registers 1 to 7,
/// stores through x0 into the first two KiB.
fn instruction() -> impl Strategy<Value = u32> {
    let register = || 1..8u8;
    let near = || (-8..8i32).prop_map(|n| n * 4);
    prop_oneof![
        4 => (register(), register(), -100..100).prop_map(|(rd, rs, n)| addi(rd, rs, n)),
        2 => (register(), register(), register()).prop_map(|(rd, a, b)| add(rd, a, b)),
        3 => (register(), 0..64).prop_map(|(rd, word)| lw(rd, 0, word * 4)),
        4 => (register(), 0..64).prop_map(|(source, word)| sw(source, 0, word * 4)),
        2 => (register(), register(), near()).prop_map(|(a, b, n)| bne(a, b, n)),
        2 => (register(), register(), near()).prop_map(|(a, b, n)| beq(a, b, n)),
        1 => (0..8u8, near()).prop_map(|(rd, n)| jal(rd, n)),
        1 => (register(), 0..64).prop_map(|(rd, word)| jalr(rd, 0, word * 4)),
        1 => any::<u32>(),
    ]
}

proptest! {
    /// Programs that write over themselves at random do the same with decoded blocks as
    /// without, to the last byte and register.
    #[test]
    fn random_programs_run_as_without_a_cache(
        code in prop::collection::vec(instruction(), 64),
        steps in 1..3000u64,
    ) {
        let (plain, cached) = (ram_with(0, &code), ram_with(0, &code));
        let mut without = Cpu::decoding(plain.clone());
        let mut with = Cpu::caching(cached.clone(), Invalidation::Watched).unwrap();
        prop_assert_eq!(without.run(steps), with.run(steps));
        prop_assert_eq!(without.pc, with.pc);
        prop_assert_eq!(without.registers, with.registers);
        prop_assert!(ram_bytes(&plain) == ram_bytes(&cached));
    }
}

/// Addresses of the mailbox: a question's number, the answered question, the answer.
const QUESTION: u64 = 0x2000;
const ANSWERED: u64 = 0x2004;
const ANSWER: u64 = 0x2008;
/// Where the function lies that another part of the machine writes.
const FUNCTION: u64 = 0x3000;

/// Answers each question with what the function returns, until the question is 0.
fn answering() -> Vec<u32> {
    vec![
        lui(5, 0x2000),
        lui(6, 0x3000),
        addi(8, 0, 1),
        lw(7, 5, 0),   // wait:
        beq(7, 0, 28), // stop
        bne(7, 8, -8), // not asked yet
        jalr(1, 6, 0),
        sw(10, 5, 8),
        sw(7, 5, 4),
        addi(8, 8, 1),
        beq(0, 0, -28), // wait
        ECALL,
    ]
}

/// Writes the function again and again through vm-memory, and asks for its result after
/// each write; returns how many answers came from code that had been overwritten.
fn stale_answers(invalidation: Invalidation, questions: u32) -> u32 {
    let ram = ram_with(0, &answering());
    ram.write(QUESTION, &u32::MAX.to_le_bytes()).unwrap();
    let mut stale = 0;
    std::thread::scope(|scope| {
        let guest = {
            let ram = ram.clone();
            scope.spawn(move || Cpu::caching(ram, invalidation).unwrap().run(u64::MAX))
        };
        let device = ram.as_slice();
        let at = |address: u64| usize::try_from(address).unwrap();
        let enough = Instant::now() + Duration::from_secs(10);
        for question in 1..=questions {
            let value = i32::try_from(question % 2000).unwrap();
            device.write_obj(addi(10, 0, value), at(FUNCTION)).unwrap();
            device.write_obj(jalr(0, 1, 0), at(FUNCTION) + 4).unwrap();
            device.store(question, at(QUESTION), Ordering::Release).unwrap();
            let deadline = Instant::now() + seconds(60);
            while device.load::<u32>(at(ANSWERED), Ordering::Acquire).unwrap() != question {
                if Instant::now() >= deadline {
                    // The guest would run on, and be waited for without end.
                    device.store(0u32, at(QUESTION), Ordering::Release).unwrap();
                    panic!("question {question} is not answered");
                }
                std::thread::yield_now();
            }
            let answer: u32 = device.load(at(ANSWER), Ordering::Acquire).unwrap();
            stale += u32::from(answer != question % 2000);
            // On a busy machine all of them take minutes.
            if question >= 500 && Instant::now() > enough {
                break;
            }
        }
        device.store(0u32, at(QUESTION), Ordering::Release).unwrap();
        assert_eq!(guest.join().unwrap(), Stop::Call(44));
    });
    stale
}

#[test]
fn code_written_by_another_part_of_the_machine_is_executed_at_once() {
    assert_eq!(stale_answers(Invalidation::Watched, 20_000), 0);
}

#[test]
fn the_test_sees_stale_code() {
    assert_eq!(stale_answers(Invalidation::Never, 100), 99);
}

/// The same bytes seen through vm-memory's own regions report too.
#[test]
fn writes_through_guest_memory_of_vm_memory_are_reported() {
    use ram_block::vm_memory::GuestMemoryBackend;
    let memory =
        GuestMemoryMmap::<ram_block::DirtyBitmap>::from_ranges(&[(GuestAddress(0), 1 << 20)])
            .unwrap();
    let region = memory.find_region(GuestAddress(0)).unwrap().get_mmap();
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let hook = told.clone();
    let watch = region.bitmap().watch_code(move |page| hook.lock().unwrap().push(page)).unwrap();
    watch.watch(3..5).unwrap();
    memory.write_slice(&[0; 8192], GuestAddress(0x3800)).unwrap();
    memory.write_slice(&[0; 8192], GuestAddress(0x3800)).unwrap();
    assert_eq!(*told.lock().unwrap(), [3, 4]);
}
