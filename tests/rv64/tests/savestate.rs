//! Saved machines go on as those they were saved from, and a way back in time leads to exactly the
//! memory that there was.

use proptest::prelude::*;
use rv64::assemble::{Condition::*, reg::*, *};
use rv64::{Machine, Outcome, Rewind, SaveError, layout};

const BASE: u64 = layout::RAM;
const RAM: u64 = 1 << 20;

/// Two harts that write to memory at random, to the frame buffer, and over a routine that they
/// call; the clock interrupts hart 0.
fn busy() -> Machine {
    let mut p = Program::at(BASE);
    let (handler, start) = (p.label(), p.label());
    p.put(csrrs(S4, csr::MHARTID, ZERO));
    p.put(addi(S0, S4, 1)); // of the random numbers
    p.li(S1, BASE + 0x4_0000);
    p.li(S2, layout::FRAME_BUFFER);
    p.li(S3, BASE + 0x8000);
    p.branch(Ne, S4, ZERO, start);
    p.la(T0, handler);
    p.put(csrrw(ZERO, csr::MTVEC, T0));
    p.li(A5, layout::CLINT + 0x4000);
    p.put(sd(ZERO, 0, A5));
    p.li(T0, 1 << 7);
    p.put(csrrw(ZERO, csr::MIE, T0));
    p.put(csrrsi(ZERO, csr::MSTATUS, 8));
    p.bind(start);
    let again = p.here();
    for (shift, left) in [(13, true), (7, false), (17, true)] {
        p.put(if left { slli(T0, S0, shift) } else { srli(T0, S0, shift) });
        p.put(xor(S0, S0, T0));
    }
    p.li(T1, 0x3_fff8);
    p.put(and(T0, S0, T1));
    p.put(add(T0, T0, S1));
    p.put(sd(S0, 0, T0));
    p.li(T1, 0x3_e7fc);
    p.put(and(T0, S0, T1));
    p.put(add(T0, T0, S2));
    p.put(sw(S0, 0, T0));
    // An addi of an immediate at random, and a return.
    p.put(srli(T0, S0, 52));
    p.put(slli(T0, T0, 20));
    p.li(T1, u64::from(addi(A0, A0, 0)));
    p.put(or(T0, T0, T1));
    p.put(sw(T0, 0, S3));
    p.put(FENCE_I);
    p.put(jalr(RA, 0, S3));
    p.jump(ZERO, again);
    p.align(4);
    p.bind(handler);
    p.put(addi(A4, A4, 1));
    p.put(csrrs(T3, csr::TIME, ZERO));
    p.put(addi(T3, T3, 37));
    p.put(sd(T3, 0, A5));
    p.put(MRET);
    let machine = Machine::new(RAM, 2).unwrap();
    machine.load(0, &p.finish()).unwrap();
    let routine: Vec<u8> =
        [NOP, jalr(ZERO, 0, RA)].iter().flat_map(|word| word.to_le_bytes()).collect();
    machine.load(0x8000, &routine).unwrap();
    machine
}

#[test]
fn a_restored_machine_goes_on_as_the_saved_one() {
    let mut machine = busy();
    let mut other = busy();
    other.run(12_345); // what it has decoded and written is of no use then
    for steps in [0, 1, 999, 10_001, 50_000] {
        assert_eq!(machine.run(steps), Outcome::Steps);
        let state = machine.save().unwrap();
        other.restore(&state).unwrap();
        assert_eq!(other.save().unwrap(), state);
        machine.run(20_000);
        other.run(20_000);
        assert!(machine.save().unwrap() == other.save().unwrap(), "after {steps}");
        assert_eq!(machine.hart(0).state, other.hart(0).state);
    }
    assert!(machine.hart(0).state.x.get(A4) > 10, "the clock has interrupted");
}

