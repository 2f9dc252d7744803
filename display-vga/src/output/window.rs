//! A window on the desktop.

use std::fmt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use minifb::{InputCallback, Key, MouseButton, MouseMode, ScaleMode, Window, WindowOptions};
use thiserror::Error;

use crate::output::input::InputEvent;
use crate::picture::surface::{Rect, Surface};

/// The picture is drawn again after this time: minifb does not report when other windows hid a
/// part of it.
const REDRAW_INTERVAL: Duration = Duration::from_millis(500);

/// What a step of the wheel adds to minifb's wheel position: on X11 a step is a button, whose
/// press and release both count.
const WHEEL_STEP: f32 = if cfg!(any(windows, target_os = "macos")) { 1.0 } else { 2.0 };

/// Why a window cannot be opened or drawn.
#[derive(Debug, Error)]
#[error("A window of {width}x{height} pixels cannot be shown")]
pub struct WindowError {
    /// Width of the picture in pixels.
    pub width: u32,
    /// Height of the picture in lines.
    pub height: u32,
    source: minifb::Error,
}

/// Shows a surface in a window of the desktop (X11 on Unix), and returns its input events.
///
/// The window has the picture's size, and is reopened when that changes. But if the user has
/// resized the window, it keeps its size and stretches the picture. It belongs to the thread
/// that opened it.
///
/// ```no_run
/// use display_vga::{InputEvent, Screen, WindowView};
///
/// # fn watch(mut screen: Screen) -> Result<(), Box<dyn std::error::Error>> {
/// let mut window = WindowView::new("a machine", 640, 480)?;
/// while window.is_open() {
///     screen.refresh()?;
///     for event in window.show(screen.surface(), &screen.last().damage)? {
///         if let InputEvent::Key { keysym, down, .. } = event {
///             println!("{keysym:#x} {}", if down { "down" } else { "up" });
///         }
///     }
///     std::thread::sleep(std::time::Duration::from_millis(20));
/// }
/// # Ok(())
/// # }
/// ```
pub struct WindowView {
    title: String,
    window: Box<Window>,
    keys: Receiver<InputEvent>,
    /// The picture, 0x00RRGGBB a pixel.
    pixels: Vec<u32>,
    size: (u32, u32),
    /// The window's size when it was last drawn, and the time.
    drawn: Option<((usize, usize), Instant)>,
    /// A buffer for the bytes of lines that are converted into `pixels`.
    lines: Vec<u8>,
    input: Input,
}

/// The state of keys and pointer as of the last event.
#[derive(Debug, Default)]
struct Input {
    held: Vec<u32>,
    pointer: Option<(u32, u32, u8)>,
    /// How far the wheel was turned since its last whole step, to the right and up.
    wheel: [f32; 2],
    focused: bool,
}

impl WindowView {
    /// Opens a window for a picture of `width` x `height` pixels; 0 counts as 1, for a picture that
    /// has no size yet.
    ///
    /// # Errors
    ///
    /// [`WindowError`] if there is no desktop, or the window cannot be opened.
    pub fn new(title: &str, width: u32, height: u32) -> Result<Self, WindowError> {
        let (width, height) = (width.max(1), height.max(1));
        let (window, keys) = open(title, (width, height))?;
        Ok(Self {
            title: title.to_owned(),
            window,
            keys,
            pixels: vec![0; width as usize * height as usize],
            size: (width, height),
            drawn: None,
            lines: Vec::new(),
            input: Input::default(),
        })
    }

    /// Whether the window is open; false once the user has closed it.
    pub fn is_open(&self) -> bool {
        self.window.is_open()
    }

