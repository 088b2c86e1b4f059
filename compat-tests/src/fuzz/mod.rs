//! Differential fuzzing: sequences of messages, the same to the emulator and
//! to the kernel that this runs on, and every answer compared.
//!
//! It runs inside a reference kernel, where both are at hand: a difference is
//! seen at once, and shrinking it costs no boot. Each sequence has a fresh
//! network namespace and a fresh emulator, and ends with dumps of everything,
//! so that no difference of state stays hidden.

mod grammar;
mod sequence;
mod shrink;

use std::collections::BTreeMap;
use std::path::Path;

use dataplane::{Entropy, Profile, SeededEntropy};

pub use sequence::{Sequence, Step};

use crate::golden;
use crate::subject::{InProcess, RawSocket};

/// Messages of a sequence.
const SEQUENCE_MESSAGES: u32 = 120;

/// What a run found.
#[derive(Debug, Default)]
pub struct Report {
    /// Messages sent.
    pub messages: u64,
    /// Differences by signature: how often, and the first one, shrunk.
    pub findings: BTreeMap<String, (u64, Sequence)>,
}

/// Fuzzes `messages` messages against the running kernel.
///
/// Stops early when there are `most_findings` different differences.
///
/// # Errors
/// When a namespace cannot be made or `directory` cannot be written.
pub fn run(
    profile: &'static Profile,
    seed: u64,
    messages: u64,
    most_findings: usize,
    directory: &Path,
) -> anyhow::Result<Report> {
    std::fs::create_dir_all(directory)?;
    let mut report = Report::default();
    let mut entropy = SeededEntropy::new(seed);
    // Rebuilding the policy tables of 6.1 panics it now and then (xfrm_hash_rebuild).
    let survives_rebuild = profile.name != "6.1";
    while report.messages < messages && report.findings.len() < most_findings {
        let own_seed = entropy.u64();
        let sequence = grammar::sequence(own_seed, SEQUENCE_MESSAGES, survives_rebuild);
        // Should the kernel die of it, this is what it died of.
        std::fs::write(directory.join("last.txt"), sequence.to_text())?;
        report.messages += sequence.messages() as u64;
        let Some(difference) = difference(profile, &sequence)? else {
            continue;
        };
        let signature = signature(&difference);
        if let Some((count, _)) = report.findings.get_mut(&signature) {
            *count += 1;
            continue;
        }
        let shrunk = shrink::shrink(&sequence, &signature, |candidate| {
            Ok(self::difference(profile, candidate)?.map(|text| self::signature(&text)))
        })?;
        let Some(text) = self::difference(profile, &shrunk)? else {
            println!("not seen again: {signature}");
            continue;
        };
        let number = report.findings.len() + 1;
        println!(
            "== finding {number}, {} messages after {}\n{text}",
            shrunk.messages(),
            report.messages
        );
        std::fs::write(
            directory.join(format!("finding-{number}.txt")),
            shrunk.to_text(),
        )?;
        report.findings.insert(signature, (1, shrunk));
    }
    Ok(report)
}

/// Where emulator and kernel disagree about a sequence, if they do.
///
/// # Errors
/// When a namespace cannot be made.
pub fn difference(
    profile: &'static Profile,
    sequence: &Sequence,
) -> anyhow::Result<Option<String>> {
    let kernel = {
        let sequence = sequence.clone();
        std::thread::spawn(move || -> anyhow::Result<String> {
            let mut subject =
                RawSocket::in_fresh_netns().map_err(std::io::Error::from_raw_os_error)?;
            Ok(sequence.transcript(&mut subject))
        })
        .join()
        .map_err(|_| anyhow::anyhow!("the kernel's side panicked"))??
    };
    let emulated = {
        let sequence = sequence.clone();
        std::thread::spawn(move || sequence.transcript(&mut InProcess::new(profile)))
            .join()
            .unwrap_or_else(|_| "the emulator panicked\n".to_owned())
    };
    Ok(golden::compare(&kernel, &emulated).err())
}

/// What a difference is about, without its numbers: two differences of the
/// same signature are taken for the same.
fn signature(difference: &str) -> String {
    let lines = difference
        .lines()
        .filter(|line| line.starts_with(['-', '+']));
    let words = lines.take(2).map(|line| {
        let line = line.split('|').next().unwrap_or_default();
        let mut words: Vec<&str> = line.split_whitespace().collect();
        // Which socket it was says nothing.
        if words.first().is_some_and(|word| word.ends_with('<')) && words.len() > 1 {
            words.remove(1);
        }
        words.retain(|word| {
            let number = word
                .trim_start_matches(['-', '+'])
                .starts_with(|c: char| c.is_ascii_digit());
            !number || word.starts_with('-')
        });
        words.join(" ")
    });
    let words: Vec<String> = words.collect();
    words.join(" / ")
}
