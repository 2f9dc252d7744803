//! Constants of the migration stream, version 3, of QEMU 7.2 to 10.0
//! (documented in its `docs/devel/migration`). Numbers are big-endian.

use ram_block::PageSize;

/// "QEVM", the first four bytes.
pub(crate) const MAGIC: u32 = 0x5145_564d;
pub(crate) const VERSION: u32 = 3;

// The first byte of each part of the stream.
pub(crate) const EOF: u8 = 0x00;
pub(crate) const SECTION_START: u8 = 0x01;
pub(crate) const SECTION_PART: u8 = 0x02;
pub(crate) const SECTION_END: u8 = 0x03;
pub(crate) const SECTION_FULL: u8 = 0x04;
pub(crate) const SUBSECTION: u8 = 0x05;
pub(crate) const VMDESC: u8 = 0x06;
pub(crate) const CONFIGURATION: u8 = 0x07;
pub(crate) const COMMAND: u8 = 0x08;
pub(crate) const FOOTER: u8 = 0x7e;

/// The source begins the switchover. No payload, no answer.
pub(crate) const MIG_CMD_SWITCHOVER_START: u16 = 11;

// The section of RAM.
pub(crate) const RAM_NAME: &str = "ram";
pub(crate) const RAM_INSTANCE: u32 = 0;
pub(crate) const RAM_VERSION: u32 = 4;

// Flags in the low bits of a RAM record's first word; the rest is a byte offset.
pub(crate) const RAM_SAVE_FLAG_ZERO: u64 = 0x02;
pub(crate) const RAM_SAVE_FLAG_MEM_SIZE: u64 = 0x04;
pub(crate) const RAM_SAVE_FLAG_PAGE: u64 = 0x08;
pub(crate) const RAM_SAVE_FLAG_EOS: u64 = 0x10;
pub(crate) const RAM_SAVE_FLAG_CONTINUE: u64 = 0x20;
/// An XBZRLE delta of a page: the byte [`XBZRLE_ENCODING`], the length, and the delta.
pub(crate) const RAM_SAVE_FLAG_XBZRLE: u64 = 0x40;
pub(crate) const XBZRLE_ENCODING: u8 = 1;
/// A page as a zlib stream, with its length before it; of QEMU before 9.1.
pub(crate) const RAM_SAVE_FLAG_COMPRESS_PAGE: u64 = 0x100;
/// The bits of the flags: offsets are multiples of 4 KiB at least.
pub(crate) const RAM_SAVE_FLAG_MASK: u64 = 0xfff;

/// The subsection that carries the base-2 logarithm of the target's page size. QEMU
/// leaves it out where the machine's type fixes it, as x86's does to 4 KiB.
pub(crate) const PAGE_BITS: &str = "configuration/target-page-bits";
/// The page size of a stream without that subsection.
pub(crate) const DEFAULT_PAGE_SHIFT: u32 = 12;

/// The longest name that is accepted for a machine, in bytes.
pub(crate) const MAX_MACHINE_NAME: u32 = 1024;

/// The longest description that is accepted, in bytes.
pub(crate) const MAX_DESCRIPTION: u64 = 64 << 20;

/// The page size of a stream without [`PAGE_BITS`].
pub(crate) fn default_page_size() -> PageSize {
    match PageSize::new(1 << DEFAULT_PAGE_SHIFT) {
        Ok(size) => size,
        Err(_) => PageSize::host(), // 4 KiB is a page size
    }
}

/// A number of bytes or pages as a `usize`: lossless where addresses have 64 bits. One that is too
/// large for 32 of them is more than any slice has, and no other number.
#[allow(clippy::cast_possible_truncation)]
pub(crate) const fn index(value: u64) -> usize {
    #[cfg(not(target_pointer_width = "64"))]
    if value > usize::MAX as u64 {
        return usize::MAX;
    }
    value as usize
}

// Commands, and the messages of the return path.
pub(crate) const MIG_CMD_OPEN_RETURN_PATH: u16 = 1;
pub(crate) const MIG_CMD_PING: u16 = 2;
/// The source may switch to postcopy, by a later command; until then the stream is that of
/// precopy.
pub(crate) const MIG_CMD_POSTCOPY_ADVISE: u16 = 3;
pub(crate) const MIG_RP_MSG_SHUT: u16 = 1;
pub(crate) const MIG_RP_MSG_PONG: u16 = 2;
/// The destination is ready for the switchover: QEMU from 8.1 on, with `switchover-ack`.
pub(crate) const MIG_RP_MSG_SWITCHOVER_ACK: u16 = 7;

/// The receiver waits for all channels here: QEMU 8.1 and later. Earlier versions wait at the end
/// of each section.
pub(crate) const RAM_SAVE_FLAG_MULTIFD_FLUSH: u64 = 0x200;

/// The subsection of the machine's UUID, which is skipped.
pub(crate) const UUID: &str = "configuration/uuid";
/// The subsection of the enabled capabilities that change the stream.
pub(crate) const CAPABILITIES: &str = "configuration/capabilities";

/// Bytes of the record of a zero page of the same block as the record before.
pub(crate) const ZERO_RECORD: usize = 9;
