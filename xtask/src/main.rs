//! `cargo xtask STEP`: each CI step alone, with nothing but cargo.

mod package;
mod quirks;

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, ExitStatus, Stdio};

/// A step: its name, what it does, its commands.
struct Step {
    name: &'static str,
    about: &'static str,
    commands: &'static [&'static [&'static str]],
}

const STEPS: &[Step] = &[
    Step {
        name: "fmt",
        about: "formatting",
        commands: &[&["cargo", "fmt", "--all", "--check"]],
    },
    Step {
        name: "clippy",
        about: "lints, warnings denied",
        commands: &[
            &[
                "cargo",
                "clippy",
                "--package=dataplane",
                "--features=shuttle",
                "--test=schedules",
                "--",
                "-D",
                "warnings",
            ],
            &[
                "cargo",
                "clippy",
                "--package=shim",
                "--features=time",
                "--",
                "-D",
                "warnings",
            ],
            &[
                "cargo",
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ],
        ],
    },
    Step {
        name: "docs",
        about: "API documentation, warnings denied; every QUIRK has its test",
        commands: &[&["cargo", "doc", "--workspace", "--no-deps", "--quiet"]],
    },
    Step {
        name: "licences",
        about: "licences and sources of dependencies (cargo install cargo-deny)",
        commands: &[&[
            "cargo",
            "deny",
            "--log-level",
            "error",
            "check",
            "licenses",
            "sources",
            "bans",
        ]],
    },
    Step {
        name: "test",
        about: "every test",
        commands: &[
            &["cargo", "build", "--workspace", "--all-targets"],
            &[
                "cargo",
                "test",
                "--package=dataplane",
                "--features=shuttle",
                "--test=schedules",
            ],
            &["cargo", "test", "--workspace", "--no-fail-fast"],
        ],
    },
    Step {
        name: "bench",
        about: "the figures, ours beside the yardstick: bench [NAME]...",
        commands: &[
            &["cargo", "build", "--release", "--workspace", "--quiet"],
            &[
                "cargo",
                "run",
                "--release",
                "--quiet",
                "--package",
                "bench",
                "--",
            ],
        ],
    },
    Step {
        name: "kernels",
        about: "installs the reference kernels (root, Debian's packages): kernels [oldstable|stable|newest]...",
        commands: &[&["bash", "compat-tests/kernel/install.sh"]],
    },
];

/// Steps that are more than commands: name, what it does, the step.
type Made = (
    &'static str,
    &'static str,
    fn(&[String]) -> std::io::Result<()>,
);

const MADE: &[Made] = &[
    (
        "man",
        "man pages and completions, in target/doc-files: man [--profile NAME]",
        package::documents,
    ),
    (
        "deb",
        "a Debian package, in target/package (dpkg-dev, binutils): deb [--profile NAME]",
        package::deb,
    ),
];

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(name) = args.next() else {
        return usage();
    };
    if let Some((name, _, make)) = MADE.iter().find(|made| made.0 == name) {
        return match make(&args.collect::<Vec<_>>()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("xtask {name}: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let Some(step) = STEPS.iter().find(|step| step.name == name) else {
        return usage();
    };
    if step.name == "docs" && !quirks_have_tests() {
        return ExitCode::FAILURE;
    }
    let rest: Vec<String> = args.collect();
    let last = step.commands.len().saturating_sub(1);
    let mut sums = [0; 3];
    for (index, command) in step.commands.iter().enumerate() {
        let extra = if index == last { rest.as_slice() } else { &[] };
        match run(step, command, extra, &mut sums) {
            Ok(status) if status.success() => {}
            Ok(_) => return ExitCode::FAILURE,
            Err(error) => {
                eprintln!("xtask {}: {}: {error}", step.name, command.join(" "));
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

fn quirks_have_tests() -> bool {
    let quirks = match quirks::Quirks::of_workspace() {
        Ok(quirks) => quirks,
        Err(error) => {
            eprintln!("xtask docs: reading the sources: {error}");
            return false;
        }
    };
    let mut all = true;
    for (name, path) in quirks.untested() {
        eprintln!("{}: no test is named {name:?}", path.display());
        all = false;
    }
    if all {
        println!("{} quirks, each with its test", quirks.len());
    }
    all
}

fn run(
    step: &Step,
    command: &[&str],
    extra: &[String],
    sums: &mut [u64; 3],
) -> std::io::Result<ExitStatus> {
    let mut words = command.iter();
    let program = words.next().copied().unwrap_or_default();
    let mut process = Command::new(program);
    process.args(words).args(extra);
    match step.name {
        "docs" => process.env("RUSTDOCFLAGS", "-D warnings").status(),
        "test" => summarized(&mut process, sums),
        _ => process.status(),
    }
}

/// Runs tests, passes on what they print, and closes with one line that sums up all test binaries
/// so far.
fn summarized(process: &mut Command, sums: &mut [u64; 3]) -> std::io::Result<ExitStatus> {
    let mut child = process.stdout(Stdio::piped()).spawn()?;
    for line in child
        .stdout
        .take()
        .map(BufReader::new)
        .into_iter()
        .flat_map(BufRead::lines)
    {
        let line = line?;
        println!("{line}");
        if !line.starts_with("test result: ") {
            continue;
        }
        for (sum, word) in sums.iter_mut().zip(["passed", "failed", "ignored"]) {
            let count = line
                .split([';', '.'])
                .find_map(|part| part.trim().strip_suffix(word));
            *sum += count
                .and_then(|count| count.trim().parse().ok())
                .unwrap_or(0);
        }
    }
    let status = child.wait()?;
    let [passed, failed, ignored] = *sums;
    if passed + failed > 0 {
        println!("{passed} passed, {failed} failed, {ignored} skipped");
    }
    Ok(status)
}

fn usage() -> ExitCode {
    eprintln!("usage: cargo xtask STEP [ARGUMENT]...");
    let steps = STEPS.iter().map(|step| (step.name, step.about));
    for (name, about) in steps.chain(MADE.iter().map(|made| (made.0, made.1))) {
        eprintln!("  {name:9} {about}");
    }
    ExitCode::from(2)
}
