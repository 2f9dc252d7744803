//! Ioeventfds and coalesced zones, as they are registered with KVM: writes to them need no exit.
//!
//! KVM serves an address by the device that was registered first, and unregistering a zone removes
//! every zone that contains it. So the ranges of a view must share no address, with each other or
//! with an ioeventfd (`CoalescedRange`).

use kvm_ioctls::{Cap, IoEventAddress, VmFd};
use memory_region::{CoalescedRange, IoEventFd, ViewChange};

use crate::error::KvmError;
use crate::sys::ioctl;

/// Which of a machine's buses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bus {
    Memory,
    Ports,
}

/// One call of KVM, to be undone if a later one fails.
#[derive(Clone, Copy)]
enum Step<'a> {
    Event(&'a IoEventFd, bool),
    Coalesce(CoalescedRange, bool),
}

/// Makes KVM's ioeventfds and coalesced zones those of the changed view, or leaves them as they
/// were.
pub(crate) fn follow(vm: &VmFd, bus: Bus, change: &ViewChange) -> Result<(), KvmError> {
    let coalesces = match bus {
        Bus::Memory => vm.check_extension(Cap::CoalescedMmio),
        Bus::Ports => vm.check_extension(Cap::CoalescedPio),
    };
    let (events, ranges) = (&change.ioeventfds, &change.coalesced);
    let coalesce = |on| move |range: &CoalescedRange| Step::Coalesce(*range, on);
    let steps = (events.removed.iter().map(|event| Step::Event(event, false)))
        .chain(ranges.removed.iter().map(coalesce(false)).filter(|_| coalesces))
        .chain(events.added.iter().map(|event| Step::Event(event, true)))
        .chain(ranges.added.iter().map(coalesce(true)).filter(|_| coalesces));
    let mut done = Vec::new();
    for step in steps {
        if let Err(error) = apply(vm, bus, step) {
            for step in done.into_iter().rev() {
                let back = match step {
                    Step::Event(event, on) => Step::Event(event, !on),
                    Step::Coalesce(range, on) => Step::Coalesce(range, !on),
                };
                if let Err(error) = apply(vm, bus, back) {
                    log::error!("An ioeventfd or coalesced zone cannot be restored: {error}");
                }
            }
            return Err(error);
        }
        done.push(step);
    }
    Ok(())
}

fn apply(vm: &VmFd, bus: Bus, step: Step<'_>) -> Result<(), KvmError> {
    match step {
        Step::Event(event, on) => {
            let IoEventFd { address, size, .. } = *event;
            ioctl::set_io_event(vm, event, bus == Bus::Ports, on)
                .map_err(|source| KvmError::IoEvent { address, size, source })
        }
        Step::Coalesce(CoalescedRange { start, last }, on) => {
            let size = last - start + 1;
            let place = match bus {
                Bus::Memory => IoEventAddress::Mmio(start),
                Bus::Ports => IoEventAddress::Pio(start),
            };
            let result = match u32::try_from(size) {
                Ok(size) if on => vm.register_coalesced_mmio(place, size).map_err(Into::into),
                Ok(size) => vm.unregister_coalesced_mmio(place, size).map_err(Into::into),
                Err(_) => Err(std::io::ErrorKind::InvalidInput.into()),
            };
            result.map_err(|source| KvmError::CoalescedZone { start, size, source })
        }
    }
}
