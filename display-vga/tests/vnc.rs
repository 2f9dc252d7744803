//! The VNC server, tested with a strict viewer of our own.

mod common;
#[path = "common/deadline.rs"]
mod deadline;
#[path = "common/rfb.rs"]
mod rfb;
#[path = "common/rfb_decoder.rs"]
mod rfb_decoder;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use common::{BASE, Board, Pc};
use display_vga::{InputEvent, Rect, Screen, VncBuilder, VncError, VncEvent, VncServer};
use proptest::prelude::*;
use rfb::*;

/// A machine's screen with a server.
struct Stage {
    board: Board,
    screen: Screen,
    server: VncServer,
    events: Receiver<VncEvent>,
}

const SIZE: (u32, u32) = (320, 200);

impl Stage {
    fn new() -> Self {
        Self::with(|server| server)
    }

    fn with(options: impl FnOnce(VncBuilder) -> VncBuilder) -> Self {
        let board = Board::new(4 << 20);
        board.vga.set_mode(320, 200, 32).unwrap();
        let screen = board.screen();
        let (sender, events) = mpsc::channel();
        let server =
            VncServer::loopback(0).unwrap().on_input(move |event| drop(sender.send(event)));
        let server = options(server).start().unwrap();
        let mut stage = Self { board, screen, server, events };
        stage.fill(rect(0, 0, SIZE.0, SIZE.1), 1);
        stage.publish();
        stage
    }

    /// The same with a surface that shares video memory.
    fn sharing(self) -> Self {
        drop(self.screen);
        let screen = self.board.screen().zero_copy();
        Self { screen, ..self }
    }

    fn address(&self) -> SocketAddr {
        self.server.local_addr().unwrap()
    }

    fn viewer(&self) -> Viewer {
        Viewer::connect(self.address())
    }

    /// A viewer that has the whole picture and has requested the next update.
    fn settled(&self, encodings: &[i32]) -> Viewer {
        let mut viewer = self.viewer();
        viewer.set_encodings(encodings);
        viewer.request(false, viewer.all());
        viewer.follow(self.screen.surface());
        viewer
    }

    /// Draws noise that depends on `seed`, by a guest's stores.
    fn fill(&self, area: Rect, seed: u32) {
        let width = self.board.vga.mode().unwrap().map_or(SIZE.0, |mode| mode.width());
        for y in area.y..area.bottom() {
            let line: Vec<u8> = (area.x..area.right())
                .flat_map(|x| {
                    let noise = (x ^ y << 10).wrapping_mul(0x9e37_79b1).wrapping_add(seed);
                    (noise ^ noise >> 15).wrapping_mul(0x85eb_ca6b ^ seed << 3).to_be_bytes()
                })
                .collect();
            self.board.poke(BASE + u64::from(y * width + area.x) * 4, &line);
        }
    }

    fn publish(&mut self) {
        self.screen.refresh().unwrap();
        self.server.update(self.screen.surface(), &self.screen.last().damage);
    }

