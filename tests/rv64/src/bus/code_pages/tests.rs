//! A write that comes while its page is watched.

use ram_block::PageSize;

use super::*;

/// A page is found outdated, or is still watched, so that the next write is found: whether it was
/// watched before, and whether a write came in between. Were the generation read after the page is
/// watched, the report of that write would end the watch, and its number would be taken for new.
#[test]
fn a_page_that_is_current_is_still_watched() {
    let block = RamBlock::builder("ram", CODE_PAGE).page_size(PageSize::new(CODE_PAGE).unwrap());
    let ram = block.anonymous().unwrap();
    let pages = CodePages::new(&ram).unwrap();
    let write = || ram.write(0, &[1]).unwrap();
    for (is_watched, is_written) in [(false, false), (false, true), (true, false), (true, true)] {
        write();
        if is_watched {
            pages.watch(&ram, 0, 4);
        }
        let between = || {
            if is_written {
                write()
            }
        };
        let page = pages.watch_with(&ram, 0, 4, between);
        let is_current = || pages.page_at(&ram, 0, 4) == page;
        assert_eq!(is_current(), !(is_watched && is_written));
        write();
        assert!(!is_current(), "watched: {is_watched}, written: {is_written}");
    }
}
