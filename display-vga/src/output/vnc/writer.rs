//! Sends updates to one viewer: the pixels that differ from those it has.
//!
//! The writer keeps a copy of the viewer's picture. Where the published picture may have changed,
//! it is compared with this copy; pixels that differ are copied and encoded. So a slow viewer gets
//! the newest pixels and skips those in between, it costs one picture, and a second one during
//! the comparison, and scrolls are detected between the viewer's picture and the new one.

use std::io::{self, Write};
use std::sync::Arc;

use crate::output::vnc::client::{Client, ClientState, Request};
use crate::output::vnc::encode::encoder::{Encoder, pieces};
use crate::output::vnc::format::PixelFormat;
use crate::output::vnc::frame::Frame;
use crate::output::vnc::message::{Abilities, Encoding};
use crate::output::vnc::region::{Region, intersection};
use crate::output::vnc::scroll::{self, Scroll};
use crate::output::vnc::shared::Shared;
use crate::picture::surface::Rect;

/// Bytes after which the buffer is written.
const BUFFER: usize = 256 << 10;
/// The most rectangles of an update.
const MAX_RECTS: usize = 0xffff;
/// Reason and status of ExtendedDesktopSize: a change by the server, and a refused request.
const SERVER: (u16, u16) = (0, 0);
const PROHIBITED: (u16, u16) = (1, 1);

/// The pending work that was taken from the viewer's state.
struct Work {
    format: PixelFormat,
    abilities: Abilities,
    request: Option<Request>,
    tell_colours: bool,
    tell_keys: bool,
    tell_size: bool,
    refuse_size: bool,
    changed: Region,
    forced: Region,
    /// Whether every pixel was sent once, so that the viewer can copy them.
    has_all: bool,
}

impl Work {
    fn take(state: &mut ClientState) -> Self {
        let request = state.request.take();
        let asked = request.is_some();
        let area = request.map_or(Rect { x: 0, y: 0, width: 0, height: 0 }, |it| it.area);
        let (changed, forced) = (state.changed.take(&area), state.forced.take(&area));
        state.check_size &= !asked;
        // A later SetEncodings may have withdrawn a capability.
        let (abilities, extended) = (state.abilities, state.abilities.extended_desktop_size);
        Self {
            format: state.format.unwrap_or(PixelFormat::NATIVE),
            abilities,
            request,
            tell_colours: asked && std::mem::take(&mut state.tell_colours),
            tell_keys: asked && std::mem::take(&mut state.tell_keys) && abilities.qemu_keys,
            tell_size: asked && std::mem::take(&mut state.tell_size) && extended,
            refuse_size: std::mem::take(&mut state.refuse_size) && extended,
            has_all: state.forced.is_empty() && forced.is_empty(),
            changed,
            forced,
        }
    }
}

/// Sends updates until the connection ends: the body of a viewer's second thread. `seen` is the
/// viewer's first picture, black, which is not sent yet.
pub(super) fn run(hub: &Shared, viewer: &Arc<Client>, seen: Frame) {
    /// Closes the connection on any exit, so that the reader ends, too.
    struct Close<'a>(&'a Client);
    impl Drop for Close<'_> {
        fn drop(&mut self) {
            self.0.close();
        }
    }
    let _close = Close(viewer);
    let encoder = Encoder::new(PixelFormat::NATIVE);
    let mut updater = Writer { hub, viewer, seen, encoder, out: Vec::new(), put_off: false };
    while let Some(work) = viewer.wait(&updater.seen.area(), Work::take) {
        if let Err(error) = updater.serve(work) {
            log::debug!("vnc: writing to viewer {} failed: {error}", viewer.id);
            return;
        }
    }
}

struct Writer<'a> {
    hub: &'a Shared,
    viewer: &'a Client,
    /// The viewer's picture.
    seen: Frame,
    encoder: Encoder,
    out: Vec<u8>,
    /// The last update had no pixels though some were pending: the next one must have them.
    put_off: bool,
}

