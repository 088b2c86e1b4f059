//! `compat`: runs scenarios against the emulator, a kernel or a preloaded shim.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use compat_tests::fuzz;
use compat_tests::golden::{self, Divergences};
use compat_tests::kernel::{self, Kernel};
use compat_tests::scenario::{self, Scenario};
use compat_tests::subject::{InProcess, RawSocket, without_offload_modules};
use compat_tests::traffic;

/// How often a scenario whose sleepers wake late is tried.
const MOST_ATTEMPTS: u32 = 8;

/// The suite that compares xfrmd with real Linux kernels.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Prints the names of all scenarios.
    List,
    /// Runs scenarios and writes a transcript of each.
    Run {
        /// Who answers.
        #[arg(long, value_enum, default_value = "in-process")]
        subject: SubjectKind,
        /// Which kernel the emulator is to be.
        #[arg(long, default_value = "7.2")]
        kernel: String,
        /// Where the transcripts go; without it they are printed.
        #[arg(long)]
        out: Option<PathBuf>,
        /// The scenarios of traffic instead of those of netlink.
        #[arg(long)]
        traffic: bool,
        /// Scenarios, or parts of their names; all when none is given.
        names: Vec<String>,
    },
    /// Compares the emulator with the golden transcripts.
    Diff {
        /// Which kernel; all when none is given.
        #[arg(long)]
        kernel: Option<String>,
        /// The scenarios of traffic instead of those of netlink.
        #[arg(long)]
        traffic: bool,
        /// Scenarios, or parts of their names; all when none is given.
        names: Vec<String>,
    },
    /// Boots reference kernels and records golden transcripts from them.
    Record {
        /// Which kernel; all when none is given.
        #[arg(long)]
        kernel: Option<String>,
        /// The scenarios of traffic instead of those of netlink.
        #[arg(long)]
        traffic: bool,
        /// Scenarios, or parts of their names; all when none is given.
        names: Vec<String>,
    },
    /// Compares the emulator with a kernel, message by message, on random sequences.
    Fuzz {
        /// Which kernel.
        #[arg(long, default_value = "7.2")]
        kernel: String,
        /// The same seed makes the same sequences.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// How many messages to send.
        #[arg(long, default_value_t = 100_000)]
        messages: u64,
        /// Stop after this many different differences.
        #[arg(long, default_value_t = 10)]
        findings: usize,
        /// Where sequences that show a difference go.
        #[arg(long, default_value = "target/fuzz")]
        out: PathBuf,
        /// Do not boot: this is the kernel.
        #[arg(long)]
        here: bool,
    },
    /// Replays sequences on the kernel that this runs on, and compares.
    Replay {
        /// Which kernel this is.
        #[arg(long, default_value = "7.2")]
        kernel: String,
        /// Do not boot: this is the kernel.
        #[arg(long)]
        here: bool,
        /// The sequences.
        files: Vec<PathBuf>,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum SubjectKind {
    /// The emulator in this process.
    InProcess,
    /// `AF_NETLINK` sockets: this kernel, or a preloaded shim.
    Socket,
}

fn main() -> Result<ExitCode> {
    match Cli::parse().command {
        Command::List => scenario::all().for_each(|scenario| println!("{}", scenario.name)),
        Command::Run {
            subject,
            kernel,
            out,
            traffic,
            names,
        } => {
            if traffic && matches!(subject, SubjectKind::Socket) {
                without_offload_modules();
            }
            run(subject, &kernel, out.as_deref(), &selected(traffic, &names))?;
        }
        Command::Diff {
            kernel,
            traffic,
            names,
        } => return diff(kernel.as_deref(), &selected(traffic, &names)),
        Command::Record {
            kernel,
            traffic,
            names,
        } => record(kernel.as_deref(), traffic, &names)?,
        Command::Fuzz {
            kernel,
            seed,
            messages,
            findings,
            out,
            here,
        } => {
            let kernel = Kernel::by_name(&kernel).context("no such kernel")?;
            if here {
                return fuzz_here(kernel, seed, messages, findings, &out);
            }
            return inside(kernel);
        }
        Command::Replay {
            kernel,
            here,
            files,
        } => {
            let kernel = Kernel::by_name(&kernel).context("no such kernel")?;
            if here {
                return replay_here(kernel, &files);
            }
            return inside(kernel);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn selected(of_traffic: bool, names: &[String]) -> Vec<&'static Scenario> {
    let wanted = |name: &str| names.is_empty() || names.iter().any(|part| name.contains(part));
    let mut scenarios: Vec<_> = if of_traffic {
        traffic::all().collect()
    } else {
        scenario::all().collect()
    };
    scenarios.retain(|scenario| wanted(scenario.name));
    scenarios
}

fn run(
    subject: SubjectKind,
    kernel: &str,
    out: Option<&Path>,
    scenarios: &[&'static Scenario],
) -> Result<()> {
    let kernel = Kernel::by_name(kernel).with_context(|| format!("no kernel {kernel}"))?;
    let profile = kernel.profile();
    let keep = |scenario: &Scenario, text: &str| -> Result<()> {
        match out {
            Some(out) => {
                let path = out.join(format!("{}.txt", scenario.name));
                fs::create_dir_all(path.parent().unwrap_or(out))?;
                fs::write(path, text)?;
            }
            None => println!("== {}\n{text}", scenario.name),
        }
        Ok(())
    };
    let transcript = move |scenario: &Scenario| -> Result<String> {
        for _ in 0..MOST_ATTEMPTS {
            let (text, timely) = match subject {
                SubjectKind::InProcess => scenario.timely_transcript(&mut InProcess::new(profile)),
                SubjectKind::Socket => {
                    let subject =
                        RawSocket::in_fresh_netns().map_err(std::io::Error::from_raw_os_error);
                    scenario.timely_transcript(&mut subject.context("a network namespace")?)
                }
            };
            if timely {
                return Ok(text);
            }
        }
        bail!("the machine is too busy: {MOST_ATTEMPTS} times a sleeper woke late")
    };
    // Scenarios that wait do so together; every scenario has a thread, because
    // a thread is what has a network namespace.
    let (waiting, quick): (Vec<&Scenario>, Vec<_>) =
        scenarios.iter().partition(|scenario| scenario.sleeps);
    let waiting: Vec<_> = waiting
        .into_iter()
        .map(|scenario| (scenario, thread::spawn(move || transcript(scenario))))
        .collect();
    for (scenario, thread) in waiting {
        keep(scenario, &join(scenario, thread)?)?;
    }
    for scenario in quick {
        let thread = thread::spawn(move || transcript(scenario));
        keep(scenario, &join(scenario, thread)?)?;
    }
    Ok(())
}

fn join(scenario: &Scenario, thread: thread::JoinHandle<Result<String>>) -> Result<String> {
    match thread.join() {
        Ok(result) => result.with_context(|| scenario.name),
        Err(_) => bail!("{} panicked", scenario.name),
    }
}

fn kernels(name: Option<&str>) -> Result<Vec<Kernel>> {
    match name {
        None => Ok(kernel::ALL.to_vec()),
        Some(name) => {
            let kernel = Kernel::by_name(name).with_context(|| format!("no kernel {name}"))?;
            Ok(vec![kernel])
        }
    }
}

fn diff(kernel: Option<&str>, scenarios: &[&'static Scenario]) -> Result<ExitCode> {
    let divergences = Divergences::of_project();
    let (mut agree, mut differ) = (0, 0);
    for kernel in kernels(kernel)? {
        let profile = kernel.profile();
        for scenario in scenarios.iter().copied() {
            let expected = fs::read_to_string(golden::path(kernel, scenario.name))
                .with_context(|| format!("golden of {} on {}", scenario.name, kernel.name))?;
            let actual = thread::spawn(move || scenario.transcript(&mut InProcess::new(profile)))
                .join()
                .unwrap_or_else(|_| "panicked\n".into());
            let result = golden::compare(&expected, &actual);
            match divergences.judge(scenario.name, kernel, result) {
                Ok(()) => agree += 1,
                Err(text) => {
                    differ += 1;
                    println!("== {} on {}\n{text}", scenario.name, kernel.name);
                }
            }
        }
    }
    println!("{agree} agree, {differ} differ");
    Ok(if differ == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Keeps, of a kernel with a module more, only the transcripts in which the module shows.
fn forget_the_same(kernel: Kernel, scenarios: &[&Scenario]) -> Result<()> {
    let Some(plain) = Kernel::by_name(kernel.release).filter(|plain| *plain != kernel) else {
        return Ok(());
    };
    for scenario in scenarios {
        let own = golden::path(kernel, scenario.name);
        if fs::read(&own)? == fs::read(golden::path(plain, scenario.name))? {
            fs::remove_file(own)?;
        }
    }
    Ok(())
}

fn record(kernel: Option<&str>, traffic: bool, names: &[String]) -> Result<()> {
    let program = std::env::current_exe()?;
    for kernel in kernels(kernel)? {
        kernel.available().map_err(anyhow::Error::msg)?;
        let out = golden::directory(kernel);
        fs::create_dir_all(&out)?;
        let mut args: Vec<String> = ["run", "--subject", "socket", "--out"]
            .map(String::from)
            .into();
        args.push(out.display().to_string());
        if traffic {
            args.push("--traffic".into());
        }
        args.extend_from_slice(names);
        let status = kernel.run_sealed(300, &program, &args)?;
        if !status.success() {
            bail!("recording from {} ended with {status}", kernel.name);
        }
        forget_the_same(kernel, &selected(traffic, names))?;
    }
    Ok(())
}

/// Runs this very command inside a kernel.
fn inside(kernel: Kernel) -> Result<ExitCode> {
    kernel.available().map_err(anyhow::Error::msg)?;
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    args.push("--here".into());
    let status = kernel.run_sealed(36_000, &std::env::current_exe()?, &args)?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn fuzz_here(
    kernel: Kernel,
    seed: u64,
    messages: u64,
    findings: usize,
    out: &Path,
) -> Result<ExitCode> {
    let report = fuzz::run(kernel.profile(), seed, messages, findings, out)?;
    println!(
        "{} messages, {} different differences",
        report.messages,
        report.findings.len()
    );
    for (signature, (count, _)) in &report.findings {
        println!("{count:6} x {signature}");
    }
    Ok(if report.findings.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn replay_here(kernel: Kernel, files: &[PathBuf]) -> Result<ExitCode> {
    let mut differ = 0;
    for file in files {
        let sequence = fuzz::Sequence::from_text(&fs::read_to_string(file)?)
            .with_context(|| format!("{} is no sequence", file.display()))?;
        if let Some(text) = fuzz::difference(kernel.profile(), &sequence)? {
            println!("== {}\n{text}", file.display());
            differ += 1;
        }
    }
    println!("{} sequences, {differ} differ", files.len());
    Ok(if differ == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
