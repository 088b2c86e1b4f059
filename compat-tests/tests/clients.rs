//! Every client on every kernel: what it prints over xfrmd is what it prints
//! over Linux. `golden`: compared with what was recorded; `live`: what was
//! recorded is what the kernel says today.
//!
//! `XFRMD_RECORD=1` records instead of comparing live output.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use compat_tests::clients::{self, Client};
use compat_tests::golden::{self, Divergences};
use compat_tests::kernel::{self, Kernel};
use compat_tests::makers::recordings_first;
use libtest_mimic::{Arguments, Failed, Trial};
use trials::trial;

/// How often a live client may try: on a busy machine a timer can come so late that what the
/// client prints is in another order.
const ATTEMPTS: usize = 3;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    let build_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients");
    let tools = clients::build(&build_dir).and_then(|()| clients::ip_version());
    let divergences = Arc::new(Divergences::of_project());
    let mut trials = Vec::new();
    for kernel in kernel::ALL {
        for client in clients::all().unwrap() {
            let name = format!("golden::{}::{}", kernel.name, client.name);
            let (build_dir, list) = (build_dir.clone(), Arc::clone(&divergences));
            let expected = expectation(kernel, &client, &tools);
            trials.push(trial(name, expected.as_ref().err().cloned(), move || {
                let actual = clients::run_over_xfrmd(&xfrmd()?, kernel, &client, &build_dir)?;
                let result = golden::compare(expected.as_deref().unwrap_or_default(), &actual);
                list.judge(&format!("clients/{}", client.name), kernel, result)
                    .map_err(Failed::from)
            }));
        }
        live(kernel, &build_dir, &tools, &mut trials);
    }
    let trials = recordings_first(trials, &mut arguments);
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn xfrmd() -> Result<PathBuf, Failed> {
    let me = std::env::current_exe()?;
    let path = me.ancestors().nth(2).unwrap_or(&me).join("xfrmd");
    if path.exists() {
        Ok(path)
    } else {
        Err("no xfrmd: cargo build --workspace".into())
    }
}

/// What was recorded, if the programs here are those that it was recorded with.
fn expectation(
    kernel: Kernel,
    client: &Client,
    tools: &Result<String, String>,
) -> Result<String, String> {
    let ip = tools.as_ref()?;
    let path = clients::golden_path(kernel, client);
    let recorded = fs::read_to_string(path).map_err(|_| {
        format!(
            "not recorded: XFRMD_RECORD=1 cargo test --test clients live::{}",
            kernel.name
        )
    })?;
    let (version, text) = recorded.split_once('\n').unwrap_or_default();
    if version != format!("# {ip}") {
        return Err(format!("recorded with {version}, here is {ip}"));
    }
    Ok(text.to_owned())
}

fn live(kernel: Kernel, build_dir: &Path, tools: &Result<String, String>, trials: &mut Vec<Trial>) {
    let missing = kernel
        .available()
        .and_then(|()| tools.clone().map(|_| ()))
        .err();
    let recording: Arc<OnceLock<Result<PathBuf, String>>> = Arc::default();
    for client in clients::all().unwrap() {
        let name = format!("live::{}::{}", kernel.name, client.name);
        let (recording, build_dir, tools) =
            (Arc::clone(&recording), build_dir.to_owned(), tools.clone());
        trials.push(trial(name, missing.clone(), move || {
            let out = recording.get_or_init(|| {
                let out =
                    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("clients-{}", kernel.name));
                let all = clients::all().map_err(|e| e.to_string())?;
                clients::run_in_kernel(kernel, &all, &out, &build_dir)
                    .map_err(|e| e.to_string())?;
                Ok(out)
            });
            let out = out.as_ref().map_err(|error| Failed::from(error.as_str()))?;
            let printed = |out: &Path| fs::read_to_string(out.join(format!("{}.txt", client.name)));
            let today = printed(out)?;
            if std::env::var_os("XFRMD_RECORD").is_some() {
                let path = clients::golden_path(kernel, &client);
                fs::create_dir_all(path.parent().unwrap())?;
                let ip = tools.clone().map_err(Failed::from)?;
                return Ok(fs::write(path, format!("# {ip}\n{today}"))?);
            }
            let expected = expectation(kernel, &client, &tools)?;
            let mut result = golden::compare(&expected, &today);
            for _ in 1..ATTEMPTS {
                if result.is_err() {
                    let out = out.with_extension(&client.name);
                    clients::run_in_kernel(
                        kernel,
                        std::slice::from_ref(&client),
                        &out,
                        &build_dir,
                    )?;
                    result = golden::compare(&expected, &printed(&out)?);
                }
            }
            result.map_err(Failed::from)
        }));
    }
}
