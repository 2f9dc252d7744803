//! KVM and host memory as the kernel has them: each function is one system call or one copy.
#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use kvm_accel::kvm_bindings::{
    KVM_DIRTY_LOG_PAGE_OFFSET, KVMIO, Xsave, kvm_clear_dirty_log,
    kvm_clear_dirty_log__bindgen_ty_1, kvm_dirty_log, kvm_dirty_log__bindgen_ty_1,
    kvm_userspace_memory_region, kvm_xsave,
};
use kvm_accel::kvm_ioctls::{VcpuFd, VmFd};
use ram_block::RamBlock;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_ref};
use vmm_sys_util::{ioctl_io_nr, ioctl_iow_nr, ioctl_iowr_nr};

use crate::case::PAGE;

ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_dirty_log);
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
ioctl_io_nr!(KVM_RESET_DIRTY_RINGS, KVMIO, 0xc7);

fn checked(result: i32, call: &str) -> i32 {
    assert!(result >= 0, "{call}: {}", io::Error::last_os_error());
    result
}

/// Shows `ram` at address 0 of the guest, in slot 0.
///
/// `vm` and its vCPUs have to be dropped before `ram`.
pub fn set_slot(vm: &VmFd, ram: &RamBlock, flags: u32) {
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags,
        guest_phys_addr: 0,
        memory_size: ram.len(),
        userspace_addr: ram.host_address() as u64,
    };
    // SAFETY: the range is the block's mapping, which outlives the machine (the machines of this
    // bench hold both, and drop the block last).
    unsafe { vm.set_user_memory_region(region) }.unwrap();
}

/// Reads the log of slot 0, of 64 pages for each word of `bitmap`.
pub fn get_dirty_log(vm: &VmFd, bitmap: &mut [u64]) {
    let log = kvm_dirty_log {
        slot: 0,
        padding1: 0,
        __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 { dirty_bitmap: bitmap.as_mut_ptr().cast() },
    };
    // SAFETY: KVM writes a bit for each page of the slot, which `bitmap` was made for.
    checked(unsafe { ioctl_with_ref(vm, KVM_GET_DIRTY_LOG(), &log) }, "KVM_GET_DIRTY_LOG");
}

/// Re-arms the pages of `bitmap`, which begins with page `first`.
pub fn clear_dirty_log(vm: &VmFd, first: u64, bitmap: &[u64]) {
    let log = kvm_clear_dirty_log {
        slot: 0,
        num_pages: u32::try_from(bitmap.len() * 64).unwrap(),
        first_page: first,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
            dirty_bitmap: bitmap.as_ptr().cast_mut().cast(),
        },
    };
    // SAFETY: KVM reads `num_pages` bits, which `bitmap` has.
    checked(unsafe { ioctl_with_ref(vm, KVM_CLEAR_DIRTY_LOG(), &log) }, "KVM_CLEAR_DIRTY_LOG");
}

/// Re-arms the pages of all ring entries that are flagged; returns how many.
pub fn reset_rings(vm: &VmFd) -> usize {
    // SAFETY: the call takes no argument; ring entries are atomics here.
    let count = checked(unsafe { ioctl(vm, KVM_RESET_DIRTY_RINGS()) }, "KVM_RESET_DIRTY_RINGS");
    usize::try_from(count).unwrap()
}

/// `struct kvm_dirty_gfn`.
#[repr(C)]
struct Entry {
    flags: AtomicU32,
    slot: AtomicU32,
    page: AtomicU64,
}

/// A vCPU's dirty ring.
pub struct Ring {
    entries: *const Entry,
    count: usize,
    next: usize,
}

impl Ring {
    const DIRTY: u32 = 1;
    const RESET: u32 = 2;

    /// Bytes of a ring of `count` entries.
    pub fn bytes(count: usize) -> usize {
        count * size_of::<Entry>()
    }

    /// Maps the ring, which stays mapped.
    pub fn new(vcpu: &VcpuFd, count: usize) -> Self {
        use std::os::fd::AsRawFd;
        let offset = libc::off_t::from(KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE.cast_signed();
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let (bytes, fd) = (Self::bytes(count), vcpu.as_raw_fd());
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let mapped = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, access, libc::MAP_SHARED, fd, offset)
        };
        assert!(mapped != libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
        Self { entries: mapped.cast(), count, next: 0 }
    }

    /// Appends the pages of the entries that are dirty, and flags these to be reset.
    pub fn harvest(&mut self, pages: &mut Vec<u64>) {
        loop {
            // SAFETY: the mapping has `count` entries of atomics, and is never unmapped.
            let entry = unsafe { &*self.entries.add(self.next % self.count) };
            if entry.flags.load(Ordering::Acquire) & Self::DIRTY == 0 {
                return;
            }
            fence(Ordering::Acquire);
            assert_eq!(entry.slot.load(Ordering::Relaxed), 0, "there is one slot");
            pages.push(entry.page.load(Ordering::Relaxed));
            entry.flags.store(Self::RESET, Ordering::Release);
            self.next += 1;
        }
    }
}

/// Copies a page from one block to the same place of another, past the bitmaps of the blocks.
pub fn copy_page(from: &RamBlock, to: &RamBlock, page: u64) {
    let offset = page * PAGE;
    assert!(offset < from.len().min(to.len()));
    let at = usize::try_from(offset).unwrap();
    let len = usize::try_from(PAGE).unwrap();
    // SAFETY: the page lies within both mappings, as was just checked.
    let (from, to) = unsafe { (from.host_address().add(at), to.host_address().add(at)) };
    // SAFETY: two mappings do not overlap, and nothing else accesses these pages: the guest that
    // has one of them is not running.
    unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
}

/// Copies a page of a block to a buffer of a page.
pub fn copy_out(from: &RamBlock, page: u64, to: &mut [u8]) {
    assert!(page * PAGE < from.len() && to.len() as u64 == PAGE);
    let at = usize::try_from(page * PAGE).unwrap();
    // SAFETY: the page lies within the mapping, as was just checked.
    let from = unsafe { from.host_address().add(at) };
    // SAFETY: as above, and the guest that has the page is not running.
    unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
}

/// Drops the host's pages: a private mapping shows the file's again.
pub fn drop_pages(block: &RamBlock, first: u64, count: u64) {
    assert!((first + count) * PAGE <= block.len());
    let [at, len] = [first, count].map(|pages| usize::try_from(pages * PAGE).unwrap());
    // SAFETY: the range lies within the mapping, as was just checked.
    let start = unsafe { block.host_address().add(at) };
    // SAFETY: as above; Rust has no reference to the pages.
    checked(unsafe { libc::madvise(start.cast(), len, libc::MADV_DONTNEED) }, "madvise");
}

/// The extended state, of `bytes` bytes as KVM_CAP_XSAVE2 says.
pub fn get_xsave(vcpu: &VcpuFd, bytes: usize) -> Xsave {
    let more = bytes.saturating_sub(size_of::<kvm_xsave>());
    let mut xsave = Xsave::new(more.div_ceil(size_of::<u32>())).unwrap();
    // SAFETY: the structure has as many bytes as KVM writes.
    unsafe { vcpu.get_xsave2(&mut xsave) }.unwrap();
    xsave
}

/// Sets the extended state, which has as many bytes as KVM reads.
pub fn set_xsave(vcpu: &VcpuFd, xsave: &Xsave) {
    // SAFETY: the structure was filled by `get_xsave`, which made it as long as KVM says.
    unsafe { vcpu.set_xsave2(xsave) }.unwrap();
}
