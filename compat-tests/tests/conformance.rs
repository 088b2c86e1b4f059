//! Every scenario on every kernel, as a named test.
//!
//! `golden`: emulator and engine agree with the recorded transcripts, but for what
//! `docs/divergences.md` lists. `live`: the recorded transcripts are what the
//! kernel says today; one boot for each kernel that is installed, ignored with a
//! reason otherwise, failed instead of ignored under `XFRMD_REQUIRE_ALL=1`.
//! `live::KERNEL::fuzz`: emulator and kernel agree about random sequences too.
//! `shim`: what clients get over shim and daemon is what the recorded transcripts
//! say, but for what depends on how the reference kernels are built.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, OnceLock};

use compat_tests::golden::{self, Divergences};
use compat_tests::kernel::{self, Kernel};
use compat_tests::scenario::{self, Scenario};
use compat_tests::subject::InProcess;
use compat_tests::traffic;
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let divergences = Arc::new(Divergences::of_project());
    let mut trials = Vec::new();
    for kernel in kernel::ALL {
        for scenario in scenario::all().chain(traffic::all()) {
            let divergences = Arc::clone(&divergences);
            trials.push(Trial::test(
                format!("golden::{}::{}", kernel.name, scenario.name),
                move || against_golden(kernel, scenario, &divergences),
            ));
        }
        trials.push(Trial::test(
            format!("golden::{}::no_stray_files", kernel.name),
            move || no_stray_files(kernel),
        ));
        live(kernel, &mut trials);
    }
    let shims = kernel::ALL.map(|kernel| (kernel, Recording::default()));
    for (kernel, recording) in &shims {
        shim(*kernel, recording, &divergences, &mut trials);
    }
    trials.push(Trial::test("shim::no_stale_divergences", move || {
        no_stale_divergences(&shims, &divergences)
    }));
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn golden_text(kernel: Kernel, scenario: &Scenario) -> Result<String, Failed> {
    fs::read_to_string(golden::path(kernel, scenario.name)).map_err(|_| {
        let (kernel, scenario) = (kernel.name, scenario.name);
        format!(
            "not recorded yet: cargo run -p compat-tests -- record --kernel {kernel} {scenario}"
        )
        .into()
    })
}

fn against_golden(kernel: Kernel, scenario: &Scenario, list: &Divergences) -> Result<(), Failed> {
    let expected = golden_text(kernel, scenario)?;
    let actual = scenario.transcript(&mut InProcess::new(kernel.profile()));
    let result = golden::compare(&expected, &actual);
    list.judge(scenario.name, kernel, result)
        .map_err(Failed::from)
}

fn no_stray_files(kernel: Kernel) -> Result<(), Failed> {
    let golden = kernel::suite_dir().join("golden").join(kernel.name);
    for (directory, prefix) in [(golden.clone(), ""), (golden.join("traffic"), "traffic/")] {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let name = format!("{prefix}{stem}");
            let mut scenarios = scenario::all().chain(traffic::all());
            if path.is_file() && !scenarios.any(|scenario| scenario.name == name) {
                return Err(format!("{} belongs to no scenario", path.display()).into());
            }
        }
    }
    Ok(())
}

/// All scenarios at once over shim and daemon, then a comparison for each.
fn shim(kernel: Kernel, recording: &Recording, list: &Arc<Divergences>, trials: &mut Vec<Trial>) {
    for scenario in scenario::all() {
        let (recording, list) = (Arc::clone(recording), Arc::clone(list));
        trials.push(Trial::test(
            format!("shim::{}::{}", kernel.name, scenario.name),
            move || {
                let recorded = recording.get_or_init(|| record_over_shim(kernel));
                let directory = recorded
                    .as_ref()
                    .map_err(|error| Failed::from(error.as_str()))?;
                if list.reason_over_shim(scenario.name).is_some() {
                    return Ok(());
                }
                let seen = fs::read_to_string(directory.join(format!("{}.txt", scenario.name)))?;
                let result = golden::compare(&golden_text(kernel, scenario)?, &seen);
                list.judge(scenario.name, kernel, result)
                    .map_err(Failed::from)
            },
        ));
    }
}

/// What is listed for the shim differs on one kernel at least.
fn no_stale_divergences(shims: &[(Kernel, Recording)], list: &Divergences) -> Result<(), Failed> {
    for scenario in scenario::all() {
        if list.reason_over_shim(scenario.name).is_none() {
            continue;
        }
        let mut differs = false;
        for (kernel, recording) in shims {
            let recorded = recording.get_or_init(|| record_over_shim(*kernel));
            let directory = recorded
                .as_ref()
                .map_err(|error| Failed::from(error.as_str()))?;
            let seen = fs::read_to_string(directory.join(format!("{}.txt", scenario.name)))?;
            differs |= golden_text(*kernel, scenario)? != seen;
        }
        if !differs {
            let name = scenario.name;
            return Err(format!("{name} agrees over the shim: remove it from the table").into());
        }
    }
    Ok(())
}

