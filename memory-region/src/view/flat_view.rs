//! What a bus sees: sections, sorted, without overlap.

#[cfg(feature = "vm-memory")]
use std::sync::OnceLock;

use ram_block::RamBlock;

use crate::device::ioeventfd::{CoalescedRange, IoEventFd};
use crate::region_id::RegionId;
#[cfg(feature = "vm-memory")]
use crate::view::guest_ram::GuestRam;
use crate::view::index::LookUp;
use crate::view::main_ram::MainRam;
use crate::view::section::{Route, Section};

/// How often a section that has moved is searched for among all of another view.
const MAX_SEARCHES: usize = 8;

/// The sections of an address space in ascending order, as one commit left them.
///
/// A value that never changes: readers keep the one they loaded.
#[derive(Clone, Debug, Default)]
pub struct FlatView {
    main_ram: Option<MainRam>,
    sections: Box<[Section]>,
    look_up: LookUp,
    ioeventfds: Vec<IoEventFd>,
    coalesced: Vec<CoalescedRange>,
    /// Made at the first call of `ram`.
    #[cfg(feature = "vm-memory")]
    ram: OnceLock<GuestRam>,
}

impl FlatView {
    pub(crate) fn new(sections: Vec<Section>) -> Self {
        debug_assert!(sections.windows(2).all(|pair| pair[0].last < pair[1].start));
        let mut ioeventfds: Vec<_> = sections.iter().flat_map(Section::ioeventfds).collect();
        ioeventfds.sort_unstable();
        let mut coalesced: Vec<_> = sections.iter().flat_map(Section::coalesced).collect();
        coalesced.sort_unstable();
        debug_assert!(coalesced.windows(2).all(|pair| pair[0].last < pair[1].start));
        Self {
            main_ram: MainRam::of(&sections),
            look_up: LookUp::new(sections.iter().map(|section| section.last).collect()),
            #[cfg(feature = "vm-memory")]
            ram: OnceLock::new(),
            sections: sections.into_boxed_slice(),
            ioeventfds,
            coalesced,
        }
    }

    /// This view with what `alias` shows of its target from `from` on replaced by what it has from
    /// `to` on, and the addresses that show it. Nothing if such a view differs in more than that:
    /// if sections would come together or apart, or events or coalesced writes move with them.
    pub(crate) fn with_alias_moved(
        &self,
        alias: RegionId,
        target: RegionId,
        (from, to): (u64, u64),
    ) -> Option<(Self, Vec<(u64, u64)>)> {
        let by_alias = |section: &Section| section.via == Route::Alias(alias);
        let is_mixed =
            |section: &Section| section.via == Route::Several && section.region == target;
        let has_events = |section: &Section| section.device().is_some_and(|d| d.has_events());
        let mut moved = Vec::new();
        for section in &self.sections {
            if is_mixed(section) || by_alias(section) && has_events(section) {
                return None;
            }
            if by_alias(section) {
                moved.push((section.start, section.last));
            }
        }
        let mut sections = self.sections.clone();
        for section in sections.iter_mut().filter(|section| by_alias(section)) {
            section.offset = section.offset.wrapping_sub(from).wrapping_add(to);
        }
        if sections.windows(2).any(|pair| pair[0].continues_in(&pair[1])) {
            return None;
        }
        let Self { look_up, ioeventfds, coalesced, .. } = self;
        let mut main_ram = self.main_ram.clone();
        if let Some(main_ram) = &mut main_ram {
            sections.iter().for_each(|section| main_ram.follow(section));
        }
        let view = Self {
            main_ram,
            sections,
            look_up: look_up.clone(),
            ioeventfds: ioeventfds.clone(),
            coalesced: coalesced.clone(),
            #[cfg(feature = "vm-memory")]
            ram: OnceLock::new(),
        };
        Some((view, moved))
    }

    /// Whether all that answers in `former` answers in this view too, so that nothing is dropped
    /// with the former one. False if that is not known: if much has moved.
    pub(crate) fn has_all_of(&self, former: &Self) -> bool {
        let mut searches = 0;
        let mut next = 0;
        former.sections.iter().all(|section| {
            // Most sections stay where they are.
            let before = |own: &Section| own.last < section.start;
            next += self.sections[next..].iter().take_while(|own| before(own)).count();
            let stays = self.sections.get(next).is_some_and(|own| own.has_all_of(section));
            stays || section.holds_nothing() || {
                searches += 1;
                searches <= MAX_SEARCHES && self.sections.iter().any(|own| own.has_all_of(section))
            }
        })
    }

    /// The sections in ascending order.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// The eventfds that writes signal, by address.
    pub fn ioeventfds(&self) -> &[IoEventFd] {
        &self.ioeventfds
    }

    /// The ranges whose writes an accelerator may coalesce, in ascending order.
    pub fn coalesced(&self) -> &[CoalescedRange] {
        &self.coalesced
    }

    /// The RAM that can be written, but for the last page of the 64-bit space, for those who
    /// want vm-memory's `GuestMemoryBackend`. The view itself is a vm-memory `GuestMemory`,
    /// of which ROM can be read too. With the feature `vm-memory`.
    #[cfg(feature = "vm-memory")]
    pub fn ram(&self) -> &GuestRam {
        self.ram.get_or_init(|| GuestRam::new(&self.sections))
    }

    /// Whether it has descriptors of files, of which a process has few.
    pub(crate) fn has_files(&self) -> bool {
        #[cfg(feature = "vm-memory")]
        let has_files = self.ram.get().is_some_and(GuestRam::has_files);
        #[cfg(not(feature = "vm-memory"))]
        let has_files = false;
        has_files
    }

    /// The block and the offset in it of an access of `len` bytes to the RAM that most are to.
    #[inline(always)]
    pub(crate) fn main_ram(&self, address: u64, len: usize) -> Option<(&RamBlock, u64)> {
        self.main_ram.as_ref()?.holding(address, len)
    }

    /// The section that holds `address`, or where the next one starts.
    ///
    /// `Err(None)` says that nothing answers from `address` to the end.
    pub(crate) fn find(&self, address: u64) -> Result<&Section, Option<u64>> {
        let next = || self.sections.get(self.look_up.first_reaching(address));
        self.section_at(address).ok_or_else(|| next().map(|section| section.start))
    }

    /// The section that holds all of an access, as nearly always one does.
    #[inline]
    pub(crate) fn whole(&self, address: u64, len: usize) -> Option<&Section> {
        let section = self.section_at(address)?;
        ((len as u64).wrapping_sub(1) <= section.last - address).then_some(section)
    }

    /// The section that answers at `address`.
    #[inline]
    pub fn section_at(&self, address: u64) -> Option<&Section> {
        let at = match &*self.sections {
            [only] => usize::from(only.last < address),
            _ => self.look_up.first_reaching(address),
        };
        self.sections.get(at).filter(|section| section.start <= address)
    }

    /// The sections that have a byte from `first` to `last`, in ascending order.
    pub fn sections_in(&self, first: u64, last: u64) -> impl Iterator<Item = &Section> {
        let at = self.look_up.first_reaching(first);
        self.sections[at..].iter().take_while(move |section| section.start <= last)
    }
}
