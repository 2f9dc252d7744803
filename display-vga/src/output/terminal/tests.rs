use super::*;

#[test]
fn only_cells_that_change_are_written() {
    let mut surface = Surface::new(80, 48);
    let mut out = Vec::new();
    let mut view = TerminalView::new(&mut out, 80, 24).unwrap();
    view.show(&surface, &[]).unwrap();
    surface.line_mut(10)[4 * 7..4 * 7 + 4].copy_from_slice(&[3, 2, 1, 0]);
    view.show(&surface, &[Rect { x: 0, y: 10, width: 80, height: 1 }]).unwrap();
    drop(view);
    let text = String::from_utf8(out).unwrap();
    assert_eq!(text.matches('▀').count(), 80 * 24 + 1);
    assert!(text.contains("\u{1b}[6;8H\u{1b}[38;2;1;2;3m"), "{text:?}");
    assert!(text.ends_with("\u{1b}[?1049l"));
}

#[test]
fn a_picture_keeps_its_proportions() {
    let view = TerminalView::new(Vec::new(), 200, 50).unwrap();
    assert_eq!(view.fit((640, 480)), (133, 50));
    assert_eq!(view.fit((1920, 480)), (200, 25));
    assert_eq!(view.fit((1, 10_000)), (1, 50));
}
