//! Tiles, in which some encodings take a rectangle apart.

/// Lines of the lowest piece of a high rectangle: those of a ZRLE tile.
pub(super) const TILE: u32 = 64;

/// The tiles of a piece `width` pixels wide, `size` to a side, from the left and the top;
/// `tile` is given the pixels and the width of each.
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
