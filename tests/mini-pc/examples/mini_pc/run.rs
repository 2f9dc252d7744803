//! The machine's run: refreshes at the display's pace until there is a reason to end.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use machines::demo::AnyError;
use mini_pc::Machine;
use mini_pc::serial::SerialPort;

use crate::migrate;
use crate::options::Options;
use crate::resets;
use crate::view::View;

/// How long a text is waited for, unless the command line says.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a run ended.
#[derive(PartialEq)]
pub enum End {
    AsWished,
    /// The machine, or somebody, ended it.
    Interrupted,
    TextNotSeen,
}

pub fn run(options: &Options) -> Result<End, AnyError> {
    let mut machine = Machine::new(options.config()?)?;
    if options.serial_is_stdio() {
        let serial = machine.serial().clone();
        std::thread::spawn(move || receive(&serial));
    }
    match &options.listen {
        Some(address) => migrate::receive(&mut machine, address)?,
        None => machine.start()?,
    }
    let mut view = View::new(&machine, options)?;
    let end = match &options.reset_at {
        Some(text) => resets::run(options, &machine, &mut view, text)?,
        None => watch(options, &machine, &mut view, options.until.as_deref())?,
    };
    if let Some(address) = options.migrate_to.as_ref().filter(|_| end != End::TextNotSeen) {
        std::thread::scope(|scope| -> Result<(), AnyError> {
            let migration = scope.spawn(|| migrate::send(&machine, address));
            while !migration.is_finished() {
                let (_, wait) = view.refresh()?;
                std::thread::park_timeout(wait.min(Duration::from_millis(30)));
            }
            migration.join().map_err(|_| "the migration panicked")?
        })?;
    }

    let paused = machine.pause();
    view.refresh()?;
    drop(paused);
    if let Some(path) = &options.png {
        view.save(path)?;
    }
    if options.text {
        let rows = view.text()?;
        let rows: Vec<&str> = rows.iter().map(|row| row.trim_end()).collect();
        writeln!(std::io::stdout(), "{}", rows.join("\n").trim_end())?;
    }
    match machine.ended() {
        Some(reason) => Err(reason.into()),
        None => Ok(end),
    }
}

/// Shows the screen until its text (`until`), the time, the machine or somebody (by Ctrl-C, or at
/// the window) ends that.
pub fn watch(
    options: &Options,
    machine: &Machine,
    view: &mut View<'_>,
    until: Option<&str>,
) -> Result<End, AnyError> {
    let interrupted = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGINT, interrupted.clone())?;
    let time = options.seconds.or(until.is_some().then_some(PATIENCE));
    let deadline = time.and_then(|time| Instant::now().checked_add(time));
    loop {
        let (refresh, wait) = view.refresh()?;
        if let Some(wanted) = until.filter(|_| !refresh.damage.is_empty())
            && view.text()?.iter().any(|row| row.contains(wanted))
        {
            return Ok(End::AsWished);
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            let failed = until.is_some();
            return Ok(if failed { End::TextNotSeen } else { End::AsWished });
        }
        let closed = view.is_closed();
        if closed || interrupted.load(Ordering::Relaxed) || machine.ended().is_some() {
            return Ok(End::Interrupted);
        }
        std::thread::park_timeout(wait.min(left.unwrap_or(Duration::MAX)));
    }
}

/// Hands what is typed to the guest, as fast as it takes it.
fn receive(serial: &SerialPort) {
    let mut buffer = [0; 64];
    while let Ok(count @ 1..) = std::io::stdin().read(&mut buffer) {
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            rest = &rest[serial.receive(rest)..];
            if !rest.is_empty() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
