//! The command line: `xfrmd`, `xfrmd run`, `xfrmd env`, `xfrmd stat`.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand};
use dataplane::Profile;
use dataplane::netns::Limits;
use nix::sys::signal::Signal;
use serde_json::Value;
use tracing_subscriber::EnvFilter;
use xfrm_proto::control::{Address, ENV_CONTROL, SYSTEM_ABSTRACT, SYSTEM_PATH};

use crate::attach;
use crate::driver::client;
use crate::driver::command::{self, Run};
use crate::driver::listener::{self, Removed};
use crate::driver::program;
use crate::driver::seccomp::Front;
use crate::driver::signals::Signals;
use crate::driver::{Daemon, Owner, Settings};
use crate::explain::{self, Question};

/// Linux's XFRM (IPsec) subsystem as a userspace daemon.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Action>,
    #[command(flatten)]
    daemon: DaemonOptions,
}

#[derive(Subcommand)]
enum Action {
    /// Runs a command, and everything that it starts, against an instance of its own.
    ///
    /// The instance ends with the command, whose exit code is passed on. No privileges are needed:
    /// whoever starts it is its root.
    Run {
        #[command(flatten)]
        tables: TableOptions,
        /// How programs are brought to the instance: by a library put into them, by a seccomp filter
        /// around them (static programs, Go), or by whichever fits each.
        #[arg(long, value_name = "FRONT", default_value = "auto")]
        front: Front,
        /// The command and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Prints what a shell must set to use a running daemon: eval "$(xfrmd env)".
    Env {
        #[command(flatten)]
        socket: SocketOption,
    },
    /// Tells what would become of a packet, and why: policies, templates, SAs, verdict, counter.
    ///
    /// Nothing is sent and nothing changes. Of the network namespace that it is called in.
    Explain {
        #[command(flatten)]
        question: Question,
        /// As JSON.
        #[arg(short, long)]
        json: bool,
        #[command(flatten)]
        socket: SocketOption,
    },
    /// Prints counters and table sizes of a running daemon.
    Stat {
        /// As JSON.
        #[arg(short, long)]
        json: bool,
        #[command(flatten)]
        socket: SocketOption,
    },
}

/// Without a subcommand: the daemon, in the foreground.
#[derive(Args)]
struct DaemonOptions {
    #[command(flatten)]
    tables: TableOptions,
    #[command(flatten)]
    socket: SocketOption,
}

#[derive(Args)]
struct SocketOption {
    /// Where the daemon listens [default: /run/xfrmd/control].
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

#[derive(Args)]
struct TableOptions {
    /// The kernel to behave as: 6.1, 6.12 or 7.2.
    #[arg(long, value_name = "RELEASE", default_value = "7.2", value_parser = parse_profile)]
    kernel: &'static Profile,
    /// Most SAs of a network namespace; beyond, requests fail as without memory.
    #[arg(long, value_name = "COUNT", default_value_t = Limits::default().max_sas)]
    max_states: usize,
    /// Most policies of a network namespace.
    #[arg(long, value_name = "COUNT", default_value_t = Limits::default().max_policies)]
    max_policies: usize,
    /// Carries packets: what policies select goes through a TUN device, protected or checked as SAs
    /// say. Needs CAP_NET_ADMIN and CAP_NET_RAW in the network namespace, and /dev/net/tun.
    #[arg(long)]
    packets: bool,
    /// Most connections of client processes.
    #[arg(long, value_name = "COUNT", default_value_t = 16384)]
    max_clients: usize,
}

fn parse_profile(name: &str) -> Result<&'static Profile, String> {
    Profile::by_name(name).ok_or_else(|| "it is 6.1, 6.12 or 7.2".into())
}

impl TableOptions {
    fn settings(&self) -> Settings {
        Settings {
            profile: self.kernel,
            limits: Limits {
                max_sas: self.max_states,
                max_policies: self.max_policies,
            },
            max_connections: self.max_clients,
            packets: self.packets && packets_can_be_carried(),
            owner: Owner::System,
            shim: None,
        }
    }
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
        None => log("info").and_then(|()| daemon(&cli.daemon)),
        Some(Action::Run {
            tables,
            front,
            command,
        }) => log("warn").and_then(|()| run(&tables, front, command)),
        Some(Action::Env { socket }) => environment(&socket),
        Some(Action::Stat { json, socket }) => statistics(&socket, json),
        Some(Action::Explain {
            question,
            json,
            socket,
        }) => explained(&socket, &question, json),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xfrmd: {error:#}");
        ExitCode::FAILURE
    })
}

