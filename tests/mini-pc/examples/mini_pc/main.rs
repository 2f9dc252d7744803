//! A small PC, as an example of what the crates are for: SeaBIOS, a boot sector or
//! memtest86+ on KVM, seen through the display's dirty log.
//!
//! `cargo run --release --example mini_pc -- --help`

use std::process::ExitCode;

#[cfg(target_arch = "x86_64")]
mod migrate;
#[cfg(target_arch = "x86_64")]
mod options;
#[cfg(target_arch = "x86_64")]
mod resets;
#[cfg(target_arch = "x86_64")]
mod run;
#[cfg(target_arch = "x86_64")]
mod view;

#[cfg(target_arch = "x86_64")]
fn main() -> ExitCode {
    use clap::Parser;

    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    match run::run(&options::Options::parse()) {
        Ok(run::End::AsWished | run::End::Interrupted) => ExitCode::SUCCESS,
        Ok(run::End::TextNotSeen) => ExitCode::from(2),
        Err(error) => {
            eprintln!("error: {}", machines::demo::explain(&*error));
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn main() -> ExitCode {
    eprintln!("error: a PC's processor is an x86-64");
    ExitCode::FAILURE
}
