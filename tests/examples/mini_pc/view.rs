//! Where the screen is watched while the machine runs, and what is left of it.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use display_vga::{
    InputEvent, Pace, Refresh, Screen, TerminalView, VncEvent, VncServer, Watch, write_png,
};
use integration_tests::demo::AnyError;
use integration_tests::mini_pc::Machine;
use integration_tests::mini_pc::keys::Key;
use integration_tests::mini_pc::screen_text::Font;

use crate::options::Options;

/// The screen, and all who look at it.
pub struct View<'a> {
    machine: &'a Machine,
    screen: Screen,
    pace: Pace,
    terminal: Option<TerminalView<BufWriter<io::Stdout>>>,
    viewers: Option<VncServer>,
    /// A viewer has come or done something: something will change soon.
    stirred: Arc<AtomicBool>,
}

impl<'a> View<'a> {
    pub fn new(machine: &'a Machine, options: &Options) -> Result<Self, AnyError> {
        let terminal = if options.serial_is_stdio() { None } else { terminal()? };
        let stirred = Arc::new(AtomicBool::new(false));
        let serve = |address| serve(machine, address, stirred.clone());
        let viewers = options.vnc.as_deref().map(serve).transpose()?;
        let (screen, pace) = (machine.screen()?, Pace::default());
        Ok(Self { machine, screen, pace, terminal, viewers, stirred })
    }

    /// Shows what has changed; returns that, and how long to wait until the next time. The
    /// thread is unparked when a viewer does something.
    pub fn refresh(&mut self) -> Result<(Refresh, Duration), AnyError> {
        let refresh = self.screen.refresh()?.clone();
        if let Some(terminal) = &mut self.terminal {
            if let Some((columns, rows)) = TerminalView::<io::Stdout>::terminal_size() {
                terminal.resize(columns, rows);
            }
            terminal.show(self.screen.surface(), &refresh.damage)?;
        }
        if let Some(viewers) = &self.viewers {
            viewers.update(self.screen.surface(), &refresh.damage);
        }
        if self.stirred.swap(false, Ordering::Relaxed) {
            self.pace.wake();
        }
        // A machine that is not stopped is looked at again.
        let wait = self.pace.next(Watch::Running, &refresh).unwrap_or_default();
        Ok((refresh, wait))
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
        if let VncEvent::Input(InputEvent::Key { keysym, keycode, down }) = event {
            let key = keycode.and_then(Key::from_scan_code).or_else(|| Key::from_keysym(keysym));
            if let Some(key) = key {
                keyboard.press(key, down);
            }
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
