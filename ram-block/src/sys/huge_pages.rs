//! The page sizes that can be asked for.

/// Which page sizes of the host back a block's memory.
///
/// Dirty pages are counted in the host's base pages whatever backs them. Hosts other than Linux
/// have [`Default`](Self::Default) only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum HugePages {
    /// As the host is set: nothing is asked for.
    #[default]
    Default,
    /// Transparent huge pages (`MADV_HUGEPAGE`), where the kernel finds 2 MiB together.
    Transparent,
    /// 2 MiB pages from the host's pool (`MAP_HUGETLB`), which are reserved at once.
    Pool,
}
