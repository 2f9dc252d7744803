//! Where memory holds data: no host but Linux is asked.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ops::Range;

use crate::sys::portable::mapping::Mapping;

/// The source that would report which parts of a mapping have data.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Data<'a>(PhantomData<&'a Mapping>);

impl Mapping {
    /// The source that reports which parts have data.
    #[allow(clippy::unused_self)] // the interface of `sys`
    pub(crate) fn data(&self) -> Data<'_> {
        Data(PhantomData)
    }
}

impl Data<'_> {
    /// Nothing is known: all of `_bytes` counts as data.
    #[allow(clippy::unused_self)] // the interface of `sys`
    pub(crate) fn find(
        self,
        _mapping: &Mapping,
        _bytes: Range<u64>,
        _found: &mut VecDeque<Range<u64>>,
        _buffer: &mut Vec<Range<u64>>,
    ) -> Option<u64> {
        None
    }
}
