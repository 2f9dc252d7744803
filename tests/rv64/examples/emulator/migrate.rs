//! The machine moves to another process while it runs.

use std::io::{Write, stdin};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use migration_ram::{Buffered, FnDevice, Precopy, Receiver};
use rv64::{Machine, demo};

use crate::{AnyError, Options, RAM, Shown, picture};

/// Instructions between two looks at whether the machine is to stop.
const SLICE: u64 = 10_000;

/// A machine that waits, for the state of its harts and devices to be taken or given.
type Waiting = Arc<Mutex<Option<Machine>>>;

/// Harts, clock and devices as one device of the stream.
fn processors(machine: &Waiting) -> Arc<FnDevice> {
    let (save, restore) = (machine.clone(), machine.clone());
    Arc::new(FnDevice::new(
        "processors",
        move || match &*save.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(machine) => Ok(machine.save_processors()),
            None => Err("the machine runs".into()),
        },
        move |_, state| match &mut *restore.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(machine) => Ok(machine.restore_processors(state).ok_or("another machine's")?),
            None => Err("the machine runs".into()),
        },
    ))
}

/// Sends a machine to a process of its own, which runs it to its end.
pub fn send(mut machine: Machine, options: &Options) -> Result<(), AnyError> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--incoming").args(["--frames", &options.frames.to_string()]);
    if let Some(png) = &options.png {
        command.arg("--png").arg(png);
    }
    let mut child = command.stdin(Stdio::piped()).spawn()?;
    let pipe = child.stdin.take().ok_or("no pipe")?;

    let memory = machine.memory().clone();
    let waiting = Waiting::default();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| -> Result<(), AnyError> {
        let stop = &stop;
        let mut runner = Some(scope.spawn(move || {
            let mut instructions = 0;
            while !stop.load(Ordering::Relaxed) {
                machine.run(SLICE);
                instructions += SLICE;
            }
            (machine, instructions)
        }));
        let begin = Instant::now();
        let mut meanwhile = 0;
        let mut stream = Buffered(pipe);
        let pause = || {
            stop.store(true, Ordering::Relaxed);
            let runner = runner.take().ok_or("the machine waits already")?;
            let (machine, instructions) = runner.join().map_err(|_| "a hart has panicked")?;
            meanwhile = instructions;
            *waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some(machine);
            Ok(())
        };
        let migrated =
            Precopy::new(memory).device(processors(&waiting)).run(&mut stream, pause, |_| ());
        // Whether it worked or not.
        stop.store(true, Ordering::Relaxed);
        let stats = migrated?.stats;
        stream.0.flush()?;
        println!(
            "moved in {:.1?} and {} rounds, {} KiB, while it ran {meanwhile} instructions",
            begin.elapsed(),
            stats.rounds.len(),
            stats.bytes >> 10,
        );
        Ok(())
    })?;
    match child.wait()?.success() {
        true => Ok(()),
        false => Err("the process that received the machine has failed".into()),
    }
}

/// Receives a machine by standard input, and runs it to its end.
pub fn receive(options: &Options) -> Result<(), AnyError> {
    let machine = Machine::new(RAM, 1)?;
    let blocks = [machine.ram().clone(), machine.frame_buffer().clone()];
    let waiting: Waiting = Arc::new(Mutex::new(Some(machine)));
    let receiver = Receiver::new(&blocks).device(processors(&waiting));
    let _ = receiver.run(&mut Buffered(stdin()))?;
    let machine = waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
    let mut shown = Shown::new(machine.ok_or("no machine")?)?;
    shown.run_until(u64::MAX)?;
    let last = options.frames - 1;
    picture::check(&shown.screen, last)?;
    if !demo::text(options.frames).ends_with(&shown.printed) {
        return Err("the guest has printed something else".into());
    }
    println!("the other process ran it to its end; frame {last} is as defined, pixel by pixel");
    match &options.png {
        Some(file) => picture::write(&shown.screen, file),
        None => Ok(()),
    }
}
