//! The ioctls that pass memory to KVM, and what is read from a vCPU's shared page.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;
#[cfg(target_arch = "x86_64")]
use std::sync::OnceLock;

use kvm_bindings::{
    KVM_DIRTY_LOG_PAGE_OFFSET, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_IO, KVM_EXIT_IO_IN, KVMIO,
    kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1, kvm_dirty_log,
    kvm_dirty_log__bindgen_ty_1, kvm_ioeventfd, kvm_ioeventfd_flag_nr_datamatch,
    kvm_ioeventfd_flag_nr_deassign, kvm_ioeventfd_flag_nr_pio, kvm_userspace_memory_region,
};
#[cfg(target_arch = "x86_64")]
use kvm_bindings::{MsrList, Xsave};
#[cfg(target_arch = "aarch64")]
use kvm_bindings::{kvm_device_attr, kvm_reg_list};
#[cfg(target_arch = "aarch64")]
use kvm_ioctls::DeviceFd;
#[cfg(target_arch = "x86_64")]
use kvm_ioctls::Kvm;
use kvm_ioctls::{VcpuFd, VmFd};
#[cfg(target_arch = "aarch64")]
use vmm_sys_util::ioctl::ioctl_with_mut_ptr;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_ref};
use vmm_sys_util::{ioctl_io_nr, ioctl_iow_nr, ioctl_iowr_nr};

use memory_region::IoEventFd;
use ram_block::{PageSize, RamBlock};

use crate::sys::dirty_gfn::Entry;
use crate::sys::mapping::VcpuMapping;

ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_dirty_log);
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
ioctl_io_nr!(KVM_RESET_DIRTY_RINGS, KVMIO, 0xc7);
ioctl_iow_nr!(KVM_IOEVENTFD, KVMIO, 0x79, kvm_ioeventfd);
#[cfg(target_arch = "aarch64")]
ioctl_iowr_nr!(KVM_GET_REG_LIST, KVMIO, 0xb0, kvm_reg_list);

