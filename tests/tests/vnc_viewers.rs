//! Our VNC server and viewers that others wrote.

use std::io::{BufWriter, Read, Write};
use std::net::TcpStream;
use std::process::{Command, ExitCode};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use display_vga::{InputEvent, Screen, VncEvent, VncServer, write_png};
use integration_tests::harness::{self, named};
use integration_tests::viewers::{self, Folder, TigerVnc, patience, read_png};
use machines::deadline::seconds;
use machines::scene::Scene;

#[path = "../../display-vga/tests/common/mod.rs"]
mod common;

use common::{BASE, Board, Pc};

fn main() -> ExitCode {
    harness::run_all(vec![
        (
            viewers::need_python(),
            named(&[
                ("vncdotool_looks_types_and_waits", vncdotool_looks_types_and_waits),
                ("asyncvnc_looks_types_and_waits", asyncvnc_looks_types_and_waits),
            ]),
        ),
        (viewers::need_gvnccapture(), named(&[("gvnccapture_looks", gvnccapture_looks)])),
        (
            viewers::need_tigervnc(),
            named(&[
                ("tigervnc_looks_with_tight", || tigervnc_looks("Tight")),
                ("tigervnc_looks_with_zrle", || tigervnc_looks("ZRLE")),
                ("tigervnc_looks_with_hextile", || tigervnc_looks("Hextile")),
                ("tigervnc_looks_with_raw", || tigervnc_looks("Raw")),
                ("tigervnc_looks_in_few_colours", tigervnc_looks_in_few_colours),
                ("many_look_and_some_misbehave", many_look_and_some_misbehave),
            ]),
        ),
    ])
}

/// A machine with a screen, a server, and what viewers type.
struct Stage {
    board: Board,
    screen: Screen,
    server: VncServer,
    events: Receiver<VncEvent>,
}

const PASSWORD: &str = "guarded";

impl Stage {
    fn new(password: Option<&str>) -> Self {
        let board = Board::new(16 << 20);
        let screen = board.screen();
        let (sender, events) = mpsc::channel();
        let mut server = VncServer::loopback(0)
            .unwrap()
            .name("a machine")
            .on_input(move |event| drop(sender.send(event)));
        if let Some(password) = password {
            server = server.password(password);
        }
        let mut stage = Self { board, screen, server: server.start().unwrap(), events };
        stage.mode(640, 480);
        stage
    }

    fn port(&self) -> u16 {
        self.server.local_addr().unwrap().port()
    }

    fn mode(&mut self, width: u16, height: u16) {
        self.board.vga.set_mode(width, height, 32).unwrap();
        self.frame(1);
    }

    fn size(&self) -> (u64, u64) {
        let mode = self.board.vga.mode().unwrap().unwrap();
        (mode.width().into(), mode.height().into())
    }

