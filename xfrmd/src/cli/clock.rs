//! `xfrmd clock`: shows and moves the virtual clock of a run.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;
use xfrm_proto::clock::ENV_CLOCK;

use super::{variable, with_daemon, write};
use crate::cli::options::SocketOption;
use crate::driver::client;
use crate::driver::clock::Timekeeping;
use crate::driver::clock::order::{Event, Order, parse_duration};

/// What a command gets that can never come true, and one for a clock that cannot be moved.
const IMPOSSIBLE: u8 = 2;

/// Which clock a run has: as the command line says, or else the environment.
///
/// # Errors
/// What the variable must not be.
pub(super) fn chosen(said: Option<Timekeeping>) -> Result<Timekeeping, String> {
    if let Some(said) = said {
        return Ok(said);
    }
    match variable(ENV_CLOCK) {
        Some(text) if !text.is_empty() => Timekeeping::from_str(&text.to_string_lossy(), false)
            .map_err(|_| format!("{ENV_CLOCK}: it is real, virtual or auto")),
        _ => Ok(Timekeeping::Real),
    }
}

#[derive(Subcommand)]
pub(super) enum ClockAction {
    /// Moves time on, from one timer to the next: 1h, 90s, 1h30m, 250ms.
    Advance {
        /// By how much.
        #[arg(value_parser = parse_duration)]
        by: u64,
    },
    /// Moves time on until something happens, and what follows from it has come to rest.
    RunUntil {
        #[command(subcommand)]
        event: EventAction,
    },
    /// Lets time jump to the next timer whenever everything is idle.
    Auto,
    /// Lets time stand again.
    Stop,
}

#[derive(Subcommand)]
pub(super) enum EventAction {
    /// An SA expires, softly or hard: expire spi 0xc1234567.
    Expire(Expiring),
    /// A key manager is asked for an SA.
    Acquire,
    /// A protected packet comes or goes.
    Packet,
    /// Everything is idle; time does not move for that.
    Idle,
}

#[derive(Args)]
pub(super) struct Expiring {
    /// The word spi.
    #[arg(value_parser = ["spi"])]
    _spi: String,
    /// Its SPI.
    #[arg(value_name = "SPI", value_parser = parse_spi)]
    spi: u32,
}

fn parse_spi(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("{text:?} is no SPI: 0xc1234567"))
}

impl ClockAction {
    fn order(&self) -> Order {
        match self {
            Self::Advance { by } => Order::Advance(*by),
            Self::RunUntil { event } => Order::Until(match event {
                EventAction::Expire(expiring) => Event::Expire(expiring.spi),
                EventAction::Acquire => Event::Acquire,
                EventAction::Packet => Event::Packet,
                EventAction::Idle => Event::Idle,
            }),
            Self::Auto => Order::Auto,
            Self::Stop => Order::Stop,
        }
    }
}

/// Asks the daemon, and prints the time then.
pub(super) fn run(
    action: Option<&ClockAction>,
    json: bool,
    socket: &SocketOption,
) -> Result<ExitCode> {
    let order = action.map_or(Order::Show, ClockAction::order);
    let answer = with_daemon(socket, |address| client::move_clock(address, order))?;
    if let Some(error) = answer.get("error").and_then(Value::as_str) {
        eprintln!("xfrmd: {error}");
        return Ok(IMPOSSIBLE.into());
    }
    if json {
        return write(&format!("{answer:#}\n"));
    }
    write(&plain(&answer))
}

fn plain(answer: &Value) -> String {
    let number = |name| answer.get(name).and_then(Value::as_u64);
    let seconds = |nanos: u64| format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000);
    let boot = number("boot").unwrap_or(0);
    let kind = match (
        answer.get("clock").and_then(Value::as_str),
        answer.get("auto"),
    ) {
        (Some("virtual"), Some(Value::Bool(true))) => "virtual, moves by itself",
        (Some("virtual"), _) => "virtual",
        _ => "the host's",
    };
    let mut text = format!(
        "clock {kind}\nuptime {}\nwall {}\n",
        seconds(boot),
        number("real").unwrap_or(0)
    );
    if let Some(next) = number("next") {
        text += &format!("next timer in {}\n", seconds(next.saturating_sub(boot)));
    }
    text
}
