//! Builds the page's WebAssembly, and serves both at an address of this host.
//!
//! `cargo run --release -p browser -- [--port N]`

mod build;
mod pages;
mod target;

use std::error::Error;
use std::net::{Ipv4Addr, TcpListener};

use clap::Parser;
use oxhttp::Server;

type AnyError = Box<dyn Error + Send + Sync>;

/// Serves a RISC-V machine with a VGA to browsers on this host.
#[derive(Parser)]
struct Options {
    /// The port, or 0 for one that is free
    #[arg(long, default_value_t = 8080)]
    port: u16,
}

fn main() -> Result<(), AnyError> {
    let options = Options::parse();
    let wasm = build::wasm()?;
    let port = match options.port {
        // The server does not tell which port it was given.
        0 => TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port(),
        port => port,
    };
    let size = wasm.len().div_ceil(1024);
    let server = Server::new(move |request| pages::answer(request, &wasm));
    let server = server.bind((Ipv4Addr::LOCALHOST, port)).spawn();
    let server = server.map_err(|error| format!("Port {port} cannot be served: {error}"))?;
    println!(
        "http://127.0.0.1:{port}/ has the page, with {size} KiB of WebAssembly; Ctrl-C ends it"
    );
    Ok(server.join()?)
}
