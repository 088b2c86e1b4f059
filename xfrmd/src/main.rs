//! `xfrmd`: the daemon and its tools in one program.

mod attach;
mod cli;
mod driver;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