#[test]
fn a_state_that_is_none_is_refused() {
    let state = busy().save().unwrap();
    let mut machine = busy();
    for len in (0..64).chain((64..state.len()).step_by(997)) {
        assert!(machine.restore(&state[..len]).is_err(), "{len} bytes");
    }
    let longer = [&state[..], &[0]].concat();
    assert!(matches!(machine.restore(&longer), Err(SaveError::Damaged)));
    let mut small = Machine::new(RAM / 2, 2).unwrap();
    assert!(matches!(small.restore(&state), Err(SaveError::OtherMemory { .. })));
    let mut single = Machine::new(RAM, 1).unwrap();
    assert!(matches!(single.restore(&state), Err(SaveError::Damaged)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever a file has, the machine takes it or says no, and runs.
    #[test]
    fn damage_is_no_danger(flips in prop::collection::vec((any::<u32>(), any::<u8>()), 1..8)) {
        let mut machine = busy();
        machine.run(200);
        let mut state = machine.save().unwrap();
        for (at, bits) in flips {
            let at = usize::try_from(at).unwrap() % state.len();
            // Half of them in the harts and devices at the end.
            let at = if bits & 1 == 0 { at } else { state.len() - 1 - at % 900 };
            state[at] ^= bits;
        }
        drop(machine.restore(&state));
        machine.run(1000);
    }
}

/// What is done to a machine with checkpoints.
#[derive(Clone, Debug)]
enum Action {
    Run(u64),
    Checkpoint,
    Rewind(usize),
    /// A device writes.
    Write(u64),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => (1u64..3000).prop_map(Action::Run),
        3 => Just(Action::Checkpoint),
        1 => (0usize..6).prop_map(Action::Rewind),
        1 => (0u64..RAM / 2).prop_map(Action::Write),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// Against full copies: each checkpoint is a whole saved state.
    #[test]
    fn rewinding_gives_exactly_the_earlier_machine(
        actions in prop::collection::vec(action(), 1..40),
        limit in 1usize..12,
    ) {
        let mut machine = busy();
        machine.run(500);
        let mut rewind = Rewind::new(&machine, limit).unwrap();
        let mut copies = vec![machine.save().unwrap()];
        for action in actions {
            match action {
                Action::Run(steps) => drop(machine.run(steps)),
                Action::Write(at) => machine.space().write(BASE + RAM / 2 + at, &[7]).unwrap(),
                Action::Checkpoint => {
                    rewind.checkpoint(&machine).unwrap();
                    copies.push(machine.save().unwrap());
                    if copies.len() > limit {
                        copies.remove(0);
                    }
                }
                Action::Rewind(back) => {
                    let back = rewind.rewind(&mut machine, back).unwrap();
                    copies.truncate(copies.len() - back);
                    prop_assert!(machine.save().unwrap() == copies[copies.len() - 1]);
                }
            }
            prop_assert_eq!(rewind.checkpoints(), copies.len());
        }
        // And all the way.
        while !copies.is_empty() {
            rewind.rewind(&mut machine, usize::from(copies.len() > 1)).unwrap();
            let wanted = copies.len().saturating_sub(2);
            prop_assert!(machine.save().unwrap() == copies[wanted]);
            copies.pop();
        }
    }
}

/// A machine that was taken back does the same again.
#[test]
fn the_future_repeats_itself() {
    let mut machine = busy();
    let mut rewind = Rewind::new(&machine, 8).unwrap();
    machine.run(30_000);
    let future = machine.save().unwrap();
    assert_eq!(rewind.rewind(&mut machine, 0).unwrap(), 0);
    assert_eq!(machine.hart(0).state.pc, BASE);
    machine.run(30_000);
    assert!(machine.save().unwrap() == future);
}

/// What was not written costs nothing.
#[test]
fn checkpoints_keep_the_pages_that_were_written() {
    let mut machine = busy();
    let mut rewind = Rewind::new(&machine, 8).unwrap();
    assert_eq!(rewind.checkpoint(&machine).unwrap(), 0);
    machine.space().write(BASE + RAM - 1, &[1]).unwrap();
    assert_eq!(rewind.checkpoint(&machine).unwrap(), 1);
    machine.run(1);
    assert_eq!(rewind.checkpoint(&machine).unwrap(), 0);
    assert_eq!(rewind.pages_kept(), 1);
    assert_eq!(rewind.rewind(&mut machine, 3).unwrap(), 3);
    assert_eq!(rewind.checkpoint(&machine).unwrap(), 0, "the way back is not kept");
}

proptest! {
    /// Damaged harts and devices are refused and change nothing, or are those of one that runs.
    #[test]
    fn damaged_processors_are_no_danger(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
        more in 0..3usize,
    ) {
        let mut machine = busy();
        machine.run(5000);
        let good = machine.save_processors();
        let mut state = good.clone();
        damage.iter().for_each(|(at, byte)| state[at.index(good.len())] = *byte);
        state.truncate(cut.map_or(good.len(), |cut| cut.index(good.len())));
        state.extend(vec![0; more]);
        match machine.restore_processors(&state) {
            Some(()) => {
                prop_assert_eq!(state.len(), good.len());
                machine.run(5000);
            }
            None => prop_assert!(machine.save_processors() == good, "changed"),
        }
    }
}

/// An instruction count that no machine has between two ticks.
#[test]
fn a_clock_past_its_tick_is_refused() {
    let mut machine = busy();
    let mut state = machine.save_processors();
    state[8..16].fill(0xff);
    assert!(machine.restore_processors(&state).is_none());
}

/// A guest that does not look whether anybody reads.
#[test]
fn output_that_nobody_takes_is_bounded() {
    let mut p = Program::at(BASE);
    p.li(S0, layout::UART);
    let again = p.here();
    p.put(sb(ZERO, 0, S0));
    p.put(lbu(T0, 5, S0));
    p.jump(ZERO, again);
    let mut machine = Machine::new(RAM, 1).unwrap();
    machine.load(0, &p.finish()).unwrap();
    machine.run(1_000_000);
    assert_eq!(machine.hart(0).state.x.get(T0) & 0x60, 0, "the transmitter is not empty");
    assert_eq!(machine.board().uart.take_output().len(), 1 << 16);
    machine.run(10);
    assert_eq!(machine.hart(0).state.x.get(T0) & 0x60, 0x60);
}

/// Chunks that come twice, or in another order, are refused.
#[test]
fn chunks_are_in_order() {
    let machine = Machine::new(RAM, 1).unwrap();
    machine.load(0, &[1]).unwrap();
    machine.load(0x1000, &[2]).unwrap();
    let state = machine.save().unwrap();
    // After the magic number, the version, the length of RAM and the count.
    let (first, second) = (32, 32 + 8 + 4096);
    assert_eq!(state[first..first + 9], [0, 0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(state[second..second + 9], [1, 0, 0, 0, 0, 0, 0, 0, 2]);
    for (number, other) in [(1, 1), (0, 0), (1, 0)] {
        let mut damaged = state.clone();
        (damaged[first], damaged[second]) = (number, other);
        let mut machine = Machine::new(RAM, 1).unwrap();
        assert!(matches!(machine.restore(&damaged), Err(SaveError::Damaged)));
    }
}

/// A conditional store of a hart that was restored fails, whatever it had reserved before.
#[test]
fn a_restored_hart_has_no_reservation() {
    let mut p = Program::at(BASE);
    p.li(S0, BASE + 0x1000);
    p.put(lr_d(T0, S0));
    p.put(sc_d(T1, ZERO, S0));
    let stop = p.here();
    p.put(WFI);
    p.jump(ZERO, stop);
    let code = p.finish();
    for restores in [false, true] {
        let mut machine = Machine::new(RAM, 1).unwrap();
        machine.load(0, &code).unwrap();
        while machine.hart(0).state.pc != BASE + code.len() as u64 - 12 {
            machine.run(1);
        }
        if restores {
            let state = machine.save_processors();
            machine.restore_processors(&state).unwrap();
        }
        machine.run(1);
        assert_eq!(machine.hart(0).state.x.get(T1), u64::from(restores));
    }
}
