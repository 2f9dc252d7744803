//! The ioctls of a machine that leave its slots, its logs and its vCPUs alone.

use std::os::fd::{AsRawFd, RawFd};

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP,
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, kvm_create_device,
    kvm_enable_cap,
};
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
use kvm_bindings::{KvmIrqRouting, kvm_msi};
#[cfg(target_arch = "x86_64")]
use kvm_bindings::{kvm_clock_data, kvm_irqchip, kvm_pit_config, kvm_pit_state2};
#[cfg(target_arch = "aarch64")]
use kvm_bindings::{kvm_device_attr, kvm_vcpu_init};
use kvm_ioctls::{Cap, DeviceFd, Error, IoEventAddress, VmFd};
#[cfg(target_arch = "x86_64")]
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange};
use vmm_sys_util::eventfd::EventFd;

/// Result of an ioctl, with the error of `kvm-ioctls`.
type Result<T> = std::result::Result<T, Error>;

/// The ioctls of a machine that its owner may need and that cannot break what
/// [`KvmVm`](crate::KvmVm) promises: interrupt controllers, timers, clocks, eventfds, devices
/// and capabilities.
///
/// Each method is the one of the same name of [`VmFd`](kvm_ioctls::VmFd); see there. Memory
/// slots, the dirty log, vCPUs and coalesced writes are `KvmVm`'s own, so that safe code
/// cannot
///
/// - make a vCPU that runs while slots change:
///
///   ```compile_fail,E0599
///   fn stray(vm: &kvm_accel::KvmVm) {
///       let vcpu = vm.fd().create_vcpu(0);
///   }
///   ```
///
/// - take the dirty log from its clients, or let KVM write a log that is longer than the
///   buffer for it:
///
///   ```compile_fail,E0599
///   fn steal(vm: &kvm_accel::KvmVm) {
///       let log = vm.fd().get_dirty_log(0, 4096);
///   }
///   ```
///
/// - or get the descriptor itself, to do either by it:
///
///   ```compile_fail,E0308
///   fn descriptor(vm: &kvm_accel::KvmVm) -> &kvm_accel::kvm_ioctls::VmFd {
///       vm.fd()
///   }
///   ```
///
/// For anything else, make an ioctl on the raw descriptor in an `unsafe` block, which has to uphold
/// these three.
#[derive(Clone, Copy, Debug)]
pub struct VmIoctls<'a>(&'a VmFd);

/// The capabilities that decide how written pages are tracked; [`KvmConfig`](crate::KvmConfig)
/// chooses.
const TRACKING_CAPS: [u32; 5] = [
    KVM_CAP_DIRTY_LOG_RING,
    KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
    KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP,
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT,
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
];

/// Methods of the descriptor that are forwarded as they are.
macro_rules! forward {
    ($($(#[$attribute:meta])* fn $name:ident($($argument:ident: $of:ty),*) -> $to:ty;)*) => {
        impl VmIoctls<'_> {$(
            $(#[$attribute])*
            #[doc = concat!("[`VmFd::", stringify!($name), "`](kvm_ioctls::VmFd::",
                stringify!($name), ").")]
            ///
            /// # Errors
            ///
            /// KVM's errno, if it refuses.
            pub fn $name(&self, $($argument: $of),*) -> Result<$to> {
                self.0.$name($($argument),*)
            }
        )*}
    };
}

