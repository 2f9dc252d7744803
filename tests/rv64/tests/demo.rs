//! The demonstration's picture is the one that was defined, pixel by pixel, and costs what changes.

use std::time::Instant;

use rv64::{Machine, Outcome, Screen, demo, layout};

#[path = "../../machines/src/deadline.rs"]
mod deadline;

fn machine(frames: u64) -> Machine {
    let machine = Machine::new(1 << 20, 1).unwrap();
    machine.load(0, &demo::guest(frames)).unwrap();
    machine
}

fn assert_shows(screen: &Screen, frame: u64) {
    let places = (0..layout::HEIGHT).flat_map(|y| (0..layout::WIDTH).map(move |x| (x, y)));
    for ((x, y), pixel) in places.zip(screen.pixels()) {
        assert_eq!(*pixel, demo::pixel(frame, x, y), "column {x} of line {y} in frame {frame}");
    }
}

#[test]
fn each_frame_is_drawn_where_it_changes() {
    let mut machine = machine(20);
    let mut screen = Screen::new(&machine).unwrap();
    let mut printed = String::new();
    let (mut frames, mut lines) = (0, 0);
    loop {
        let outcome = machine.run(100);
        let output = machine.board().uart.take_output();
        printed.push_str(std::str::from_utf8(&output).unwrap());
        let shown = printed.matches('\n').count() as u64 - u64::from(printed.contains("rv64\n"));
        if shown > frames {
            let drawn = screen.refresh().unwrap();
            lines += if frames > 0 { drawn } else { 0 };
            assert_shows(&screen, frames);
            frames = shown;
        }
        if outcome == Outcome::Finished(0) {
            break;
        }
        assert_eq!(outcome, Outcome::Steps);
    }
    assert_eq!((frames, printed), (20, demo::text(20)));
    // The square's, before and after it moves, and those that share pages with these.
    assert!((19 * 50..19 * 60).contains(&lines), "{lines} lines drawn");
    assert_eq!(screen.refresh().unwrap(), 0);
}

#[test]
fn on_a_thread_of_its_own_it_does_the_same() {
    let mut machine = machine(5);
    let mut screen = Screen::new(&machine).unwrap();
    let deadline = Instant::now() + deadline::seconds(60);
    assert_eq!(machine.run_on_threads(u64::MAX, deadline), Outcome::Finished(0));
    screen.refresh().unwrap();
    assert_shows(&screen, 4);
    assert_eq!(machine.board().uart.take_output(), demo::text(5).as_bytes());
}
