//! Every scenario on every kernel, as a named test.
//!
//! `golden`: emulator and engine agree with the recorded transcripts, but for what
//! `docs/divergences.md` lists. `live`: the recorded transcripts are what the
//! kernel says today; one boot for each kernel that is installed, ignored with a
//! reason otherwise, failed instead of ignored under `XFRMD_REQUIRE_ALL=1`. (But for
//! 7.2-iptfs: no package has its module, so it is asked where somebody has built it.)
//! `live::KERNEL::fuzz`: emulator and kernel agree about random sequences too.
//! `shim`: what clients get over shim and daemon is what the recorded transcripts
//! say, but for what depends on how the reference kernels are built.
//! `recorded`: what the emulator was asked, from a file to another one, gives the same answers.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, OnceLock};

use compat_tests::golden::{self, Divergences};
use compat_tests::kernel::{self, Kernel};
use compat_tests::makers::recordings_first;
use compat_tests::scenario::{self, Scenario};
use compat_tests::subject::InProcess;
use compat_tests::traffic;
use libtest_mimic::{Arguments, Failed, Trial};
use trials::{all_required, trial};
use xfrmd::recording::replay::replay;
use xfrmd::recording::{compare, read};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
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
            format!("restarted::{}", kernel.name),
            move || restarted(kernel),
        ));
        trials.push(Trial::test(
            format!("recorded::{}", kernel.name),
            move || recorded(kernel),
        ));
        trials.push(Trial::test(
            format!("golden::{}::no_stray_files", kernel.name),
            move || no_stray_files(kernel),
        ));
        live(kernel, scenario::all().collect(), &mut trials);
        live_traffic(kernel, traffic::all().collect(), &mut trials);
    }
    let shows = |scenario: &&Scenario| golden::has_own(kernel::WITH_IPTFS, scenario.name);
    let with_module: Vec<_> = scenario::all().filter(shows).collect();
    let traffic_with_module: Vec<_> = traffic::all().filter(shows).collect();
    for &scenario in with_module.iter().chain(&traffic_with_module) {
        let divergences = Arc::clone(&divergences);
        trials.push(Trial::test(
            format!("golden::{}::{}", kernel::WITH_IPTFS.name, scenario.name),
            move || against_golden(kernel::WITH_IPTFS, scenario, &divergences),
        ));
    }
    trials.push(Trial::test(
        format!("golden::{}::no_stray_files", kernel::WITH_IPTFS.name),
        || no_stray_files(kernel::WITH_IPTFS),
    ));
    live(kernel::WITH_IPTFS, with_module, &mut trials);
    live_traffic(kernel::WITH_IPTFS, traffic_with_module, &mut trials);
    let shims = kernel::ALL.map(|kernel| (kernel, Recording::default()));
    for (kernel, recording) in &shims {
        shim(*kernel, recording, &divergences, &mut trials);
    }
    trials.push(Trial::test("shim::no_stale_divergences", move || {
        no_stale_divergences(&shims, &divergences)
    }));
    let trials = recordings_first(trials, &mut arguments);
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

/// Scenarios that show what is not kept, and what of it.
const FORGOTTEN: [(&str, &str); 2] = [
    ("traffic/hold_and_release", "packets that wait for an SA"),
    ("traffic/hold_overflows", "packets that wait for an SA"),
];

/// Every scenario, with the emulator killed between steps: nobody sees a difference.
fn restarted(kernel: Kernel) -> Result<(), Failed> {
    let mut deaths = 0;
    let mut failures = String::new();
    for (seed, scenario) in (1..).zip(scenario::all().chain(traffic::all())) {
        let forgets = FORGOTTEN.iter().any(|(name, _)| *name == scenario.name);
        let whole = scenario.transcript(&mut InProcess::new(kernel.profile()));
        let mut subject = InProcess::mortal(kernel.profile(), seed);
        let restarted = scenario.transcript(&mut subject);
        deaths += subject.deaths();
        let compared = golden::compare(&without_aevents(&whole), &without_aevents(&restarted));
        if let (Err(difference), false) = (compared, forgets) {
            failures += &format!("{}: {difference}\n", scenario.name);
        }
    }
    if !failures.is_empty() {
        return Err(failures.into());
    }
    assert!(deaths >= 200, "{deaths} restarts");
    Ok(())
}

