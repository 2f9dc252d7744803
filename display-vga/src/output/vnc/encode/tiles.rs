//! Splits rectangles into tiles, for encodings that need them.

/// Lines of a ZRLE tile: the heights of pieces are multiples of it.
pub(super) const TILE: u32 = 64;

/// Calls `tile` with the pixels and the width of each tile of a piece that is `width` pixels wide;
/// tiles have sides of `size` pixels, and are counted from the left and the top.
pub(super) fn tiles(
    values: &[u32],
    width: usize,
    size: usize,
    mut tile: impl FnMut(&[u32], usize),
) {
    let mut pixels = Vec::with_capacity(size * size);
    for rows in values.chunks(width * size) {
        for left in (0..width).step_by(size) {
            let columns = left..(left + size).min(width);
            pixels.clear();
            for row in rows.chunks(width) {
                pixels.extend_from_slice(&row[columns.clone()]);
            }
            tile(&pixels, columns.len());
        }
    }
}
