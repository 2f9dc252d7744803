//! A KVM guest moves from one process to another while it draws and writes memory.
//!
//! `cargo run --release --example live_migrate -- --help`

use std::process::ExitCode;

#[cfg(target_arch = "x86_64")]
mod destination;
#[cfg(target_arch = "x86_64")]
mod options;
#[cfg(target_arch = "x86_64")]
mod report;
#[cfg(target_arch = "x86_64")]
mod source;

#[cfg(target_arch = "x86_64")]
fn main() -> ExitCode {
    use clap::Parser;

    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let options = options::Options::parse();
    let result = match (&options.listen, &options.to) {
        (Some(address), _) => destination::run(&options, address),
        (None, Some(address)) => source::run(&options, address, None),
        (None, None) => source::with_child(&options),
    };
    machines::demo::end(result)
}

#[cfg(not(target_arch = "x86_64"))]
fn main() -> ExitCode {
    eprintln!("error: there is a guest program for x86-64 only");
    ExitCode::FAILURE
}
