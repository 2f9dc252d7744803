//! The memory map of a PC, as it is printed and as it answers.

use std::sync::Arc;

use machines::frame_port::FramePort;
use machines::pc::{HOLE, ISA_BIOS, Pam, Pc};
use memory_region::AccessError;
use ram_block::DirtyClient;

fn pc() -> Pc {
    Pc::new(1 << 32, Arc::new(FramePort::default())).unwrap()
}

#[test]
fn the_tree_is_printed_as_it_was_built() {
    let pc = pc();
    pc.set_pam(1, Pam::ReadOnly).unwrap();
    let _log = pc.memory.claim_log(pc.vram_region, DirtyClient::VGA).unwrap();
    assert_eq!(pc.memory.mtree().to_string(), include_str!("pc_map.txt"));
}

#[test]
fn the_flat_view_is_printed_as_processors_see_it() {
    let pc = pc();
    pc.set_pam(1, Pam::ReadOnly).unwrap();
    pc.set_pam(2, Pam::Ram).unwrap();
    let _log = pc.memory.claim_log(pc.vram_region, DirtyClient::VGA).unwrap();
    // A bus master's space is the same; it is printed once.
    let master =
        pc.memory.transaction(|map| map.alias("bus master", pc.system, 0, 1 << 48)).unwrap();
    let _master = pc.memory.address_space("ide", master).unwrap();
    assert_eq!(
        pc.memory.flat_views().to_string(),
        "\
FlatView #0
 AS \"memory\", root: system
 AS \"ide\", root: bus master
  0000000000000000-000000000009ffff (prio 0, ram): ram [640 KiB]
  00000000000a0000-00000000000a7fff (prio 0, ram): vram @0000000000010000 [32 KiB] log vga
  00000000000a8000-00000000000affff (prio 0, ram): vram @0000000000020000 [32 KiB] log vga
  00000000000b0000-00000000000c7fff (prio 0, ram): ram @00000000000b0000 [96 KiB]
  00000000000c8000-00000000000cffff (prio 0, rom): ram @00000000000c8000 [32 KiB]
  00000000000d0000-00000000000effff (prio 0, ram): ram @00000000000d0000 [128 KiB]
  00000000000f0000-00000000000fffff (prio 0, rom): bios [64 KiB]
  0000000000100000-00000000dfffffff (prio 0, ram): ram @0000000000100000 [3583 MiB]
  00000000e1000000-00000000e1ffffff (prio 0, ram): vram [16 MiB] log vga
  00000000e2000000-00000000e200ffff (prio 0, i/o): vga-mmio [64 KiB]
  00000000ffff0000-00000000ffffffff (prio 0, rom): bios [64 KiB]
  0000000100000000-000000011fffffff (prio 0, ram): ram @00000000e0000000 [512 MiB]

"
    );
}

#[test]
fn segments_show_rom_then_ram_then_ram_that_is_kept() {
    let pc = pc();
    let byte = |address| {
        let mut byte = [0];
        pc.space.read(address, &mut byte).unwrap();
        byte[0]
    };
    pc.bios.write(0x10, &[0xb1]).unwrap();
    let at = ISA_BIOS + 0x10;
    assert_eq!([at, (1 << 32) - 0x1_0000 + 0x10].map(byte), [0xb1, 0xb1]);
    assert!(matches!(pc.space.write(at, &[1]), Err(AccessError::ReadOnly { .. })));
    // The BIOS copies itself into the RAM behind it, then has it kept.
    pc.set_pam(3, Pam::Ram).unwrap();
    assert_eq!(byte(at), 0);
    pc.space.write(at, &[0x5a]).unwrap();
    pc.set_pam(3, Pam::ReadOnly).unwrap();
    assert!(matches!(pc.space.write(at, &[2]), Err(AccessError::ReadOnly { .. })));
    assert_eq!(byte(at), 0x5a);
    pc.set_pam(3, Pam::Pci).unwrap();
    assert_eq!(byte(at), 0xb1);
    // RAM behind the hole is above 4 GiB; the hole has none.
    pc.space.write(1 << 32, &[3]).unwrap();
    let mut back = [0];
    pc.ram.read(HOLE, &mut back).unwrap();
    assert_eq!(back, [3]);
    assert!(matches!(pc.space.write(HOLE, &[3]), Err(AccessError::Unassigned { .. })));
}
