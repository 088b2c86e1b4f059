//! The command line: the daemon, `xfrmd run`, and what asks a running daemon.

mod check;
mod clock;
mod daemon;
mod documents;
mod faults;
mod options;
mod recordings;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;
use serde_json::Value;
use xfrm_proto::control::{Address, ENV_CONTROL};
use xfrmd::check::Kind;
use xfrmd::faults::Plan;

use crate::config::{self, Config};
use crate::driver::client;
use crate::driver::clock::randomness::Source;
use crate::driver::clock::{Clock, Timekeeping};
use crate::driver::command::{self, AtEnd, Run};
use crate::driver::faults::keep;
use crate::driver::program;
use crate::driver::seccomp::Front;
use crate::driver::{Owner, Settings};
use crate::explain::{self, Question};
use crate::{attach, doctor, log, metrics, observe_kernel};
use faults::FaultOptions;
use options::{Action, Cli, RecordOptions, SocketOption, TableOptions};

/// What a configuration means to the daemon, whoever's it is.
fn settings(config: &Config, plan: &Plan) -> Result<Settings> {
    Ok(Settings {
        profile: config.kernel,
        limits: config.limits,
        max_connections: config.max_clients,
        packets: config.packets && packets_can_be_carried(),
        capture: config.capture,
        owner: Owner::System,
        shim: None,
        record: None,
        clock: Clock::default(),
        root: 0,
        randomness: Source::Host,
        faults: keep(plan)?,
    })
}

/// Says what is missing, if something is; requests are answered all the same.
fn packets_can_be_carried() -> bool {
    let missing = attach::missing();
    if let Some(missing) = &missing {
        eprintln!("xfrmd: no packets are carried, only requests answered: {missing}");
    }
    missing.is_none()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the command line reads the environment"
)]
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// Parses the command line and does what it says.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        None => daemon::run(&cli.daemon),
        Some(Action::Run {
            tables,
            faults,
            record,
            front,
            clock,
            seed,
            check,
            ignore,
            command,
        }) => run(
            (&tables, &faults, &record),
            front,
            (clock, seed),
            check.then_some(ignore),
            command,
        ),
        Some(Action::Clock {
            action,
            json,
            socket,
        }) => clock::run(action.as_ref(), json, &socket),
        Some(Action::Env { socket }) => environment(&socket),
        Some(Action::Doctor { json }) => examine(json),
        Some(Action::Check { wanted }) => Ok(check::run(&wanted)),
        Some(Action::Stat {
            json,
            prometheus,
            socket,
        }) => statistics(&socket, json, prometheus),
        Some(Action::Explain {
            question,
            json,
            socket,
        }) => explained(&socket, &question, json),
        Some(Action::Capture { wanted, socket }) => with_daemon(&socket, |address| {
            client::capture(address, &wanted.as_json())
        })
        .and_then(|packets| wanted.receive(&packets)),
        Some(Action::Fault { action }) => faults::run(&action),
        Some(Action::Replay {
            file,
            kernel,
            partial,
            json,
        }) => recordings::replayed(&file, kernel, partial, json),
        Some(Action::RecordKernel {
            file,
            keys,
            command,
        }) => observe_kernel::record(&file, keys, &command),
        Some(Action::Diff { old, new, partial }) => recordings::compared([&old, &new], partial),
        Some(Action::Config { file }) => {
            config::load(file.config.as_deref()).and_then(|config| write(&config.to_file()))
        }
        Some(Action::Completions { shell }) => documents::completions(shell),
        Some(Action::Man { directory }) => documents::man(&directory),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xfrmd: {error:#}");
        ExitCode::FAILURE
    })
}

/// Runs a command. `accepted` are the kinds of findings that are no reason to complain at the end, if
/// somebody looks at all.
fn run(
    (tables, faults, record): (&TableOptions, &FaultOptions, &RecordOptions),
    front: Front,
    (clock, seed): (Option<Timekeeping>, Option<u64>),
    accepted: Option<Vec<Kind>>,
    command: Vec<OsString>,
) -> Result<ExitCode> {
    let Some(name) = command.first() else {
        bail!("no command");
    };
    let plan = match faults.checked(seed) {
        Ok(plan) => plan,
        Err(code) => return Ok(code),
    };
    let wanted = variable("XFRMD_LOG").map(|wanted| wanted.to_string_lossy().into_owned());
    log::start(wanted.as_deref().unwrap_or("warn"), log::Format::Text)?;
    let mut config = Config::default();
    tables.apply(&mut config);
    let clock = match clock::chosen(clock) {
        Ok(clock) => clock,
        Err(error) => {
            eprintln!("xfrmd: {error}");
            return Ok(2.into());
        }
    };
    let checked = program::find(name, variable("PATH"))
        .and_then(|program| program::check(&program, front).map(|reach| (program, reach)));
    let (program, reach) = match checked {
        Ok(checked) => checked,
        Err(refusal) => {
            eprintln!("xfrmd: {}: {refusal}", name.to_string_lossy());
            return Ok(refusal.exit_code().into());
        }
    };
    let code = command::run(Run {
        settings: Settings {
            randomness: seed.map_or(Source::Host, Source::Seed),
            record: record.create()?,
            ..settings(&config, &plan)?
        },
        clock,
        front,
        program,
        reach,
        command,
        temporary: variable("TMPDIR").map(PathBuf::from),
        preload: variable("LD_PRELOAD"),
        at_end: accepted.map(|accepted| -> AtEnd {
            Box::new(move |address| check::at_end(address, &accepted))
        }),
    })?;
    Ok(code.into())
}

