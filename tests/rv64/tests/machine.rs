//! Traps, interrupts, privilege modes and devices, as guests see them.

use rv64::assemble::{Condition::*, reg::*, *};
use std::sync::Arc;

use rv64::{Exit, Hart, Interrupt, Lines, Machine, Outcome, VecBus, layout};

#[path = "../../machines/src/deadline.rs"]
mod deadline;

const BASE: u64 = layout::RAM;
const RAM: u64 = 1 << 20;

fn machine(harts: usize, code: Vec<u8>) -> Machine {
    let machine = Machine::new(RAM, harts).unwrap();
    machine.load(0, &code).unwrap();
    machine
}

/// Ends the machine with the code in a0.
fn finish(p: &mut Program) {
    p.li(T0, layout::FINISHER);
    p.put(slli(A0, A0, 16));
    p.li(T1, 0x3333);
    p.put(or(T1, T1, A0));
    p.put(sw(T1, 0, T0));
    let end = p.here();
    p.jump(ZERO, end);
}

/// A handler that ends a machine with 16 times the trap's code and the low bits of its value.
fn with_handler(body: impl FnOnce(&mut Program)) -> Vec<u8> {
    let mut p = Program::at(BASE);
    let handler = p.label();
    p.la(T0, handler);
    p.put(csrrw(ZERO, csr::MTVEC, T0));
    body(&mut p);
    p.align(4);
    p.bind(handler);
    p.put(csrrs(A0, csr::MCAUSE, ZERO));
    p.put(slli(A0, A0, 4));
    p.put(csrrs(T0, csr::MTVAL, ZERO));
    p.put(andi(T0, T0, 15));
    p.put(or(A0, A0, T0));
    finish(&mut p);
    p.finish()
}

fn code_of(body: impl FnOnce(&mut Program)) -> Outcome {
    machine(1, with_handler(body)).run(10_000)
}

#[test]
fn exceptions_have_their_codes_and_values() {
    type Body = fn(&mut Program);
    let cases: [(u32, Body); 12] = [
        (0x20, |p| p.put(0)),                           // illegal, of 16 bits
        (0x2f, |p| p.put(0xffff_ffff)),                 // illegal
        (0x23, |p| p.put(csrrw(A0, 0x7ff, A1))),        // a CSR that is not there
        (0x23, |p| p.put(csrrw(A0, csr::MHARTID, A1))), // one that is read-only
        (0x30, |p| p.put(EBREAK)),
        (0xb0, |p| p.put(ECALL)),
        (0x51, |p| p.put(lw(A0, 1, ZERO))),
        (0x72, |p| p.put(sw(A0, 2, ZERO))),
        (0x14, |p| p.put(jalr(ZERO, 5, ZERO))), // bit 0 is cleared, nothing is fetched there
        (0x70, |p| {
            p.li(A1, layout::UART);
            p.put(amoadd_w(A0, A0, A1)); // a device is no memory
        }),
        (0x62, |p| {
            p.put(addi(A1, ZERO, 2));
            p.put(amoadd_w(A0, A0, A1));
        }),
        (0x46, |p| {
            p.put(addi(A1, ZERO, 6));
            p.put(lr_w(A0, A1));
        }),
    ];
    for (n, (code, body)) in cases.into_iter().enumerate() {
        assert_eq!(code_of(body), Outcome::Finished(code), "case {n}");
    }
}

/// Leads to user mode, where `body` runs.
fn in_user_mode(p: &mut Program, body: impl FnOnce(&mut Program)) {
    let user = p.label();
    p.la(T0, user);
    p.put(csrrw(ZERO, csr::MEPC, T0));
    p.li(T0, 0x1800);
    p.put(csrrc(ZERO, csr::MSTATUS, T0));
    p.put(MRET);
    p.bind(user);
    body(p);
}

#[test]
fn user_mode_has_no_privileges() {
    let case = |body: fn(&mut Program)| code_of(|p| in_user_mode(p, body));
    assert_eq!(case(|p| p.put(ECALL)), Outcome::Finished(0x80));
    assert_eq!(case(|p| p.put(MRET)), Outcome::Finished(0x23));
    assert_eq!(case(|p| p.put(csrrs(A0, csr::MSTATUS, ZERO))), Outcome::Finished(0x23));
    assert_eq!(case(|p| p.put(csrrs(A0, csr::CYCLE, ZERO))), Outcome::Finished(0x23));
    let counted = code_of(|p| {
        p.put(addi(T0, ZERO, 7));
        p.put(csrrw(ZERO, csr::MCOUNTEREN, T0));
        in_user_mode(p, |p| {
            p.put(csrrs(A1, csr::INSTRET, ZERO));
            p.put(csrrs(A0, csr::INSTRET, ZERO));
            p.put(sub(A0, A0, A1));
            p.put(addi(A0, A0, -1));
            let bad = p.label();
            p.branch(Ne, A0, ZERO, bad);
            p.put(ECALL);
            p.bind(bad);
            p.put(EBREAK);
        });
    });
    assert_eq!(counted, Outcome::Finished(0x80));
}