    fn wait_viewers(&self, count: usize) {
        let deadline = Instant::now() + patience();
        while self.server.viewers() != count {
            assert!(Instant::now() < deadline, "{} viewers", self.server.viewers());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn holds(outer: Rect, inner: &Rect) -> bool {
    inner.x >= outer.x
        && inner.y >= outer.y
        && inner.right() <= outer.right()
        && inner.bottom() <= outer.bottom()
}

#[test]
fn each_encoding_shows_the_picture_in_each_format() {
    let format = |bits, depth, max, shift| Format { bits, depth, max, shift, ..Format::BGRX };
    let formats = [
        Format::BGRX,
        format(32, 24, [255; 3], [0, 8, 16]),
        format(32, 32, [255; 3], [24, 16, 8]),
        format(16, 16, [31, 63, 31], [11, 5, 0]),
        format(16, 15, [31; 3], [0, 5, 10]),
        format(8, 8, [7, 7, 3], [0, 3, 6]),
    ];
    let mut stage = Stage::new();
    let mut seed = 2;
    for encoding in ENCODINGS {
        let mut viewer = stage.viewer();
        viewer.set_encodings(&[encoding]);
        // One connection uses all formats, and so do its zlib streams.
        for format in formats.iter().flat_map(|it| [*it, Format { big_endian: true, ..*it }]) {
            viewer.set_format(format);
            viewer.request(false, viewer.all());
            let rects = viewer.update();
            assert!(rects.iter().all(|(used, _)| *used == encoding));
            assert_eq!(viewer.difference(stage.screen.surface()), None, "{encoding} {format:?}");
            stage.fill(rect(100, 50, 80, 90), seed);
            stage.publish();
            viewer.ask();
            viewer.update();
            assert_eq!(viewer.difference(stage.screen.surface()), None, "{encoding} {format:?}");
            seed += 1;
        }
    }
}

#[test]
fn a_viewer_without_true_colours_is_told_a_map() {
    let stage = Stage::new();
    for (bits, big_endian) in [(8, false), (16, false), (16, true), (32, true)] {
        for encoding in ENCODINGS {
            let mut viewer = stage.viewer();
            let [max, shift] = [[0; 3], [0; 3]];
            let depth = 8;
            let shift = shift.map(|shift: u16| u8::try_from(shift).unwrap());
            viewer.set_format(Format { bits, depth, big_endian, true_colour: false, max, shift });
            viewer.set_encodings(&[encoding]);
            viewer.request(false, viewer.all());
            viewer.update();
            assert_eq!(viewer.colours.len(), 256);
            assert_eq!(viewer.colours[0], [0; 3]);
            assert_eq!(viewer.colours[255], [65535; 3]);
            assert_eq!(viewer.difference(stage.screen.surface()), None);
        }
    }
}

#[test]
fn only_what_changed_is_sent_and_only_then() {
    let mut stage = Stage::new();
    let mut viewer = stage.settled(&[RAW]);
    viewer.ask();
    stage.publish(); // nothing
    stage.board.poke(BASE + (77 * 320 + 33) * 4, &[0x12, 0x34, 0x56, 0]);
    stage.publish();
    assert_eq!(viewer.update(), [(RAW, rect(33, 77, 1, 1))]);
    assert_eq!(viewer.difference(stage.screen.surface()), None);

    // Two areas far from each other are two rectangles.
    stage.fill(rect(10, 10, 20, 20), 8);
    stage.fill(rect(250, 150, 20, 20), 8);
    stage.publish();
    viewer.ask();
    let rects = viewer.update();
    assert!(rects.iter().map(|(_, area)| area.pixels()).sum::<u64>() <= 800, "{rects:?}");
    assert_eq!(viewer.difference(stage.screen.surface()), None);

    // A surface that is video memory itself is damaged by pages.
    let mut stage = stage.sharing();
    stage.publish();
    viewer.follow(stage.screen.surface());
    viewer.ask();
    stage.board.poke(BASE + (50 * 320 + 7) * 4, &[0x65, 0x43, 0x21, 0]);
    stage.publish();
    assert!(stage.screen.last().damage[0].pixels() >= 1024);
    let rects = viewer.follow(stage.screen.surface());
    assert_eq!(rects, [(RAW, rect(7, 50, 1, 1))]);

    // Pixels that are damaged and changed back are not sent.
    viewer.ask();
    stage.server.update(stage.screen.surface(), &[stage.screen.surface().area()]);
    stage.fill(rect(0, 0, 3, 2), 77);
    stage.publish();
    let rects = viewer.update();
    assert!(rects.iter().all(|(_, area)| holds(rect(0, 0, 3, 2), area)), "{rects:?}");
}

#[test]
fn a_viewer_that_asks_seldom_gets_the_sum() {
    let mut stage = Stage::new();
    let mut viewer = stage.settled(&[RAW]);
    viewer.request(true, rect(0, 0, 1, 1)); // replaces the outstanding one's area by its hull
    let mut other = stage.settled(&[ZRLE]);
    for frame in 0..300 {
        stage.fill(rect(frame % 50, 20 + frame % 70, 30, 10), frame);
        stage.publish();
        if frame % 7 == 0 {
            other.ask();
        }
    }
    let rects = viewer.follow(stage.screen.surface());
    let sent: u64 = rects.iter().map(|(_, area)| area.pixels()).sum();
    // One update had begun, perhaps two; not 300.
    assert!(sent <= 4 * 80 * 80, "{sent} pixels");
    other.follow(stage.screen.surface());
}

#[test]
fn a_newcomer_sees_all_that_was_drawn() {
    let mut stage = Stage::new();
    let mut viewer = stage.settled(&[ZRLE, COPY_RECT]);
    for frame in 0..12 {
        stage.fill(rect(frame * 20, 190 - frame * 15, 25, 9), frame);
        stage.publish();
        if frame % 3 == 0 {
            viewer.follow(stage.screen.surface());
        }
        let mut newcomer = stage.viewer();
        newcomer.request(false, newcomer.all());
        newcomer.update();
        assert_eq!(newcomer.difference(stage.screen.surface()), None, "frame {frame}");
    }
    viewer.follow(stage.screen.surface());
}

/// A CopyRect of pixels that the viewer was never sent would show wrong ones.
#[test]
fn a_scroll_of_what_was_not_sent_is_no_copy() {
    let mut stage = Stage::new();
    let line = 320 * 4;
    let mut pixels = vec![0; 200 * line];
    stage.board.poke(BASE, &pixels);
    stage.fill(rect(0, 0, 320, 100), 3);
    stage.publish();
    let mut viewer = stage.viewer();
    viewer.set_encodings(&[COPY_RECT, RAW]);
    viewer.request(false, rect(0, 0, 320, 100));
    viewer.update();
    // The upper half moves up, and black follows it from the lower half, which was not sent.
    pixels[..60 * line].copy_from_slice(&stage.board.vram()[40 * line..100 * line]);
    stage.board.poke(BASE, &pixels);
    stage.fill(rect(0, 199, 320, 1), 4);
    stage.publish();
    viewer.ask();
    viewer.follow(stage.screen.surface());
}

#[test]
fn an_area_that_was_not_asked_for_waits() {
    let mut stage = Stage::new();
    let mut viewer = stage.viewer();
    let left = rect(0, 0, 100, 200);
    viewer.request(false, left);
    let rects = viewer.update();
    assert!(rects.iter().all(|(_, area)| holds(left, area)), "{rects:?}");
    stage.fill(rect(90, 90, 20, 20), 9);
    stage.publish();
    viewer.request(true, left);
    let rects = viewer.update();
    assert!(rects.iter().all(|(_, area)| holds(rect(90, 90, 10, 20), area)), "{rects:?}");
    // Pixels that the viewer was never sent are sent though they did not change.
    viewer.ask();
    viewer.follow(stage.screen.surface());
}

#[test]
fn a_request_for_all_is_answered_at_once() {
    let stage = Stage::new();
    let mut viewer = stage.settled(&[ZRLE]);
    for area in [rect(0, 0, 320, 200), rect(17, 5, 1, 1), rect(300, 190, 1000, 1000)] {
        viewer.request(false, area);
        let rects = viewer.update();
        assert!(!rects.is_empty() && rects.iter().all(|(_, sent)| holds(area, sent)), "{rects:?}");
    }
    for nothing in [rect(320, 0, 5, 5), rect(5, 5, 0, 0), rect(65535, 65535, 65535, 65535)] {
        viewer.request(false, nothing);
        assert_eq!(viewer.update(), []);
    }
}

#[test]
fn a_viewer_follows_the_size_if_it_can() {
    for abilities in [&[DESKTOP_SIZE][..], &[EXTENDED_DESKTOP_SIZE, DESKTOP_SIZE]] {
        let mut stage = Stage::new();
        let mut viewer = stage.settled(&[&[ZRLE, COPY_RECT], abilities].concat());
        for (width, height) in [(640, 480), (100, 300), (800, 30), (320, 200)] {
            stage.board.vga.set_mode(width, height, 32).unwrap();
            let size = (u32::from(width), u32::from(height));
            stage.fill(rect(0, 0, size.0, size.1), size.0);
            stage.publish();
            // By itself, with no pixels beside it.
            let resize = loop {
                let rects = viewer.update();
                match rects.iter().find(|(encoding, _)| *encoding == abilities[0]) {
                    Some((_, area)) if (area.width, area.height) == size => break rects,
                    _ => viewer.ask(),
                }
            };
            assert_eq!(resize.len(), 1);
            assert_eq!(viewer.size, size);
            viewer.ask();
            viewer.follow(stage.screen.surface());
        }
        // A non-incremental request is answered by the size; the pixels follow with the next one.
        stage.board.vga.set_mode(64, 400, 32).unwrap();
        stage.fill(rect(0, 0, 64, 400), 4);
        let mut other = stage.viewer();
        other.set_encodings(&[&[TIGHT], abilities].concat());
        stage.publish();
        other.request(false, other.all());
        assert_eq!(other.update().len(), 1);
        other.ask();
        other.update();
        assert_eq!(other.difference(stage.screen.surface()), None);
        assert_eq!(other.size, (64, 400));
    }
}

#[test]
fn a_viewer_that_cannot_follow_the_size_sees_a_part() {
    let mut stage = Stage::new();
    let mut viewer = stage.settled(&[HEXTILE]);
    for (width, height) in [(640, 480), (100, 300), (400, 30)] {
        stage.board.vga.set_mode(width, height, 32).unwrap();
        stage.fill(rect(0, 0, width.into(), height.into()), width.into());
        stage.publish();
        viewer.follow(stage.screen.surface());
        assert_eq!(viewer.size, SIZE);
    }
    // It announces support of resizing, and is sent the size.
    viewer.set_encodings(&[HEXTILE, DESKTOP_SIZE]);
    while viewer.size != (400, 30) {
        viewer.update();
    }
    viewer.ask();
    viewer.follow(stage.screen.surface());
}

#[test]
fn a_wish_for_another_size_is_refused_and_told_so() {
    let stage = Stage::new();
    let mut viewer = stage.viewer();
    viewer.set_encodings(&[RAW, EXTENDED_DESKTOP_SIZE, QEMU_KEYS]);
    viewer.request(false, viewer.all());
    let told = viewer.update();
    assert_eq!(told[0].0, QEMU_KEYS);
    assert_eq!(told[1..], [(EXTENDED_DESKTOP_SIZE, rect(0, 0, 320, 200))]);
    viewer.ask();
    viewer.update();
    assert_eq!(viewer.difference(stage.screen.surface()), None);
    let mut wish = vec![251, 0, 4, 0, 3, 0, 1, 0];
    wish.extend([0; 16]);
    viewer.send(&wish);
    assert_eq!(viewer.update(), [(EXTENDED_DESKTOP_SIZE, rect(1, 1, 320, 200))]);
}

/// As TigerVNC does: it sends the next request when an update begins, and expects that update to
/// be the last one in its former format.
#[test]
fn a_request_is_answered_by_one_update() {
    for abilities in
        [&[EXTENDED_DESKTOP_SIZE][..], &[QEMU_KEYS], &[EXTENDED_DESKTOP_SIZE, QEMU_KEYS]]
    {
        let stage = Stage::new();
        let mut viewer = stage.viewer();
        viewer.set_encodings(&[&[RAW], abilities].concat());
        viewer.request(false, viewer.all());
        assert_eq!(viewer.update().len(), abilities.len());
        let (max, shift) = ([31, 63, 31], [11, 5, 0]);
        viewer.set_format(Format { bits: 16, depth: 16, max, shift, ..Format::BGRX });
        viewer.ask();
        viewer.update();
        assert_eq!(viewer.difference(stage.screen.surface()), None);
    }
}

#[test]
fn a_scroll_is_a_copy() {
    let mut stage = Stage::new();
    let mut viewer = stage.settled(&[COPY_RECT, ZRLE]);
    let mut plain = stage.settled(&[ZRLE]);
    let line = 320 * 4;
    for (lines, from, to) in [(16, 16, 0), (3, 3, 0), (40, 0, 40)] {
        let mut pixels = stage.board.vram()[..200 * line].to_vec();
        pixels.copy_within(from * line..(200 - lines + from) * line, to * line);
        stage.board.poke(BASE, &pixels);
        let new = if from > 0 { 200 - lines } else { 0 };
        stage.fill(rect(0, u32::try_from(new).unwrap(), 320, u32::try_from(lines).unwrap()), 5);
        stage.publish();
        let rects = viewer.follow(stage.screen.surface());
        assert!(rects.iter().any(|(encoding, _)| *encoding == COPY_RECT), "{rects:?}");
        let sent = rects.iter().filter(|(encoding, _)| *encoding == ZRLE);
        let lines: u32 = sent.map(|(_, area)| area.height).sum();
        assert!(lines < 100, "{rects:?}");
        let rects = plain.follow(stage.screen.surface());
        assert!(rects.iter().all(|(encoding, _)| *encoding == ZRLE));
    }
}

#[test]
fn who_does_not_read_stops_nobody() {
    let mut stage = Stage::with(|server| server.write_timeout(deadline::seconds(4)));
    stage.board.vga.set_mode(1000, 1000, 32).unwrap();
    stage.publish();
    let mut stalled = stage.viewer();
    for _ in 0..50 {
        stalled.request(false, stalled.all()); // and never reads
    }
    let mut viewer = stage.settled(&[RAW, DESKTOP_SIZE]);
    stage.wait_viewers(2);
    let mut slowest = Duration::ZERO;
    for frame in 0..40 {
        stage.fill(rect(0, 0, 1000, 1000), frame);
        stage.screen.refresh().unwrap();
        let begin = Instant::now();
        stage.server.update(stage.screen.surface(), &stage.screen.last().damage);
        slowest = slowest.max(begin.elapsed());
        viewer.follow(stage.screen.surface());
    }
    // Far below the write timeout: the server did not wait for the stalled viewer.
    assert!(slowest < deadline::seconds(2), "{slowest:?}");
    stage.wait_viewers(1);
    assert!(stalled.is_closed());
}

#[test]
fn who_breaks_the_protocol_is_alone_with_it() {
    let mut stage = Stage::new();
    let mut viewer = stage.settled(&[ZRLE]);
    let unknown = |bytes: &[u8]| {
        let mut breaker = stage.viewer();
        let _ = breaker.stream.write_all(bytes);
        assert!(breaker.is_closed(), "{bytes:?}");
    };
    unknown(&[77]);
    unknown(&[255, 9]);
    unknown(&[&[0; 4][..], &Format { bits: 24, ..Format::BGRX }.bytes()].concat());
    unknown(&[&[0; 4][..], &Format { shift: [0; 3], ..Format::BGRX }.bytes()].concat());
    for greeting in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"RFB 003.008\n\x13", &[0; 12]] {
        let mut breaker = TcpStream::connect(stage.address()).unwrap();
        breaker.set_read_timeout(Some(patience())).unwrap();
        breaker.write_all(greeting).unwrap();
        let mut rest = Vec::new();
        let end = breaker.read_to_end(&mut rest).map_err(|error| error.kind());
        assert!(matches!(end, Ok(_) | Err(ErrorKind::ConnectionReset)), "{end:?}");
    }
    stage.wait_viewers(1);
    stage.fill(rect(5, 5, 50, 50), 99);
    stage.publish();
    viewer.follow(stage.screen.surface());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn noise_from_a_viewer_harms_nobody(
        messages in prop::collection::vec((0..10usize, prop::collection::vec(any::<u8>(), 0..40)),
            1..20),
    ) {
        thread_local! { static STAGE: Stage = Stage::new(); }
        STAGE.with(|stage| {
            let mut noisy = stage.viewer();
            for (kind, noise) in messages {
                let kinds = [0, 2, 3, 3, 3, 4, 5, 6, 251, 255];
                let _ = noisy.stream.write_all(&[&[kinds[kind]][..], &noise].concat());
            }
            let mut viewer = stage.viewer();
            viewer.request(false, viewer.all());
            viewer.update();
            assert_eq!(viewer.difference(stage.screen.surface()), None);
            drop((noisy, viewer));
            stage.wait_viewers(0);
        });
    }
}

#[test]
fn there_is_room_for_so_many() {
    let stage = Stage::with(|server| server.max_viewers(2));
    let address = stage.address();
    let first = stage.viewer();
    // A viewer that sends nothing is closed for a new one.
    let mut silent = TcpStream::connect(address).unwrap();
    let mut greeting = [0; 12];
    silent.read_exact(&mut greeting).unwrap();
    let second = stage.viewer();
    silent.set_read_timeout(Some(patience())).unwrap();
    assert!(matches!(silent.read(&mut greeting), Ok(0)), "it was let go");
    stage.wait_viewers(2);
    let mut third = TcpStream::connect(address).unwrap();
    third.set_read_timeout(Some(patience())).unwrap();
    assert!(matches!(third.read(&mut greeting), Ok(0)), "nobody is let in");
    drop(first);
    stage.wait_viewers(1);
    let _third = stage.viewer();
    stage.wait_viewers(2);
    drop(second);
}

#[test]
fn who_was_let_in_is_not_closed_for_a_newcomer() {
    for _ in 0..100 {
        let stage = Stage::with(|server| server.max_viewers(1));
        let mut viewer = stage.viewer();
        // Comes at the moment at which the first one has read ServerInit.
        let mut late = TcpStream::connect(stage.address()).unwrap();
        late.set_read_timeout(Some(patience())).unwrap();
        assert_eq!(late.read(&mut [0]).unwrap_or(0), 0, "nobody is let in");
        viewer.request(false, viewer.all());
        viewer.update();
    }
}

#[test]
fn a_handshake_has_to_be_over_in_time() {
    let stage = Stage::with(|server| server.handshake_timeout(Duration::from_millis(300)));
    let mut slow = TcpStream::connect(stage.address()).unwrap();
    slow.set_read_timeout(Some(patience())).unwrap();
    let begin = Instant::now();
    let mut rest = [0; 100];
    // It sends messages without end.
    for byte in b"RFB 003.008\n".iter().cycle() {
        if slow.write_all(&[*byte]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(40));
        assert!(begin.elapsed() < patience());
    }
    while slow.read(&mut rest).is_ok_and(|read| read > 0) {}
    assert_eq!(stage.server.viewers(), 0);
}

#[test]
fn each_version_and_a_password_get_in() {
    let stage = Stage::with(|server| server.password("topsecret").name("the guest"));
    for version in [b"RFB 003.003\n", b"RFB 003.007\n", b"RFB 003.008\n"] {
        // Eight characters count.
        for password in ["topsecret", "topsecre"] {
            let mut viewer = Viewer::start(stage.address(), version, Some(password)).unwrap();
            assert_eq!(viewer.name, "the guest");
            viewer.request(false, viewer.all());
            viewer.update();
            assert_eq!(viewer.difference(stage.screen.surface()), None);
        }
        let refused = Viewer::start(stage.address(), version, Some("another")).err().unwrap();
        assert_eq!(refused, if version[10] == b'8' { "The password is another" } else { "" });
    }
    let open = Stage::new();
    for version in [b"RFB 003.003\n", b"RFB 003.007\n"] {
        let mut viewer = Viewer::start(open.address(), version, None).unwrap();
        viewer.request(false, viewer.all());
        viewer.update();
        assert_eq!(viewer.difference(open.screen.surface()), None);
    }
    for bad in ["", "日本"] {
        let refused = VncServer::loopback(0).unwrap().password(bad).start();
        assert!(matches!(refused, Err(VncError::Password)));
    }
}

#[test]
fn input_arrives_and_what_was_held_is_released() {
    let stage = Stage::new();
    let next = || stage.events.recv_timeout(patience()).unwrap();
    let mut viewer = stage.viewer();
    assert_eq!(next(), VncEvent::Viewers(1));
    viewer.send(&[4, 1, 0, 0, 0, 0, 0xff, 0xe1]);
    viewer.send(&[4, 1, 0, 0, 0, 0, 0, 0x41]);
    viewer.send(&[4, 0, 0, 0, 0, 0, 0, 0x41]);
    viewer.send(&[255, 0, 0, 1, 0, 0, 0xff, 0x51, 0, 0, 0, 0xcb]);
    viewer.send(&[5, 1, 1, 0x3f, 0, 0xc7]);
    viewer.send(&[6, 0, 0, 0, 0, 0, 0, 3, b'n', 0xe9, b'\n']);
    let key = |keysym, keycode, down| VncEvent::Input(InputEvent::Key { keysym, keycode, down });
    let pointer = |buttons| VncEvent::Input(InputEvent::Pointer { x: 319, y: 199, buttons });
    assert_eq!(next(), key(0xffe1, None, true));
    assert_eq!(next(), key(0x41, None, true));
    assert_eq!(next(), key(0x41, None, false));
    assert_eq!(next(), key(0xff51, Some(0xcb), true));
    assert_eq!(next(), pointer(1));
    assert_eq!(next(), VncEvent::CutText("n\u{e9}\n".to_owned()));
    drop(viewer);
    assert_eq!(next(), key(0xffe1, None, false));
    assert_eq!(next(), key(0xff51, Some(0xcb), false));
    assert_eq!(next(), pointer(0));
    assert_eq!(next(), VncEvent::Viewers(0));
}

#[test]
fn before_the_first_picture_there_is_a_black_one() {
    let server = VncServer::loopback(0).unwrap().start().unwrap();
    let mut viewer = Viewer::connect(server.local_addr().unwrap());
    viewer.request(false, viewer.all());
    viewer.update();
    assert_eq!(viewer.size, (640, 480));
    assert!(viewer.pixels.iter().all(|pixel| *pixel == 0));
    server.update(&display_vga::Surface::default(), &[]);
    assert_eq!(viewer.size, (640, 480));
}

#[test]
fn a_server_on_a_path_ends_its_connections() {
    let path = std::env::temp_dir().join(format!("display-vga-vnc-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let server = VncServer::from_listener(listener).start().unwrap();
    assert_eq!(server.local_addr(), None);
    let mut viewer = UnixStream::connect(&path).unwrap();
    viewer.set_read_timeout(Some(patience())).unwrap();
    viewer.write_all(b"RFB 003.008\n\x01\x01").unwrap();
    let mut said = [0; 12 + 2 + 4 + 24];
    viewer.read_exact(&mut said).unwrap();
    assert_eq!(said[18..22], [2, 128, 1, 224]);
    drop(server);
    assert!(viewer.read_to_end(&mut Vec::new()).is_ok());
    assert!(UnixStream::connect(&path).is_err(), "nobody listens any more");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_handler_that_panics_ends_its_own_viewer_only() {
    let server = VncServer::loopback(0)
        .unwrap()
        .on_input(|event| assert!(!matches!(event, VncEvent::CutText(_)), "as the test wants"))
        .start()
        .unwrap();
    let mut clumsy = Viewer::connect(server.local_addr().unwrap());
    let mut other = Viewer::connect(server.local_addr().unwrap());
    clumsy.send(&[6, 0, 0, 0, 0, 0, 0, 0]);
    assert!(clumsy.is_closed());
    other.request(false, other.all());
    assert!(!other.update().is_empty());
}

/// RFC 6143, 7.5.3: a request that is not incremental is answered by the contents of its area.
/// A viewer that follows sizes is told the size for each such request: once by itself.
#[test]
fn a_viewer_that_asks_for_all_each_time_gets_pixels() {
    let stage = Stage::new();
    let mut viewer = stage.viewer();
    viewer.set_encodings(&[RAW, EXTENDED_DESKTOP_SIZE]);
    for _ in 0..4 {
        let answers = [(); 2].map(|()| {
            viewer.request(false, viewer.all());
            viewer.update().iter().any(|(encoding, _)| *encoding == RAW)
        });
        assert!(answers.contains(&true), "asked for all twice, and no pixel");
        assert_eq!(viewer.difference(stage.screen.surface()), None);
    }
}

/// The last events before `Viewers(0)` of a viewer that has released many keys with other keysyms,
/// and holds Control. `key` encodes the message of the nth key, pressed with one keysym and
/// released with the other.
fn told_at_the_end(key: impl Fn(bool, u8) -> Vec<u8>, control: &[u8]) -> Vec<VncEvent> {
    let stage = Stage::new();
    let next = || stage.events.recv_timeout(patience()).unwrap();
    let mut viewer = stage.viewer();
    assert_eq!(next(), VncEvent::Viewers(1));
    for n in 0..100 {
        for down in [true, false] {
            viewer.send(&key(down, n));
            next();
        }
    }
    viewer.send(control);
    next();
    drop(viewer);
    std::iter::from_fn(|| Some(next()).filter(|event| *event != VncEvent::Viewers(0))).collect()
}

fn control_goes_up(keycode: Option<u32>) -> VncEvent {
    VncEvent::Input(InputEvent::Key { keysym: 0xffe3, keycode, down: false })
}

/// Shift and a letter, of which Shift is released first: the key is pressed as the capital and
/// released as the small letter.
#[test]
fn a_key_that_goes_up_as_another_symbol_is_up() {
    let key = |down, n| {
        let symbol = if down { 0x41 + n } else { 0x81 + n };
        vec![255, 0, 0, u8::from(down), 0, 0, 0, symbol, 0, 0, 0, 0x10 + n]
    };
    let told = told_at_the_end(key, &[255, 0, 0, 1, 0, 0, 0xff, 0xe3, 0, 0, 0, 0x1d]);
    assert_eq!(told, [control_goes_up(Some(0x1d))]);
}

/// Without keycodes the server cannot match the release to a key: the latest keys count.
#[test]
fn what_is_down_is_let_go_however_many_went_up_as_others() {
    let key = |down, n| {
        let symbol = if down { n } else { 0x80 + n };
        vec![4, u8::from(down), 0, 0, 0, 0, 1, symbol]
    };
    let told = told_at_the_end(key, &[4, 1, 0, 0, 0, 0, 0xff, 0xe3]);
    assert!(told.contains(&control_goes_up(None)), "Control stays down: {told:?}");
}
