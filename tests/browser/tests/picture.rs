//! The picture is the one that was defined, and a refresh costs what has changed.

use browser::layout::FRAME;
use browser::{Computer, Key, Scene};
use display_vga::Rect;
use proptest::prelude::*;

/// A computer whose guest has drawn its first picture and waits for the next frame.
fn computer() -> Computer {
    let mut computer = Computer::new().unwrap();
    computer.run_for(FRAME);
    computer.refresh().unwrap();
    assert_eq!(frames(&computer), 0);
    computer
}

/// How many frames the guest has drawn after its first picture.
fn frames(computer: &Computer) -> u64 {
    computer.machine().hart(0).state.x.get(rv64::assemble::reg::S0)
}

fn next_frame(computer: &mut Computer) {
    let before = frames(computer);
    computer.run_for(FRAME);
    assert_eq!(frames(computer), before + 1);
    computer.refresh().unwrap();
}

fn assert_shows(computer: &Computer, scene: &Scene) {
    let canvas = computer.canvas();
    assert_eq!(canvas.size(), [640, 480]);
    let places = (0..480).flat_map(|y| (0..640).map(move |x| (x, y)));
    for ((x, y), pixel) in places.zip(canvas.bytes().chunks_exact(4)) {
        let wanted = scene.pixel(x, y) << 8 | 0xff;
        assert_eq!(pixel, wanted.to_be_bytes(), "column {x} of line {y} in {scene:?}");
    }
}

#[test]
fn each_frame_is_the_one_that_was_defined() {
    let (mut computer, mut scene) = (computer(), Scene::default());
    assert_shows(&computer, &scene);
    // Far enough for the ball to return from all edges.
    let mut velocities = Vec::new();
    for _ in 0..450 {
        next_frame(&mut computer);
        let before = scene.velocity;
        scene.step(&[]);
        if scene.velocity != before || scene.ball[0] % 16 == 0 {
            assert_shows(&computer, &scene);
            velocities.push(scene.velocity);
        }
    }
    for edge in 0..2 {
        assert!([-1, 1].iter().all(|sign| velocities.iter().any(|v| v[edge].signum() == *sign)));
    }
}

#[test]
fn keys_move_the_lens_while_they_are_down() {
    let (mut computer, mut scene) = (computer(), Scene::default());
    let mut down = Vec::new();
    let start = scene.lens;
    for (key, is_down, frames) in [
        (Key::Right, true, 3),
        (Key::Down, true, 2),
        (Key::Right, false, 4),
        (Key::Up, true, 2), // both at once
        (Key::Down, false, 70),
        (Key::Up, false, 1),
    ] {
        computer.key(key as u32, is_down).unwrap();
        down.retain(|other| *other != key);
        if is_down {
            down.push(key);
        }
        for _ in 0..frames {
            next_frame(&mut computer);
            scene.step(&down);
        }
        assert_shows(&computer, &scene);
    }
    assert_eq!(scene.lens, [start[0] + 5 * 4, 0], "at the upper edge");

    // Pressed and released within a frame, and other keys.
    for (key, is_down) in [(Key::Left as u32, true), (Key::Left as u32, false), (0x1e, true)] {
        computer.key(key, is_down).unwrap();
    }
    next_frame(&mut computer);
    scene.step(&[Key::Left]);
    next_frame(&mut computer);
    scene.step(&[]);
    assert_shows(&computer, &scene);
}

#[test]
fn a_refresh_without_a_change_redraws_nothing() {
    let mut computer = computer();
    assert_eq!(computer.refresh().unwrap().damage, []);
    computer.run_for(FRAME / 2);
    assert_eq!(frames(&computer), 1);
    computer.refresh().unwrap();
    // The ball's, before and after it has moved, and no more.
    let around = Rect { x: 96, y: 64, width: 48 + 3, height: 48 + 2 };
    let refresh = computer.last();
    assert!(!refresh.damage.is_empty());
    for area in &refresh.damage {
        let (right, bottom) = (area.x + area.width, area.y + area.height);
        assert!(area.x >= around.x && right <= around.x + around.width, "{area:?}");
        assert!(area.y >= around.y && bottom <= around.y + around.height, "{area:?}");
    }
    let margin = 2 * 2; // lines that the guest writes above and below
    assert!(refresh.pages <= u64::from(around.height + margin) + 1, "{} pages", refresh.pages);

    let instructions = computer.instructions();
    computer.run_for(FRAME / 4);
    assert_eq!(computer.instructions(), instructions, "the guest sleeps");
    let refresh = computer.refresh().unwrap();
    assert_eq!((refresh.damage.as_slice(), refresh.lines, refresh.pages), (&[][..], 0, 0));
}

#[derive(Clone, Debug)]
enum Action {
    Run(u64),
    Key(usize, bool),
    Refresh,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => (0..FRAME * 2).prop_map(Action::Run),
        1 => (0..200u64).prop_map(Action::Run),
        2 => (0..4usize, any::<bool>()).prop_map(|(key, is_down)| Action::Key(key, is_down)),
        3 => Just(Action::Refresh),
    ]
}

/// Copies what is damaged, as the page does.
fn put(copy: &mut Vec<u8>, computer: &Computer) {
    let canvas = computer.canvas();
    let [width, _] = canvas.size();
    copy.resize(canvas.bytes().len(), 0);
    for area in &computer.last().damage {
        for y in area.y..area.y + area.height {
            let start = (y * width + area.x) as usize * 4;
            let line = start..start + area.width as usize * 4;
            copy[line.clone()].copy_from_slice(&canvas.bytes()[line]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever the guest was doing when it was looked at.
    #[test]
    fn the_damage_makes_of_the_last_picture_this_one(
        actions in prop::collection::vec(action(), 1..30),
    ) {
        let mut computer = Computer::new().unwrap();
        let mut copy = Vec::new();
        for action in actions.into_iter().chain([Action::Refresh]) {
            match action {
                Action::Run(ticks) => drop(computer.run_for(ticks)),
                Action::Key(key, is_down) => {
                    let _ = computer.key(Key::ALL[key] as u32, is_down); // some are too many
                }
                Action::Refresh => {
                    computer.refresh().unwrap();
                    put(&mut copy, &computer);
                    prop_assert!(copy == computer.canvas().bytes());
                    let Some(whole) = computer.vga().screenshot().unwrap() else { continue };
                    let whole: Vec<u8> = whole.bytes().chunks_exact(4)
                        .flat_map(|pixel| [pixel[2], pixel[1], pixel[0], 0xff]).collect();
                    prop_assert!(copy == whole);
                }
            }
        }
    }
}