fn record_over_shim(kernel: Kernel) -> Result<PathBuf, String> {
    let me = std::env::current_exe().map_err(|error| error.to_string())?;
    let xfrmd = me.ancestors().nth(2).unwrap_or(&me).join("xfrmd");
    if !xfrmd.exists() {
        return Err("no xfrmd: cargo build --workspace".into());
    }
    let out = fresh_directory(&format!("shim-{}", kernel.name));
    let status = Command::new(xfrmd)
        .args(["run", "--kernel", kernel.name, "--"])
        .arg(env!("CARGO_BIN_EXE_compat"))
        .args(["run", "--subject", "socket", "--out"])
        .arg(&out)
        .status()
        .map_err(|error| error.to_string())?;
    if !status.success() {
        return Err(format!("scenarios over the shim ended with {status}"));
    }
    Ok(out)
}

fn fresh_directory(name: &str) -> PathBuf {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&out);
    out
}

type Recording = Arc<OnceLock<Result<PathBuf, String>>>;

fn live(kernel: Kernel, trials: &mut Vec<Trial>) {
    let required = std::env::var_os("XFRMD_REQUIRE_ALL").is_some_and(|value| value == "1");
    if let Err(reason) = kernel.available() {
        let name = format!("live::{}", kernel.name);
        trials.push(if required {
            Trial::test(name, move || Err(reason.into()))
        } else {
            Trial::test(format!("{name} ({reason})"), || Ok(())).with_ignored_flag(true)
        });
        return;
    }
    trials.push(Trial::test(
        format!("live::{}::fuzz", kernel.name),
        move || fuzz(kernel),
    ));
    let recording: Recording = Arc::default();
    for scenario in scenario::all() {
        let recording = Arc::clone(&recording);
        trials.push(Trial::test(
            format!("live::{}::{}", kernel.name, scenario.name),
            move || {
                let recorded = recording.get_or_init(|| record(kernel, "live", &[]));
                compare_recorded(kernel, scenario, recorded)
            },
        ));
    }
    let recording: Recording = Arc::default();
    for scenario in traffic::all() {
        let recording = Arc::clone(&recording);
        trials.push(Trial::test(
            format!("live::{}::{}", kernel.name, scenario.name),
            move || {
                let recorded =
                    recording.get_or_init(|| record(kernel, "live-traffic", &["--traffic"]));
                let mut result = compare_recorded(kernel, scenario, recorded);
                // What packets cause comes when it comes: on a machine that is busy too late for
                // the step that caused it.
                for attempt in 1..MOST_RECORDINGS {
                    if result.is_ok() {
                        break;
                    }
                    let stem = scenario.name.replace('/', "-");
                    let name = format!("again-{attempt}-{stem}");
                    let again = record(kernel, &name, &["--traffic", scenario.name]);
                    result = compare_recorded(kernel, scenario, &again);
                }
                result
            },
        ));
    }
}

/// How often a scenario of traffic is recorded before a difference counts.
const MOST_RECORDINGS: u32 = 4;

fn compare_recorded(
    kernel: Kernel,
    scenario: &Scenario,
    recorded: &Result<PathBuf, String>,
) -> Result<(), Failed> {
    let directory = recorded
        .as_ref()
        .map_err(|error| Failed::from(error.as_str()))?;
    let name = format!("{}.txt", scenario.name);
    let today = fs::read_to_string(directory.join(name))?;
    golden::compare(&golden_text(kernel, scenario)?, &today).map_err(Failed::from)
}

fn record(kernel: Kernel, name: &str, what: &[&str]) -> Result<PathBuf, String> {
    let out = fresh_directory(&format!("{name}-{}", kernel.name));
    let args = ["run", "--subject", "socket", "--out"].map(String::from);
    let args: Vec<String> = args
        .into_iter()
        .chain([out.display().to_string()])
        .chain(what.iter().map(|arg| (*arg).to_owned()))
        .collect();
    let status = kernel
        .run_sealed(300, Path::new(env!("CARGO_BIN_EXE_compat")), &args)
        .map_err(|error| error.to_string())?;
    if !status.success() {
        return Err(format!("recording ended with {status}"));
    }
    Ok(out)
}

fn fuzz(kernel: Kernel) -> Result<(), Failed> {
    const MESSAGES: &str = "20000";
    let out = fresh_directory(&format!("fuzz-{}", kernel.name));
    let args = [
        "fuzz",
        "--here",
        "--kernel",
        kernel.name,
        "--messages",
        MESSAGES,
        "--out",
    ];
    let mut args: Vec<String> = args.map(String::from).into();
    args.push(out.display().to_string());
    let status = kernel.run_sealed(300, Path::new(env!("CARGO_BIN_EXE_compat")), &args)?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("differences, or the kernel died: see {}", out.display()).into())
    }
}
