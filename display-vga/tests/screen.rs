//! The screen against a full redraw, and when something fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use display_vga::{RefreshError, Screen, Surface, Vga};
use memory_region::{
    AddressSpace, ListenerError, MapError, MemoryListener, MemoryMap, MmioDevice, RegionId,
    Section, ViewChange,
};
use proptest::prelude::*;

const VRAM: u64 = 4 << 20;
const BASE: u64 = 0xe000_0000;

struct Parts {
    memory: Arc<MemoryMap>,
    space: Arc<AddressSpace>,
    vga: Arc<Vga>,
    vram: RegionId,
}

impl Parts {
    fn new() -> Self {
        let memory = MemoryMap::new();
        let vga = Vga::new("vram", VRAM).unwrap();
        let (system, vram) = memory
            .update(|map| {
                let system = map.container("system", 1 << 64)?;
                let vram = map.ram("vram", vga.vram().clone())?;
                map.place(system, BASE, vram)?;
                Ok((system, vram))
            })
            .unwrap();
        let space = memory.address_space("memory", system).unwrap();
        Self { memory, space, vga, vram }
    }

    fn screen(&self) -> Screen {
        Screen::new(self.memory.clone(), self.vga.clone(), self.vram).unwrap()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Store { offset: u64, bytes: Vec<u8> },
    Register { register: u16, value: u16 },
    Mode { width: u16, height: u16 },
    Refresh,
}

fn step() -> impl Strategy<Value = Step> {
    let offset = prop_oneof![4 => 0..400_000u64, 1 => 0..VRAM - 64];
    prop_oneof![
        8 => (offset, prop::collection::vec(any::<u8>(), 1..64))
            .prop_map(|(offset, bytes)| Step::Store { offset, bytes }),
        2 => (prop::sample::select(vec![1u16, 2, 4, 6, 8, 9]), prop_oneof![0..400u16, Just(0x41), Just(0xc1)])
            .prop_map(|(register, value)| Step::Register { register, value }),
        1 => (1..300u16, 1..300u16).prop_map(|(width, height)| Step::Mode { width, height }),
        5 => Just(Step::Refresh),
    ]
}

proptest! {
    /// After any stores, register writes and modes the picture is a full redraw's, and
    /// every pixel that changed is in the damage.
    #[test]
    fn a_refresh_is_a_full_redraw(steps in prop::collection::vec(step(), 1..60)) {
        let parts = Parts::new();
        let mut screen = parts.screen();
        parts.vga.set_mode(320, 200, 32).unwrap();
        let mut before = Surface::default();
        for step in steps.into_iter().chain([Step::Refresh]) {
            match step {
                Step::Store { offset, bytes } => parts.space.write(BASE + offset, &bytes).unwrap(),
                Step::Register { register, value } => {
                    parts.vga.write(0, 2, register.into());
                    parts.vga.write(1, 2, value.into());
                }
                Step::Mode { width, height } => parts.vga.set_mode(width, height, 32).unwrap(),
                Step::Refresh => {
                    let refresh = screen.refresh().unwrap().clone();
                    let now = screen.surface();
                    match parts.vga.picture().unwrap() {
                        Some(picture) => prop_assert!(*now == picture, "not the picture"),
                        None => prop_assert!(now.bytes().iter().all(|byte| *byte == 0), "not blank"),
                    }
                    let same_size = before.width() == now.width() && before.height() == now.height();
                    if same_size && !refresh.full {
                        for y in 0..now.height() {
                            for x in 0..now.width() {
                                let changed = before.pixel(x, y) != now.pixel(x, y);
                                prop_assert!(!changed || refresh.damage.iter().any(|d| d.contains(x, y)));
                            }
                        }
                    } else if now.height() > 0 {
                        prop_assert_eq!(&refresh.damage, &[now.area()]);
                    }
                    let lines: u32 = refresh.damage.iter().map(|area| area.height).sum();
                    prop_assert_eq!(refresh.lines, lines);
                    before = now.clone();
                }
            }
        }
    }
}

/// An accelerator whose log cannot be read now and then.
struct Fails(AtomicBool);

impl MemoryListener for Fails {
    fn name(&self) -> &str {
        "fails"
    }

    fn commit(&self, _: &ViewChange) -> Result<(), ListenerError> {
        Ok(())
    }

    fn sync(&self, _: &Section) -> Result<(), ListenerError> {
        if self.0.load(Ordering::Relaxed) { Err("no log today".into()) } else { Ok(()) }
    }
}

#[test]
fn a_refresh_that_fails_is_made_up_for() {
    let parts = Parts::new();
    let fails = Arc::new(Fails(false.into()));
    parts.memory.add_listener(&parts.space, fails.clone()).unwrap();
    let mut screen = parts.screen();
    parts.vga.set_mode(64, 48, 32).unwrap();
    screen.refresh().unwrap();

    parts.space.write(BASE + 400, &[1, 2, 3]).unwrap();
    fails.0.store(true, Ordering::Relaxed);
    assert!(matches!(screen.refresh(), Err(RefreshError::Log(MapError::Sync { .. }))));
    fails.0.store(false, Ordering::Relaxed);
    screen.refresh().unwrap();
    assert_eq!(screen.surface().pixel(100 % 64, 100 / 64), [3, 2, 1]);

    // The mode goes off right after a failure: the old picture must go too.
    fails.0.store(true, Ordering::Relaxed);
    assert!(screen.refresh().is_err());
    parts.vga.write(0, 2, 4);
    parts.vga.write(1, 2, 0);
    let refresh = screen.refresh().unwrap().clone();
    assert_eq!(refresh.damage, [screen.surface().area()]);
    assert!(screen.surface().bytes().iter().all(|byte| *byte == 0));
    assert_eq!(screen.refresh().unwrap().damage, []);
}

#[test]
fn a_display_has_one_screen() {
    let parts = Parts::new();
    let first = parts.screen();
    let second = Screen::new(parts.memory.clone(), parts.vga.clone(), parts.vram);
    assert!(matches!(second, Err(RefreshError::Log(MapError::Claimed { .. }))));
    drop(first);
    drop(parts.screen());
    assert!(parts.vga.vram().dirty().enabled().is_empty());

    let other = Vga::new("other", VRAM).unwrap();
    let wrong = Screen::new(parts.memory.clone(), other, parts.vram).unwrap_err();
    assert_eq!(
        wrong.to_string(),
        "The region shows block \"vram\", the display's video memory is \"other\""
    );
}