    /// Draws the part of the picture that `damage` covers, and returns the input events since the
    /// last call.
    ///
    /// Call it also when nothing changed: it processes the window's events. A button that is
    /// pressed and released between two calls is missed; keys are not.
    ///
    /// # Errors
    ///
    /// [`WindowError`]; the next call shows everything again.
    pub fn show(
        &mut self,
        surface: &Surface,
        damage: &[Rect],
    ) -> Result<Vec<InputEvent>, WindowError> {
        let size = (surface.width(), surface.height());
        let all = [surface.area()];
        let mut damage = damage;
        if size != self.size && surface.area().pixels() > 0 {
            self.resize(size)?;
            damage = &all;
        }
        if size == self.size {
            damage.iter().for_each(|area| self.copy_area(surface, *area));
        }
        let hidden = self.drawn.is_none_or(|(_, at)| at.elapsed() >= REDRAW_INTERVAL);
        let resized = self.drawn.is_none_or(|(size, _)| size != self.window.get_size());
        let mut events = Vec::new();
        if damage.is_empty() && !hidden && !resized {
            self.window.update();
        } else {
            let (width, height) = self.size;
            self.drawn = None;
            let shown =
                self.window.update_with_buffer(&self.pixels, width as usize, height as usize);
            shown.map_err(|source| WindowError { width, height, source })?;
            self.drawn = Some((self.window.get_size(), Instant::now()));
        }
        self.collect_events(&mut events);
        Ok(events)
    }

    /// The picture's size changed.
    fn resize(&mut self, size: (u32, u32)) -> Result<(), WindowError> {
        let was = (self.size.0 as usize, self.size.1 as usize);
        if self.window.get_size() == was {
            (self.window, self.keys) = open(&self.title, size)?;
        }
        self.pixels = vec![0; size.0 as usize * size.1 as usize];
        (self.size, self.drawn) = (size, None);
        Ok(())
    }

    /// Copies the pixels of an area.
    fn copy_area(&mut self, surface: &Surface, area: Rect) {
        let stride = area.width as usize * 4;
        self.lines.resize(stride * area.height as usize, 0);
        if let Err(error) = surface.read(area, &mut self.lines, stride) {
            log::error!("window: {error}"); // damage lies within the picture
            return;
        }
        put(&mut self.pixels, self.size.0, area, &self.lines);
    }

    /// Appends the input events since the last call.
    fn collect_events(&mut self, events: &mut Vec<InputEvent>) {
        let focused = self.window.is_active();
        let released = self.input.focused && !focused;
        self.input.focused = focused;
        let keys: Vec<_> = self.keys.try_iter().collect();
        self.input.keys(keys, released, events);
        let position = self.window.get_unscaled_mouse_pos(MouseMode::Discard);
        if let Some(position) = position {
            let pressed = [MouseButton::Left, MouseButton::Middle, MouseButton::Right];
            let buttons = pressed.map(|button| self.window.get_mouse_down(button));
            let (x, y) = scaled(position, self.window.get_size(), self.size);
            let wheel = self.window.get_scroll_wheel().unwrap_or_default();
            self.input.pointer((x, y), buttons, wheel, events);
        }
    }
}

impl Input {
    /// Appends key events, and releases all held keys when the window has lost the focus: their
    /// release is not reported.
    fn keys(&mut self, keys: Vec<InputEvent>, lost_focus: bool, events: &mut Vec<InputEvent>) {
        for event in keys {
            if let InputEvent::Key { keysym, down, .. } = event {
                self.held.retain(|held| *held != keysym);
                if down {
                    self.held.push(keysym);
                }
            }
            events.push(event);
        }
        if lost_focus {
            let up = |keysym| InputEvent::Key { keysym, keycode: None, down: false };
            events.extend(self.held.drain(..).map(up));
        }
    }

    /// Appends a pointer event if it changed, and a click for each step of the wheel.
    fn pointer(
        &mut self,
        (x, y): (u32, u32),
        pressed: [bool; 3],
        wheel: (f32, f32),
        events: &mut Vec<InputEvent>,
    ) {
        let buttons = pressed.iter().rev().fold(0, |buttons, down| buttons << 1 | u8::from(*down));
        if self.pointer != Some((x, y, buttons)) {
            self.pointer = Some((x, y, buttons));
            events.push(InputEvent::Pointer { x, y, buttons });
        }
        let directions = [(wheel.0, 1 << 5, 1 << 6), (wheel.1, 1 << 4, 1 << 3)];
        for (total, (turned, backward, forward)) in self.wheel.iter_mut().zip(directions) {
            // Bound the number of events per call.
            *total += turned.clamp(-16.0, 16.0);
            while total.abs() >= WHEEL_STEP {
                let step = if *total > 0.0 { forward } else { backward };
                *total -= WHEEL_STEP.copysign(*total);
                events.push(InputEvent::Pointer { x, y, buttons: buttons | step });
                events.push(InputEvent::Pointer { x, y, buttons });
            }
        }
    }
}