/// Logs to standard error what `XFRMD_LOG` asks for.
fn log(default: &str) -> Result<()> {
    let wanted = variable("XFRMD_LOG").map(|wanted| wanted.to_string_lossy().into_owned());
    let filter = EnvFilter::try_new(wanted.as_deref().unwrap_or(default)).context("XFRMD_LOG")?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
    Ok(())
}

fn daemon(options: &DaemonOptions) -> Result<ExitCode> {
    let signals = Signals::block(&[Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP])?;
    let system = Path::new(SYSTEM_PATH);
    let path = options.socket.socket.as_deref().unwrap_or(system);
    let directory = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let mut listeners =
        vec![listener::at_path(path).with_context(|| format!("listening at {}", path.display()))?];
    let _removed = Removed(path.to_path_buf());
    if path == system {
        listeners.extend(listener::at_abstract(SYSTEM_ABSTRACT).ok());
    }
    // Systems mount /run without leave to execute from it.
    let shim = [directory, Path::new("/var/lib/xfrmd")]
        .into_iter()
        .find_map(|directory| {
            std::fs::create_dir_all(directory).ok()?;
            command::install_shim(directory).ok()
        });
    if shim.is_none() {
        tracing::warn!("no place for the shim: xfrmd env will not work");
    }
    let _shim_removed = shim.clone().map(Removed);
    let settings = Settings {
        shim,
        ..options.tables.settings()
    };
    let kernel = settings.profile.name;
    let mut daemon = Daemon::new(settings, listeners)?;
    daemon.watch_for_caller(signals.fd(), 0)?;
    tracing::info!(kernel, socket = %path.display(), "serving");
    notify_ready();
    let signal = daemon.serve(|_| {
        Ok(match signals.next() {
            Some(arrived) => std::ops::ControlFlow::Break(arrived.signal),
            None => std::ops::ControlFlow::Continue(()),
        })
    })?;
    tracing::info!(%signal, "ending");
    Ok(ExitCode::SUCCESS)
}

/// Tells a service manager that clients can come (`sd_notify`).
fn notify_ready() {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::ffi::OsStrExt as _;
    let Some(address) = variable("NOTIFY_SOCKET") else {
        return;
    };
    let told = UnixDatagram::unbound().and_then(|socket| {
        let address = match address.as_bytes().strip_prefix(b"@") {
            Some(name) => std::os::unix::net::SocketAddr::from_abstract_name(name)?,
            None => std::os::unix::net::SocketAddr::from_pathname(&address)?,
        };
        socket.send_to_addr(b"READY=1", &address)
    });
    if let Err(error) = told {
        tracing::warn!(%error, "NOTIFY_SOCKET");
    }
}

fn run(tables: &TableOptions, front: Front, command: Vec<OsString>) -> Result<ExitCode> {
    let Some(name) = command.first() else {
        bail!("no command");
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
        settings: tables.settings(),
        front,
        program,
        reach,
        command,
        temporary: variable("TMPDIR").map(PathBuf::from),
        preload: variable("LD_PRELOAD"),
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
    match variable(ENV_CONTROL) {
        Some(text) => work(&Address::parse(text.as_bytes()).context(ENV_CONTROL)?),
        None => work(&Address::SYSTEM),
    }
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

fn statistics(socket: &SocketOption, json: bool) -> Result<ExitCode> {
    let statistics = with_daemon(socket, client::statistics)?;
    print(&statistics, json, plain)
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
