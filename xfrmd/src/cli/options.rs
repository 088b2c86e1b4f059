//! The command line's definition, of which man pages and completions are made.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use dataplane::Profile;

use xfrmd::check::Kind;

use super::check;
use super::clock::ClockAction;
use super::faults::{FaultAction, FaultOptions};
use crate::attach::Capture;
use crate::capture;
use crate::config::{self, Config};
use crate::driver::clock::Timekeeping;
use crate::driver::recorder::RecordTo;
use crate::driver::seccomp::Front;
use crate::explain::Question;
use crate::log::Format;
use crate::metrics::Endpoint;

/// Linux's XFRM (IPsec) subsystem as a userspace daemon.
#[derive(Parser)]
#[command(name = "xfrmd", version, args_conflicts_with_subcommands = true)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Option<Action>,
    #[command(flatten)]
    pub(super) daemon: DaemonOptions,
}

#[derive(Subcommand)]
pub(super) enum Action {
    /// Runs a command, and everything that it starts, against an instance of its own.
    ///
    /// The instance ends with the command, whose exit code is passed on. No privileges are needed:
    /// whoever starts it is its root.
    Run {
        #[command(flatten)]
        tables: TableOptions,
        #[command(flatten)]
        faults: FaultOptions,
        #[command(flatten)]
        record: RecordOptions,
        /// How programs are brought to the instance: by a library put into them, by a seccomp filter
        /// around them (static programs, Go), or by whichever fits each.
        #[arg(long, value_name = "FRONT", default_value = "auto")]
        front: Front,
        /// What time it is for the command and its instance: the host's, a clock that stands until `xfrmd clock`
        /// moves it, or one that jumps to the next timer whenever everything is idle
        /// [default: $XFRMD_CLOCK, or real].
        #[arg(long, value_name = "CLOCK")]
        clock: Option<Timekeeping>,
        /// Random numbers of the instance come from this seed, so that runs are alike. For tests only: what is
        /// encrypted so is not secret.
        #[arg(long, value_name = "NUMBER")]
        seed: Option<u64>,
        /// Tells what the command has left behind when it has ended; exit code 1 if it was
        /// something and the command itself had 0.
        #[arg(long)]
        check: bool,
        /// What --check accepts; may be given several times.
        #[arg(long, value_name = "KIND", requires = "check")]
        ignore: Vec<Kind>,
        /// The command and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Shows or moves the virtual clock of a run: xfrmd run --clock virtual -- COMMAND.
    ///
    /// Called inside the run, or outside with its --socket. Exit code 2 for what can never come true.
    Clock {
        #[command(subcommand)]
        action: Option<ClockAction>,
        /// As JSON.
        #[arg(short, long, global = true)]
        json: bool,
        #[command(flatten)]
        socket: SocketOption,
    },
    /// Prints what a shell must set to use a running daemon: eval "$(xfrmd env)".
    Env {
        #[command(flatten)]
        socket: SocketOption,
    },
    /// Tells what this machine has, what xfrmd will use of it, what is missing and how to get it.
    ///
    /// What it tries, it tries in a network namespace of its own; the host's stays as it is. The
    /// exit code is 0 if packets could be carried, 1 if requests could be answered only, 2 if not
    /// even that.
    Doctor {
        /// As JSON.
        #[arg(short, long)]
        json: bool,
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
    /// Has requests, events, packets or the daemon go wrong, or lists what does.
    Fault {
        #[command(subcommand)]
        action: FaultAction,
    },
    /// Shows packets before and behind their SAs, or writes them as pcapng.
    ///
    /// Of the network namespace that it is called in, while the daemon carries its packets. Each
    /// packet says which SA it belongs to, which packet it came of, and why it was dropped.
    Capture {
        #[command(flatten)]
        wanted: capture::Wanted,
        #[command(flatten)]
        socket: SocketOption,
    },
    /// Looks for what is wrong with SAs and policies: orphans, leaks, weak algorithms, shadows.
    ///
    /// Of all network namespaces of the daemon. The exit code is 1 if something was found, so that it
    /// can be a gate in CI, and 2 if nothing could be looked at.
    Check {
        #[command(flatten)]
        wanted: check::Wanted,
    },
    /// Prints counters and table sizes of a running daemon.
    Stat {
        /// As JSON.
        #[arg(short, long)]
        json: bool,
        /// As metrics for Prometheus.
        #[arg(long, conflicts_with = "json")]
        prometheus: bool,
        #[command(flatten)]
        socket: SocketOption,
    },
    /// Does what was recorded once more, to a fresh instance, and prints what differs.
    ///
    /// Same requests and packets, same clock, same random numbers. The exit code is 0 if nothing
    /// differs, 1 if something does, 2 if the file cannot be replayed.
    Replay {
        /// What `--record` has written.
        file: PathBuf,
        /// The kernel to behave as: 6.1, 6.12 or 7.2 [default: the recorded one].
        #[arg(long, value_name = "RELEASE", value_parser = config::parse_profile)]
        kernel: Option<&'static Profile>,
        /// Takes what is there of a file that is cut short.
        #[arg(long)]
        partial: bool,
        /// As JSON.
        #[arg(short, long)]
        json: bool,
    },
    /// Records what a command asks the kernel that runs here, and what that says, for `xfrmd replay`.
    ///
    /// Of the network namespace that it is called in; needs CAP_NET_ADMIN and CAP_NET_RAW there. The
    /// command's exit code is passed on.
    RecordKernel {
        /// A pcapng file.
        file: PathBuf,
        /// Records keys, too.
        #[arg(long)]
        keys: bool,
        /// The command and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Compares two recordings: what was asked, said and carried, in its order.
    ///
    /// Clock values, sequence numbers, port ids, keys and SPIs that only one of them has do not
    /// count. The exit code is 0 if they agree, 1 if not, 2 if one of them cannot be read.
    Diff {
        /// One.
        old: PathBuf,
        /// The other.
        new: PathBuf,
        /// Takes what is there of a file that is cut short.
        #[arg(long)]
        partial: bool,
    },
    /// Prints the configuration in force as a file, every key with its meaning.
    ///
    /// Also a check: a file with a mistake is an error that names the line.
    Config {
        #[command(flatten)]
        file: FileOption,
    },
    /// Prints a script that completes command lines of xfrmd.
    Completions {
        /// For which shell.
        shell: Shell,
    },
    /// Writes the man pages.
    #[command(hide = true)]
    Man {
        /// Into this directory.
        directory: PathBuf,
    },
}

/// Without a subcommand: the daemon, in the foreground.
#[derive(Args)]
pub(super) struct DaemonOptions {
    #[command(flatten)]
    pub(super) tables: TableOptions,
    #[command(flatten)]
    pub(super) faults: FaultOptions,
    #[command(flatten)]
    pub(super) record: RecordOptions,
    /// Where to listen [default: /run/xfrmd/control].
    #[arg(long, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
    #[command(flatten)]
    pub(super) file: FileOption,
    /// What is logged: error, warn, info [default], debug, trace; also by module (MODULE=LEVEL).
    #[arg(long, value_name = "LEVEL")]
    pub(super) log: Option<String>,
    /// How it is logged [default: text].
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<Format>,
    /// Serves metrics for Prometheus at /metrics: ADDRESS:PORT, or the path of a Unix socket.
    #[arg(long, value_name = "ADDRESS")]
    metrics: Vec<Endpoint>,
}

#[derive(Args)]
pub(super) struct FileOption {
    /// The configuration file [default: /etc/xfrmd/xfrmd.toml, if it is there].
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct SocketOption {
    /// Where the daemon listens [default: /run/xfrmd/control].
    #[arg(long, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
    /// Of the run that this process belongs to, or that it is (xfrmd run).
    #[arg(long, value_name = "PID", conflicts_with = "socket")]
    pub(super) run: Option<u32>,
}

#[derive(Args)]
pub(super) struct RecordOptions {
    /// Records everything that is asked, said and carried into a pcapng file, for `xfrmd replay` and
    /// Wireshark.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Records keys, too, and packets as a whole: without, packets cannot be replayed.
    #[arg(long, requires = "record")]
    record_keys: bool,
}

impl RecordOptions {
    /// Begins the file, if one is wanted.
    pub(super) fn create(&self) -> Result<Option<RecordTo>> {
        let create = |path: &PathBuf| {
            let to = RecordTo::create(path, self.record_keys);
            to.with_context(|| path.display().to_string())
        };
        self.record.as_ref().map(create).transpose()
    }
}

#[derive(Args)]
pub(super) struct TableOptions {
    /// The kernel to behave as: 6.1, 6.12 or 7.2 [default: 7.2].
    #[arg(long, value_name = "RELEASE", value_parser = config::parse_profile)]
    kernel: Option<&'static Profile>,
    /// Most SAs of a network namespace; beyond, requests fail as without memory [default: 16777216].
    #[arg(long, value_name = "COUNT")]
    max_states: Option<usize>,
    /// Most policies of a network namespace [default: 16777216].
    #[arg(long, value_name = "COUNT")]
    max_policies: Option<usize>,
    /// Carries packets: what policies select goes through a TUN device, protected or checked as SAs
    /// say. Needs CAP_NET_ADMIN and CAP_NET_RAW in the network namespace, and /dev/net/tun.
    #[arg(long)]
    packets: bool,
    /// By what the host picks packets: nf_tables, or rules and routes, by which less can be said
    /// [default: auto].
    #[arg(long, value_name = "HOW", value_enum)]
    capture: Option<Capture>,
    /// Most connections of client processes [default: 16384].
    #[arg(long, value_name = "COUNT")]
    max_clients: Option<usize>,
}

fn put<T: Clone>(place: &mut T, said: &Option<T>) {
    if let Some(said) = said {
        place.clone_from(said);
    }
}

impl TableOptions {
    /// Puts what was said over a configuration.
    pub(super) fn apply(&self, config: &mut Config) {
        put(&mut config.kernel, &self.kernel);
        put(&mut config.limits.max_sas, &self.max_states);
        put(&mut config.limits.max_policies, &self.max_policies);
        put(&mut config.max_clients, &self.max_clients);
        config.packets |= self.packets;
        put(&mut config.capture, &self.capture);
    }
}

impl DaemonOptions {
    /// Puts what was said over a configuration.
    pub(super) fn apply(&self, config: &mut Config) {
        self.tables.apply(config);
        put(&mut config.socket, &self.socket);
        put(&mut config.log, &self.log);
        put(&mut config.log_format, &self.log_format);
        if !self.metrics.is_empty() {
            config.metrics.clone_from(&self.metrics);
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Cli;

    #[test]
    fn every_option_has_a_name_of_its_own() {
        Cli::command().debug_assert();
    }
}