impl Writer<'_> {
    fn serve(&mut self, work: Work) -> io::Result<()> {
        if work.refuse_size {
            self.tell(&work.abilities, false, Some(PROHIBITED))?;
        }
        let Some(request) = work.request else { return Ok(()) };
        if work.format != *self.encoder.format() {
            self.encoder.set_format(work.format);
        }
        if let Some(level) = work.abilities.compression {
            self.encoder.set_level(level);
        }
        if work.tell_colours {
            self.tell_colours(&work.format)?;
        }

        let mut picture = self.hub.picture();
        if picture.size() != self.seen.size() {
            if work.abilities.resizes() {
                return self.resize(picture.size(), &work);
            }
            picture = Arc::new(picture.fitted(self.seen.size()));
        }
        // A viewer that sends only non-incremental requests is sent the size for each of them: send
        // it without pixels only every other time, so that the viewer gets pixels, too.
        let put_off = std::mem::take(&mut self.put_off);
        if work.tell_keys || work.tell_size && !put_off {
            self.put_off = true;
            // Answer with this update alone: viewers expect one update per request, and one that
            // has set another format uses that from the next update on. Pixels follow with that.
            self.viewer.change(|state| {
                state.changed.add_all(work.changed.rects());
                state.forced.add_all(work.forced.rects());
            });
            return self.tell(&work.abilities, work.tell_keys, work.tell_size.then_some(SERVER));
        }
        let mut changed = work.changed;
        let scrolled = work.has_all && work.abilities.copy_rect;
        // Detect a scroll in the hull of the changes: equal lines in between belong to it.
        let hull = changed.hull().filter(|hull| scrolled && hull.pixels() < 2 * changed.pixels());
        if let Some(hull) = hull {
            changed = Region::of(hull);
        }
        let scroll = hull.and_then(|hull| scroll::find(&self.seen, &picture, &hull));
        if let Some(Scroll { to, from }) = scroll {
            self.seen.scroll(&to, from);
        }
        let mut rects = work.forced;
        self.seen.update_from(&picture, &rects);
        let differing = self.seen.update_from(&picture, &changed);
        rects.add_all(differing.rects());
        drop(picture); // so that `publish` can reuse the buffer while this waits for the network

        if rects.is_empty() && scroll.is_none() && !request.at_once {
            self.viewer.change(|state| state.add_request(request));
            return Ok(());
        }
        self.update(work.abilities.encoding, scroll, &rects)
    }

    /// Announces another size. The viewer drops its pixels and requests new ones.
    fn resize(&mut self, size: (u32, u32), work: &Work) -> io::Result<()> {
        self.seen = Frame::new(size);
        let all = self.seen.area();
        self.viewer.change(|state| state.forced.add(all));
        self.tell(&work.abilities, work.tell_keys, Some(SERVER))
    }

    /// Sends an update without pixels: the support of QEMU extended key events, and the size with
    /// its reason and status, as ExtendedDesktopSize or as DesktopSize.
    fn tell(
        &mut self,
        abilities: &Abilities,
        keys: bool,
        size: Option<(u16, u16)>,
    ) -> io::Result<()> {
        let (width, height) = self.seen.size();
        let all = Rect { x: 0, y: 0, width, height };
        self.begin_update(usize::from(keys) + usize::from(size.is_some()));
        if keys {
            self.rect(&Rect { width: 0, height: 0, ..all }, Encoding::QEMU_KEYS);
        }
        match size {
            Some((reason, status)) if abilities.extended_desktop_size => {
                let said = Rect { x: reason.into(), y: status.into(), ..all };
                self.rect(&said, Encoding::EXTENDED_DESKTOP_SIZE);
                // One screen, and padding.
                self.out.extend_from_slice(&[1, 0, 0, 0]);
                self.out.extend_from_slice(&0u32.to_be_bytes());
                self.put_place(&all);
                self.out.extend_from_slice(&0u32.to_be_bytes());
            }
            Some(_) => self.rect(&all, Encoding::DESKTOP_SIZE),
            None => {}
        }
        self.send()
    }

    fn tell_colours(&mut self, format: &PixelFormat) -> io::Result<()> {
        let Some(map) = format.colour_map() else { return Ok(()) };
        let count = u16::try_from(map.len()).unwrap_or(0);
        self.out.extend_from_slice(&[1, 0, 0, 0]);
        self.out.extend_from_slice(&count.to_be_bytes());
        self.out.extend(map.iter().flatten().flat_map(|part| part.to_be_bytes()));
        self.send()
    }

    /// Sends a scroll and pixels of `seen`.
    fn update(
        &mut self,
        encoding: Encoding,
        scroll: Option<Scroll>,
        rects: &Region,
    ) -> io::Result<()> {
        let all = self.seen.area();
        let inside = rects.rects().iter().filter_map(|rect| intersection(rect, &all));
        let pieces: Vec<Rect> = inside.flat_map(|rect| pieces(&rect)).collect();
        let (now, later) = pieces.split_at(pieces.len().min(MAX_RECTS - 1));
        self.begin_update(now.len() + usize::from(scroll.is_some()));
        if let Some(Scroll { to, from }) = scroll {
            self.rect(&to, Encoding::COPY_RECT);
            self.put_numbers([to.x, from]);
        }
        self.pixels(encoding, now)?;
        for pieces in later.chunks(MAX_RECTS) {
            self.begin_update(pieces.len());
            self.pixels(encoding, pieces)?;
        }
        Ok(())
    }

    fn pixels(&mut self, encoding: Encoding, pieces: &[Rect]) -> io::Result<()> {
        for piece in pieces {
            self.rect(piece, encoding.number());
            self.encoder.encode(encoding, &self.seen, piece, &mut self.out);
            if self.out.len() >= BUFFER {
                self.send()?;
            }
        }
        self.send()
    }

    fn begin_update(&mut self, rects: usize) {
        let count = u16::try_from(rects).unwrap_or(u16::MAX);
        self.out.extend_from_slice(&[0, 0]);
        self.out.extend_from_slice(&count.to_be_bytes());
    }

    fn rect(&mut self, area: &Rect, encoding: i32) {
        self.put_place(area);
        self.out.extend_from_slice(&encoding.to_be_bytes());
    }

    fn put_place(&mut self, area: &Rect) {
        self.put_numbers([area.x, area.y, area.width, area.height]);
    }

    fn put_numbers<const N: usize>(&mut self, numbers: [u32; N]) {
        for number in numbers {
            // The sides of pictures have 16 bits at most.
            self.out.extend(u16::try_from(number).unwrap_or(u16::MAX).to_be_bytes());
        }
    }

    fn send(&mut self) -> io::Result<()> {
        let mut stream = &self.viewer.stream;
        stream.write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }
}
