use proptest::prelude::*;

use super::*;

fn disk(sectors: u8) -> Arc<Disk> {
    let image: Vec<u8> = (0..sectors).flat_map(|n| [n; SECTOR]).collect();
    Disk::new(&image, IrqLine::unconnected()).unwrap()
}

fn ask(disk: &Disk, registers: [u64; 5], command: u64) {
    for (offset, value) in (2..).zip(registers) {
        disk.write(offset, 1, value);
    }
    disk.write(7, 1, command);
}

fn data(disk: &Disk, sectors: usize) -> Vec<u8> {
    let words = (0..sectors * SECTOR / 4).map(|_| disk.read(0, 4).to_le_bytes());
    words.flat_map(|word| [word[0], word[1], word[2], word[3]]).collect()
}

#[test]
fn sectors_are_read_by_any_address() {
    let disk = disk(100);
    let request = AT_REST | DATA_REQUEST;
    // Two sectors from 70 on: linear, by cylinder 0, head 1, sector 8, and 48-bit.
    for (registers, command) in
        [([2, 70, 0, 0, 0xe0], 0x20), ([2, 8, 0, 0, 0xa1], 0x21), ([2, 70, 0, 0, 0x40], 0x24)]
    {
        if command == 0x24 {
            ask(&disk, [0; 5], 0xe7); // no higher bytes
        }
        ask(&disk, registers, command);
        assert_eq!(disk.read(7, 1), u64::from(request));
        let bytes = data(&disk, 2);
        assert_eq!((bytes[0], bytes[511], bytes[512], bytes[1023]), (70, 70, 71, 71));
        assert_eq!(disk.read(7, 1), u64::from(AT_REST));
    }
    ask(&disk, [1, 100, 0, 0, 0xe0], 0x20);
    assert_eq!(
        [disk.read(7, 1), disk.read(1, 1)],
        [u64::from(AT_REST | FAILED), u64::from(NOT_FOUND)]
    );
    ask(&disk, [1, 0, 0, 0, 0xa0], 0x20);
    assert_eq!(disk.read(1, 1), u64::from(NOT_FOUND));
    ask(&disk, [0; 5], 0xa1);
    assert_eq!(disk.read(1, 1), u64::from(ABORTED));
    // A second drive there is not.
    disk.write(6, 1, 0xb0);
    assert_eq!(disk.read(7, 1), 0);
}

#[test]
fn sectors_are_written_and_a_state_goes_on_in_mid_sector() {
    let (one, other) = (disk(10), disk(10));
    ask(&one, [2, 3, 0, 0, 0xe0], 0x30);
    for word in 0..300u64 {
        one.write(0, 2, word);
    }
    other.restore(1, &one.save().unwrap()).unwrap();
    let mut sectors = vec![0; usize::try_from(one.block().len()).unwrap()];
    one.block().read(0, &mut sectors).unwrap();
    other.block().write(0, &sectors).unwrap();
    for word in 300..600u64 {
        other.write(0, 2, word);
    }
    assert_eq!(other.read(7, 1), u64::from(AT_REST));
    ask(&other, [2, 3, 0, 0, 0xe0], 0x20);
    let words: Vec<u8> = (0..512u16).flat_map(u16::to_le_bytes).collect();
    assert_eq!(data(&other, 2), words);
    ask(&other, [0; 5], 0xec);
    let description = data(&other, 1);
    assert_eq!((description[120], &description[54..60]), (10, &b"IMINP "[..]));
}

proptest! {
    #[test]
    fn anything_may_be_written(
        writes in prop::collection::vec((0..9u64, any::<u8>(), 1..5usize), 0..400),
    ) {
        let disk = disk(5);
        for (offset, value, size) in writes {
            if offset == 8 {
                disk.control().write(0, 1, value.into());
            } else {
                disk.write(offset, size, value.into());
            }
            disk.read(offset & 7, size);
        }
        disk.restore(1, &disk.save().unwrap()).unwrap();
    }
}