#[test]
fn a_timer_interrupts_and_ends_waiting() {
    let mut machine = machine(
        1,
        with_handler(|p| {
            p.li(S0, layout::CLINT + 0x4000);
            p.li(T0, 500);
            p.put(sd(T0, 0, S0));
            p.li(T0, 1 << 7);
            p.put(csrrw(ZERO, csr::MIE, T0));
            p.put(WFI); // ends without a trap, as MIE is off
            p.li(S1, layout::CLINT + 0xbff8);
            p.put(ld(S1, 0, S1));
            p.li(T0, 8);
            p.put(csrrs(ZERO, csr::MSTATUS, T0));
            let here = p.here();
            p.jump(ZERO, here);
        }),
    );
    assert_eq!(machine.run(100_000), Outcome::Finished(0x70));
    let waited = machine.hart(0).state.x.get(S1);
    assert!((500..520).contains(&waited), "{waited}");
    assert_eq!(machine.hart(0).state.mcause, 1 << 63 | 7);
}

/// Adds one to a0 every 100 ticks, and waits in between.
fn metronome() -> Vec<u8> {
    with_handler(|p| {
        p.li(S0, layout::CLINT + 0x4000);
        p.li(T0, 1 << 7);
        p.put(csrrw(ZERO, csr::MIE, T0));
        let again = p.here();
        p.put(addi(S1, S1, 100));
        p.put(sd(S1, 0, S0));
        p.put(WFI);
        p.put(addi(A0, A0, 1));
        p.jump(ZERO, again);
    })
}

#[test]
fn time_passes_while_harts_wait() {
    let mut whole = machine(1, metronome());
    assert_eq!(whole.run_for(100_050), Outcome::Steps);
    assert_eq!(whole.board().clint.time(), 100_050);
    assert_eq!(whole.hart(0).state.x.get(A0), 1000);
    assert!(whole.hart(0).state.instret < 5100, "waiting takes no instructions");

    let mut parts = machine(1, metronome());
    for ticks in (0..33_350).map(|n| n % 7).chain([5]) {
        parts.run_for(ticks);
    }
    assert_eq!(parts.board().clint.time(), 100_050);
    assert_eq!(parts.hart(0).state.x.get(A0), 1000);

    let mut asleep = machine(1, with_handler(|p| p.put(WFI)));
    assert_eq!((asleep.run_for(70), asleep.board().clint.time()), (Outcome::Idle, 70));
    let mut ended = machine(1, with_handler(|p| p.put(EBREAK)));
    assert_eq!(ended.run_for(10), Outcome::Finished(0x30));
}

/// A guest that is always busy executes what the time has.
#[test]
fn a_tick_has_so_many_instructions() {
    let mut machine = machine(
        1,
        with_handler(|p| {
            let here = p.here();
            p.jump(ZERO, here);
        }),
    );
    machine.run(150);
    machine.run_for(1);
    assert_eq!(machine.hart(0).state.instret, 200, "half of this tick had been");
    machine.run_for(1234);
    assert_eq!(machine.hart(0).state.instret, 200 + 123_400);
}

#[test]
fn a_vectored_handler_is_entered_at_its_place() {
    let mut p = Program::at(BASE);
    let (table, external) = (p.label(), p.label());
    p.la(T0, table);
    p.put(ori(T0, T0, 1));
    p.put(csrrw(ZERO, csr::MTVEC, T0));
    p.li(T0, layout::UART);
    p.put(addi(T1, ZERO, 1));
    p.put(sb(T1, 1, T0));
    p.li(T0, 1 << 11);
    p.put(csrrw(ZERO, csr::MIE, T0));
    p.put(csrrsi(ZERO, csr::MSTATUS, 8));
    let wait = p.here();
    p.put(WFI);
    p.jump(ZERO, wait);
    p.align(4);
    p.bind(table);
    (0..11).for_each(|_| p.put(0));
    p.jump(ZERO, external);
    p.bind(external);
    p.li(T0, layout::UART);
    p.put(lbu(A0, 0, T0));
    finish(&mut p);
    let mut machine = machine(1, p.finish());
    assert_eq!(machine.run(10_000), Outcome::Idle);
    assert!(machine.board().clint.time() < 100, "there is no timer to advance to");
    machine.board().uart.receive(b"A");
    assert_eq!(machine.run(1000), Outcome::Finished(65));
    assert_eq!(machine.hart(0).lines().pending(), 0, "the byte was taken");
}

