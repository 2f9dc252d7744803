//! The interrupt controller that KVM plays, carried to other machines, with interrupts in flight.

use std::sync::Arc;

use integration_tests::harness::Test;
use kvm_accel::kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_DIST_REGS, KVM_DEV_ARM_VGIC_GRP_ITS_REGS,
    KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, KVM_MSI_VALID_DEVID, KVM_VGIC_ITS_ADDR_TYPE,
    KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, kvm_msi,
};
use kvm_accel::kvm_ioctls::DeviceFd;
use kvm_accel::{KvmError, KvmVm, RollBack, Vcpu, VcpuThread, Vgic, VgicState};
use machines::guest::asm::{Size, System, X};
use machines::guest::{DATA, boot, programs};
use ram_block::DirtyClient;

use crate::on_kvm::machine::{Machine, wait_until};

/// In every way of tracking.
pub const TESTS: &[Test] = &[("tables_are_written_pages", tables_are_written_pages)];

/// For which the way is all one.
pub const ONCE: &[Test] = &[
    ("interrupts_go_to_other_machines", interrupts_go_to_other_machines),
    ("a_controller_goes_back_in_place", a_controller_goes_back_in_place),
    ("what_is_all_on_is_switched_off", what_is_all_on_is_switched_off),
    ("messages_go_to_another_machine", messages_go_to_another_machine),
    ("a_controller_of_others_is_refused", a_controller_of_others_is_refused),
];

const RAM: u64 = 16 << 20;
const DISTRIBUTOR: u64 = 0x800_0000;
const REDISTRIBUTORS: u64 = 0x80a_0000;
const TRANSLATER: u64 = 0x900_0000;
/// A shared interrupt, by edges.
const EDGE: u64 = 40;
/// One by its level.
const LEVEL: u64 = 41;
/// One that the guest sends itself.
const OWN: u64 = 1;
/// The first that is a message.
const MESSAGE: u64 = 8192;

/// Where the vectors are, and the words that count interrupts by their numbers.
const VECTORS: u64 = 0x2_0000;
const COUNTS: u64 = 0x20_0000;
// What is in memory for messages: commands, tables of devices, of collections and of events, how
// each message is taken, and which are pending.
const COMMANDS: u64 = 0x30_0000;
const DEVICES: u64 = 0x31_0000;
const COLLECTIONS: u64 = 0x32_0000;
const EVENTS: u64 = 0x33_0000;
const PROPERTIES: u64 = 0x34_0000;
const PENDING: u64 = 0x36_0000;

fn set(device: &DeviceFd, group: u32, attr: u64, value: u64) {
    let addr = &raw const value as u64;
    device.set_device_attr(&kvm_device_attr { group, attr, addr, flags: 0 }).unwrap();
}

fn device(vm: &KvmVm, type_: u32, addresses: &[(u32, u64)]) -> Arc<DeviceFd> {
    let device = vm.fd().create_device(&mut kvm_create_device { type_, fd: 0, flags: 0 }).unwrap();
    for (what, address) in addresses {
        set(&device, KVM_DEV_ARM_VGIC_GRP_ADDR, u64::from(*what), *address);
    }
    set(&device, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT.into(), 0);
    Arc::new(device)
}

/// A machine with a controller for these vCPUs.
fn controller(machine: &Machine, vcpus: &[&Vcpu]) -> Vgic {
    let addresses =
        [(KVM_VGIC_V3_ADDR_TYPE_DIST, DISTRIBUTOR), (KVM_VGIC_V3_ADDR_TYPE_REDIST, REDISTRIBUTORS)];
    let gic = device(&machine.vm, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, &addresses);
    let mpidrs: Vec<u64> = vcpus.iter().map(|vcpu| vcpu.mpidr().unwrap()).collect();
    Vgic::new(gic, &mpidrs).unwrap()
}

/// Counts interrupts by their numbers.
fn handler() -> Vec<u8> {
    programs::assemble(|a| {
        let (number, at, count) = (X(20), X(21), X(22));
        a.mrs(number, System(3, 0, 12, 12, 0)); // ICC_IAR1_EL1
        a.mov(count, 8);
        a.mul(at, number, count);
        a.mov(count, COUNTS);
        a.add_reg(at, at, count);
        a.ldr(Size::X, count, at, 0);
        a.add(count, count, 1);
        a.str(Size::X, count, at, 0);
        a.msr(System(3, 0, 12, 12, 1), number); // ICC_EOIR1_EL1
        a.eret();
    })
}

