//! A migration into a second machine of the same process, while the picture runs.

use std::os::unix::net::UnixStream;

use display_vga::Screen;
use machines::demo::{AnyError, Board, Guest};
use migration_ram::{Migrated, MigrationStats, Precopy, receive};
use ram_block::RamBlock;

/// What became of it.
pub struct Outcome {
    pub stats: MigrationStats,
    pub equal_memory: bool,
    pub equal_picture: bool,
}

impl Outcome {
    pub fn is_equal(&self) -> bool {
        self.equal_memory && self.equal_picture
    }
}

/// Migrates `board`, whose guest runs, and compares both machines while it stands still.
pub fn to_self(board: &Board, guest: &Guest) -> Result<Outcome, AnyError> {
    let twin = Board::new()?;
    let (mut output, input) = UnixStream::pair()?;
    let blocks = twin.memory.ram_blocks();
    let receiver = std::thread::spawn(move || receive(&mut &input, &blocks));
    let precopy = Precopy::new(board.memory.clone());
    let sent = precopy.run(&mut output, || guest.pause(), |now| log::info!("{now}"));
    drop(output); // or the receiver would wait for more after an error
    let received = receiver.join().map_err(|_| "the receiver panicked")?;
    // The receiver's reason first: the sender knows only that the stream broke.
    received?;
    let Migrated { stats, paused, .. } = sent?;

    // The guest stands still until `paused` is dropped.
    twin.vga.restore(&board.vga.save())?;
    let mut screen = Screen::new(twin.memory.clone(), twin.vga.clone(), twin.vram)?;
    screen.refresh()?;
    let equal_picture = board.vga.screenshot()?.as_ref() == Some(screen.surface());
    let equal_memory = same(&board.ram, &twin.ram)? && same(board.vga.vram(), twin.vga.vram())?;
    drop(paused);
    Ok(Outcome { stats, equal_memory, equal_picture })
}

fn same(one: &RamBlock, other: &RamBlock) -> Result<bool, AnyError> {
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for offset in (0..one.len()).step_by(a.len()) {
        let len = usize::try_from(one.len() - offset)?.min(a.len());
        one.read(offset, &mut a[..len])?;
        other.read(offset, &mut b[..len])?;
        if a[..len] != b[..len] {
            return Ok(false);
        }
    }
    Ok(one.len() == other.len())
}