impl fmt::Debug for WindowView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { title, size, input, .. } = self;
        f.debug_struct("WindowView")
            .field("title", title)
            .field("size", size)
            .field("input", input)
            .finish_non_exhaustive()
    }
}

fn open(
    title: &str,
    (width, height): (u32, u32),
) -> Result<(Box<Window>, Receiver<InputEvent>), WindowError> {
    let options =
        WindowOptions { resize: true, scale_mode: ScaleMode::Stretch, ..WindowOptions::default() };
    let mut window = Window::new(title, width as usize, height as usize, options)
        .map_err(|source| WindowError { width, height, source })?;
    window.set_target_fps(0); // the caller decides when to call again
    let (sender, keys) = channel();
    window.set_input_callback(Box::new(Keys(sender)));
    Ok((Box::new(window), keys))
}

/// Forwards key events in the order in which they happened.
struct Keys(Sender<InputEvent>);

impl InputCallback for Keys {
    fn add_char(&mut self, _: u32) {}

    fn set_key_state(&mut self, key: Key, down: bool) {
        if let Some(keysym) = keysym(key) {
            // Fails only while the window is being dropped.
            let _ = self.0.send(InputEvent::Key { keysym, keycode: None, down });
        }
    }
}

/// Converts the bytes of an area's lines into a picture of `width` pixels per line.
fn put(pixels: &mut [u32], width: u32, area: Rect, lines: &[u8]) {
    if area.width == 0 {
        return;
    }
    let picture = pixels.chunks_exact_mut(width as usize).skip(area.y as usize);
    for (line, bytes) in picture.zip(lines.chunks_exact(area.width as usize * 4)) {
        let line = line.iter_mut().skip(area.x as usize);
        for (pixel, bytes) in line.zip(bytes.chunks_exact(4)) {
            *pixel = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0]);
        }
    }
}

/// The pixel at a position in a window to whose size the picture is stretched.
fn scaled((x, y): (f32, f32), window: (usize, usize), picture: (u32, u32)) -> (u32, u32) {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let scale = |at: f32, from: usize, to: u32| {
        // The sides of windows are less than 2^24, so f32 is exact.
        let at = at.max(0.0) as u64 * u64::from(to) / (from as u64).max(1);
        u32::try_from(at).unwrap_or(u32::MAX).min(to.saturating_sub(1))
    };
    (scale(x, window.0, picture.0), scale(y, window.1, picture.1))
}

