//! A migration over a plain `Write` and `Read`, as every host has them.

use std::io::{self, Read};
use std::sync::Arc;

use memory_region::MemoryMap;
use migration_ram::{Buffered, Precopy, receive};
use ram_block::RamBlock;

/// Gives a few bytes at a time.
struct Slow(io::Cursor<Vec<u8>>);

impl Read for Slow {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let some = bytes.len().min(1000);
        self.0.read(&mut bytes[..some])
    }
}

fn block() -> Arc<RamBlock> {
    RamBlock::anonymous("pc.ram", 4 << 20).unwrap()
}

#[test]
fn memory_that_is_written_meanwhile_arrives_as_it_was_at_last() {
    let memory = MemoryMap::new();
    let ram = block();
    memory.transaction(|map| map.ram("ram", ram.clone())).unwrap();
    let bytes: Vec<u8> =
        (0..1_000_000u32).map(|n| n.to_le_bytes()[0] ^ n.to_be_bytes()[2]).collect();
    ram.write(0x1234, &bytes).unwrap();
    ram.write(0x20_0000, &0x1122_3344_5566_7788_u64.to_ne_bytes()).unwrap();
    let mut stream = Buffered(Vec::new());
    let pause = || {
        ram.write(0x30_0007, b"the last store").unwrap();
        Ok(())
    };
    let migrated = Precopy::new(memory).run(&mut stream, pause, |_| ()).unwrap();
    assert!(migrated.stats.pages() > ram.pages(), "the page of the last store goes again");

    let twin = block();
    let mut stream = Buffered(Slow(io::Cursor::new(stream.0)));
    receive(&mut stream, std::slice::from_ref(&twin)).unwrap();
    let (mut sent, mut received) = (vec![0; 4 << 20], vec![1; 4 << 20]);
    ram.read(0, &mut sent).unwrap();
    twin.read(0, &mut received).unwrap();
    assert!(sent == received);
}
