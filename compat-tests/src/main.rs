//! `compat`: runs scenarios against the emulator, a kernel or a preloaded shim.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use compat_tests::golden::{self, Divergences};
use compat_tests::kernel::{self, Kernel};
use compat_tests::scenario::{self, Scenario};
use compat_tests::subject::{InProcess, RawSocket};
use dataplane::Profile;

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
        /// Scenarios, or parts of their names; all when none is given.
        names: Vec<String>,
    },
    /// Compares the emulator with the golden transcripts.
    Diff {
        /// Which kernel; all when none is given.
        #[arg(long)]
        kernel: Option<String>,
        /// Scenarios, or parts of their names; all when none is given.
        names: Vec<String>,
    },
    /// Boots reference kernels and records golden transcripts from them.
    Record {
        /// Which kernel; all when none is given.
        #[arg(long)]
        kernel: Option<String>,
        /// Scenarios, or parts of their names; all when none is given.
        names: Vec<String>,
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
            names,
        } => run(subject, &kernel, out.as_deref(), &names)?,
        Command::Diff { kernel, names } => return diff(kernel.as_deref(), &names),
        Command::Record { kernel, names } => record(kernel.as_deref(), &names)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn selected(names: &[String]) -> Vec<&'static Scenario> {
    let wanted = |name: &str| names.is_empty() || names.iter().any(|part| name.contains(part));
    scenario::all()
        .filter(|scenario| wanted(scenario.name))
        .collect()
}

fn run(subject: SubjectKind, kernel: &str, out: Option<&Path>, names: &[String]) -> Result<()> {
    let profile = Profile::by_name(kernel).with_context(|| format!("no kernel {kernel}"))?;
    if let Some(out) = out {
        fs::create_dir_all(out)?;
    }
    let keep = |scenario: &Scenario, text: &str| -> Result<()> {
        match out {
            Some(out) => fs::write(out.join(format!("{}.txt", scenario.name)), text)?,
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
    let (waiting, quick): (Vec<_>, Vec<_>) = selected(names)
        .into_iter()
        .partition(|scenario| scenario.sleeps);
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

fn diff(kernel: Option<&str>, names: &[String]) -> Result<ExitCode> {
    let divergences = Divergences::of_project();
    let (mut agree, mut differ) = (0, 0);
    for kernel in kernels(kernel)? {
        let profile = Profile::by_name(kernel.name).context("a profile")?;
        for scenario in selected(names) {
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

fn record(kernel: Option<&str>, names: &[String]) -> Result<()> {
    let program = std::env::current_exe()?;
    for kernel in kernels(kernel)? {
        kernel.available().map_err(anyhow::Error::msg)?;
        let out = kernel::suite_dir().join("golden").join(kernel.name);
        let mut args: Vec<String> = ["run", "--subject", "socket", "--out"]
            .map(String::from)
            .into();
        args.push(out.display().to_string());
        args.extend_from_slice(names);
        let status = kernel.run_sealed(300, &program, &args)?;
        if !status.success() {
            bail!("recording from {} ended with {status}", kernel.name);
        }
    }
    Ok(())
}