/// Every scenario, recorded: it happens again, with keys and with zeros in their place. (Of scenarios of
/// traffic the model of a host is no part of a recording.)
fn recorded(kernel: Kernel) -> Result<(), Failed> {
    let mut failures = String::new();
    for scenario in scenario::all() {
        for keys in [true, false] {
            let mut subject = InProcess::recorded(kernel.profile(), keys);
            let _ = scenario.transcript(&mut subject);
            let file = subject.end_recording();
            let recording = read::Recording::read(&file)?;
            assert_eq!((&recording.cut, recording.lost), (&None, 0));
            let outcomes = replay(&recording, kernel.profile()).expect("keys or no packets");
            for difference in compare::with_replay(&recording, &outcomes) {
                failures += &format!("{} (keys: {keys}): {difference:#?}\n", scenario.name);
            }
        }
    }
    if !failures.is_empty() {
        return Err(failures.into());
    }
    Ok(())
}

/// A transcript without NEWAE events: what key managers were told of sequence numbers is not kept,
/// so that one may come too many or at another packet.
fn without_aevents(transcript: &str) -> String {
    let mut is_aevent = false;
    let kept = transcript.lines().filter(|line| {
        is_aevent = match line.starts_with("    ") {
            true => is_aevent,
            false => line.starts_with("< ") && line.contains(" NEWAE "),
        };
        !is_aevent
    });
    kept.flat_map(|line| [line, "\n"]).collect()
}

fn no_stray_files(kernel: Kernel) -> Result<(), Failed> {
    let plain = Kernel::by_name(kernel.release).filter(|plain| *plain != kernel);
    let own = golden::directory(kernel);
    let traffic = own.join("traffic");
    for (directory, prefix) in [(own, ""), (traffic, "traffic/")] {
        for entry in fs::read_dir(directory).into_iter().flatten() {
            let path = entry?.path();
            if !path.is_file() {
                continue;
            }
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let name = format!("{prefix}{stem}");
            let mut scenarios = scenario::all().chain(traffic::all());
            if !scenarios.any(|scenario| scenario.name == name) {
                return Err(format!("{} belongs to no scenario", path.display()).into());
            }
            let twin = plain.map(|plain| golden::path(plain, &name));
            if twin.is_some_and(|twin| fs::read(twin).ok() == fs::read(&path).ok()) {
                return Err(format!("{} says nothing new", path.display()).into());
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
                if list.reason_over_shim(scenario.name).is_some() {
                    return Ok(());
                }
                let kernel = kernel.ordinary();
                let result = against_recording(kernel, scenario, &recording, record_over_shim)?;
                list.judge(scenario.name, kernel, result)
                    .map_err(Failed::from)
            },
        ));
    }
}

/// Compares what has been recorded just now with the golden transcript.
///
/// Timers and workers of a busy machine may run late in one recording; what differs for another
/// reason differs each time.
fn against_recording(
    kernel: Kernel,
    scenario: &Scenario,
    recording: &Recording,
    record: fn(Kernel, Option<&str>) -> Result<PathBuf, String>,
) -> Result<Result<(), String>, Failed> {
    const MOST_ATTEMPTS: usize = 3;
    let expected = golden_text(kernel, scenario)?;
    let mut seen = recorded_text(recording.get_or_init(|| record(kernel, None)), scenario)?;
    for _ in 1..MOST_ATTEMPTS {
        if seen == expected {
            break;
        }
        seen = recorded_text(&record(kernel, Some(scenario.name)), scenario)?;
    }
    Ok(golden::compare(&expected, &seen))
}

fn recorded_text(
    recorded: &Result<PathBuf, String>,
    scenario: &Scenario,
) -> Result<String, Failed> {
    let directory = recorded
        .as_ref()
        .map_err(|error| Failed::from(error.as_str()))?;
    Ok(fs::read_to_string(
        directory.join(format!("{}.txt", scenario.name)),
    )?)
}

