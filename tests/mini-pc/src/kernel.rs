//! A kernel, started by Linux's 32-bit boot protocol (Documentation/arch/x86/boot.rst): in
//! protected mode without paging, with what firmware would have found out in a page of
//! memory, the "zero page".

use std::io::Cursor;

use kvm_accel::Vcpu;
use kvm_accel::kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, screen_info};
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::{Cmdline, KernelLoader, load_cmdline};
use vm_memory::{GuestAddress, GuestAddressSpace};

use super::e820::{Range, ranges};
use super::layout::Layout;
use machines::demo::AnyError;

/// Where the descriptor table, the zero page and the command line are.
const DESCRIPTORS: u64 = 0x1000;
const ZERO_PAGE: u64 = 0x7000;
const MIG_CMD_LINE: u64 = 0x2_0000;
const MIG_CMD_LINE_BYTES: usize = 2048;
/// Where kernels go at the earliest.
const HIGH_MEMORY: u64 = 0x10_0000;

/// The selectors that the protocol names.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;

/// Puts `image` (a bzImage) and what it is to know into memory; returns where it begins.
///
/// # Errors
///
/// If it is no bzImage, or does not fit.
pub fn load(layout: &Layout, image: &[u8], command_line: &str) -> Result<u64, AnyError> {
    let memory = layout.space.memory();
    let start = Some(GuestAddress(HIGH_MEMORY));
    let loaded = BzImage::load(memory.ram(), None, &mut Cursor::new(image), start)?;
    let mut text = Cmdline::new(MIG_CMD_LINE_BYTES)?;
    text.insert_str(command_line)?;
    load_cmdline(memory.ram(), GuestAddress(MIG_CMD_LINE), &text)?;

    let mut params =
        boot_params { hdr: loaded.setup_header.unwrap_or_default(), ..Default::default() };
    params.hdr.type_of_loader = 0xff; // none that has a number
    params.hdr.cmd_line_ptr = u32::try_from(MIG_CMD_LINE)?;
    // A VGA in its text mode of 80x25 characters.
    params.screen_info = screen_info {
        orig_video_mode: 3,
        orig_video_cols: 80,
        orig_video_lines: 25,
        orig_video_isVGA: 1,
        orig_video_points: 16,
        ..Default::default()
    };
    let ranges = ranges(layout);
    params.e820_entries = u8::try_from(ranges.len())?;
    for (entry, Range { start, len, kind }) in params.e820_table.iter_mut().zip(ranges) {
        *entry = boot_e820_entry { addr: start, size: len, r#type: kind };
    }
    let params = BootParams::new(&params, GuestAddress(ZERO_PAGE));
    LinuxBootConfigurator::write_bootparams(&params, memory.ram())?;

    // Flat segments of 4 GiB: code that is read and executed, data that is written.
    let descriptors = [0, 0, 0x00cf_9b00_0000_ffffu64, 0x00cf_9300_0000_ffff];
    layout.ram.write(DESCRIPTORS, &descriptors.map(u64::to_le_bytes).concat())?;
    Ok(loaded.kernel_load.0)
}

/// Lets `vcpu` begin the kernel that was loaded at `entry`.
///
/// # Errors
///
/// If KVM refuses the registers.
pub fn begin(vcpu: &Vcpu, entry: u64) -> Result<(), AnyError> {
    let mut special = vcpu.fd().get_sregs()?;
    let code = kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector: CODE,
        type_: 0b1011, // execute, read, accessed
        present: 1,
        s: 1,
        db: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment { selector: DATA, type_: 0b0011, ..code };
    special.cs = code;
    for segment in
        [&mut special.ds, &mut special.es, &mut special.fs, &mut special.gs, &mut special.ss]
    {
        *segment = data;
    }
    special.gdt = kvm_dtable { base: DESCRIPTORS, limit: 31, ..Default::default() };
    special.cr0 |= 1; // protected mode
    vcpu.fd().set_sregs(&special)?;
    let registers = kvm_regs { rip: entry, rsi: ZERO_PAGE, rflags: 2, ..Default::default() };
    vcpu.fd().set_regs(&registers)?;
    Ok(())
}
