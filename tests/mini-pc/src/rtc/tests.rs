use proptest::prelude::*;

use super::*;

fn get(rtc: &Rtc, index: usize) -> u8 {
    rtc.write(0, 1, index as u64);
    u8::try_from(rtc.read(1, 1)).unwrap()
}

fn set(rtc: &Rtc, index: usize, value: u8) {
    rtc.write(0, 1, index as u64);
    rtc.write(1, 1, value.into());
}

#[test]
fn the_amount_of_ram_is_where_firmware_looks() {
    let rtc = Rtc::new(3 << 30, 1 << 30, IrqLine::unconnected());
    let word = |at| u16::from_le_bytes([get(&rtc, at), get(&rtc, at + 1)]);
    assert_eq!([word(0x15), word(0x30), word(0x34)], [640, 0xffff, 0xbf00]);
    assert_eq!([get(&rtc, 0x5b), get(&rtc, 0x5c), get(&rtc, 0x5d)], [0, 0x40, 0]);
    let small = Rtc::new(8 << 20, 0, IrqLine::unconnected());
    assert_eq!([get(&small, 0x17), get(&small, 0x18), get(&small, 0x34)], [0, 0x1c, 0]);
}

#[test]
fn a_time_that_is_set_goes_on_from_there() {
    for (mode, hours) in [(HOURS_24, 0x17), (HOURS_24 | BINARY, 17), (0, 0x85)] {
        let rtc = Rtc::new(1 << 20, 0, IrqLine::unconnected());
        set(&rtc, B, mode | SET);
        let number = |n: u8| if mode & BINARY != 0 { n } else { n / 10 * 16 + n % 10 };
        let date =
            [(CENTURY, 19), (YEAR, 99), (MONTH, 12), (DAY, 31), (MINUTES, 59), (SECONDS, 30)];
        for (register, value) in date {
            set(&rtc, register, number(value));
        }
        set(&rtc, HOURS, hours);
        set(&rtc, B, mode);
        assert_eq!(get(&rtc, HOURS), hours);
        assert_eq!(
            date[..5].iter().map(|(at, _)| get(&rtc, *at)).collect::<Vec<_>>(),
            date[..5].iter().map(|(_, value)| number(*value)).collect::<Vec<_>>()
        );
        assert_eq!(get(&rtc, WEEKDAY), 6); // a Friday
        let state = rtc.save().unwrap();
        let other = Rtc::new(1 << 20, 0, IrqLine::unconnected());
        other.restore(1, &state).unwrap();
        assert_eq!([get(&other, YEAR), get(&other, HOURS)], [number(99), hours]);
    }
}

#[test]
fn periodic_interrupts_come_once_each_is_acknowledged() {
    let raised = Arc::new(Mutex::new(0));
    let line = raised.clone();
    let irq = IrqLine::new(move |level| *line.lock().unwrap() += i32::from(level));
    let rtc = Rtc::new(1 << 20, 0, irq);
    assert_eq!(rtc.tick(), None);
    set(&rtc, B, HOURS_24 | PERIODIC);
    let wait = rtc.tick().unwrap();
    assert!(wait <= Duration::from_nanos(976_563), "{wait:?}");
    std::thread::sleep(wait);
    rtc.tick();
    std::thread::sleep(Duration::from_millis(2));
    rtc.tick();
    assert_eq!(*raised.lock().unwrap(), 1);
    assert_eq!([get(&rtc, C), get(&rtc, C)], [INTERRUPT, 0]);
    std::thread::sleep(Duration::from_millis(2));
    rtc.tick();
    assert_eq!(*raised.lock().unwrap(), 2);
}

proptest! {
    #[test]
    fn anything_may_be_written(writes in prop::collection::vec(any::<(u8, u8)>(), 0..200)) {
        let rtc = Rtc::new(1 << 20, 0, IrqLine::unconnected());
        for (index, value) in writes {
            set(&rtc, index.into(), value);
            get(&rtc, index.into());
            rtc.tick();
        }
        let state = rtc.save().unwrap();
        rtc.restore(1, &state).unwrap();
    }
}
