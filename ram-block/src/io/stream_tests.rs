//! Lists through a `Write` and a `Read`, as on every host.

use std::io::{self, Read, Write};
use std::sync::Arc;

use crate::block::ram_block::RamBlock;
use crate::dirty::client::DirtyClient;
use crate::io::error::TransferError;
use crate::io::receive::ReceiveList;
use crate::io::send::SendList;

/// Takes and gives a few bytes at a time.
struct Slow(Vec<u8>);

impl Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(&bytes[..bytes.len().min(1000)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Slow {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = bytes.len().min(777).min(self.0.len());
        bytes[..count].copy_from_slice(&self.0[..count]);
        self.0.drain(..count);
        Ok(count)
    }
}

fn block(id: &str) -> Arc<RamBlock> {
    RamBlock::anonymous(id, 1 << 20).unwrap()
}

#[test]
fn what_is_sent_is_received_and_marked() {
    let (from, to) = (block("from"), block("to"));
    let bytes: Vec<u8> = (0..600_000u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    from.write(3, &bytes).unwrap();
    let log = to.dirty().claim(DirtyClient::MIGRATION).unwrap();
    let mut stream = Slow(Vec::new());
    let mut list = SendList::new();
    list.push_copied(&[1, 2, 3]);
    list.push_memory(&from, 3..600_003).unwrap();
    list.push_bytes(b"end");
    list.write_to(&mut stream).unwrap();
    assert!(list.is_empty() && stream.0.len() == 600_006);

    let (mut head, mut end) = ([0; 3], [0; 4]);
    let mut places = ReceiveList::new();
    places.push_bytes(&mut head);
    places.push_memory(&to, 5..600_005).unwrap();
    places.push_bytes(&mut end);
    let short = places.read_from(&mut stream).unwrap_err();
    assert!(matches!(short, TransferError::UnexpectedEof { done: 600_006, missing: 1 }), "{short}");
    drop(places);
    assert_eq!((head, end), ([1, 2, 3], *b"end\0"));
    assert_eq!(to.difference(5, &bytes).unwrap().len(), 0);
    let page = to.page_size();
    let dirty = log.snapshot_and_clear(0..to.pages()).unwrap().commit();
    assert!(dirty.runs().eq([page.pages_spanned(5, 600_000)]));
}
