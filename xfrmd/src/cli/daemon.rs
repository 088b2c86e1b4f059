//! `xfrmd` without a subcommand: the daemon as a service.

use std::cell::Cell;
use std::ffi::OsString;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use xfrm_proto::control::{SYSTEM_ABSTRACT, SYSTEM_PATH};

use super::options::DaemonOptions;
use super::{settings, variable};
use crate::config::{self, Config};
use crate::driver::keeper;
use crate::driver::listener::{self, Removed};
use crate::driver::service::{self, Progress};
use crate::driver::signals::Signals;
use crate::driver::{Daemon, Settings, command};
use crate::log::{self, Logging};
use crate::metrics::Server;

/// Where the shim of the machine's daemon goes, and stays: programs that were started while the
/// daemon is away must find it, or they would reach the host's kernel. Any daemon's, if it cannot be
/// beside the socket: systems mount /run without leave to execute from it.
const STATE_DIRECTORY: &str = "/var/lib/xfrmd";

/// What the configuration file, the environment and the command line say together.
fn configured(options: &DaemonOptions) -> Result<Config> {
    let mut config = config::load(options.file.config.as_deref())?;
    let wanted = variable("XFRMD_LOG").or_else(|| variable("RUST_LOG"));
    if let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) {
        config.log = wanted.to_string_lossy().into_owned();
    }
    options.apply(&mut config);
    Ok(config)
}

fn tell(progress: Progress) {
    service::notify(variable("NOTIFY_SOCKET").as_deref(), progress);
}

/// Sockets that a service manager has opened, or our own, which go when the daemon ends.
fn listeners(path: &Path) -> Result<(Vec<OwnedFd>, Option<Removed>)> {
    let given: (Option<OsString>, _) = (variable("LISTEN_PID"), variable("LISTEN_FDS"));
    let given = service::listeners(given.0.as_deref(), given.1.as_deref())?;
    if !given.is_empty() {
        return Ok((given, None));
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let listening = || format!("listening at {}", path.display());
    let mut listeners = vec![listener::at_path(path).with_context(listening)?];
    if path == Path::new(SYSTEM_PATH) {
        listeners.extend(listener::at_abstract(SYSTEM_ABSTRACT).ok());
    }
    Ok((listeners, Some(Removed(path.to_path_buf()))))
}

fn install_shim(socket: &Path) -> Option<PathBuf> {
    let beside = socket.parent().unwrap_or(Path::new("/"));
    let mut places = [beside, Path::new(STATE_DIRECTORY)];
    if socket == Path::new(SYSTEM_PATH) {
        places.reverse();
    }
    let shim = places.into_iter().find_map(|directory| {
        std::fs::create_dir_all(directory).ok()?;
        command::install_shim(directory).ok()
    });
    if shim.is_none() {
        tracing::warn!("no place for the shim: xfrmd env will not work");
    }
    shim
}

/// Serves until a signal ends it.
pub(super) fn run(options: &DaemonOptions) -> Result<ExitCode> {
    let plan = match options.faults.checked() {
        Ok(plan) => plan,
        Err(code) => return Ok(code),
    };
    let config = configured(options)?;
    // Before anything opens a descriptor that could have the number of one that is handed over.
    let (listeners, _removed) = listeners(&config.socket)?;
    let logging = log::start(&config.log, config.log_format)?;
    let signals = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];
    let shim = install_shim(&config.socket);
    let ours = shim
        .clone()
        .filter(|shim| !shim.starts_with(STATE_DIRECTORY));
    let _shim_removed = ours.map(Removed);
    let settings = Settings {
        shim,
        record: options.record.create()?,
        ..settings(&config, &plan)?
    };
    let both = Signals::block(&[&signals[..], &[Signal::SIGCHLD]].concat())?;
    let listeners = Cell::new(Some(listeners));
    let code = keeper::keep(&both, None, &mut |inheritance| {
        let listeners = listeners.take().unwrap_or_default();
        let served = Signals::block(&signals).map_err(anyhow::Error::from);
        keeper::exit_code(served.and_then(|signals| {
            let mut daemon = Daemon::new(settings.clone(), listeners)?;
            daemon.inherit(inheritance)?;
            serve(options, config.clone(), daemon, &signals, &logging)
        }))
    })?;
    Ok(code.into())
}

/// The daemon itself.
fn serve(
    options: &DaemonOptions,
    mut config: Config,
    mut daemon: Daemon,
    signals: &Signals,
    logging: &Logging,
) -> Result<ExitCode> {
    forbid_dumps();
    daemon.watch_for_caller(signals.fd(), 0)?;
    let mut metrics = Server::start(daemon.inside_client()?)?;
    metrics.set(&config.metrics)?;
    tracing::info!(kernel = config.kernel.name, socket = %config.socket.display(), "serving");
    tell(Progress::Ready);
    loop {
        let signal = daemon.serve(|_| {
            Ok(match signals.next() {
                Some(arrived) => ControlFlow::Break(arrived.signal),
                None => ControlFlow::Continue(()),
            })
        })?;
        if signal != Signal::SIGHUP {
            tell(Progress::Stopping);
            tracing::info!(%signal, "ending");
            return Ok(ExitCode::SUCCESS);
        }
        tell(Progress::Reloading);
        match configured(options) {
            Ok(new) => config = take_up(&config, new, &mut daemon, logging, &mut metrics),
            Err(error) => {
                tracing::error!("the configuration stays as it was: {error:#}");
            }
        }
        tell(Progress::Ready);
    }
}

/// Keys are in no core dump, and no other process of our user can look at them.
fn forbid_dumps() {
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        tracing::warn!(%error, "core dumps would hold keys");
    }
}

/// Puts what can change into force; the configuration that is in force then.
fn take_up(
    old: &Config,
    new: Config,
    daemon: &mut Daemon,
    logging: &Logging,
    metrics: &mut Server,
) -> Config {
    let differences = old.differences(&new);
    let names = |live| {
        let of_kind = differences.iter().filter(|difference| difference.1 == live);
        let names: Vec<&str> = of_kind.map(|difference| difference.0).collect();
        names.join(", ")
    };
    let (changed, waits) = (names(true), names(false));
    daemon.set_limits(new.limits, new.max_clients);
    if let Err(error) = logging.set(&new.log) {
        tracing::error!("log.level: {error:#}");
    }
    if let Err(error) = metrics.set(&new.metrics) {
        tracing::error!("{error:#}");
    }
    tracing::info!(changed, "the configuration was read again");
    if !waits.is_empty() {
        tracing::warn!(keys = waits, "these changes need a restart");
    }
    Config {
        kernel: old.kernel,
        packets: old.packets,
        capture: old.capture,
        socket: old.socket.clone(),
        log_format: old.log_format,
        ..new
    }
}
