//! What a migration is to do, as its source is told.

use std::any::Any;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use memory_region::MemoryMap;
use ram_block::PageSize;

use crate::converge::auto_converge::AutoConverge;
use crate::converge::dirty_limit::DirtyLimit;
use crate::devices::device::{Device, DeviceError, Devices};
use crate::devices::section_info::SectionInfo;
use crate::error::SendError;
use crate::send::cancel::Cancel;
use crate::send::throttling::Slowing;
use crate::wire::deadline::Deadlines;
use crate::wire::format::{RAM_NAME, default_page_size};
use crate::wire::multifd::MAX_CHANNELS;

/// A live migration of all RAM of one machine, and of its devices, by precopy.
///
/// A clone makes the same migration, and shares its [`Cancel`].
#[derive(Clone, Debug)]
pub struct Precopy {
    pub(super) memory: Arc<MemoryMap>,
    pub(super) devices: Devices,
    pub(super) sections: Vec<Arc<SectionInfo>>,
    pub(super) downtime: Duration,
    pub(super) max_rounds: u32,
    pub(super) must_converge: bool,
    pub(super) bandwidth: Option<u64>,
    pub(super) slowing: Option<Slowing>,
    pub(super) machine: String,
    pub(super) page: PageSize,
    pub(super) deadlines: Deadlines,
    flush_after_each_section: Option<bool>,
    pub(super) cancel: Cancel,
}

impl Precopy {
    /// A migration of every block of `memory`, with a downtime of 300 ms, at most 30
    /// rounds, no limit of bandwidth, no devices, machine name "none", and pages of 4 KiB in
    /// the stream.
    pub fn new(memory: Arc<MemoryMap>) -> Self {
        Self {
            memory,
            devices: Devices::default(),
            sections: Vec::new(),
            downtime: Duration::from_millis(300),
            max_rounds: 30,
            must_converge: false,
            bandwidth: None,
            slowing: None,
            machine: "none".to_owned(),
            page: default_page_size(),
            deadlines: Deadlines::default(),
            flush_after_each_section: None,
            cancel: Cancel::default(),
        }
    }

    /// The device's state goes along, after those given before.
    #[must_use]
    pub fn device(mut self, device: Arc<dyn Device>) -> Self {
        self.devices.0.push(device);
        self
    }

    /// The section goes along as a receiver [kept](crate::Receiver::keep_unknown_sections) it,
    /// behind the devices; before RAM, if it came whole before the end of RAM. So what is not
    /// known here of a machine of QEMU's is sent on.
    #[must_use]
    pub fn section(mut self, section: SectionInfo) -> Self {
        self.sections.push(Arc::new(section));
        self
    }

    /// The machine is paused when the rest is expected to be sent within `downtime`.
    #[must_use]
    pub fn downtime(mut self, downtime: Duration) -> Self {
        self.downtime = downtime;
        self
    }

    /// After this many rounds the machine is paused however much is left; 0 pauses it
    /// before anything is sent.
    #[must_use]
    pub fn max_rounds(mut self, rounds: u32) -> Self {
        self.max_rounds = rounds;
        self
    }

    /// After the last round that is allowed the migration fails with
    /// [`SendError::NotConverging`] if the rest does not fit the downtime, instead of
    /// pausing the machine for longer.
    #[must_use]
    pub fn must_converge(mut self, must: bool) -> Self {
        self.must_converge = must;
        self
    }

    /// At most so many bytes a second while the machine runs; as fast as it goes once it
    /// stands still. At least 1.
    #[must_use]
    pub fn bandwidth(mut self, bytes_per_second: u64) -> Self {
        self.bandwidth = Some(bytes_per_second.max(1));
        self
    }