/// The keysym of a key without modifiers (`keysymdef.h` of the X Window System).
fn keysym(key: Key) -> Option<u32> {
    let from = |first: Key, keysym: u32| keysym + (key as u32 - first as u32);
    Some(match key {
        Key::Key0
        | Key::Key1
        | Key::Key2
        | Key::Key3
        | Key::Key4
        | Key::Key5
        | Key::Key6
        | Key::Key7
        | Key::Key8
        | Key::Key9 => from(Key::Key0, b'0'.into()),
        key if (Key::A..=Key::Z).contains(&key) => from(Key::A, b'a'.into()),
        key if (Key::F1..=Key::F15).contains(&key) => from(Key::F1, 0xffbe),
        key if (Key::NumPad0..=Key::NumPad9).contains(&key) => from(Key::NumPad0, 0xffb0),
        Key::Down => 0xff54,
        Key::Left => 0xff51,
        Key::Right => 0xff53,
        Key::Up => 0xff52,
        Key::Apostrophe => b'\''.into(),
        Key::Backquote => b'`'.into(),
        Key::Backslash => b'\\'.into(),
        Key::Comma => b','.into(),
        Key::Equal => b'='.into(),
        Key::LeftBracket => b'['.into(),
        Key::Minus => b'-'.into(),
        Key::Period => b'.'.into(),
        Key::RightBracket => b']'.into(),
        Key::Semicolon => b';'.into(),
        Key::Slash => b'/'.into(),
        Key::Space => b' '.into(),
        Key::Backspace => 0xff08,
        Key::Tab => 0xff09,
        Key::Enter => 0xff0d,
        Key::Pause => 0xff13,
        Key::ScrollLock => 0xff14,
        Key::Escape => 0xff1b,
        Key::Home => 0xff50,
        Key::PageUp => 0xff55,
        Key::PageDown => 0xff56,
        Key::End => 0xff57,
        Key::Insert => 0xff63,
        Key::Menu => 0xff67,
        Key::NumLock => 0xff7f,
        Key::NumPadEnter => 0xff8d,
        Key::NumPadAsterisk => 0xffaa,
        Key::NumPadPlus => 0xffab,
        Key::NumPadMinus => 0xffad,
        Key::NumPadDot => 0xffae,
        Key::NumPadSlash => 0xffaf,
        Key::LeftShift => 0xffe1,
        Key::RightShift => 0xffe2,
        Key::LeftCtrl => 0xffe3,
        Key::RightCtrl => 0xffe4,
        Key::CapsLock => 0xffe5,
        Key::LeftAlt => 0xffe9,
        Key::RightAlt => 0xffea,
        Key::LeftSuper => 0xffeb,
        Key::RightSuper => 0xffec,
        Key::Delete => 0xffff,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_area_is_put_where_it_is() {
        let mut pixels = vec![7; 4 * 3];
        let area = Rect { x: 1, y: 1, width: 2, height: 2 };
        let lines: Vec<u8> = (0..16).collect();
        put(&mut pixels, 4, area, &lines);
        assert_eq!(
            pixels,
            [
                7,
                7,
                7,
                7, //
                7,
                0x0002_0100,
                0x0006_0504,
                7, //
                7,
                0x000a_0908,
                0x000e_0d0c,
                7,
            ]
        );
    }

    #[test]
    fn an_area_of_nothing_is_put_nowhere() {
        let mut pixels = vec![7; 4];
        put(&mut pixels, 2, Rect { x: 1, y: 0, width: 0, height: 2 }, &[]);
        assert_eq!(pixels, [7; 4]);
    }

    #[test]
    fn the_pointer_is_where_the_stretched_picture_has_it() {
        assert_eq!(scaled((100.0, 50.9), (640, 480), (640, 480)), (100, 50));
        assert_eq!(scaled((1279.0, 959.0), (1280, 960), (640, 400)), (639, 399));
        assert_eq!(scaled((-3.0, 9999.0), (0, 100), (640, 400)), (0, 399));
    }

    #[test]
    fn keys_have_their_keysyms() {
        let keys = [Key::Key0, Key::Key9, Key::A, Key::Z, Key::F1, Key::F15, Key::NumPad9];
        let expected = [0x30, 0x39, 0x61, 0x7a, 0xffbe, 0xffcc, 0xffb9];
        assert_eq!(keys.map(|key| keysym(key).unwrap()), expected);
        assert_eq!(keysym(Key::Unknown), None);
    }

    #[test]
    fn what_is_done_is_told_once() {
        let (mut input, mut events) = (Input::default(), Vec::new());
        let key = |keysym, down| InputEvent::Key { keysym, keycode: None, down };
        let pointer = |x, buttons| InputEvent::Pointer { x, y: 5, buttons };
        input.keys(
            vec![key(1, true), key(2, true), key(1, true), key(2, false)],
            false,
            &mut events,
        );
        input.keys(vec![], true, &mut events);
        input.keys(vec![], true, &mut events);
        assert_eq!(
            events,
            [key(1, true), key(2, true), key(1, true), key(2, false), key(1, false)]
        );
        events.clear();
        input.pointer((9, 5), [false; 3], (0.0, 0.0), &mut events);
        input.pointer((9, 5), [false; 3], (0.0, 0.0), &mut events);
        for turned in [-1.5, -1.5, -1.0] {
            let turned = turned * WHEEL_STEP / 2.0;
            input.pointer((9, 5), [true, false, true], (0.0, turned), &mut events);
        }
        let turned = [pointer(9, 0x15), pointer(9, 5)];
        assert_eq!(events, [&[pointer(9, 0), pointer(9, 5)], &turned[..], &turned[..]].concat());
    }
}