/// Sets the controller up, counts at `x0`, and after each count sends itself an interrupt.
fn program() -> Vec<u8> {
    programs::assemble(|a| {
        let (value, at) = (X(9), X(10));
        let registers = [
            (System(3, 0, 12, 0, 0), VECTORS), // VBAR_EL1
            (System(3, 0, 4, 6, 0), 0xf0),     // ICC_PMR_EL1
            (System(3, 0, 12, 12, 7), 1),      // ICC_IGRPEN1_EL1
        ];
        for (register, number) in registers {
            a.mov(value, number);
            a.msr(register, value);
        }
        const OWN_FRAME: u64 = REDISTRIBUTORS + 0x1_0000;
        let words = [
            (DISTRIBUTOR, 0x12),                                         // GICD_CTLR
            (DISTRIBUTOR + 0x84, 0xffff_ffff),                           // GICD_IGROUPR1
            (DISTRIBUTOR + 0xc08, 1 << (2 * (EDGE - 32) + 1)),           // GICD_ICFGR2
            (DISTRIBUTOR + 0x104, 1 << (EDGE - 32) | 1 << (LEVEL - 32)), // GICD_ISENABLER1
            (OWN_FRAME + 0x80, 0xffff_ffff),                             // GICR_IGROUPR0
            (OWN_FRAME + 0x100, 1 << OWN),                               // GICR_ISENABLER0
        ];
        for (address, number) in words {
            a.mov(at, address);
            a.mov(value, number);
            a.str(Size::W, value, at, 0);
        }
        a.enable_interrupts();
        a.mov(value, OWN << 24 | 1);
        let again = a.here();
        a.ldr(Size::X, at, X(0), 0);
        a.add(at, at, 1);
        a.str(Size::X, at, X(0), 0);
        a.msr(System(3, 0, 12, 11, 5), value); // ICC_SGI1R_EL1
        a.b(again);
    })
}

fn boot_counting(machine: &Machine, vcpu: &Vcpu) {
    machine.block.write(VECTORS + 0x280, &handler()).unwrap();
    boot(vcpu, &machine.block, &program(), &[DATA]);
}

/// How often an interrupt was taken.
fn taken(machine: &Machine, interrupt: u64) -> u64 {
    machine.words::<1>(COUNTS + 8 * interrupt)[0]
}

/// Raises or lowers the line of a shared interrupt.
fn line(machine: &Machine, interrupt: u64, is_up: bool) {
    const SHARED: u32 = 1 << 24;
    let interrupt = u32::try_from(interrupt).unwrap();
    machine.vm.fd().set_irq_line(SHARED | interrupt, is_up).unwrap();
}

/// Compares the values one by one.
fn same(found: &VgicState, expected: &VgicState) {
    let values = |state: &VgicState| serde_json::to_value(state).unwrap();
    let (found, expected) = (values(found), values(expected));
    let pairs = |part: &str| -> Vec<String> {
        let (found, expected) =
            (found[part].as_array().unwrap(), expected[part].as_array().unwrap());
        let pairs = found.iter().zip(expected).enumerate();
        pairs
            .filter(|(_, (found, expected))| found != expected)
            .map(|pair| format!("{pair:?}"))
            .collect()
    };
    assert_eq!([pairs("values"), pairs("services")], [Vec::<String>::new(), Vec::new()]);
}

fn copy_memory(from: &Machine, to: &Machine) {
    let mut bytes = vec![0; usize::try_from(RAM).unwrap()];
    from.block.read(0, &mut bytes).unwrap();
    to.block.write(0, &bytes).unwrap();
}

fn wait_for(machine: &Machine, interrupt: u64, count: u64) {
    wait_until("the interrupt", || taken(machine, interrupt) >= count);
}

fn stop(guest: VcpuThread) -> Vcpu {
    guest.stop().unwrap().0
}

