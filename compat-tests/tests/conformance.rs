//! Every scenario on every kernel, as a named test.
//!
//! `golden`: the emulator agrees with the recorded transcripts, but for what
//! `docs/divergences.md` lists. `live`: the recorded transcripts are what the
//! kernel says today; one boot for each kernel that is installed, ignored with a
//! reason otherwise, failed instead of ignored under `XFRMD_REQUIRE_ALL=1`.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test")]

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use compat_tests::golden::{self, Divergences};
use compat_tests::kernel::{self, Kernel};
use compat_tests::scenario::{self, Scenario};
use compat_tests::subject::InProcess;
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let divergences = Arc::new(Divergences::of_project());
    let mut trials = Vec::new();
    for kernel in kernel::ALL {
        for scenario in scenario::all() {
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
    let directory = kernel::suite_dir().join("golden").join(kernel.name);
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let stem = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_file() && !scenario::all().any(|scenario| scenario.name == stem) {
            return Err(format!("{} belongs to no scenario", path.display()).into());
        }
    }
    Ok(())
}

type Recording = Arc<OnceLock<Result<std::path::PathBuf, String>>>;

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
    let recording: Recording = Arc::default();
    for scenario in scenario::all() {
        let recording = Arc::clone(&recording);
        trials.push(Trial::test(
            format!("live::{}::{}", kernel.name, scenario.name),
            move || {
                let recorded = recording.get_or_init(|| record(kernel));
                let directory = recorded
                    .as_ref()
                    .map_err(|error| Failed::from(error.as_str()))?;
                let name = format!("{}.txt", scenario.name);
                let today = fs::read_to_string(directory.join(name))?;
                golden::compare(&golden_text(kernel, scenario)?, &today).map_err(Failed::from)
            },
        ));
    }
}

fn record(kernel: Kernel) -> Result<std::path::PathBuf, String> {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("live-{}", kernel.name));
    let _ = fs::remove_dir_all(&out);
    let args = ["run", "--subject", "socket", "--out"].map(String::from);
    let args: Vec<String> = args
        .into_iter()
        .chain([out.display().to_string()])
        .collect();
    let status = kernel
        .run_sealed(300, Path::new(env!("CARGO_BIN_EXE_compat")), &args)
        .map_err(|error| error.to_string())?;
    if !status.success() {
        return Err(format!("recording ended with {status}"));
    }
    Ok(out)
}