forward! {
    /// Makes a device in the kernel:
    fn create_device(device: &mut kvm_create_device) -> DeviceFd;
    /// Sets the address of the task state segment for real mode:
    #[cfg(target_arch = "x86_64")]
    fn set_tss_address(offset: usize) -> ();
    /// Sets the address of the identity map page:
    #[cfg(target_arch = "x86_64")]
    fn set_identity_map_address(address: u64) -> ();
    /// Makes the interrupt controllers in the kernel, before the first vCPU:
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fn create_irq_chip() -> ();
    /// Reads an interrupt controller:
    #[cfg(target_arch = "x86_64")]
    fn get_irqchip(chip: &mut kvm_irqchip) -> ();
    /// Sets an interrupt controller:
    #[cfg(target_arch = "x86_64")]
    fn set_irqchip(chip: &kvm_irqchip) -> ();
    /// Makes the interval timer in the kernel:
    #[cfg(target_arch = "x86_64")]
    fn create_pit2(config: kvm_pit_config) -> ();
    /// Reads the interval timer:
    #[cfg(target_arch = "x86_64")]
    fn get_pit2() -> kvm_pit_state2;
    /// Sets the interval timer:
    #[cfg(target_arch = "x86_64")]
    fn set_pit2(state: &kvm_pit_state2) -> ();
    /// Reads the guest's clock, in nanoseconds:
    #[cfg(target_arch = "x86_64")]
    fn get_clock() -> kvm_clock_data;
    /// Sets the guest's clock, in nanoseconds:
    #[cfg(target_arch = "x86_64")]
    fn set_clock(clock: &kvm_clock_data) -> ();
    /// Chooses which model-specific registers exit:
    #[cfg(target_arch = "x86_64")]
    fn set_msr_filter(action: MsrFilterDefaultAction, ranges: &[MsrFilterRange<'_>]) -> ();
    /// Raises or lowers an interrupt line:
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
    fn set_irq_line(irq: u32, active: bool) -> ();
    /// Sends a message-signalled interrupt:
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
    fn signal_msi(msi: kvm_msi) -> i32;
    /// Sets the routes from interrupt lines to controllers and messages:
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
    fn set_gsi_routing(routes: &KvmIrqRouting) -> ();
    /// Lets an eventfd raise an interrupt:
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
    fn register_irqfd(fd: &EventFd, gsi: u32) -> ();
    /// Lets an eventfd raise an interrupt, and signals another at the end of it:
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
    fn register_irqfd_with_resample(fd: &EventFd, resample: &EventFd, gsi: u32) -> ();
    /// Removes an eventfd from its interrupt:
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
    fn unregister_irqfd(fd: &EventFd, gsi: u32) -> ();
    /// Names the processor that vCPUs are best initialized as:
    #[cfg(target_arch = "aarch64")]
    fn get_preferred_target(kvi: &mut kvm_vcpu_init) -> ();
    /// Sets an attribute of the machine:
    #[cfg(target_arch = "aarch64")]
    fn set_device_attr(attribute: &kvm_device_attr) -> ();
    /// Asks for an attribute of the machine:
    #[cfg(target_arch = "aarch64")]
    fn has_device_attr(attribute: &kvm_device_attr) -> ();
}

impl<'a> VmIoctls<'a> {
    pub(crate) fn new(fd: &'a VmFd) -> Self {
        Self(fd)
    }

    /// Lets a write signal an eventfd that is not of the map:
    /// [`VmFd::register_ioevent`](kvm_ioctls::VmFd::register_ioevent).
    ///
    /// # Errors
    ///
    /// KVM's errno, if it refuses: EEXIST where the map has one.
    pub fn register_ioevent<T: Into<u64>>(
        &self,
        fd: &EventFd,
        address: &IoEventAddress,
        datamatch: T,
    ) -> Result<()> {
        self.0.register_ioevent(fd, address, datamatch)
    }

    /// Removes such an eventfd:
    /// [`VmFd::unregister_ioevent`](kvm_ioctls::VmFd::unregister_ioevent).
    ///
    /// # Errors
    ///
    /// KVM's errno, if it refuses: ENOENT if there is none.
    pub fn unregister_ioevent<T: Into<u64>>(
        &self,
        fd: &EventFd,
        address: &IoEventAddress,
        datamatch: T,
    ) -> Result<()> {
        self.0.unregister_ioevent(fd, address, datamatch)
    }

    /// Switches a capability on: [`VmFd::enable_cap`](kvm_ioctls::VmFd::enable_cap).
    ///
    /// # Errors
    ///
    /// KVM's errno, if it refuses; EPERM for those that decide how written pages are tracked,
    /// which [`KvmConfig`](crate::KvmConfig) chooses.
    pub fn enable_cap(&self, cap: &kvm_enable_cap) -> Result<()> {
        if TRACKING_CAPS.contains(&cap.cap) {
            return Err(Error::new(libc::EPERM));
        }
        self.0.enable_cap(cap)
    }

    /// Whether KVM has a capability:
    /// [`VmFd::check_extension`](kvm_ioctls::VmFd::check_extension).
    pub fn check_extension(&self, cap: Cap) -> bool {
        self.0.check_extension(cap)
    }

    /// What KVM answers about a capability:
    /// [`VmFd::check_extension_int`](kvm_ioctls::VmFd::check_extension_int).
    pub fn check_extension_int(&self, cap: Cap) -> i32 {
        self.0.check_extension_int(cap)
    }

    /// The same for a capability without a name in `kvm-ioctls`:
    /// [`VmFd::check_extension_raw`](kvm_ioctls::VmFd::check_extension_raw).
    pub fn check_extension_raw(&self, cap: std::ffi::c_ulong) -> i32 {
        self.0.check_extension_raw(cap)
    }
}

impl AsRawFd for VmIoctls<'_> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