/// Hart 0 wakes hart 1, which adds one and wakes hart 0.
fn ping_pong() -> Vec<u8> {
    let mut p = Program::at(BASE);
    let (second, done) = (p.label(), p.label());
    p.li(S0, layout::CLINT);
    p.li(S1, BASE + 0x1000);
    p.put(csrrwi(ZERO, csr::MIE, 8));
    p.put(addi(S2, ZERO, 1));
    p.put(csrrs(S4, csr::MHARTID, ZERO));
    p.branch(Ne, S4, ZERO, second);
    p.put(addi(S3, ZERO, 100));
    let again = p.here();
    p.put(sw(S2, 4, S0));
    let wait = p.here();
    p.put(WFI);
    p.put(lw(T0, 0, S0));
    p.branch(Eq, T0, ZERO, wait);
    p.put(sw(ZERO, 0, S0));
    p.put(addi(S3, S3, -1));
    p.branch(Ne, S3, ZERO, again);
    p.put(lw(A0, 0, S1));
    p.jump(ZERO, done);
    p.bind(second);
    let wait = p.here();
    p.put(WFI);
    p.put(lw(T0, 4, S0));
    p.branch(Eq, T0, ZERO, wait);
    p.put(sw(ZERO, 4, S0));
    p.put(lw(T0, 0, S1));
    p.put(addi(T0, T0, 1));
    p.put(sw(T0, 0, S1));
    p.put(FENCE);
    p.put(sw(S2, 0, S0));
    p.jump(ZERO, wait);
    p.bind(done);
    finish(&mut p);
    p.finish()
}

#[test]
fn harts_interrupt_each_other() {
    assert_eq!(machine(2, ping_pong()).run(1_000_000), Outcome::Finished(100));
}

#[test]
fn a_machine_that_is_run_again_does_the_same() {
    let run = || {
        let mut machine = machine(2, ping_pong());
        machine.run(7_000);
        (0..2).map(|n| machine.hart(n).state.clone()).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}

#[test]
fn code_across_pages_runs_from_both() {
    // nop to the last two bytes of a page, then an addi of 4 bytes, of which half is on each page.
    let mut bus = VecBus::new(BASE, 1 << 14);
    let mut p = Program::at(BASE);
    p.put_compressed(1);
    while p.address() < BASE + 4094 {
        p.put(NOP);
    }
    p.put(addi(A0, A0, 7));
    p.put(WFI);
    let code = p.finish();
    bus.bytes[..code.len()].copy_from_slice(&code);
    let mut hart = Hart::new(0, BASE);
    assert_eq!(hart.run(&mut bus, 10_000).0, Exit::Wait);
    assert_eq!(hart.state.x.get(A0), 7);
    let mut machine = machine(1, code);
    assert_eq!(machine.run(10_000), Outcome::Idle);
    assert_eq!(machine.hart(0).state, hart.state);
}

#[test]
fn instructions_are_counted_one_by_one() {
    let code = with_handler(|p| {
        let again = p.here();
        p.put(addi(A0, A0, 1));
        p.jump(ZERO, again);
    });
    let mut whole = machine(1, code.clone());
    whole.run(500);
    let mut single = machine(1, code);
    for _ in 0..500 {
        assert_eq!(single.run(1), Outcome::Steps);
    }
    assert_eq!(single.hart(0).state, whole.hart(0).state);
    assert_eq!(single.hart(0).state.instret, 500);
}

/// A loop that is one block is left when an interrupt comes, however many instructions are left.
#[test]
fn an_interrupt_ends_a_loop() {
    let mut p = Program::at(BASE);
    let handler = p.label();
    p.la(T0, handler);
    p.put(csrrw(ZERO, csr::MTVEC, T0));
    p.li(T0, 1 << 11);
    p.put(csrrw(ZERO, csr::MIE, T0));
    p.put(csrrsi(ZERO, csr::MSTATUS, 8));
    let again = p.here();
    p.put(addi(A0, A0, 1));
    p.jump(ZERO, again);
    p.align(4);
    p.bind(handler);
    p.put(csrrw(ZERO, csr::MIE, ZERO));
    p.put(WFI);
    let code = p.finish();
    for round in 0..50 {
        let lines = Arc::new(Lines::default());
        let device = lines.clone();
        let hart = std::thread::spawn({
            let code = code.clone();
            let run = move || {
                let mut bus = VecBus::new(BASE, 1 << 12);
                bus.bytes[..code.len()].copy_from_slice(&code);
                let mut hart = Hart::with_lines(0, BASE, lines);
                hart.run(&mut bus, u64::MAX).0
            };
            move || deadline::in_time(run)
        });
        std::thread::sleep(std::time::Duration::from_micros(round * 7));
        device.set(Interrupt::External, true);
        assert_eq!(hart.join().unwrap(), Exit::Wait);
    }
}
