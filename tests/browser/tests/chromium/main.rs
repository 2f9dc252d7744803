//! The page in a browser: its canvas is, pixel by pixel, what a native run with the same keys at
//! the same frames draws, and each frame puts no more than what has changed.
//!
//! Needs Chromium and the target for WebAssembly; `REQUIRE_CHROMIUM=1` makes it an error if one of
//! them is missing.

mod devtools;
mod page;
mod picture;
mod server;

use std::process::ExitCode;

use browser::{Computer, Key};
use serde_json::json;
use support::Need;

use page::Page;
use picture::{Native, differences};

#[path = "../../../machines/src/deadline.rs"]
mod deadline;
#[path = "../../../rv64/tests/support/mod.rs"]
mod support;
#[path = "../../serve/target.rs"]
mod target;

fn main() -> ExitCode {
    let missing = support::cannot_run(devtools::CHROMIUM).or_else(target::missing);
    let need = Need { missing, required_by: "REQUIRE_CHROMIUM" };
    support::run(
        &[("a_pixel_that_differs_is_found", a_pixel_that_differs_is_found)],
        &need,
        &[
            ("the_canvas_shows_what_a_native_run_draws", canvas_and_native_run),
            ("a_frame_puts_what_it_has_changed", puts_of_a_frame),
            ("a_canvas_that_differs_is_found", a_canvas_that_differs_is_found),
            ("bad_calls_are_answered", bad_calls_are_answered),
            ("keys_that_are_held_or_left_are_let_go", keys_that_are_held_or_left),
            ("no_key_is_lost_that_the_guest_has_no_room_for", keys_without_room),
            ("a_page_without_its_module_says_so", a_page_without_its_module),
        ],
    )
}

fn a_pixel_that_differs_is_found() {
    let mut native = Native::new();
    native.go(1);
    let mut other = native.picture();
    assert_eq!(differences(&other, &native.picture()), None);
    *other.pixel(17, 300) ^= 1;
    let found = differences(&other, &native.picture()).unwrap();
    assert!(found.contains("1 of 307200 pixels") && found.contains("17, 300"), "{found}");
    other.size = [480, 640];
    differences(&other, &native.picture()).unwrap();
}

/// Both have run the same frames: the pictures are the same, and so is what was executed.
fn assert_same(page: &mut Page, native: &Native) {
    let canvas = page.canvas();
    assert_eq!(differences(&canvas, &native.picture()), None, "the canvas and the native run");
    assert_eq!(differences(&canvas, &native.png()), None, "the canvas and the PNG file");
    assert_eq!(page.number("vm.instructions()"), native.computer.instructions());
}

fn canvas_and_native_run() {
    let (mut page, mut native) = (Page::open(30), Native::new());
    native.go(30);
    assert_same(&mut page, &native);
    assert_eq!(native.scene.lens, [296, 216]);

    // Keys that are held, two at a time, and one that is pressed and released within a frame.
    let keys: [(&[(Key, bool)], u64); 5] = [
        (&[(Key::Right, true)], 12),
        (&[(Key::Up, true)], 7),
        (&[(Key::Right, false)], 5),
        (&[(Key::Up, false), (Key::Left, true), (Key::Left, false)], 3),
        (&[], 40),
    ];
    for (keys, frames) in keys {
        for &(key, is_down) in keys {
            page.key(key, is_down);
            native.key(key, is_down);
        }
        page.go(frames);
        native.go(frames);
        assert_same(&mut page, &native);
    }
    assert_eq!(native.scene.lens, [296 + 4 * (12 + 7 - 1), 216 - 4 * (7 + 5)]);
    assert_eq!(page.number("figures.keys"), 6);
    println!("{}", page.evaluate("document.querySelector('#figures').textContent").unwrap());
}

fn puts_of_a_frame() {
    let mut page = Page::open(2);
    let whole = 640 * 480;
    let first: u64 = page.puts().iter().sum();
    assert!(first >= whole, "{first} pixels of the first picture");
    // The ball, before and after it moves by three columns and two lines.
    page.go(20);
    let puts: u64 = page.puts().iter().sum();
    let ball = (48 + 3) * (48 + 2);
    assert!((20..=20 * ball).contains(&puts), "{puts} pixels in 20 frames");
    page.key(Key::Down, true);
    page.go(10);
    let puts: u64 = page.puts().iter().sum();
    let lens = 48 * (48 + 4);
    assert!((10 * 48..=10 * (ball + lens)).contains(&puts), "{puts} pixels in 10 frames");
    println!("{} pixels of {whole} in a frame of ball and lens", puts / 10);
}

fn a_canvas_that_differs_is_found() {
    let (mut page, mut native) = (Page::open(3), Native::new());
    native.go(3);
    assert_same(&mut page, &native);
    page.evaluate("context.fillStyle = '#123456'; context.fillRect(400, 123, 1, 1)").unwrap();
    let found = differences(&page.canvas(), &native.picture()).unwrap();
    assert!(found.contains("1 of 307200 pixels") && found.contains("400, 123"), "{found}");
    // A key that only one of both has.
    native.key(Key::Left, true);
    page.go(1);
    native.go(1);
    differences(&page.canvas(), &native.picture()).unwrap();
}

