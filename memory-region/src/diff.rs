//! What a commit changed.

use crate::flat_view::FlatView;
use crate::listener::{LogChange, ViewChange};

/// The change from `old` to `new`, in one pass over both.
pub(crate) fn diff(old: &FlatView, new: &FlatView) -> ViewChange {
    let mut change = ViewChange::default();
    let (mut olds, mut news) = (old.sections().iter().peekable(), new.sections().iter().peekable());
    loop {
        match (olds.peek(), news.peek()) {
            (None, None) => return change,
            (Some(old), Some(new)) if old.same_mapping(new) => {
                if old.log() != new.log() {
                    change.relogged.push(LogChange { section: (*new).clone(), old: old.log() });
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
