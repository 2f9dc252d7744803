//! A machine in a jail: a seccomp filter of exactly the system calls that `docs/syscalls.md` lists.
//!
//! A filter is for the rest of a process's life, so each has a process of its own: this program,
//! started again with `JAIL` set.

use std::process::ExitCode;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod filter;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod jails;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod list;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod machine;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() -> ExitCode {
    jails::main()
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() -> ExitCode {
    ExitCode::SUCCESS
}
