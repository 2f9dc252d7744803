//! The settings of the source.

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
use crate::host::{HAS_CLOCK, HAS_THREADS};
use crate::send::cancel::Cancel;
use crate::send::throttling::SlowdownSettings;
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
    pub(super) slowing: Option<SlowdownSettings>,
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

    /// Adds a device, whose state is sent after those of the devices added before.
    #[must_use]
    pub fn device(mut self, device: Arc<dyn Device>) -> Self {
        self.devices.0.push(device);
        self
    }

    /// Adds a section that a receiver [kept](crate::Receiver::keep_unknown_sections), to be sent
    /// on: before RAM, if it is a full section that was received before the end of RAM, otherwise
    /// after the devices. So the unknown devices of a QEMU machine can be relayed.
    #[must_use]
    pub fn section(mut self, section: SectionInfo) -> Self {
        self.sections.push(Arc::new(section));
        self
    }

    /// The allowed downtime: the machine is paused when the rest can be sent within it, by the
    /// measured bandwidth.
    #[must_use]
    pub fn downtime(mut self, downtime: Duration) -> Self {
        self.downtime = downtime;
        self
    }

    /// After this many rounds the machine is paused, however many pages are pending; 0 pauses it
    /// before any page is sent.
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

    /// Limits the bandwidth to so many bytes a second, at least 1, while the machine runs. There
    /// is no limit once it is paused.
    #[must_use]
    pub fn bandwidth(mut self, bytes_per_second: u64) -> Self {
        self.bandwidth = Some(bytes_per_second.max(1));
        self
    }

    /// Throttles a guest that dirties too much for the migration to converge, by `settings`.
    /// `pause` pauses all vCPUs, and returns a guard that resumes them when dropped; the
    /// throttle's thread calls it repeatedly (see [`Throttle`](crate::Throttle)).
    ///
    /// Rounds in which the guest dirties too much do not count for
    /// [`max_rounds`](Self::max_rounds) until the throttle is at its largest percentage. Replaces
    /// [`dirty_limit`](Self::dirty_limit).
    #[must_use]
    pub fn auto_converge<G: 'static>(
        mut self,
        settings: AutoConverge,
        pause: impl Fn() -> Result<G, DeviceError> + Send + Sync + 'static,
    ) -> Self {
        let pause = Arc::new(move || Ok(Box::new(pause()?) as Box<dyn Any>));
        self.slowing = Some(SlowdownSettings::Throttle { settings, pause });
        self
    }

    /// Limits a guest that dirties too much for the migration to converge, by `settings`. `set`
    /// is called with the bytes of pages that the whole guest may dirty per second: with
    /// kvm-accel's dirty rings, pass each vCPU's share to `KvmVm::set_dirty_limit`.
    ///
    /// `set` is called with `None` before anything is sent, so that an accelerator without
    /// dirty limits fails then; and again when the migration has ended, with or without an
    /// error, if there was a limit.
    ///
    /// Rounds in which the guest dirties too much do not count for
    /// [`max_rounds`](Self::max_rounds) until the limit is set. Replaces
    /// [`auto_converge`](Self::auto_converge).
    #[must_use]
    pub fn dirty_limit(
        mut self,
        settings: DirtyLimit,
        set: impl Fn(Option<u64>) -> Result<(), DeviceError> + Send + Sync + 'static,
    ) -> Self {
        self.slowing = Some(SlowdownSettings::Limit { settings, set: Arc::new(set) });
        self
    }

    /// The machine's name in the stream, which QEMU compares with its own; it is cut after 1,024
    /// bytes.
    #[must_use]
    pub fn machine(mut self, name: &str) -> Self {
        let end = (0..=name.len().min(1024)).rev().find(|end| name.is_char_boundary(*end));
        self.machine = name[..end.unwrap_or(0)].to_owned();
        self
    }

    /// The page size of the stream: the target's, which must divide the host's. 4 KiB by default,
    /// and always with channels, as the format of their packets depends on it.
    #[must_use]
    pub fn page_size(mut self, page: PageSize) -> Self {
        self.page = page;
        self
    }

    /// Whether the receiver waits for all channels at the end of each section of RAM without being
    /// told to: QEMU's `multifd-flush-after-each-section`. Otherwise the stream has a
    /// RAM_SAVE_FLAG_MULTIFD_FLUSH record where the receiver is to wait, which QEMU before 8.1
    /// refuses, and later versions need. Both sides must agree, or pages are lost.
    ///
    /// The default is QEMU's for the version in the [machine](Self::machine)'s name, as in
    /// "pc-q35-7.2": on up to 8.0, and off from 8.1 on and for other names. This crate's
    /// receiver accepts both.
    #[must_use]
    pub fn multifd_flush_after_each_section(mut self, after: bool) -> Self {
        self.flush_after_each_section = Some(after);
        self
    }

    /// Whether the stream has RAM_SAVE_FLAG_MULTIFD_FLUSH records.
    pub(super) fn says_flush(&self) -> bool {
        let by_version = || version(&self.machine).is_some_and(|version| version <= (8, 0));
        !self.flush_after_each_section.unwrap_or_else(by_version)
    }

    /// How long the source waits for the receiver; [`Deadlines::default`] by default.
    #[must_use]
    pub fn deadlines(mut self, deadlines: Deadlines) -> Self {
        self.deadlines = deadlines;
        self
    }

    /// A handle to cancel this migration, from another thread or from the observer.
    pub fn cancel(&self) -> Cancel {
        self.cancel.clone()
    }

    /// An error if the settings are invalid, or do not fit this number of channels.
    pub(super) fn check(&self, channels: usize) -> Result<(), SendError> {
        let host = PageSize::host();
        if self.page > host || self.page < default_page_size() {
            return Err(SendError::PageSize { page: self.page.bytes(), host: host.bytes() });
        }
        if channels > 0 && !HAS_THREADS {
            return Err(SendError::Unsupported { what: "threads", by: "channels" });
        }
        if self.bandwidth.is_some() && !HAS_CLOCK {
            return Err(SendError::Unsupported { what: "clock", by: "bandwidth limits" });
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