/// Registers an ioeventfd, or removes it (KVM API, section 4.59).
///
/// kvm-ioctls has this too, but without a datamatch only for writes of any size.
pub(crate) fn set_io_event(
    vm: &VmFd,
    event: &IoEventFd,
    is_port: bool,
    on: bool,
) -> io::Result<()> {
    let flag = |number: u32, set: bool| u32::from(set) << number;
    let argument = kvm_ioeventfd {
        datamatch: event.datamatch.unwrap_or(0),
        addr: event.address,
        len: u32::from(event.size),
        fd: event.fd.as_raw_fd(),
        flags: flag(kvm_ioeventfd_flag_nr_datamatch, event.datamatch.is_some())
            | flag(kvm_ioeventfd_flag_nr_pio, is_port)
            | flag(kvm_ioeventfd_flag_nr_deassign, !on),
        ..Default::default()
    };
    // SAFETY: KVM only reads the argument, which is borrowed for the call, and keeps a
    // reference of its own to the eventfd.
    let result = unsafe { ioctl_with_ref(vm, KVM_IOEVENTFD(), &argument) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// KVM's calls about memory slots; a trait so that tests can make them fail.
pub(crate) trait SlotCalls {
    /// Reads and clears the dirty log of `slot`, of `pages` pages, into `bitmap`.
    ///
    /// One bit a page, 64 to a word; the bits past the last page are zero. KVM
    /// write-protects the pages that it reports.
    fn get_dirty_log(&self, slot: u32, pages: u64, bitmap: &mut [u64]) -> io::Result<()>;

    /// Clears the bits of `bitmap` in the log of `slot`, and write-protects their pages.
    ///
    /// Bit 0 is page `first`, a multiple of 64. `count` pages, a multiple of 64 unless the
    /// slot ends with them.
    fn clear_dirty_log(&self, slot: u32, first: u64, count: u32, bitmap: &[u64]) -> io::Result<()>;

    /// Write-protects the pages of all ring entries that are flagged, and frees these
    /// entries. Returns how many.
    fn reset_rings(&self) -> io::Result<u64>;

    /// Runs `work` while no vCPU runs guest code.
    fn exclude<T>(&self, work: impl FnOnce() -> T) -> T;

    /// Creates, changes or deletes a slot that shows a part of `block`.
    ///
    /// The caller keeps `block` alive until the slot is deleted or the VM is gone.
    fn set_slot(&self, region: SlotRegion, block: &RamBlock) -> io::Result<()>;
}

/// For a machine without vCPUs; one with vCPUs has a `GatedVm`.
impl SlotCalls for VmFd {
    fn exclude<T>(&self, work: impl FnOnce() -> T) -> T {
        work()
    }

    /// Panics if `bitmap` has not at least `pages` bits.
    fn get_dirty_log(&self, slot: u32, pages: u64, bitmap: &mut [u64]) -> io::Result<()> {
        assert!(bitmap.len() as u64 >= pages.div_ceil(64), "bitmap too short for the slot");
        let log = kvm_dirty_log {
            slot,
            padding1: 0,
            __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 {
                dirty_bitmap: bitmap.as_mut_ptr().cast(),
            },
        };
        // SAFETY: KVM writes one bit for each page of the slot, rounded up to 64 of
        // them, to `dirty_bitmap`, which has room for `pages` of them (asserted above)
        // and is borrowed for the call; the caller passes the slot's own page count.
        let result = unsafe { ioctl_with_ref(self, KVM_GET_DIRTY_LOG(), &log) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Panics if `bitmap` has not at least `count` bits.
    fn clear_dirty_log(&self, slot: u32, first: u64, count: u32, bitmap: &[u64]) -> io::Result<()> {
        assert!(bitmap.len() as u64 >= u64::from(count).div_ceil(64), "bitmap too short");
        let log = kvm_clear_dirty_log {
            slot,
            num_pages: count,
            first_page: first,
            __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
                dirty_bitmap: bitmap.as_ptr().cast_mut().cast(),
            },
        };
        // SAFETY: KVM reads one bit for each page, rounded up to 64 of them, from
        // `dirty_bitmap`, which has as many (asserted above) and is borrowed for the call.
        let result = unsafe { ioctl_with_ref(self, KVM_CLEAR_DIRTY_LOG(), &log) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn reset_rings(&self) -> io::Result<u64> {
        // A signal would end the call early, with entries freed whose pages are not
        // write-protected: all are blocked meanwhile.
        let _blocked = SignalsBlocked::new();
        // SAFETY: the call takes no argument; it writes to the rings' entries, which are
        // atomics here.
        let result = unsafe { ioctl(self, KVM_RESET_DIRTY_RINGS()) };
        u64::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    /// Panics if the region is not within the block.
    fn set_slot(&self, region: SlotRegion, block: &RamBlock) -> io::Result<()> {
        let SlotRegion { slot, flags, guest, offset, size } = region;
        let fits = offset.checked_add(size).is_some_and(|end| end <= block.max_len());
        assert!(fits, "slot outside of its block");
        let memory = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: guest,
            memory_size: size,
            userspace_addr: block.host_address() as u64 + offset,
        };
        // SAFETY: the addresses lie in the block's mapping (asserted above), which stays
        // where it is as long as the block lives, and the slot table of the caller keeps
        // the block until KVM has forgotten the slot. Guests may write it at any time,
        // which RamBlock's accessors are made for.
        unsafe { self.set_user_memory_region(memory) }.map_err(Into::into)
    }
}

/// While this exists, the thread's signals are blocked.
struct SignalsBlocked(libc::sigset_t);

impl SignalsBlocked {
    fn new() -> Self {
        let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigfillset fills the set that it is given.
        unsafe { libc::sigfillset(all.as_mut_ptr()) };
        // SAFETY: the first set is filled, the second is written; with SIG_SETMASK and valid
        // sets the call does not fail.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
        // SAFETY: written by the call above.
        Self(unsafe { before.assume_init() })
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: the set is the mask that the thread had.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut())
        };
    }
}

/// A vCPU's ring of `struct kvm_dirty_gfn`.
#[derive(Debug)]
pub(crate) struct MappedEntries {
    mapping: VcpuMapping,
}

impl MappedEntries {
    /// Maps the `count` entries of the vCPU's ring.
    pub(crate) fn new(vcpu: &VcpuFd, count: u32) -> io::Result<Self> {
        let offset = libc::off_t::from(KVM_DIRTY_LOG_PAGE_OFFSET) << PageSize::host().shift();
        let len = count as usize * size_of::<Entry>();
        let mapping = VcpuMapping::new(vcpu, offset, len)?;
        // Of a virtual machine without rings, or with smaller ones, there is nothing behind it.
        mapping.populate()?;
        Ok(Self { mapping })
    }
}

impl AsRef<[Entry]> for MappedEntries {
    fn as_ref(&self) -> &[Entry] {
        let count = self.mapping.len() / size_of::<Entry>();
        // SAFETY: the mapping is page-aligned, holds `count` entries of the kernel's layout,
        // for which every bit pattern is valid, and lives as long as `self`. They consist of
        // atomics, as the kernel writes them at any time.
        unsafe { std::slice::from_raw_parts(self.mapping.start().as_ptr().cast(), count) }
    }
}

/// The part of a block that a slot shows, as KVM needs it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlotRegion {
    pub(crate) slot: u32,
    pub(crate) flags: u32,
    /// Guest-physical address, page-aligned.
    pub(crate) guest: u64,
    /// Offset in the block, page-aligned.
    pub(crate) offset: u64,
    /// In bytes, page-aligned; 0 deletes the slot.
    pub(crate) size: u64,
}

/// A port access that a guest made: `data.len() / size` accesses of `size` bytes.
pub(crate) struct PortExit<'a> {
    pub(crate) port: u64,
    pub(crate) size: usize,
    pub(crate) is_read: bool,
    pub(crate) data: &'a mut [u8],
}

/// The port access of a vCPU whose last exit was KVM_EXIT_IO; `None` after another. Only the kernel
/// has written the vCPU's shared page since that exit.
pub(crate) fn port_exit(vcpu: &mut VcpuFd) -> Option<PortExit<'_>> {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != KVM_EXIT_IO {
        return None;
    }
    // SAFETY: the exit reason, which only the kernel writes, says that this member of
    // the union is filled.
    let io = unsafe { run.__bindgen_anon_1.io };
    let size = usize::from(io.size);
    let len = size * io.count as usize;
    let start = std::ptr::from_mut(run).cast::<u8>();
    // SAFETY: the kernel's offset points into the vCPU's mapping, behind `kvm_run`,
    // and the mapping is as long as KVM said it must be.
    let data = unsafe { start.add(usize::try_from(io.data_offset).ok()?) };
    // SAFETY: the kernel put `len` bytes there, which nothing else accesses until the next KVM_RUN;
    // the exclusive borrow of the vCPU prevents that one.
    let data = unsafe { std::slice::from_raw_parts_mut(data, len) };
    Some(PortExit {
        port: u64::from(io.port),
        size,
        is_read: u32::from(io.direction) == KVM_EXIT_IO_IN,
        data,
    })
}