/// The daemon that a command is about: the one named, the one of this process, or the system's.
fn with_daemon<T>(
    socket: &SocketOption,
    work: impl FnOnce(&Address<'_>) -> Result<T>,
) -> Result<T> {
    use std::os::unix::ffi::OsStrExt as _;
    if let Some(path) = &socket.socket {
        let path = std::path::absolute(path)?;
        return work(&Address {
            path: path.as_os_str().as_bytes(),
            abstract_name: &[],
            pid: 0,
            secret: None,
        });
    }
    if let Some(process) = socket.run {
        let text = environment_of(process)
            .with_context(|| format!("process {process} belongs to no run of ours"))?;
        return work(&Address::parse(&text).context(ENV_CONTROL)?);
    }
    match variable(ENV_CONTROL) {
        Some(text) => work(&Address::parse(text.as_bytes()).context(ENV_CONTROL)?),
        None => work(&Address::SYSTEM),
    }
}

/// The variable that names a daemon, as a process has it. That of `xfrmd run` is in its command's
/// environment, and its own is that of a run around it.
fn environment_of(process: u32) -> Option<Vec<u8>> {
    let value = |process: u32| {
        let all = std::fs::read(format!("/proc/{process}/environ")).ok()?;
        let mut words = all.split(|&byte| byte == 0);
        words.find_map(|word| {
            let value = word.strip_prefix(ENV_CONTROL.as_bytes())?;
            Some(value.strip_prefix(b"=")?.to_vec())
        })
    };
    let name = |process: &str| std::fs::read(format!("/proc/{process}/comm")).ok();
    let own = value(process);
    // Whoever else has children may have adopted them.
    if name(&process.to_string()) != name("self") {
        return own;
    }
    let children = format!("/proc/{process}/task/{process}/children");
    let children = std::fs::read_to_string(children).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|it| it.parse().ok());
    let mut values = children.filter_map(value);
    values.find(|it| own.as_ref() != Some(it)).or(own)
}

fn environment(socket: &SocketOption) -> Result<ExitCode> {
    with_daemon(socket, |address| {
        let statistics = client::statistics(address)?;
        let Some(shim) = statistics.get("shim").and_then(Value::as_str) else {
            bail!("the daemon has found no place for the shim");
        };
        let preload = command::preload(Path::new(shim), variable("LD_PRELOAD"));
        let mut out = std::io::stdout().lock();
        writeln!(
            out,
            "export LD_PRELOAD={}",
            quoted(&preload.to_string_lossy())
        )?;
        writeln!(out, "export {ENV_CONTROL}={}", quoted(&address.to_string()))?;
        Ok(ExitCode::SUCCESS)
    })
}

/// One word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn statistics(socket: &SocketOption, json: bool, prometheus: bool) -> Result<ExitCode> {
    let statistics = with_daemon(socket, client::statistics)?;
    if prometheus {
        return write(&metrics::text(&statistics));
    }
    print(&statistics, json, plain)
}

fn examine(json: bool) -> Result<ExitCode> {
    let report = doctor::examine();
    print(&report.to_json(), json, doctor::plain)?;
    Ok(report.exit_code().into())
}

fn explained(socket: &SocketOption, question: &Question, json: bool) -> Result<ExitCode> {
    let question = question.as_json()?;
    let answer = with_daemon(socket, |address| client::explain(address, &question))?;
    print(&answer, json, explain::plain)
}

fn print(answer: &Value, json: bool, plain: fn(&Value) -> String) -> Result<ExitCode> {
    let text = if json {
        format!("{answer:#}\n")
    } else {
        plain(answer)
    };
    write(&text)
}

fn write(text: &str) -> Result<ExitCode> {
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Statistics for people: counters that are not 0, and everything else.
fn plain(statistics: &Value) -> String {
    let mut out = format!(
        "xfrmd {} as Linux {}, {} clients\n",
        field(statistics, "version"),
        field(statistics, "kernel"),
        field(statistics, "clients"),
    );
    let namespaces = statistics.get("namespaces").and_then(Value::as_array);
    for namespace in namespaces.into_iter().flatten() {
        let own = if namespace.get("own") == Some(&Value::Bool(true)) {
            " (the daemon's)"
        } else {
            ""
        };
        out += &format!(
            "namespace {}{own}: {} users\n  states {}\n  policies",
            field(namespace, "cookie"),
            field(namespace, "users"),
            field(namespace, "states"),
        );
        let table = |name| namespace.get(name).and_then(Value::as_object);
        for (name, count) in table("policies").into_iter().flatten() {
            out += &format!(" {name} {count}");
        }
        out.push('\n');
        for (name, count) in table("carried").into_iter().flatten() {
            if count.is_object() {
                let (packets, bytes) = (field(count, "packets"), field(count, "bytes"));
                out += &format!("  carried {name} {packets} packets {bytes} bytes\n");
            }
        }
        for (name, value) in table("counters").into_iter().flatten() {
            if value.as_u64() != Some(0) {
                out += &format!("  {name} {value}\n");
            }
        }
    }
    out
}

fn field(object: &Value, name: &str) -> String {
    match object.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}
