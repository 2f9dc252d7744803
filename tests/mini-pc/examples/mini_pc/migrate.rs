//! The machine moves to another process, or comes from one.

use std::time::Duration;

use machines::demo::AnyError;
use machines::link::{Address, Link, Listener};
use migration_ram::{Precopy, Receiver};
use mini_pc::Machine;

/// How long the guest may stand still.
const DOWNTIME: Duration = Duration::from_millis(300);

/// Sends `machine`, which runs meanwhile and not any more afterwards, to who listens at
/// `address`.
///
/// # Errors
///
/// If it does not arrive; it goes on here then, unless only the last word was lost.
pub fn send(machine: &Machine, address: &Address) -> Result<(), AnyError> {
    let mut link = Link::connect(address, 0)?;
    let mut precopy = Precopy::new(machine.memory().clone()).machine("mini_pc").downtime(DOWNTIME);
    for device in machine.devices() {
        precopy = precopy.device(device.clone());
    }
    let migrated =
        precopy.run(link.outgoing(), || Ok(machine.pause()), |now| log::info!("{now}"))?;
    let stats = &migrated.stats;
    eprintln!(
        "moved: {} bytes in {:.1?}, {:.1?} down",
        stats.bytes, stats.total_time, stats.downtime
    );
    // From here on the machine is the other side's.
    migrated.paused.for_good();
    link.say("go")?;
    link.hear()?;
    Ok(())
}

/// Waits at `address` for a machine of the same make, and lets it go on as `machine`.
pub fn receive(machine: &mut Machine, address: &Address) -> Result<(), AnyError> {
    let listener = Listener::bind(address)?;
    eprintln!("a machine is awaited at {}", listener.address()?);
    let mut link = Link::accept(&listener, 0)?;
    let mut receiver = Receiver::new(&machine.memory().ram_blocks());
    for device in machine.devices() {
        receiver = receiver.device(device.clone());
    }
    receiver.run(link.incoming())?;
    let word = link.hear();
    word.map_err(|error| format!("all of it came, but the source did not let go: {error}"))?;
    machine.start()?;
    link.say("alive")?;
    Ok(())
}
