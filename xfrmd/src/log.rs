//! Logs, to standard error: lines of text, or one JSON object a line.
//!
//! No key is in them: what holds one shows nothing of it when it is printed (`xfrm_proto::algo::Key`).

use std::io::IsTerminal as _;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// How events are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

impl Format {
    /// As the configuration has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// What is logged can be changed through this.
pub(crate) struct Logging(Box<dyn Fn(EnvFilter) -> Result<()>>);

impl Logging {
    /// Logs what `filter` asks for from now on.
    pub(crate) fn set(&self, filter: &str) -> Result<()> {
        (self.0)(EnvFilter::try_new(filter)?)
    }
}

/// Whether it says what is to be logged.
pub(crate) fn is_filter(text: &str) -> bool {
    EnvFilter::try_new(text).is_ok()
}

/// Logs what `filter` asks for.
pub(crate) fn start(filter: &str, format: Format) -> Result<Logging> {
    let filter =
        EnvFilter::try_new(filter).with_context(|| format!("the log filter {filter:?}"))?;
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(filter);
    Ok(match format {
        Format::Text => {
            let builder = builder.with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            Logging(Box::new(move |filter| Ok(handle.reload(filter)?)))
        }
        Format::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            Logging(Box::new(move |filter| Ok(handle.reload(filter)?)))
        }
    })
}