    /// Draws a frame of the scene, with noise on it that no encoding makes small.
    fn frame(&mut self, frame: u64) {
        let (width, height) = self.size();
        let scene = Scene::new(width, height);
        let noisy = |x: u64, y: u64| x < width / 3 && (height / 3..height / 2).contains(&y);
        let noise = |x: u64, y: u64| {
            let mixed = (x | y << 20 | frame << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let [r, g, b, ..] = (mixed ^ mixed >> 31).wrapping_mul(mixed | 1).to_be_bytes();
            [r, g, b]
        };
        for y in 0..height {
            let pixel = |x| if noisy(x, y) { noise(x, y) } else { scene.pixel(frame, x, y) };
            let line: Vec<u8> = (0..width).map(pixel).flat_map(|[r, g, b]| [b, g, r, 0]).collect();
            self.board.poke(BASE + y * width * 4, &line);
        }
        self.publish();
    }

    /// Moves all up by `lines`, as a console does.
    fn scroll(&mut self, lines: u64) {
        let (width, height) = self.size();
        let bytes = |lines: u64| usize::try_from(lines * width * 4).unwrap();
        let vram = self.board.vram();
        let mut pixels = vram[bytes(lines)..bytes(height)].to_vec();
        pixels.resize(bytes(height), 0x55);
        self.board.poke(BASE, &pixels);
        self.publish();
    }

    fn publish(&mut self) {
        self.screen.refresh().unwrap();
        self.server.update(self.screen.surface(), &self.screen.last().damage);
    }

    /// What a viewer should show: columns, and red, green and blue of each pixel.
    fn picture(&self) -> (u32, Vec<[u8; 3]>) {
        let surface = self.screen.surface();
        let bytes = surface.bytes();
        let pixels = bytes.chunks_exact(4).map(|pixel| [pixel[2], pixel[1], pixel[0]]);
        (surface.width(), pixels.collect())
    }

    fn save(&self, path: &std::path::Path) {
        let file = std::fs::File::create(path).unwrap();
        write_png(self.screen.surface(), BufWriter::new(file)).unwrap();
    }

    /// What viewers do until one presses or releases `keysym`, and that.
    fn events_until(&self, keysym: u32) -> Vec<VncEvent> {
        let mut events = Vec::new();
        loop {
            let event = self.events.recv_timeout(patience()).unwrap();
            let found = matches!(event,
                    VncEvent::Input(InputEvent::Key { keysym: key, .. }) if key == keysym);
            events.push(event);
            if found {
                return events;
            }
        }
    }
}

fn assert_shows(path: &std::path::Path, picture: &(u32, Vec<[u8; 3]>), what: &str) {
    let shown = read_png(path).unwrap();
    assert_eq!((shown.0, shown.1.len()), (picture.0, picture.1.len()), "{what}");
    let wrong = shown.1.iter().zip(&picture.1).filter(|(a, b)| a != b).count();
    assert_eq!(wrong, 0, "{what}: pixels that differ");
}

fn key(keysym: u32) -> VncEvent {
    VncEvent::Input(InputEvent::Key { keysym, keycode: None, down: true })
}

fn press(buttons: u8) -> VncEvent {
    VncEvent::Input(InputEvent::Pointer { x: 123, y: 45, buttons })
}

/// Lets a viewer look at a frame, draws another one when it presses `x`, and waits until
/// the viewer has seen that. Returns what it did.
fn with_script(name: &str, script: &str, arguments: &[&str]) -> Vec<VncEvent> {
    let folder = Folder::new(name).unwrap();
    let (captured, awaited) = (folder.path("captured.png"), folder.path("awaited.png"));
    let mut stage = Stage::new(Some(PASSWORD));
    stage.frame(9);
    stage.save(&awaited);
    let later = stage.picture();
    stage.frame(5);
    let first = stage.picture();

    let port = stage.port().to_string();
    let words = [("PORT", port.as_str()), ("PASSWORD", PASSWORD)];
    let mut command = viewers::python();
    command.args(["-c", script]);
    for argument in arguments {
        let argument = words
            .iter()
            .fold((*argument).to_owned(), |argument, (word, value)| argument.replace(word, value));
        match argument.as_str() {
            "CAPTURED" => command.arg(&captured),
            "AWAITED" => command.arg(&awaited),
            other => command.arg(other),
        };
    }
    let mut viewer = command.spawn().unwrap();
    let events = stage.events_until(0x78);
    stage.frame(9);
    let status = viewer.wait().unwrap();
    assert!(status.success(), "{name}: {status}");
    assert_shows(&captured, &first, name);
    let second = folder.path("captured.png-2.png");
    if second.exists() {
        assert_shows(&second, &later, name);
    }
    events
}

fn vncdotool_looks_types_and_waits() {
    for encoding in ["0", "5", "16"] {
        let arguments = ["127.0.0.1::PORT", encoding, "CAPTURED", "AWAITED", "PASSWORD"];
        let script = include_str!("vnc/with_vncdotool.py");
        let events = with_script(&format!("vncdotool-{encoding}"), script, &arguments);
        assert!(events.contains(&press(1)), "{events:?}");
        assert!(events.contains(&key(0x78)), "{events:?}");
    }
}

fn asyncvnc_looks_types_and_waits() {
    let script = include_str!("vnc/with_asyncvnc.py");
    let events = with_script("asyncvnc", script, &["PORT", "CAPTURED", "AWAITED", "PASSWORD"]);
    for expected in [press(1), press(0), key(0xffe3)] {
        assert!(events.contains(&expected), "{expected:?} in {events:?}");
    }
}

fn gvnccapture(stage: &Stage, name: &str) {
    let folder = Folder::new(name).unwrap();
    let file = folder.path("captured.png");
    // A display's number is that of its port, from 5900 on.
    let display = format!("127.0.0.1:{}", stage.port() - 5900);
    let status = Command::new("gvnccapture").arg("-q").arg(display).arg(&file).status().unwrap();
    assert!(status.success(), "{status}");
    assert_shows(&file, &stage.picture(), name);
}

fn gvnccapture_looks() {
    let mut stage = Stage::new(None);
    for (width, height) in [(640, 480), (1024, 768), (320, 200), (800, 600)] {
        stage.mode(width, height);
        stage.frame(u64::from(width));
        gvnccapture(&stage, &format!("gvnccapture-{width}"));
    }
}

/// Frames, scrolls, and modes of other sizes.
fn tigervnc_looks(encoding: &str) {
    let mut stage = Stage::new(None);
    let preferred = format!("-PreferredEncoding={encoding}");
    let viewer = TigerVnc::start("tigervnc", stage.port(), &[&preferred]).unwrap();
    let check = |stage: &Stage, what: &str| {
        let (width, picture) = stage.picture();
        let shown = viewer.wait_shows(width, &picture, |a, b| a == b);
        assert!(shown.is_ok(), "{encoding}, {what}: {}", shown.unwrap_err());
    };
    check(&stage, "the first frame");
    for frame in 2..40 {
        stage.frame(frame);
        std::thread::sleep(Duration::from_millis(5)); // so that some are seen
    }
    check(&stage, "the last of many frames");
    for lines in [16, 1, 100] {
        stage.scroll(lines);
        check(&stage, "a scroll");
    }
    for (width, height) in [(320, 200), (1024, 768), (720, 400)] {
        stage.mode(width, height);
        check(&stage, "another mode");
        stage.frame(7);
        check(&stage, "a frame of another mode");
    }
    assert_eq!(stage.server.viewers(), 1);
}

/// 8, 64 and 256 colours, of pixels of 8 bits.
fn tigervnc_looks_in_few_colours() {
    for (level, steps) in [("0", [1, 1, 1]), ("1", [3, 3, 3]), ("2", [7, 7, 3])] {
        let stage = Stage::new(None);
        let level = format!("-LowColorLevel={level}");
        let options = ["-FullColor=0", &level, "-PreferredEncoding=ZRLE"];
        let viewer = TigerVnc::start("few", stage.port(), &options).unwrap();
        let (width, picture) = stage.picture();
        let near = |a: [u8; 3], b: [u8; 3]| {
            // Half a step away, and what rounding adds.
            (0..3).all(|n| u32::from(a[n].abs_diff(b[n])) <= 255 / steps[n] / 2 + 2)
        };
        viewer.wait_shows(width, &picture, near).unwrap();
    }
}

fn many_look_and_some_misbehave() {
    let mut stage = Stage::new(None);
    let tiger = |stage: &Stage, encoding: &str| {
        let preferred = format!("-PreferredEncoding={encoding}");
        TigerVnc::start(&format!("many-{encoding}"), stage.port(), &[&preferred]).unwrap()
    };
    let viewers = ["ZRLE", "Tight"].map(|encoding| tiger(&stage, encoding));
    let connect = |says: &[u8]| {
        let mut stream = TcpStream::connect(("127.0.0.1", stage.port())).unwrap();
        stream.write_all(says).unwrap();
        stream
    };
    // One asks for everything again and again and reads none of it, one talks nonsense, one
    // is silent, one goes away in the middle.
    let all = [3, 0, 0, 0, 0, 0, 2, 128, 1, 224];
    let stalled = connect(&[&b"RFB 003.008\n\x01\x01"[..], &all.repeat(1000)].concat());
    let mut breaker = connect(b"RFB 003.008\n\x01\x01\xee nonsense");
    let silent = connect(b"");
    drop(connect(&[&b"RFB 003.008\n\x01\x01"[..], &all].concat()));

    let mut slowest = Duration::ZERO;
    for frame in 2..120 {
        stage.frame(frame);
        let begin = Instant::now();
        stage.server.update(stage.screen.surface(), &[stage.screen.surface().area()]);
        slowest = slowest.max(begin.elapsed());
    }
    assert!(slowest < seconds(5), "an update took {slowest:?}");
    let (width, picture) = stage.picture();
    for viewer in &viewers {
        viewer.wait_shows(width, &picture, |a, b| a == b).unwrap();
    }
    if viewers::need_gvnccapture().missing.is_none() {
        gvnccapture(&stage, "many");
    }
    breaker.set_read_timeout(Some(patience())).unwrap();
    let mut rest = Vec::new();
    let ended = breaker.read_to_end(&mut rest).map_err(|error| error.kind());
    assert!(matches!(ended, Ok(_) | Err(std::io::ErrorKind::ConnectionReset)), "{ended:?}");
    drop((stalled, silent));
}
