use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;

/// A guest that counts for how long it was held, and how often.
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

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen within 30 s");
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn it_stands_still_for_its_part_of_the_time() {
    for percent in [20, 50, 80, 95] {
        let (guest, throttle) = throttled();
        throttle.set(percent);
        let begin = Instant::now();
        wait_until("ten slices", || guest.pauses.load(Ordering::SeqCst) > 10);
        let (stood, time) = (throttle.stood_still(), begin.elapsed());
        let part = 100.0 * stood.as_secs_f64() / time.as_secs_f64();
        let wanted = f64::from(percent);
        // The last pause may have just begun, or be over.
        let slack = wanted / 10.0 + 3.0;
        assert!((part - wanted).abs() <= slack, "{percent} %: {stood:?} of {time:?}, {part} %");
    }
}

#[test]
fn it_takes_effect_within_a_slice_even_in_the_longest_pause() {
    let (guest, throttle) = throttled();
    throttle.set(200);
    assert_eq!(throttle.percent(), 99);
    wait_until("a pause", || guest.held.load(Ordering::SeqCst));
    // 990 ms are left of it.
    let begin = Instant::now();
    throttle.set(0);
    wait_until("the guest to go on", || !guest.held.load(Ordering::SeqCst));
    let took = begin.elapsed();
    assert!(took < Duration::from_millis(500), "{took:?}");

    throttle.set(99);
    wait_until("a pause", || guest.held.load(Ordering::SeqCst));
    let begin = Instant::now();
    drop(throttle);
    let took = begin.elapsed();
    assert!(!guest.held.load(Ordering::SeqCst));
    assert!(took < Duration::from_millis(500), "{took:?}");
}

#[test]
fn off_it_asks_for_no_pause() {
    let (guest, throttle) = throttled();
    throttle.set(50);
    wait_until("a pause", || guest.pauses.load(Ordering::SeqCst) > 0);
    throttle.set(0);
    // One may have been asked for at this very moment.
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
    wait_until("a pause", || throttle.stood_still() > Duration::ZERO);
    assert_eq!(throttle.failures(), 3);
}

#[test]
fn a_pause_that_panics_takes_nobody_along() {
    let throttle =
        Throttle::new(|| -> Result<(), io::Error> { panic!("as the test wants it") }).unwrap();
    throttle.set(50);
    wait_until("its end", || throttle.thread.as_ref().is_some_and(JoinHandle::is_finished));
    throttle.set(0);
    assert_eq!(throttle.stood_still(), Duration::ZERO);
}
