//! `xfrmd replay` and `xfrmd diff`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use dataplane::Profile;
use serde_json::{Value, json};
use xfrmd::recording::compare::{self, Difference};
use xfrmd::recording::read::Recording;
use xfrmd::recording::replay::{Refusal, replay};

use super::print;

/// Of a file that is no recording, or not all of one.
const BAD_FILE: u8 = 2;

/// Reads a file and hands on what it holds; tells what is wrong with it otherwise.
fn with_recording(
    path: &Path,
    partial: bool,
    work: impl FnOnce(&Recording<'_>) -> Result<ExitCode>,
) -> Result<ExitCode> {
    let refuse = |why: String| {
        eprintln!("xfrmd: {}: {why}", path.display());
        Ok(BAD_FILE.into())
    };
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => return refuse(error.to_string()),
    };
    let recording = match Recording::read(&bytes) {
        Ok(recording) => recording,
        Err(damage) => return refuse(damage.to_string()),
    };
    if let Some(cut) = &recording.cut {
        if !partial {
            return refuse(format!("{cut} (--partial takes what is there)"));
        }
        eprintln!("xfrmd: {}: {cut}", path.display());
    }
    if recording.lost > 0 {
        eprintln!(
            "xfrmd: {}: {} happenings are missing, because they came faster than they were written",
            path.display(),
            recording.lost
        );
    }
    work(&recording)
}

/// Replays a recording; 1 if something differs.
pub(super) fn replayed(
    path: &Path,
    kernel: Option<&'static Profile>,
    partial: bool,
    json: bool,
) -> Result<ExitCode> {
    with_recording(path, partial, |recording| {
        let head = &recording.head;
        let Some(profile) = kernel.or_else(|| Profile::by_name(&head.kernel)) else {
            let path = path.display();
            eprintln!(
                "xfrmd: {path}: there is no kernel {}: say --kernel",
                head.kernel
            );
            return Ok(BAD_FILE.into());
        };
        let outcomes = match replay(recording, profile) {
            Ok(outcomes) => outcomes,
            Err(Refusal::NoKeys) => {
                eprintln!(
                    "xfrmd: {}: packets went through SAs whose keys were left out: record with \
                     --record-keys",
                    path.display()
                );
                return Ok(BAD_FILE.into());
            }
        };
        let differences = compare::with_replay(recording, &outcomes);
        let report = json!({
            "recorded": recording.head.comment(),
            "kernel": profile.name,
            "happenings": recording.happenings.len(),
            "keys": recording.head.keys,
            "kills": recording.kills,
            "differences": differences.iter().map(as_json).collect::<Vec<_>>(),
        });
        print(&report, json, plain)?;
        Ok(u8::from(!differences.is_empty()).into())
    })
}

fn as_json(difference: &Difference) -> Value {
    json!({
        "number": difference.number,
        "offset": difference.offset,
        "nanos": difference.nanos,
        "what": difference.what,
        "lines": difference.lines,
    })
}

fn plain(report: &Value) -> String {
    let field = |value: &Value, name: &str| super::field(value, name);
    let mut out = String::new();
    let differences = report.get("differences").and_then(Value::as_array);
    let differences = differences.map_or(&[][..], Vec::as_slice);
    for difference in differences {
        out += &format!(
            "#{} at byte {}: {}\n",
            field(difference, "number"),
            field(difference, "offset"),
            field(difference, "what")
        );
        let lines = difference.get("lines").and_then(Value::as_array);
        for line in lines.into_iter().flatten().filter_map(Value::as_str) {
            out += &format!("  {line}\n");
        }
    }
    let keys = match report.get("keys") {
        Some(Value::Bool(false)) => ", with keys of zeros",
        _ => "",
    };
    let kills = match report.get("kills").and_then(Value::as_u64) {
        Some(0) | None => String::new(),
        Some(kills) => format!(", {kills} kills of the daemon"),
    };
    out + &format!(
        "{}: {} happenings replayed as Linux {}{keys}{kills}: {} differ\n",
        field(report, "recorded"),
        field(report, "happenings"),
        field(report, "kernel"),
        differences.len()
    )
}

/// Compares two recordings; 1 if they differ.
pub(super) fn compared(paths: [&Path; 2], partial: bool) -> Result<ExitCode> {
    let [old, new] = paths;
    with_recording(old, partial, |old_recording| {
        with_recording(new, partial, |new_recording| {
            let [old_name, new_name] = paths.map(|path| path.to_string_lossy());
            let difference =
                compare::recordings([&old_name, &new_name], [old_recording, new_recording]);
            super::write(&difference)?;
            Ok(u8::from(!difference.is_empty()).into())
        })
    })
}