/// The suberror of a vCPU whose last exit was KVM_EXIT_INTERNAL_ERROR; 0 after another.
pub(crate) fn internal_error(vcpu: &mut VcpuFd) -> u32 {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
        return 0;
    }
    // SAFETY: the exit reason, which only the kernel writes, says that this member of
    // the union is filled.
    unsafe { run.__bindgen_anon_1.internal.suberror }
}

/// The model-specific registers that KVM lists, for all machines of this host. Read once: a process
/// that may open /dev/kvm when it makes a machine may be jailed later.
#[cfg(target_arch = "x86_64")]
pub(crate) fn listed_msrs() -> Result<&'static MsrList, kvm_ioctls::Error> {
    static LIST: OnceLock<MsrList> = OnceLock::new();
    if let Some(list) = LIST.get() {
        return Ok(list);
    }
    let list = Kvm::new()?.get_msr_index_list()?;
    Ok(LIST.get_or_init(|| list))
}

/// The extended state of a vCPU, of `bytes` bytes as KVM says (0 if it says nothing).
#[cfg(target_arch = "x86_64")]
pub(crate) fn get_xsave(vcpu: &VcpuFd, bytes: usize) -> io::Result<Xsave> {
    let mut xsave = xsave_of(bytes)?;
    if bytes == 0 {
        // SAFETY: only the fixed part, which this call fills, is written; the length stays.
        unsafe { xsave.as_mut_fam_struct() }.xsave = vcpu.get_xsave()?;
    } else {
        // SAFETY: the structure has room for as many bytes as KVM said that it writes.
        unsafe { vcpu.get_xsave2(&mut xsave) }?;
    }
    Ok(xsave)
}