/// Raised when nobody takes it, carried, and taken once there.
fn interrupts_go_to_other_machines() {
    let mut machine = Machine::new(RAM);
    let vcpu = machine.vcpu();
    let mut vgic = controller(&machine, &[&vcpu]);
    boot_counting(&machine, &vcpu);
    let mut guest = vcpu.spawn("vcpu").unwrap();
    wait_for(&machine, OWN, 10);
    for round in 1..=5 {
        let vcpu = stop(guest);
        line(&machine, EDGE, true);
        line(&machine, EDGE, false);
        vgic.stop().unwrap();
        let state = serde_json::to_string(&vgic.save().unwrap()).unwrap();
        let state: VgicState = serde_json::from_str(&state).unwrap();
        let next = Machine::new(RAM);
        copy_memory(&machine, &next);
        let mut copy = next.vcpu();
        let there = controller(&next, &[&copy]);
        there.restore(&state).unwrap();
        copy.restore(&vcpu.save().unwrap()).unwrap();
        same(&there.save().unwrap(), &state);
        (machine, vgic) = (next, there);
        assert_eq!(taken(&machine, EDGE), round - 1);
        let own = taken(&machine, OWN);
        guest = copy.spawn("copy").unwrap();
        wait_for(&machine, EDGE, round);
        wait_for(&machine, OWN, own + 10);
        assert_eq!(taken(&machine, EDGE), round, "taken once");
    }
    // A line that is up stays so: its interrupt comes until it is lowered.
    let vcpu = stop(guest);
    line(&machine, LEVEL, true);
    let state = vgic.save().unwrap();
    let next = Machine::new(RAM);
    copy_memory(&machine, &next);
    let mut copy = next.vcpu();
    let there = controller(&next, &[&copy]);
    there.restore(&state).unwrap();
    copy.restore(&vcpu.save().unwrap()).unwrap();
    let guest = copy.spawn("copy").unwrap();
    wait_for(&next, LEVEL, 100);
    line(&next, LEVEL, false);
    let own = taken(&next, OWN);
    wait_for(&next, OWN, own + 10);
    let count = taken(&next, LEVEL);
    wait_for(&next, OWN, own + 20);
    assert_eq!(taken(&next, LEVEL), count, "the line is down");
    stop(guest);
}

fn a_controller_goes_back_in_place() {
    let machine = Machine::new(RAM);
    let vcpu = machine.vcpu();
    let vgic = controller(&machine, &[&vcpu]);
    boot_counting(&machine, &vcpu);
    let guest = vcpu.spawn("vcpu").unwrap();
    wait_for(&machine, OWN, 10);
    let mut vcpu = stop(guest);
    let (state, of_vcpu) = (vgic.save().unwrap(), vcpu.save().unwrap());
    let memory = Machine::new(RAM);
    copy_memory(&machine, &memory);
    for _ in 0..5 {
        // What comes meanwhile is undone: pending, active, enabled.
        line(&machine, EDGE, true);
        line(&machine, EDGE, false);
        line(&machine, LEVEL, true);
        assert_ne!(vgic.save().unwrap(), state);
        let guest = vcpu.spawn("vcpu").unwrap();
        wait_for(&machine, LEVEL, 10);
        vcpu = stop(guest);
        line(&machine, EDGE, true);
        line(&machine, EDGE, false);
        copy_memory(&memory, &machine);
        vgic.restore(&state).unwrap();
        vcpu.roll_back(&of_vcpu, RollBack::Now).unwrap();
        same(&vgic.save().unwrap(), &state);
        let own = taken(&machine, OWN);
        let guest = vcpu.spawn("vcpu").unwrap();
        wait_for(&machine, OWN, own + 10);
        vcpu = stop(guest);
        assert_eq!((taken(&machine, EDGE), taken(&machine, LEVEL)), (0, 0));
        copy_memory(&memory, &machine);
        vgic.restore(&state).unwrap();
        vcpu.roll_back(&of_vcpu, RollBack::Now).unwrap();
    }
}

