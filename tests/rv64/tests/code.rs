//! Decoded code never outlives what it was decoded from, whoever writes it.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use memory_region::{MemoryMap, RegionId};
use migration_ram::{Precopy, receive};
use ram_block::{PageSize, RamBlock, Scalar};
use rv64::assemble::{Condition::*, reg::*, *};
use rv64::{Bus, CodePage, CodePages, Exit, Fault, Hart, Machine, Outcome, TlbBus, layout};

#[path = "../../machines/src/deadline.rs"]
mod deadline;

const BASE: u64 = layout::RAM;
const RAM: u64 = 1 << 20;
/// Where routines are that are written while the machine runs.
const ROUTINE: u64 = BASE + 0x8000;

fn machine(harts: usize, p: Program) -> Machine {
    let machine = Machine::new(RAM, harts).unwrap();
    machine.load(0, &p.finish()).unwrap();
    machine
}

/// A routine that returns a number in a0.
fn returns(number: i32) -> Vec<u8> {
    [addi(A0, ZERO, number), jalr(ZERO, 0, RA)].iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Calls the routine for ever, with the sum of what it returns in s1.
fn caller() -> Program {
    caller_of(ROUTINE)
}

fn caller_of(routine: u64) -> Program {
    let mut p = Program::at(BASE);
    p.li(S0, routine);
    let again = p.here();
    p.put(jalr(RA, 0, S0));
    p.put(add(S1, S1, A0));
    p.jump(ZERO, again);
    p
}

/// Adds a constant that the program itself writes into the next instructions, 1,000 times, with
/// `fence.i` in between or, as x86 would have it, a jump.
fn self_modifying(fences: bool) -> Program {
    let mut p = Program::at(BASE);
    let target = p.label();
    p.la(S0, target);
    p.li(S1, 1000);
    p.li(S2, 1 << 20); // one more in an addi's immediate
    p.put(lw(T0, 0, S0));
    let again = p.here();
    p.put(addw(T0, T0, S2));
    p.put(sw(T0, 0, S0));
    p.put(addi(S1, S1, -1));
    if fences {
        p.put(FENCE_I);
    } else {
        p.jump(ZERO, target);
    }
    p.bind(target);
    p.put(addi(A0, A0, 0));
    p.branch(Ne, S1, ZERO, again);
    p.put(WFI);
    p
}

#[test]
fn a_program_changes_itself() {
    for fences in [true, false] {
        let mut machine = machine(1, self_modifying(fences));
        assert_eq!(machine.run(1 << 20), Outcome::Idle);
        assert_eq!(machine.hart(0).state.x.get(A0), (1..=1000).sum::<u64>(), "fences: {fences}");
        let blocks = machine.hart(0).blocks_decoded();
        assert!((1000..4000).contains(&blocks), "{blocks} blocks decoded");
    }
}

/// An array does not find writes: the test above can see stale code.
#[test]
fn without_a_watch_the_program_runs_on_stale_code() {
    let run = |fences| {
        let mut bus = rv64::VecBus::new(BASE, 1 << 16);
        let code = self_modifying(fences).finish();
        bus.bytes[..code.len()].copy_from_slice(&code);
        let mut hart = rv64::Hart::new(0, BASE);
        hart.run(&mut bus, 1 << 20);
        hart.state.x.get(A0)
    };
    assert_eq!(run(true), (1..=1000).sum::<u64>());
    assert_ne!(run(false), (1..=1000).sum::<u64>());
}

#[test]
fn code_that_stays_is_decoded_once_whatever_is_written_elsewhere() {
    let mut p = Program::at(BASE);
    p.li(S0, BASE + 0x4000);
    p.li(S1, 100_000);
    let again = p.here();
    p.put(sd(S1, 0, S0));
    p.put(addi(S1, S1, -1));
    p.branch(Ne, S1, ZERO, again);
    p.put(WFI);
    let mut machine = machine(1, p);
    let mut log = machine.memory().claim_log(machine.regions()[0], "test").unwrap();
    assert_eq!(machine.run(1 << 20), Outcome::Idle);
    // The budget of a slice may end anywhere.
    assert!(machine.hart(0).blocks_decoded() < 16, "{}", machine.hart(0).blocks_decoded());
    let harvest = log.snapshot_and_clear(0..RAM).unwrap();
    assert_eq!(harvest.commit().pages().collect::<Vec<_>>(), [4]);
}

/// What others than harts write is found, too: each way writes the routine.
#[test]
fn writes_from_outside_are_found() {
    type Write = fn(&Machine, &[u8]);
    let ways: [(&str, Write); 3] = [
        ("a device, by the address space", |machine, code| {
            machine.space().write(ROUTINE, code).unwrap();
        }),
        ("a loader, by the block", |machine, code| {
            machine.ram().write(ROUTINE - BASE, code).unwrap();
        }),
        ("vm-memory", |machine, code| {
            use ram_block::vm_memory::Bytes;
            let at = usize::try_from(ROUTINE - BASE).unwrap();
            machine.ram().as_slice().write_slice(code, at).unwrap();
        }),
    ];
    for (way, write) in ways {
        let mut machine = machine(1, caller());
        for number in 0..200 {
            write(&machine, &returns(number));
            machine.run(100);
            assert_eq!(machine.hart(0).state.x.get(A0), u64::from(number.cast_unsigned()), "{way}");
        }
        assert!(machine.hart(0).blocks_decoded() > 200, "{way}");
    }
}

/// A migration receives pages into memory whose code a hart has decoded: by a copy, and by a
/// socket, from which the kernel writes to guest memory.
#[test]
fn code_arrives_with_a_migration() {
    for by_socket in [false, true] {
        let mut machine = machine(1, caller());
        machine.load(ROUTINE - BASE, &returns(1)).unwrap();
        machine.run(100);
        let mut source = Machine::new(RAM, 1).unwrap();
        source.load(0, &caller().finish()).unwrap();
        source.load(ROUTINE - BASE, &returns(2)).unwrap();
        source.run(50);
        let blocks = [machine.ram().clone(), machine.frame_buffer().clone()];
        let memory = source.memory().clone();
        if by_socket {
            let (mut from, mut to) = UnixStream::pair().unwrap();
            let sender = std::thread::spawn(move || {
                let sent = Precopy::new(memory).run(&mut from, || Ok(()), |_| ());
                sent.map(drop).map_err(|error| error.to_string())
            });
            receive(&mut to, &blocks).unwrap();
            sender.join().unwrap().unwrap();
        } else {
            let mut stream = Vec::new();
            drop(Precopy::new(memory).run(&mut stream, || Ok(()), |_| ()).unwrap());
            receive(&mut stream.as_slice(), &blocks).unwrap();
        }
        machine.run(100);
        assert_eq!(machine.hart(0).state.x.get(A0), 2, "by a socket: {by_socket}");
    }
}

#[test]
fn memory_that_was_discarded_is_no_code_any_more() {
    let mut machine = machine(1, caller());
    machine.load(ROUTINE - BASE, &returns(5)).unwrap();
    machine.run(100);
    assert_eq!(machine.hart(0).state.mcause, 0);
    let page = machine.ram().page_size().bytes();
    machine.ram().discard(ROUTINE - BASE, page).unwrap();
    while machine.hart(0).state.mcause == 0 && machine.hart(0).state.instret < 110 {
        machine.run(1);
    }
    // Zeros are an illegal instruction.
    assert_eq!(machine.hart(0).state.mcause, 2);
    assert!((ROUTINE..ROUTINE + 8).contains(&machine.hart(0).state.mepc));
}

/// A window on RAM, elsewhere in the address space.
const WINDOW: u64 = 0x4000_0000;

/// A hart's memory without a machine: RAM, and [`WINDOW`] on what is at `offset` of it.
struct Bare {
    map: Arc<MemoryMap>,
    root: RegionId,
    ram: RegionId,
    window: RegionId,
    bus: TlbBus<()>,
}

fn bare(ram: &Arc<RamBlock>, offset: u64) -> Bare {
    let map = MemoryMap::new();
    let regions = map.transaction(|map| {
        let root = map.container("system", 1 << 64)?;
        let region = map.ram("ram", ram.clone())?;
        map.add_subregion(root, BASE, region)?;
        let window = map.alias("window", region, offset, 0x2000)?;
        map.add_subregion(root, WINDOW, window)?;
        Ok((root, region, window))
    });
    let (root, region, window) = regions.unwrap();
    let code = Arc::new(CodePages::new(ram).unwrap());
    let bus = TlbBus::new(&map.address_space("hart", root).unwrap(), &code, ());
    Bare { map, root, ram: region, window, bus }
}

/// A loop that is one block ends when another thread writes over it.
#[test]
fn a_loop_is_left_when_it_is_written() {
    for round in 0..20 {
        let mut p = Program::at(BASE);
        p.put(addi(A0, A0, 1));
        let again = p.here();
        p.put(addi(A0, A0, 1));
        p.jump(ZERO, again);
        let ram = RamBlock::anonymous("ram", RAM).unwrap();
        ram.write(0, &p.finish()).unwrap();
        let mut bus = bare(&ram, 0).bus;
        let run = move || Hart::new(0, BASE).run(&mut bus, u64::MAX).0;
        let hart = std::thread::spawn(|| deadline::in_time(run));
        std::thread::sleep(std::time::Duration::from_micros(round * 11));
        ram.write(4, &WFI.to_le_bytes()).unwrap();
        assert_eq!(hart.join().unwrap(), Exit::Wait);
    }
}

/// A block's second half is in another page than its first: of a block of RAM in small pages, or
/// where a window shifts pages. It is the half that is written.
#[test]
fn the_end_of_a_block_is_watched_as_its_start_is() {
    for (page_size, offset, routine) in [
        (64, 0x1_0000, 0x3c),
        (256, 0x1_0000, 0xfc),
        (4096, 0x1_0000, 0x100),
        (4096, 0x1_0800, 0x7fc),
    ] {
        let page_size = PageSize::new(page_size).unwrap();
        let ram = RamBlock::builder("ram", RAM).page_size(page_size).anonymous().unwrap();
        ram.write(0, &caller_of(WINDOW + routine).finish()).unwrap();
        ram.write(offset + routine, &NOP.to_le_bytes()).unwrap();
        let mut bus = bare(&ram, offset).bus;
        let mut hart = Hart::new(0, BASE);
        for number in 0..20 {
            ram.write(offset + routine + 4, &returns(number)).unwrap();
            hart.run(&mut bus, 100);
            let returned = hart.state.x.get(A0);
            assert_eq!(returned, u64::from(number.cast_unsigned()), "{page_size:?} {offset:#x}");
        }
    }
}

/// Two windows that follow each other show different pages: a block does not go on from one to the
/// other, whose page would not be watched.
#[test]
fn a_block_ends_with_its_section() {
    let ram = RamBlock::anonymous("ram", RAM).unwrap();
    let Bare { map, root, ram: region, window, mut bus, .. } = bare(&ram, 0x1_0000);
    let changed = map.transaction(|map| {
        map.resize(window, 0x800)?;
        let second = map.alias("second", region, 0x2_0800, 0x800)?;
        map.add_subregion(root, WINDOW + 0x800, second)
    });
    changed.unwrap();
    ram.write(0, &caller_of(WINDOW + 0x7fc).finish()).unwrap();
    ram.write(0x1_07fc, &NOP.to_le_bytes()).unwrap();
    let mut hart = Hart::new(0, BASE);
    for number in 0..20 {
        ram.write(0x2_0800, &returns(number)).unwrap();
        hart.run(&mut bus, 100);
        assert_eq!(hart.state.x.get(A0), u64::from(number.cast_unsigned()));
    }
}

/// A window on RAM shows another bank: no byte is written, and the code of the new one is executed.
#[test]
fn a_bank_switch_is_followed() {
    let ram = RamBlock::anonymous("ram", RAM).unwrap();
    ram.write(0, &caller_of(WINDOW).finish()).unwrap();
    ram.write(0x1_0000, &returns(1)).unwrap();
    ram.write(0x2_0000, &returns(2)).unwrap();
    let Bare { map, window, mut bus, .. } = bare(&ram, 0x1_0000);
    let mut hart = Hart::new(0, BASE);
    let mut returned = |hart: &mut Hart| {
        hart.run(&mut bus, 1000);
        hart.state.x.get(A0)
    };
    assert_eq!(returned(&mut hart), 1);
    map.set_alias_offset(window, 0x2_0000).unwrap();
    assert_eq!(returned(&mut hart), 2);
    let decoded = hart.blocks_decoded();
    // What is not moved is not decoded again.
    map.transaction(|map| map.container("nowhere", 1).map(drop)).unwrap();
    assert_eq!(returned(&mut hart), 2);
    assert_eq!(hart.blocks_decoded(), decoded);
}

/// Hart 0 writes a routine that returns n, and then publishes n; hart 1, which has seen n, fences
/// and calls it: it must return n. Then it is hart 0's turn again.
#[test]
fn a_hart_changes_the_code_of_another_one() {
    let mut p = Program::at(BASE);
    let (reader, failed, end) = (p.label(), p.label(), p.label());
    const ROUNDS: u64 = 100;
    p.li(S0, ROUTINE);
    p.li(S1, BASE + 0x4000); // published
    p.put(csrrs(T0, csr::MHARTID, ZERO));
    p.li(S4, ROUNDS);
    p.branch(Ne, T0, ZERO, reader);
    p.put(lw(T0, 0, S0));
    p.li(T1, 1 << 20);
    let again = p.here();
    p.put(addw(T0, T0, T1));
    p.put(sw(T0, 0, S0));
    p.put(addi(S2, S2, 1));
    p.put(FENCE);
    p.put(sd(S2, 0, S1));
    let called = p.here();
    p.put(ld(T2, 8, S1));
    p.branch(Ne, T2, S2, called);
    p.branch(Ne, S2, S4, again);
    let wait = p.here();
    p.put(WFI);
    p.jump(ZERO, wait);
    p.bind(reader);
    let read = p.here();
    p.put(ld(S2, 0, S1));
    p.branch(Eq, S2, S3, read);
    p.put(FENCE);
    p.put(FENCE_I);
    p.put(jalr(RA, 0, S0));
    p.branch(Ne, A0, S2, failed);
    p.put(addi(S3, S2, 0));
    p.put(sd(S3, 8, S1));
    p.branch(Ne, S2, S4, read);
    p.li(T1, 0x5555);
    p.jump(ZERO, end);
    p.bind(failed);
    p.li(T1, 0x1_3333);
    p.bind(end);
    p.li(T0, layout::FINISHER);
    p.put(sw(T1, 0, T0));
    p.jump(ZERO, end);
    let mut machine = machine(2, p);
    // An immediate of 12 bits, without its sign.
    machine.load(ROUTINE - BASE, &returns(0)).unwrap();
    let deadline = Instant::now() + deadline::seconds(60);
    assert_eq!(machine.run_on_threads(u64::MAX, deadline), Outcome::Finished(0));
}

/// A bus of which the bank is switched between the watch over a page and the first fetch.
struct Switching {
    bus: TlbBus<()>,
    switch: Option<Box<dyn FnOnce()>>,
}

impl Bus for Switching {
    fn load<T: Scalar>(&mut self, address: u64) -> Result<T, Fault> {
        self.bus.load(address)
    }

    fn store<T: Scalar>(&mut self, address: u64, value: T) -> Result<(), Fault> {
        self.bus.store(address, value)
    }

    fn fetch(&mut self, address: u64) -> Result<u16, Fault> {
        self.bus.fetch(address)
    }

    fn amo<T: Scalar>(&mut self, address: u64, update: impl FnMut(T) -> T) -> Result<T, Fault> {
        self.bus.amo(address, update)
    }

    fn load_reserved<T: Scalar>(&mut self, address: u64) -> Result<T, Fault> {
        self.bus.load_reserved(address)
    }

    fn store_conditional<T: Scalar>(&mut self, address: u64, value: T) -> Result<bool, Fault> {
        self.bus.store_conditional(address, value)
    }

    fn clear_reservation(&mut self) {
        self.bus.clear_reservation();
    }

    fn fence_i(&mut self) {
        self.bus.fence_i();
    }

    fn watch_code(&mut self, pc: u64) -> Option<CodePage> {
        let page = self.bus.watch_code(pc);
        self.switch.take().into_iter().for_each(|switch| switch());
        page
    }

    fn is_current(&mut self, pc: u64, page: &CodePage) -> bool {
        self.bus.is_current(pc, page)
    }

    fn epoch(&self) -> u64 {
        self.bus.epoch()
    }
}

/// What was decoded of another bank than the one that was watched is not kept: it would be executed
/// when the first is there again.
#[test]
fn a_bank_that_is_switched_while_it_is_decoded_is_not_kept() {
    let ram = RamBlock::anonymous("ram", RAM).unwrap();
    for (bank, number) in [(0x1_0000, 1), (0x2_0000, 2)] {
        let mut p = Program::at(WINDOW);
        p.li(A0, number);
        p.put(WFI);
        ram.write(bank, &p.finish()).unwrap();
    }
    let Bare { map, window, bus, .. } = bare(&ram, 0x1_0000);
    let switch = {
        let map = map.clone();
        move || map.set_alias_offset(window, 0x2_0000).unwrap()
    };
    let mut bus = Switching { bus, switch: Some(Box::new(switch)) };
    let mut hart = Hart::new(0, WINDOW);
    hart.run(&mut bus, 10);
    map.set_alias_offset(window, 0x1_0000).unwrap();
    hart.state.pc = WINDOW;
    hart.run(&mut bus, 10);
    assert_eq!(hart.state.x.get(A0), 1);
}
