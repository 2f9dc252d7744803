//! A KVM guest goes back to a checkpoint thousands of times a second, as a fuzzer lets it, or plays
//! its picture backwards.
//!
//! `cargo run --release --example checkpoint -- --help`

use std::process::ExitCode;

#[cfg(target_arch = "x86_64")]
mod fuzz;
#[cfg(target_arch = "x86_64")]
mod machine;
#[cfg(target_arch = "x86_64")]
mod options;
#[cfg(target_arch = "x86_64")]
mod rewind;

#[cfg(target_arch = "x86_64")]
fn main() -> ExitCode {
    use clap::Parser;

    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    machines::demo::end(options::Options::parse().run())
}

#[cfg(not(target_arch = "x86_64"))]
fn main() -> ExitCode {
    eprintln!("error: there is a guest program for x86-64 only");
    ExitCode::FAILURE
}