/// Registers that clear bits read as the bits that are set, also when all are.
fn what_is_all_on_is_switched_off() {
    const ISENABLER1: u64 = 0x104;
    const ISACTIVER1: u64 = 0x304;
    let machine = Machine::new(RAM);
    let vcpu = machine.vcpu();
    let addresses =
        [(KVM_VGIC_V3_ADDR_TYPE_DIST, DISTRIBUTOR), (KVM_VGIC_V3_ADDR_TYPE_REDIST, REDISTRIBUTORS)];
    let gic = device(&machine.vm, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, &addresses);
    let vgic = Vgic::new(gic.clone(), &[vcpu.mpidr().unwrap()]).unwrap();
    let state = vgic.save().unwrap();
    for offset in [ISENABLER1, ISACTIVER1] {
        set(&gic, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, offset, 0xffff_ffff);
    }
    assert_ne!(vgic.save().unwrap(), state);
    vgic.restore(&state).unwrap();
    same(&vgic.save().unwrap(), &state);
}

/// The service that translates messages, before it is set up.
fn its(machine: &Machine) -> Arc<DeviceFd> {
    let addresses = [(KVM_VGIC_ITS_ADDR_TYPE, TRANSLATER)];
    device(&machine.vm, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS, &addresses)
}

/// Sets up messages as a guest would: device 7 has two events, of which each is a message to the
/// first vCPU.
fn set_up_messages(machine: &Machine, gic: &DeviceFd, its: &DeviceFd) {
    const ON: u64 = 1 << 63;
    let redistributor = |offset, value| set(gic, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, offset, value);
    let service = |offset, value| set(its, KVM_DEV_ARM_VGIC_GRP_ITS_REGS, offset, value);
    // Each is taken, at the highest priority.
    machine.block.write(PROPERTIES, &[1; 16]).unwrap();
    redistributor(0x70, PROPERTIES | 15); // GICR_PROPBASER, of 16 bits for numbers
    redistributor(0x74, 0);
    redistributor(0x78, PENDING); // GICR_PENDBASER
    redistributor(0x7c, 0);
    redistributor(0x0, 1); // GICR_CTLR
    service(0x80, ON | COMMANDS); // GITS_CBASER
    service(0x100, ON | DEVICES); // GITS_BASER0
    service(0x108, ON | COLLECTIONS); // GITS_BASER1
    let map_event = |event: u64| [0xa | 7 << 32, event | (MESSAGE + event) << 32, 0, 0];
    let commands: [[u64; 4]; 4] = [
        [0x9, 0, ON, 0],                    // MAPC: collection 0 is the first vCPU
        [0x8 | 7 << 32, 0, ON | EVENTS, 0], // MAPD: device 7 has events of 1 bit
        map_event(0),
        map_event(1),
    ];
    let bytes: Vec<u8> =
        commands.as_flattened().iter().flat_map(|word| word.to_le_bytes()).collect();
    machine.block.write(COMMANDS, &bytes).unwrap();
    service(0x0, 1); // GITS_CTLR
    service(0x88, bytes.len() as u64); // GITS_CWRITER
}

/// Device 7 sends a message.
fn send(machine: &Machine, event: u32) {
    let address_lo = u32::try_from(TRANSLATER + 0x1_0040).unwrap();
    let flags = KVM_MSI_VALID_DEVID;
    let message = kvm_msi { address_lo, data: event, flags, devid: 7, ..Default::default() };
    machine.vm.fd().signal_msi(message).unwrap();
}

/// A machine with messages, whose guest has run.
fn with_messages() -> (Machine, Vcpu, Vgic) {
    let machine = Machine::new(RAM);
    let vcpu = machine.vcpu();
    let addresses =
        [(KVM_VGIC_V3_ADDR_TYPE_DIST, DISTRIBUTOR), (KVM_VGIC_V3_ADDR_TYPE_REDIST, REDISTRIBUTORS)];
    let gic = device(&machine.vm, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, &addresses);
    let service = its(&machine);
    boot_counting(&machine, &vcpu);
    set_up_messages(&machine, &gic, &service);
    let vgic = Vgic::new(gic, &[vcpu.mpidr().unwrap()]).unwrap().with_its(service);
    let guest = vcpu.spawn("vcpu").unwrap();
    wait_for(&machine, OWN, 10);
    send(&machine, 0);
    wait_for(&machine, MESSAGE, 1);
    (machine, stop(guest), vgic)
}

