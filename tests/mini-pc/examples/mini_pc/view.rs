//! Where the screen is watched while the machine runs, and what is left of it.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[cfg(feature = "window")]
use display_vga::WindowView;
use display_vga::{
    InputEvent, Refresh, RefreshTimer, Screen, TerminalView, ViewerState, VncEvent, VncServer,
    write_png,
};
use machines::demo::AnyError;
use mini_pc::Machine;
use mini_pc::keyboard::Keyboard;
use mini_pc::keys::Key;
use mini_pc::screen_text::Font;

use crate::options::Options;

/// How often a window is asked what was typed there.
#[cfg(feature = "window")]
const WINDOW_TIME: Duration = Duration::from_millis(20);

/// The screen, and all who look at it.
pub struct View<'a> {
    machine: &'a Machine,
    screen: Screen,
    pace: RefreshTimer,
    terminal: Option<TerminalView<BufWriter<io::Stdout>>>,
    viewers: Option<VncServer>,
    #[cfg(feature = "window")]
    window: Option<WindowView>,
    /// A viewer has come or done something: something will change soon.
    stirred: Arc<AtomicBool>,
}

impl<'a> View<'a> {
    pub fn new(machine: &'a Machine, options: &Options) -> Result<Self, AnyError> {
        #[cfg(feature = "window")]
        let window =
            if options.window { Some(WindowView::new("mini_pc", 720, 400)?) } else { None };
        let terminal = if options.shows_in_terminal() { terminal()? } else { None };
        let stirred = Arc::new(AtomicBool::new(false));
        let serve = |address| serve(machine, address, stirred.clone());
        let viewers = options.vnc.as_deref().map(serve).transpose()?;
        let (screen, pace) = (machine.screen()?, RefreshTimer::default());
        Ok(Self {
            machine,
            screen,
            pace,
            terminal,
            viewers,
            #[cfg(feature = "window")]
            window,
            stirred,
        })
    }

    /// Shows what has changed; returns that, and how long to wait until the next time. The
    /// thread is unparked when a viewer does something.
    pub fn refresh(&mut self) -> Result<(Refresh, Duration), AnyError> {
        let refresh = self.screen.refresh()?.clone();
        if let Some(terminal) = &mut self.terminal {
            if let Some((columns, rows)) = TerminalView::<io::Stdout>::terminal_size() {
                terminal.resize(columns, rows);
            }
            terminal.show_screen(&self.screen)?;
        }
        if let Some(viewers) = &self.viewers {
            viewers.update(self.screen.surface(), &refresh.damage);
        }
        #[cfg(feature = "window")]
        if let Some(window) = &mut self.window {
            let events = window.show(self.screen.surface(), &refresh.damage)?;
            self.stirred.fetch_or(!events.is_empty(), Ordering::Relaxed);
            events.into_iter().for_each(|event| hand_on(self.machine.keyboard(), event));
        }
        if self.stirred.swap(false, Ordering::Relaxed) {
            self.pace.wake();
        }
        // A machine that is not stopped is looked at again.
        let wait = self.pace.next(ViewerState::Running, &refresh).unwrap_or_default();
        #[cfg(feature = "window")]
        let wait = if self.window.is_some() { wait.min(WINDOW_TIME) } else { wait };
        Ok((refresh, wait))
    }

    /// Whether somebody closed the window.
    pub fn is_closed(&self) -> bool {
        #[cfg(feature = "window")]
        return self.window.as_ref().is_some_and(|window| !window.is_open());
        #[cfg(not(feature = "window"))]
        false
    }

    /// The text on the screen as of the last refresh, read from the picture with the font
    /// that the guest has loaded; empty if it shows none.
    pub fn text(&self) -> Result<Vec<String>, AnyError> {
        let font = Font::from_vram(self.machine.vga().vram())?;
        Ok(font.read(self.screen.surface()).unwrap_or_default())
    }

    /// Writes the picture as of the last refresh to a file.
    pub fn save(&self, path: &Path) -> Result<(), AnyError> {
        let write = || write_png(self.screen.surface(), BufWriter::new(File::create(path)?));
        write().map_err(|error| format!("{}: {error}", path.display()).into())
    }
}

fn terminal() -> io::Result<Option<TerminalView<BufWriter<io::Stdout>>>> {
    let size = TerminalView::<io::Stdout>::terminal_size();
    let Some((columns, rows)) = size.filter(|_| io::stdout().is_terminal()) else {
        return Ok(None);
    };
    let out = BufWriter::with_capacity(1 << 16, io::stdout());
    Ok(Some(TerminalView::new(out, columns, rows)?))
}

/// What somebody types is typed at the guest's keyboard.
fn hand_on(keyboard: &Keyboard, event: InputEvent) {
    if let InputEvent::Key { keysym, keycode, down } = event {
        let key = keycode.and_then(Key::from_scan_code).or_else(|| Key::from_keysym(keysym));
        if let Some(key) = key {
            keyboard.press(key, down);
        }
    }
}

/// Lets VNC viewers see the screen, and type.
fn serve(
    machine: &Machine,
    address: &str,
    stirred: Arc<AtomicBool>,
) -> Result<VncServer, AnyError> {
    let (keyboard, watcher) = (machine.keyboard().clone(), std::thread::current());
    let handle = move |event| {
        stirred.store(true, Ordering::Relaxed);
        watcher.unpark();
        if let VncEvent::Input(event) = event {
            hand_on(&keyboard, event);
        }
    };
    let server = VncServer::bind(address)
        .map_err(|error| format!("{address}: {error}"))?
        .name("mini_pc")
        .on_input(handle)
        .start()?;
    if let Some(address) = server.local_addr() {
        eprintln!("VNC viewers can connect to {}::{}", address.ip(), address.port());
    }
    Ok(server)
}
