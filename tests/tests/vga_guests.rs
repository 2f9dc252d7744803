//! Guests that set each mode and draw by their own instructions: on KVM and on QEMU, the same
//! guest gives the same picture, which is the one by definition.

use std::process::ExitCode;
#[cfg(target_arch = "x86_64")]
use std::time::{Duration, Instant};

use integration_tests::{harness, needs, qemu};
#[cfg(target_arch = "x86_64")]
use machines::deadline::seconds;

#[cfg(target_arch = "x86_64")]
#[path = "../../display-vga/tests/common/mod.rs"]
mod common;

#[cfg(target_arch = "x86_64")]
fn main() -> ExitCode {
    harness::run_all(vec![
        (needs::kvm(), harness::named(&[("guests_draw_on_kvm", guests_draw_on_kvm)])),
        (qemu::need(), harness::named(&[("guests_draw_on_qemu", guests_draw_on_qemu)])),
    ])
}

#[cfg(not(target_arch = "x86_64"))]
fn main() -> ExitCode {
    harness::run_all(vec![
        (needs::kvm(), harness::named(&[("guests_draw_on_kvm", || ())])),
        (qemu::need(), harness::named(&[("guests_draw_on_qemu", || ())])),
    ])
}

#[cfg(target_arch = "x86_64")]
use {
    common::monitor::Registers,
    common::programs::{self, Program},
    common::{BASE, Pc, difference},
    display_vga::Surface,
    integration_tests::qtest::Qtest,
    kvm_accel::kvm_ioctls::Kvm,
    kvm_accel::{Buses, KvmVm, VcpuEvent},
    machines::demo::{self, FRAME_BUFFER},
    machines::guest::script::{DONE, MARK, Script, interpreter},
    machines::guest::{DATA, boot},
};

#[cfg(target_arch = "x86_64")]
impl Pc for Script {
    fn out(&self, port: u16, value: u8) {
        self.out8(port, value);
    }

    fn out16(&self, port: u16, value: u16) {
        self.out16(port, value);
    }

    fn input(&self, port: u16) -> u8 {
        self.in8(port);
        0
    }

    fn poke(&self, address: u64, bytes: &[u8]) {
        self.write(address, bytes);
    }

    fn peek(&self, address: u64) -> u8 {
        self.read(address);
        0
    }
}

/// The picture by definition, of what the same accesses leave without a guest.
#[cfg(target_arch = "x86_64")]
fn by_definition(program: &Program) -> Surface {
    let board = common::Board::new(demo::VRAM_SIZE);
    program.run(&board, BASE);
    let registers = Registers::parse(&board.vga.save());
    match program {
        Program::Linear(..) => registers.vbe_picture(&board.vram()),
        _ => registers.picture(&board.vram(), true, true).expect("a picture"),
    }
}

#[cfg(target_arch = "x86_64")]
fn guests_draw_on_kvm() {
    for (name, program) in &programs::ALL {
        let board = demo::Board::new().unwrap();
        let vm = KvmVm::new(Kvm::new().unwrap().create_vm().unwrap()).unwrap();
        board.memory.add_listener(&board.space, vm.clone()).unwrap();
        let buses = Buses { memory: board.space.clone(), ports: board.ports.clone() };
        let vcpu = vm.create_vcpu(0, buses).unwrap();
        let script = Script::default();
        program.run(&script, FRAME_BUFFER);
        board.ram.write(DATA, &script.list()).unwrap();
        boot(&vcpu, &board.ram, &interpreter(), &[]);
        let (_, event) = vcpu.spawn("vcpu").unwrap().join().unwrap();
        assert_eq!(event, VcpuEvent::Shutdown, "{name}");
        let mut mark = [0; 4];
        board.ram.read(MARK, &mut mark).unwrap();
        assert_eq!(u32::from_le_bytes(mark), DONE, "{name}: the guest did not come to the end");
        let picture = board.vga.screenshot().unwrap().expect("a picture");
        assert_eq!(difference(&picture, &by_definition(program)), None, "{name}");
    }
}

#[cfg(target_arch = "x86_64")]
fn guests_draw_on_qemu() {
    for (name, program) in &programs::ALL {
        let script = Script::default();
        // The VGA is at slot 2 of bus 0: its first BAR, and memory and ports on.
        for (register, value) in [(0x10, u32::try_from(FRAME_BUFFER).unwrap()), (4, 3)] {
            script.out32(0xcf8, 0x8000_1000 + register);
            script.out32(0xcfc, value);
        }
        program.run(&script, FRAME_BUFFER);
        let kernel = script.multiboot();
        let arguments = ["-machine", "pc", "-vga", "std", "-m", "64", "-kernel", "{dir}/kernel"];
        let machine = Qtest::start_with("guest", &arguments, &[("kernel", &kernel)]).unwrap();
        machine.run_state("cont").unwrap();
        let deadline = Instant::now() + seconds(60);
        while machine.read_memory(MARK, 4).unwrap() != DONE.to_le_bytes() {
            assert!(Instant::now() < deadline, "{name}: the guest does not come to the end");
            std::thread::sleep(Duration::from_millis(5));
        }
        machine.run_state("stop").unwrap();
        let theirs = machine.screendump().unwrap();
        let picture = by_definition(program);
        assert_eq!((theirs.width, theirs.height), (picture.width(), picture.height()), "{name}");
        let mask = program.right_on_qemu();
        let ours = picture.bytes();
        let pixels = ours.chunks_exact(4).zip(theirs.rgb.chunks_exact(3));
        let differ = |(ours, theirs): (&[u8], &[u8])| {
            (0..3).any(|n| (ours[2 - n] ^ theirs[n]) & mask[n] != 0)
        };
        let at = { pixels }.position(differ);
        assert_eq!(at, None, "{name}: the number of the first pixel that differs");
    }
}