/// A message that is pending is taken in another machine, and others reach it there.
fn messages_go_to_another_machine() {
    let (machine, vcpu, vgic) = with_messages();
    send(&machine, 1);
    vgic.stop().unwrap();
    let state = vgic.save().unwrap();
    let next = Machine::new(RAM);
    copy_memory(&machine, &next);
    let mut copy = next.vcpu();
    let there = controller(&next, &[&copy]).with_its(its(&next));
    there.restore(&state).unwrap();
    copy.restore(&vcpu.save().unwrap()).unwrap();
    same(&there.save().unwrap(), &state);
    assert_eq!(taken(&next, MESSAGE + 1), 0);
    let guest = copy.spawn("copy").unwrap();
    wait_for(&next, MESSAGE + 1, 1);
    send(&next, 0);
    wait_for(&next, MESSAGE, 2);
    stop(guest);
    assert_eq!((taken(&next, MESSAGE), taken(&next, MESSAGE + 1)), (2, 1));
    // In place, with the tables that are in memory.
    let mut vcpu = vcpu;
    let of_vcpu = vcpu.save().unwrap();
    let memory = Machine::new(RAM);
    copy_memory(&machine, &memory);
    let guest = vcpu.spawn("vcpu").unwrap();
    wait_for(&machine, MESSAGE + 1, 1);
    vcpu = stop(guest);
    copy_memory(&memory, &machine);
    vgic.restore(&state).unwrap();
    vcpu.roll_back(&of_vcpu, RollBack::Now).unwrap();
    let guest = vcpu.spawn("vcpu").unwrap();
    wait_for(&machine, MESSAGE + 1, 1);
    send(&machine, 0);
    wait_for(&machine, MESSAGE, 2);
    stop(guest);
}

/// The controller writes its tables without any vCPU: these pages are logged, too.
fn tables_are_written_pages() {
    let (machine, _vcpu, vgic) = with_messages();
    let page = machine.block.page_size().bytes();
    let mut log = machine.memory.claim_log(machine.ram, DirtyClient::MIGRATION).unwrap();
    let mut mirror = vec![0; usize::try_from(RAM).unwrap()];
    log.snapshot_and_clear(0..RAM).unwrap().commit();
    machine.block.read(0, &mut mirror).unwrap();
    send(&machine, 1);
    vgic.stop().unwrap();
    let written = log.snapshot_and_clear(0..RAM).unwrap().commit();
    for run in written.runs() {
        let bytes =
            usize::try_from(run.start * page).unwrap()..usize::try_from(run.end * page).unwrap();
        machine.block.read(run.start * page, &mut mirror[bytes]).unwrap();
    }
    let mut now = vec![0; usize::try_from(RAM).unwrap()];
    machine.block.read(0, &mut now).unwrap();
    let differs = now.iter().zip(&mirror).position(|(now, mirror)| now != mirror);
    assert_eq!(differs, None, "a page that the controller wrote is lost");
    // It has written something.
    assert!([EVENTS, PENDING].iter().any(|at| written.pages().any(|n| n == at / page)));
}

fn a_controller_of_others_is_refused() {
    let machine = Machine::new(RAM);
    let (one, other) = (machine.vcpu(), machine.vcpu());
    let two = controller(&machine, &[&one, &other]);
    let there = Machine::new(RAM);
    let single = there.vcpu();
    let vgic = controller(&there, &[&single]);
    let refused = vgic.restore(&two.save().unwrap()).unwrap_err();
    assert!(matches!(refused, KvmError::Chip { part: "interrupt controller", .. }), "{refused}");
    let state = serde_json::to_value(vgic.save().unwrap()).unwrap();
    for broken in [serde_json::json!(null), serde_json::json!([]), serde_json::json!([255])] {
        for part in state.as_object().unwrap().keys() {
            let mut state = state.clone();
            state[part] = broken.clone();
            if let Ok(state) = serde_json::from_value::<VgicState>(state) {
                let _ = vgic.restore(&state);
            }
        }
    }
    vgic.restore(&serde_json::from_value(state).unwrap()).unwrap();
}