/// What is listed for the shim differs on one kernel at least.
fn no_stale_divergences(shims: &[(Kernel, Recording)], list: &Divergences) -> Result<(), Failed> {
    for scenario in scenario::all() {
        if list.reason_over_shim(scenario.name).is_none() {
            continue;
        }
        let mut differs = false;
        for (kernel, recording) in shims {
            let recorded = recording.get_or_init(|| record_over_shim(*kernel, None));
            let expected = golden_text(kernel.ordinary(), scenario)?;
            differs |= expected != recorded_text(recorded, scenario)?;
        }
        if !differs {
            let name = scenario.name;
            return Err(format!("{name} agrees over the shim: remove it from the table").into());
        }
    }
    Ok(())
}

fn record_over_shim(kernel: Kernel, scenario: Option<&str>) -> Result<PathBuf, String> {
    let me = std::env::current_exe().map_err(|error| error.to_string())?;
    let xfrmd = me.ancestors().nth(2).unwrap_or(&me).join("xfrmd");
    if !xfrmd.exists() {
        return Err("no xfrmd: cargo build --workspace".into());
    }
    let out = fresh_directory(&format!(
        "shim-{}-{}",
        kernel.name,
        scenario.unwrap_or("all")
    ));
    let status = Command::new(xfrmd)
        .args(["run", "--kernel", kernel.release, "--"])
        .arg(env!("CARGO_BIN_EXE_compat"))
        .args(["run", "--subject", "socket", "--out"])
        .arg(&out)
        .args(scenario)
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

fn live(kernel: Kernel, scenarios: Vec<&'static Scenario>, trials: &mut Vec<Trial>) {
    if let Err(reason) = kernel.available() {
        let name = format!("live::{}", kernel.name);
        if all_required() && kernel == kernel::WITH_IPTFS {
            eprintln!("{name} is not asked, and nothing demands it: {reason}");
            return;
        }
        trials.push(trial(name, Some(reason), || Ok(())));
        return;
    }
    trials.push(Trial::test(
        format!("live::{}::fuzz", kernel.name),
        move || fuzz(kernel),
    ));
    let recording: Recording = Arc::default();
    for scenario in scenarios {
        let recording = Arc::clone(&recording);
        trials.push(Trial::test(
            format!("live::{}::{}", kernel.name, scenario.name),
            move || {
                against_recording(kernel, scenario, &recording, record_live)?.map_err(Failed::from)
            },
        ));
    }
}

/// The scenarios of traffic, where a kernel is installed; [`live`] says so where none is.
fn live_traffic(kernel: Kernel, scenarios: Vec<&'static Scenario>, trials: &mut Vec<Trial>) {
    if kernel.available().is_err() {
        return;
    }
    let recording: Recording = Arc::default();
    for scenario in scenarios {
        let recording = Arc::clone(&recording);
        trials.push(Trial::test(
            format!("live::{}::{}", kernel.name, scenario.name),
            move || {
                against_recording(kernel, scenario, &recording, record_traffic)?
                    .map_err(Failed::from)
            },
        ));
    }
}

fn record_live(kernel: Kernel, scenario: Option<&str>) -> Result<PathBuf, String> {
    record(kernel, "live", &[], scenario)
}

fn record_traffic(kernel: Kernel, scenario: Option<&str>) -> Result<PathBuf, String> {
    record(kernel, "live-traffic", &["--traffic"], scenario)
}

fn record(
    kernel: Kernel,
    what: &str,
    options: &[&str],
    scenario: Option<&str>,
) -> Result<PathBuf, String> {
    let out = fresh_directory(&format!(
        "{what}-{}-{}",
        kernel.name,
        scenario.unwrap_or("all")
    ));
    let args = ["run", "--subject", "socket", "--out"].map(String::from);
    let args: Vec<String> = args
        .into_iter()
        .chain([out.display().to_string()])
        .chain(options.iter().map(|option| (*option).to_owned()))
        .chain(scenario.map(String::from))
        .collect();
    let status = kernel
        .run_sealed(600, Path::new(env!("CARGO_BIN_EXE_compat")), &args)
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
    let status = kernel.run_sealed(600, Path::new(env!("CARGO_BIN_EXE_compat")), &args)?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("differences, or the kernel died: see {}", out.display()).into())
    }
}