    /// A guest that writes faster than what is written can be sent is slowed down, by
    /// `settings`. `pause` stops all vCPUs, and returns a guard that holds them: it is called
    /// again and again, by a thread of its own (see [`Throttle`](crate::Throttle)).
    ///
    /// Rounds in which it writes too much then do not count for the limit of rounds, until it
    /// is slowed down as much as it may be. Takes the place of
    /// [`dirty_limit`](Self::dirty_limit).
    #[must_use]
    pub fn auto_converge<G: 'static>(
        mut self,
        settings: AutoConverge,
        pause: impl Fn() -> Result<G, DeviceError> + Send + Sync + 'static,
    ) -> Self {
        let pause = Arc::new(move || Ok(Box::new(pause()?) as Box<dyn Any>));
        self.slowing = Some(Slowing::Throttle { settings, pause });
        self
    }

    /// A guest that writes faster than what is written can be sent may dirty only so much from
    /// then on, by `settings`. `set` is told how many bytes of pages the whole guest may dirty
    /// in a second: with kvm-accel's dirty rings, `KvmVm::set_dirty_limit` with the part of
    /// each vCPU.
    ///
    /// `set` is called with `None` before anything is sent, so that an accelerator that knows
    /// no limits says so then; and once more when the migration has ended, however it ended, if
    /// there was a limit.
    ///
    /// Rounds in which it writes too much then do not count for the limit of rounds, until it
    /// is limited. Takes the place of [`auto_converge`](Self::auto_converge).
    #[must_use]
    pub fn dirty_limit(
        mut self,
        settings: DirtyLimit,
        set: impl Fn(Option<u64>) -> Result<(), DeviceError> + Send + Sync + 'static,
    ) -> Self {
        self.slowing = Some(Slowing::Limit { settings, set: Arc::new(set) });
        self
    }

    /// The machine's name in the stream, which QEMU compares with its own; at most
    /// 1,024 bytes, what exceeds them is cut.
    #[must_use]
    pub fn machine(mut self, name: &str) -> Self {
        let end = (0..=name.len().min(1024)).rev().find(|end| name.is_char_boundary(*end));
        self.machine = name[..end.unwrap_or(0)].to_owned();
        self
    }

    /// The page size of the stream: the target's, which divides the host's. 4 KiB unless said,
    /// and always with channels, whose packets depend on it.
    #[must_use]
    pub fn page_size(mut self, page: PageSize) -> Self {
        self.page = page;
        self
    }

    /// Whether the receiver waits for the channels at the end of each section of RAM, by itself:
    /// QEMU's `multifd-flush-after-each-section`. Otherwise the stream says where to wait, which
    /// QEMU before 8.1 refuses, and later ones need. Both sides must agree, or pages are lost.
    ///
    /// Unless this is called, it is as QEMU has it by the [machine](Self::machine)'s version, as
    /// in "pc-q35-7.2": on up to 8.0, and off from 8.1 on and for other names. This crate's
    /// receiver takes both.
    #[must_use]
    pub fn multifd_flush_after_each_section(mut self, after: bool) -> Self {
        self.flush_after_each_section = Some(after);
        self
    }

    /// Whether the stream says where to wait for the channels.
    pub(super) fn says_flush(&self) -> bool {
        let by_version = || version(&self.machine).is_some_and(|version| version <= (8, 0));
        !self.flush_after_each_section.unwrap_or_else(by_version)
    }

    /// How long the receiver is waited for: as [`Deadlines::default`] says unless this is called.
    #[must_use]
    pub fn deadlines(mut self, deadlines: Deadlines) -> Self {
        self.deadlines = deadlines;
        self
    }

    /// What ends this migration, from another thread or from the observer.
    pub fn cancel(&self) -> Cancel {
        self.cancel.clone()
    }

    /// An error if there can be no such migration over so many channels.
    pub(super) fn check(&self, channels: usize) -> Result<(), SendError> {
        let host = PageSize::host();
        if self.page > host || self.page < default_page_size() {
            return Err(SendError::PageSize { page: self.page.bytes(), host: host.bytes() });
        }
        if channels > MAX_CHANNELS {
            return Err(SendError::TooManyChannels { channels });
        }
        if channels > 0 && self.page != default_page_size() {
            return Err(SendError::ChannelPageSize { page: self.page.bytes() });
        }
        if let Some(section) = self.sections.iter().find(|section| section.parts().is_none()) {
            let (name, instance) = (section.name.clone(), section.instance);
            return Err(SendError::SectionNotKept { name, instance });
        }
        let mut names = BTreeSet::new();
        let devices = self.devices.0.iter().map(|device| (device.name(), device.instance()));
        let sections = self.sections.iter().map(|section| (&*section.name, section.instance));
        for (name, instance) in devices.chain(sections) {
            let fits = (1..=255).contains(&name.len()) && name != RAM_NAME;
            if !fits || !names.insert((name, instance)) {
                return Err(SendError::DeviceName { name: name.to_owned(), instance });
            }
        }
        Ok(())
    }
}

/// The version at the end of a machine's name: "pc-i440fx-7.2".
fn version(machine: &str) -> Option<(u32, u32)> {
    let (_, version) = machine.rsplit_once('-')?;
    let (major, minor) = version.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_waited_for_as_by_the_machines_version() {
        let precopy = |machine| Precopy::new(MemoryMap::new()).machine(machine);
        for (machine, says_flush) in [
            ("pc-i440fx-7.2", false),
            ("pc-q35-8.0", false),
            ("virt-2.12", false),
            ("pc-q35-8.1", true),
            ("s390-ccw-virtio-10.1", true),
            // QEMU has these in no version, and the properties of the newest.
            ("none", true),
            ("microvm", true),
            ("pc-i440fx-rhel7.6.0", true),
            ("x-8.0.1", true),
        ] {
            assert_eq!(precopy(machine).says_flush(), says_flush, "{machine}");
            for after in [false, true] {
                let told = precopy(machine).multifd_flush_after_each_section(after);
                assert_eq!(told.says_flush(), !after);
            }
        }
    }
}
