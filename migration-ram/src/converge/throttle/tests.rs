use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::test_deadline::wait_until;

/// A guest that counts for how long it was paused, and how often.
#[derive(Default)]
struct Guest {
    held: AtomicBool,
    pauses: AtomicU64,
}

struct Hold(Arc<Guest>);

impl Drop for Hold {
    fn drop(&mut self) {
        assert!(self.0.held.swap(false, Ordering::SeqCst));
    }
}

fn throttled() -> (Arc<Guest>, Throttle) {
    let guest = Arc::<Guest>::default();
    let pause = {
        let guest = guest.clone();
        move || {
            assert!(!guest.held.swap(true, Ordering::SeqCst));
            guest.pauses.fetch_add(1, Ordering::SeqCst);
            Ok::<_, io::Error>(Hold(guest.clone()))
        }
    };
    (guest, Throttle::new(pause).unwrap())
}

#[test]
fn it_stands_still_for_its_part_of_the_time() {
    for percent in [20, 50, 80, 95] {
        let (guest, throttle) = throttled();
        throttle.set(percent);
        // Only if the host scheduled the throttle in time: at most ten slices are charged for a
        // slice that a busy host made longer.
        wait_until("its part of the time", || {
            let pauses = || guest.pauses.load(Ordering::SeqCst);
            let (begin, before, first) = (Instant::now(), throttle.stopped_time(), pauses());
            wait_until("ten slices", || pauses() > first + 10);
            let (stood, time) = (throttle.stopped_time() - before, begin.elapsed());
            let part = 100.0 * stood.as_secs_f64() / time.as_secs_f64();
            let wanted = f64::from(percent);
            // The first and the last pause may be under way, or be over.
            let slack = wanted / 10.0 + 3.0;
            println!("{percent} %: {stood:?} of {time:?}, {part} %");
            (part - wanted).abs() <= slack
        });
    }
}

/// A pause takes 990 ms. On a busy host it may take a while to notice that it ends earlier, but
/// not each time as long as all of it.
#[test]
fn it_takes_effect_within_a_slice_even_in_the_longest_pause() {
    let (guest, throttle) = throttled();
    let held = || guest.held.load(Ordering::SeqCst);
    wait_until("a pause that is made shorter", || {
        throttle.set(200);
        assert_eq!(throttle.percent(), 99);
        wait_until("a pause", held);
        let begin = Instant::now();
        throttle.set(0);
        wait_until("the guest to go on", || !held());
        begin.elapsed() < Duration::from_millis(500)
    });
    drop(throttle);
    wait_until("a pause that ends with its throttle", || {
        let (guest, throttle) = throttled();
        throttle.set(99);
        wait_until("a pause", || guest.held.load(Ordering::SeqCst));
        let begin = Instant::now();
        drop(throttle);
        let took = begin.elapsed();
        assert!(!guest.held.load(Ordering::SeqCst));
        took < Duration::from_millis(500)
    });
}

#[test]
fn off_it_asks_for_no_pause() {
    let (guest, throttle) = throttled();
    throttle.set(50);
    wait_until("a pause", || guest.pauses.load(Ordering::SeqCst) > 0);
    throttle.set(0);
    // One more pause may have been requested at this moment.
    let pauses = guest.pauses.load(Ordering::SeqCst) + 1;
    std::thread::sleep(10 * SLICE);
    assert!(guest.pauses.load(Ordering::SeqCst) <= pauses);
    assert!(!guest.held.load(Ordering::SeqCst));
}

#[test]
fn pauses_that_fail_are_counted_and_tried_again() {
    let tries = Arc::<AtomicU64>::default();
    let throttle = Throttle::new({
        let tries = tries.clone();
        move || match tries.fetch_add(1, Ordering::SeqCst) {
            0..3 => Err(io::Error::other("stuck")),
            _ => Ok(()),
        }
    });
    let throttle = throttle.unwrap();
    throttle.set(50);
    wait_until("a pause", || throttle.stopped_time() > Duration::ZERO);
    assert_eq!(throttle.failures(), 3);
}

#[test]
fn a_pause_that_panics_takes_nobody_along() {
    let throttle =
        Throttle::new(|| -> Result<(), io::Error> { panic!("as the test wants it") }).unwrap();
    throttle.set(50);
    wait_until("its end", || throttle.thread.as_ref().is_some_and(JoinHandle::is_finished));
    throttle.set(0);
    assert_eq!(throttle.stopped_time(), Duration::ZERO);
}