/// Sets the extended state of a vCPU; `bytes` as above.
#[cfg(target_arch = "x86_64")]
pub(crate) fn set_xsave(vcpu: &VcpuFd, bytes: usize, xsave: &Xsave) -> io::Result<()> {
    let needed = words_beyond_fixed(bytes);
    let found = xsave.as_slice().len();
    if found < needed {
        let message = format!("{found} words more than 4,096 bytes, where KVM reads {needed}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    if bytes == 0 {
        let first = &xsave.as_fam_struct_ref().xsave;
        // SAFETY: without KVM_CAP_XSAVE2 KVM reads the 4,096 bytes of this structure only.
        return unsafe { vcpu.set_xsave(first) }.map_err(Into::into);
    }
    // SAFETY: the structure has at least as many bytes as KVM said that it reads, as was
    // just checked.
    unsafe { vcpu.set_xsave2(xsave) }.map_err(Into::into)
}

/// An empty structure of at least `bytes` bytes.
#[cfg(target_arch = "x86_64")]
fn xsave_of(bytes: usize) -> io::Result<Xsave> {
    Xsave::new(words_beyond_fixed(bytes)).map_err(|error| io::Error::other(format!("{error:?}")))
}

/// Words of a structure of `bytes` bytes after its fixed part.
#[cfg(target_arch = "x86_64")]
fn words_beyond_fixed(bytes: usize) -> usize {
    bytes.saturating_sub(size_of::<kvm_bindings::kvm_xsave>()).div_ceil(size_of::<u32>())
}

/// The numbers of all registers that KVM has for a vCPU.
///
/// kvm-ioctls has this too, for 500 registers at most: processors with more are known.
#[cfg(target_arch = "aarch64")]
pub(crate) fn register_list(vcpu: &VcpuFd) -> io::Result<Vec<u64>> {
    let mut count = 1024;
    loop {
        // How many there is room for, then as many numbers (`struct kvm_reg_list`).
        let mut list = vec![0_u64; 1 + count];
        list[0] = count as u64;
        // SAFETY: KVM writes to the list no more numbers than its first word says, and that word;
        // as many follow it, and the list is borrowed for the call.
        let result = unsafe {
            ioctl_with_mut_ptr(vcpu, KVM_GET_REG_LIST(), list.as_mut_ptr().cast::<kvm_reg_list>())
        };
        let error = io::Error::last_os_error();
        let found = usize::try_from(list[0]).unwrap_or(0);
        if result == 0 {
            list.truncate(1 + found);
            list.remove(0);
            return Ok(list);
        }
        // KVM says how many there are.
        if error.raw_os_error() != Some(libc::E2BIG) || found <= count {
            return Err(error);
        }
        count = found;
    }
}

/// A value of a device's: KVM writes 32 or 64 bits, of which the first are the low ones.
#[cfg(target_arch = "aarch64")]
pub(crate) fn device_value(device: &DeviceFd, group: u32, attr: u64) -> io::Result<u64> {
    let mut value = 0_u64;
    let addr = &raw mut value as u64;
    let mut attribute = kvm_device_attr { group, attr, addr, flags: 0 };
    // SAFETY: KVM writes 8 bytes at most for the attributes of interrupt controllers, to a value
    // of 8 bytes, which outlives the call.
    unsafe { device.get_device_attr(&mut attribute) }?;
    Ok(value)
}

/// Sets a value of a device's, of 32 or 64 bits.
#[cfg(target_arch = "aarch64")]
pub(crate) fn set_device_value(
    device: &DeviceFd,
    group: u32,
    attr: u64,
    value: u64,
) -> io::Result<()> {
    let addr = &raw const value as u64;
    Ok(device.set_device_attr(&kvm_device_attr { group, attr, addr, flags: 0 })?)
}
