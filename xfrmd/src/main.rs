//! `xfrmd`: the daemon and its tools in one program.

mod attach;
mod capture;
mod cli;
mod config;
mod doctor;
mod driver;
mod explain;
mod log;
mod metrics;
mod observe_kernel;

use std::process::ExitCode;

/// Keeps its heap in huge pages, where the host has them for the asking: among a million SAs most of
/// a request's time went into finding pages.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main()
}
