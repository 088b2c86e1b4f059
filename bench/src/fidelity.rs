//! How many recorded replies of each kernel the emulator gives byte for byte.
//!
//! The recordings are compat-tests' own; a scenario that `docs/divergences.md`
//! lists with a reason counts as agreeing, as the figure allows.

use std::fs;

use anyhow::{Context as _, Result};
use compat_tests::golden::{self, Divergences};
use compat_tests::kernel;
use compat_tests::scenario;
use compat_tests::subject::InProcess;

use crate::figure::{Figure, Target};

/// A transcript's datagrams, each with its place among the requests.
fn replies(transcript: &str) -> Vec<(usize, String)> {
    let mut requests = 0;
    let mut all: Vec<(usize, String)> = Vec::new();
    let mut inside = false;
    for line in transcript.lines() {
        match line.chars().next() {
            Some('<') => {
                inside = true;
                all.push((requests, line.to_owned()));
            }
            Some(' ') => {
                if let Some((_, reply)) = all.last_mut().filter(|_| inside) {
                    reply.push_str(line);
                }
            }
            Some('>') => {
                inside = false;
                requests += 1;
            }
            _ => inside = false,
        }
    }
    all
}

/// All figures of this module.
pub(crate) fn run() -> Result<Vec<Figure>> {
    let divergences = Divergences::of_project();
    let mut all = Vec::new();
    for kernel in kernel::ALL {
        let (mut agree, mut total) = (0, 0);
        for scenario in scenario::all() {
            let path = golden::path(kernel, scenario.name);
            let recorded = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let expected = replies(&recorded);
            total += expected.len();
            if divergences.reason(scenario.name, kernel).is_some() {
                agree += expected.len();
                continue;
            }
            let mut rest = &*replies(&scenario.transcript(&mut InProcess::new(kernel.profile())));
            for reply in &expected {
                if let Some(at) = rest.iter().position(|other| other == reply) {
                    agree += 1;
                    rest = rest.get(at + 1..).unwrap_or_default();
                }
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
        let count = |number: usize| number as f64;
        all.push(Figure {
            name: format!("fidelity: replies as Linux {}", kernel.name),
            ours: count(agree),
            yardstick: count(total),
            unit: "",
            against: "recorded",
            target: Target::AtLeast(1.0),
        });
    }
    Ok(all)
}