fn bad_calls_are_answered() {
    let mut page = Page::open(1);
    let calls = "[vm.boot(), vm.run(-1), vm.run(1e9), vm.key(0, 1), vm.key(128, 1), \
        vm.key(72, 2), vm.key(-1, 0), vm.key(undefined, {}), vm.refresh()]";
    let answers = json!([-2, -3, -3, -3, -3, -3, -3, -3, 0]);
    assert_eq!(page.evaluate(calls).unwrap(), answers);
    // A machine that is not switched on.
    let calls = "WebAssembly.instantiateStreaming(fetch('browser.wasm')).then(module => {
        const vm = module.instance.exports;
        return [vm.run(1), vm.refresh(), vm.key(72, 1), vm.pixels(), vm.damage(), vm.width(),
            vm.instructions(), vm.boot(), vm.run(0), vm.refresh(), vm.width()];
    })";
    let answers = json!([-1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(page.evaluate(calls).unwrap(), answers);
    let many = "Array.from({ length: 70 }, () => vm.key(72, 0)).filter(answer => answer === -4)";
    assert_eq!(page.evaluate(many).unwrap().as_array().unwrap().len(), 6);
    page.go(1);
    assert_eq!(page.evaluate("vm.key(72, 0)").unwrap(), json!(0));
    let status = "fetch('nothing').then(response => response.status)";
    assert_eq!(page.evaluate(status).unwrap(), json!(404));
    for method in ["HEAD", "POST", "DELETE"] {
        let status = format!("fetch('/', {{ method: '{method}' }}).then(answer => answer.status)");
        assert_eq!(page.evaluate(&status).unwrap(), json!(405), "{method}");
    }
}

/// A key that repeats is pressed once; who goes elsewhere with a key held, and releases it there,
/// has released it here. The browser does nothing of its own with the page's keys, and all with
/// others.
fn keys_that_are_held_or_left() {
    let (mut page, mut native) = (Page::open(2), Native::new());
    native.go(2);
    page.key(Key::Left, true);
    page.key(Key::Up, true);
    native.key(Key::Left, true);
    native.key(Key::Up, true);
    let is_prevented = |kind: &str, code: &str| {
        format!(
            "!dispatchEvent(new KeyboardEvent('{kind}', \
                {{ code: '{code}', repeat: '{kind}' === 'keydown', cancelable: true }}))"
        )
    };
    assert_eq!(page.evaluate(&is_prevented("keydown", "ArrowLeft")).unwrap(), json!(true));
    assert_eq!(page.evaluate(&is_prevented("keydown", "KeyA")).unwrap(), json!(false));
    let back = "!dispatchEvent(new KeyboardEvent('keydown', \
        { code: 'ArrowDown', altKey: true, cancelable: true }))";
    assert_eq!(page.evaluate(back).unwrap(), json!(false));
    assert_eq!(page.number("figures.keys"), 2);
    page.go(5);
    native.go(5);
    assert_same(&mut page, &native);

    page.evaluate("dispatchEvent(new Event('blur'))").unwrap();
    native.key(Key::Left, false);
    native.key(Key::Up, false);
    assert_eq!(page.number("figures.keys"), 4);
    page.go(5);
    native.go(5);
    assert_same(&mut page, &native);
    // Nothing is held any more.
    page.evaluate("dispatchEvent(new Event('blur'))").unwrap();
    assert_eq!(page.number("figures.keys"), 4);
}

fn a_page_without_its_module() {
    let mut page = Page::open(1);
    page.reload_with("globalThis.fetch = async () => new Response('gone', { status: 404 });");
    deadline::wait_until("what is wrong", || page.figures().contains("Error"));
    page.reload_with("globalThis.fetch = async () => { throw new TypeError('no server'); };");
    deadline::wait_until("what is wrong", || page.figures().contains("no server"));
}

/// More keys than the guest takes in a frame, the last of which is a release.
fn keys_without_room() {
    let (mut page, mut native) = (Page::open(2), Native::new());
    native.go(2);
    let mut keys = vec![(Key::Left, true)];
    keys.extend([(Key::Up, true), (Key::Up, false)].repeat(40));
    keys.push((Key::Left, false));
    for (key, is_down) in &keys {
        let kind = if *is_down { "keydown" } else { "keyup" };
        let event = format!("new KeyboardEvent('{kind}', {{ code: 'Arrow{key:?}' }})");
        page.evaluate(&format!("dispatchEvent({event})")).unwrap();
    }
    for keys in keys.chunks(Computer::MAX_UNREAD) {
        keys.iter().for_each(|&(key, is_down)| native.key(key, is_down));
        page.go(1);
        native.go(1);
        assert_same(&mut page, &native);
    }
    page.go(5);
    native.go(5);
    assert_same(&mut page, &native);
}
