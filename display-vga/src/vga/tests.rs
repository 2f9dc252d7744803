//! The registers as drivers use them, and as they should not.

use super::*;
use proptest::prelude::*;

fn vga() -> Arc<Vga> {
    Vga::new("vram", 2 << 20).unwrap()
}

fn set(vga: &Vga, register: u16, value: u16) {
    vga.write(0, 2, register.into());
    vga.write(1, 2, value.into());
}

fn get(vga: &Vga, register: u16) -> u64 {
    vga.write(0, 2, register.into());
    vga.read(1, 2)
}

#[test]
fn a_driver_sets_a_mode_through_the_ports() {
    let vga = vga();
    assert_eq!(get(&vga, ID), 0xb0c5);
    assert_eq!(get(&vga, VIDEO_MEMORY_64K), 32);
    vga.vram().write(4, &[9]).unwrap();
    for (register, value) in [(X_RESOLUTION, 640), (Y_RESOLUTION, 480), (BITS_PER_PIXEL, 32)] {
        set(&vga, register, value);
    }
    assert_eq!(vga.mode(), Ok(None));
    set(&vga, ENABLE, ENABLED | LINEAR_FRAME_BUFFER);
    let mode = vga.mode().unwrap().unwrap();
    assert_eq!((mode.width(), mode.height(), mode.visible()), (640, 480, 0..640 * 480 * 4));
    let mut byte = [9];
    vga.vram().read(4, &mut byte).unwrap();
    assert_eq!(byte, [0]);
    assert_eq!(get(&vga, VIRTUAL_HEIGHT), (2 << 20) / (640 * 4));
    set(&vga, Y_OFFSET, 100);
    assert_eq!(vga.mode().unwrap().unwrap().visible().start, 100 * 640 * 4);
    set(&vga, ENABLE, 0);
    assert_eq!(vga.mode(), Ok(None));
}

#[test]
fn the_geometry_may_change_while_it_is_shown() {
    let vga = vga();
    set(&vga, ENABLE, ENABLED);
    assert_eq!(vga.mode(), Err(VbeError::Geometry { width: 0, height: 0 }));
    for (register, value) in [(BITS_PER_PIXEL, 32), (X_RESOLUTION, 320), (Y_RESOLUTION, 200)] {
        set(&vga, register, value);
    }
    let mode = vga.mode().unwrap().unwrap();
    assert_eq!((mode.width(), mode.height()), (320, 200));
    assert_eq!(get(&vga, VIRTUAL_WIDTH), 320);
}

#[test]
fn offsets_that_no_longer_fit_are_reset() {
    let vga = Vga::new("vram", 4 << 20).unwrap();
    vga.set_mode(800, 600, 32).unwrap();
    set(&vga, Y_OFFSET, 448);
    assert_eq!(get(&vga, Y_OFFSET), 448);
    set(&vga, VIRTUAL_WIDTH, 1024);
    assert_eq!([get(&vga, VIRTUAL_WIDTH), get(&vga, Y_OFFSET)], [1024, 0]);
    let mode = vga.mode().unwrap().unwrap();
    assert_eq!((mode.line(1).start, mode.visible().start), (4096, 0));
    set(&vga, Y_OFFSET, u16::MAX);
    assert_eq!(get(&vga, Y_OFFSET), 0);
}

#[test]
fn both_data_ports_work_on_a_bus() {
    let map = memory_region::MemoryMap::new();
    let vga = vga();
    let ports = map
        .update(|map| {
            let ports = map.container("ports", 1 << 16)?;
            let registers = map.mmio("vbe", Vga::PORTS, vga.clone())?;
            map.place(ports, Vga::FIRST_PORT, registers)?;
            Ok(ports)
        })
        .unwrap();
    let bus = map.address_space("io", ports).unwrap();
    for data in [0x1cf, 0x1d0] {
        bus.write(0x1ce, &X_RESOLUTION.to_le_bytes()).unwrap();
        bus.write(data, &[0x80, 0x02]).unwrap();
        let mut value = [0; 2];
        bus.read(data, &mut value).unwrap();
        assert_eq!(value, [0x80, 0x02], "port {data:#x}");
        bus.write(data, &[0, 0]).unwrap();
    }
}

#[test]
fn capabilities_are_read_in_place_of_the_geometry() {
    let vga = vga();
    set(&vga, ENABLE, GET_CAPABILITIES);
    assert_eq!(
        [get(&vga, X_RESOLUTION), get(&vga, Y_RESOLUTION), get(&vga, BITS_PER_PIXEL)],
        [16000, 12000, 32]
    );
}

#[test]
fn a_mode_larger_than_video_memory_is_refused() {
    let vga = vga();
    vga.set_mode(640, 480, 32).unwrap();
    let before = vga.mode();
    let refused = vga.set_mode(1024, 768, 32).unwrap_err();
    assert!(matches!(refused, VbeError::TooLarge { needed: 3_145_728, vram: 2_097_152, .. }));
    assert_eq!(vga.mode(), before);

    // A guest that sets it all the same sees nothing, and does no harm.
    set(&vga, ENABLE, 0);
    set(&vga, X_RESOLUTION, 1024);
    set(&vga, Y_RESOLUTION, 768);
    set(&vga, ENABLE, ENABLED);
    assert_eq!(vga.mode(), Err(refused));
    assert_eq!(vga.picture().unwrap(), None);
}

proptest! {
    /// Any writes at any offset and size: no panic, and never a byte out of memory.
    #[test]
    fn no_sequence_of_writes_shows_what_is_not_there(
        writes in prop::collection::vec((0..4u64, prop::sample::select(vec![1usize, 2, 4, 8]),
            prop_oneof![0..16u64, any::<u64>(), Just(640), Just(32), Just(1)]), 0..60),
    ) {
        let vga = vga();
        for (offset, size, value) in writes {
            vga.write(offset, size, value);
            vga.read(offset, size);
            if let Ok(Some(mode)) = vga.mode() {
                prop_assert!(mode.visible().end <= vga.vram().len());
            }
        }
    }
}
