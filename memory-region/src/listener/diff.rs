//! What a commit changed.

use std::cmp::Ordering;

use crate::listener::change::{ListDiff, LogChange, ViewChange};
use crate::view::flat_view::FlatView;

/// The change from `old` to `new`, in one pass over both.
pub(crate) fn diff(old: &FlatView, new: &FlatView) -> ViewChange {
    let mut change = ViewChange {
        ioeventfds: difference(old.ioeventfds(), new.ioeventfds()),
        coalesced: difference(old.coalesced(), new.coalesced()),
        ..ViewChange::default()
    };
    let (mut olds, mut news) = (old.sections().iter().peekable(), new.sections().iter().peekable());
    loop {
        match (olds.peek(), news.peek()) {
            (None, None) => return change,
            (Some(old), Some(new)) if old.same_mapping(new) => {
                if old.log() != new.log() {
                    change.log_changed.push(LogChange { section: (*new).clone(), old: old.log() });
                }
                olds.next();
                news.next();
            }
            (Some(old), new) if new.is_none_or(|new| old.start() <= new.start()) => {
                change.removed.push((*old).clone());
                olds.next();
            }
            (_, Some(new)) => {
                change.added.push((*new).clone());
                news.next();
            }
            (Some(_), None) => {
                unreachable!("the third arm takes every old section without a new one")
            }
        }
    }
}

/// The symmetric difference of two sorted lists.
fn difference<T: Ord + Clone>(old: &[T], new: &[T]) -> ListDiff<T> {
    let mut difference = ListDiff::default();
    let (mut olds, mut news) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let order = match (olds.peek(), news.peek()) {
            (None, None) => return difference,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => old.cmp(new),
        };
        if order.is_le() {
            let gone = olds.next();
            difference.removed.extend(gone.filter(|_| order.is_lt()).cloned());
        }
        if order.is_ge() {
            let come = news.next();
            difference.added.extend(come.filter(|_| order.is_gt()).cloned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::difference;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn a_symmetric_difference_is_that_of_sets(
            old in prop::collection::btree_set(0..40u8, 0..30),
            new in prop::collection::btree_set(0..40u8, 0..30),
        ) {
            let list = |set: &BTreeSet<u8>| set.iter().copied().collect::<Vec<_>>();
            let found = difference(&list(&old), &list(&new));
            prop_assert_eq!(found.removed, old.difference(&new).copied().collect::<Vec<_>>());
            prop_assert_eq!(found.added, new.difference(&old).copied().collect::<Vec<_>>());
        }
    }
}
