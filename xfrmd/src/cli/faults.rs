//! Faults on purpose: what a run or a daemon begins with, and what `xfrmd fault` changes.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use xfrmd::faults::{Plan, scenario};

use super::options::SocketOption;
use super::{field, print, with_daemon, write};
use crate::driver::client;

/// What is said wrongly ends a command with this, before anything has been started.
const WRONG: u8 = 2;

#[derive(Args)]
pub(super) struct FaultOptions {
    /// A file of faults that are to strike (docs/faults.md).
    #[arg(long, value_name = "FILE")]
    faults: Option<PathBuf>,
    /// A fault that is to strike, such as 'netlink.error message=NEWSA nth=3 errno=ENOMEM'.
    #[arg(long, value_name = "FAULT")]
    fault: Vec<String>,
    /// What is random about faults comes from this number [default: the file's, or 0].
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
}

#[derive(Subcommand)]
pub(super) enum FaultAction {
    /// Lists the faults: how often what they look at has come, how often they have struck.
    List {
        /// As JSON.
        #[arg(short, long)]
        json: bool,
        #[command(flatten)]
        socket: SocketOption,
    },
    /// Adds a fault, which may strike from now on.
    Add {
        /// Such as 'netlink.error message=NEWSA nth=3 errno=ENOMEM': kind and keys of docs/faults.md.
        #[arg(required = true, value_name = "FAULT")]
        fault: Vec<String>,
        #[command(flatten)]
        socket: SocketOption,
    },
    /// Takes a fault away.
    Remove {
        /// Its name, as `list` shows it.
        name: String,
        #[command(flatten)]
        socket: SocketOption,
    },
    /// Takes all faults away.
    Clear {
        #[command(flatten)]
        socket: SocketOption,
    },
    /// Prints the kinds of faults and what can be said of each.
    Kinds,
}

impl FaultOptions {
    /// What is to go wrong; or what was said wrongly, each mistake with its place.
    fn plan(&self) -> Result<Plan, Vec<String>> {
        let mut plan = Plan::default();
        let mut mistakes = Vec::new();
        if let Some(path) = &self.faults {
            let file = path.display();
            match std::fs::read_to_string(path) {
                Err(error) => mistakes.push(format!("{file}: {error}")),
                Ok(text) => match scenario::read(&text) {
                    Ok(read) => plan = read,
                    Err(wrong) => mistakes.extend(wrong.iter().map(|it| format!("{file}:{it}"))),
                },
            }
        }
        for text in &self.fault {
            let added = scenario::rule(text).and_then(|rule| {
                let taken = |name| format!("there are two faults `{name}`");
                plan.add(rule).map_err(taken)
            });
            mistakes.extend(added.err().map(|what| format!("--fault '{text}': {what}")));
        }
        if let Some(seed) = self.seed {
            plan.set_seed(seed);
        }
        if mistakes.is_empty() {
            Ok(plan)
        } else {
            Err(mistakes)
        }
    }

    /// The same; mistakes are told, and what is left to do is to end with that code.
    pub(super) fn checked(&self) -> Result<Plan, ExitCode> {
        self.plan().map_err(|mistakes| {
            for mistake in mistakes {
                eprintln!("xfrmd: {mistake}");
            }
            WRONG.into()
        })
    }
}

/// Does what `xfrmd fault` says.
pub(super) fn run(action: &FaultAction) -> Result<ExitCode> {
    let ask = |socket: &SocketOption, wanted: Value| {
        with_daemon(socket, |address| client::faults(address, &wanted))
    };
    match action {
        FaultAction::List { json, socket } => {
            print(&ask(socket, json!({ "do": "list" }))?, *json, plain)
        }
        FaultAction::Add { fault, socket } => {
            let text = fault.join(" ");
            let rule = match scenario::rule(&text) {
                Ok(rule) => rule,
                Err(what) => {
                    eprintln!("xfrmd: '{text}': {what}");
                    return Ok(WRONG.into());
                }
            };
            let mut wanted = json!({ "do": "add", "fault": rule.text });
            if !rule.name.is_empty()
                && let Some(wanted) = wanted.as_object_mut()
            {
                wanted.insert("name".to_owned(), rule.name.into());
            }
            ask(socket, wanted)?;
            Ok(ExitCode::SUCCESS)
        }
        FaultAction::Remove { name, socket } => {
            ask(socket, json!({ "do": "remove", "fault": name }))?;
            Ok(ExitCode::SUCCESS)
        }
        FaultAction::Clear { socket } => {
            ask(socket, json!({ "do": "clear" }))?;
            Ok(ExitCode::SUCCESS)
        }
        FaultAction::Kinds => write(&xfrmd::faults::kind::vocabulary()),
    }
}

/// One fault a line.
fn plain(plan: &Value) -> String {
    let faults = plan.get("faults").and_then(Value::as_array);
    let line = |fault: &Value| {
        format!(
            "{}: {} (seen {}, struck {})\n",
            field(fault, "name"),
            field(fault, "fault"),
            field(fault, "seen"),
            field(fault, "struck"),
        )
    };
    let lines: String = faults.into_iter().flatten().map(line).collect();
    format!("seed {}\n{lines}", field(plan, "seed"))
}
