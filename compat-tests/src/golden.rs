//! Recorded transcripts of the kernels, and the divergences that are allowed.
//!
//! A divergence is a line of a table in `docs/divergences.md`:
//! `| scenario | kernel | reason |`, kernel `*` for all. A transcript that
//! differs without such a line fails, and so does a line whose transcript agrees.
//! `shim` for a kernel means: over shim and daemon, whatever the kernel.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use similar::{ChangeTag, TextDiff};

use crate::kernel::{Kernel, suite_dir};

/// Where a kernel's transcripts are kept.
#[must_use]
pub fn directory(kernel: Kernel) -> PathBuf {
    suite_dir().join("golden").join(kernel.name)
}

/// Where the transcript of a scenario is kept: beside the kernel's others, or, where a module
/// makes no difference, beside those of the kernel without it.
#[must_use]
pub fn path(kernel: Kernel, scenario: &str) -> PathBuf {
    let file = format!("{scenario}.txt");
    let own = directory(kernel).join(&file);
    match Kernel::by_name(kernel.release) {
        Some(plain) if !own.exists() => directory(plain).join(file),
        _ => own,
    }
}

/// Whether the kernel's own transcript of a scenario is kept.
#[must_use]
pub fn has_own(kernel: Kernel, scenario: &str) -> bool {
    directory(kernel).join(format!("{scenario}.txt")).exists()
}

/// Compares transcripts.
///
/// # Errors
/// The difference, to read.
pub fn compare(expected: &str, actual: &str) -> Result<(), String> {
    const MOST_LINES: usize = 60;
    if expected == actual {
        return Ok(());
    }
    let diff = TextDiff::from_lines(expected, actual);
    let mut out = String::from("transcripts differ (- the kernel, + the subject)\n");
    let mut lines = 0;
    // The request that an answer belongs to is what a reader needs first.
    for group in diff.grouped_ops(2) {
        let first = group.first().map_or(0, |op| op.old_range().start);
        let cause = expected
            .lines()
            .take(first + 3)
            .filter(|line| line.starts_with('>'))
            .last();
        out += &format!("@@ line {} {}\n", first + 1, cause.unwrap_or_default());
        for op in &group {
            for change in diff.iter_changes(op) {
                lines += 1;
                if lines > MOST_LINES {
                    out += "... and more\n";
                    return Err(out);
                }
                let sign = match change.tag() {
                    ChangeTag::Delete => '-',
                    ChangeTag::Insert => '+',
                    ChangeTag::Equal => ' ',
                };
                out += &format!("{sign}{change}");
            }
        }
    }
    Err(out)
}

const SHIM: &str = "shim";

/// The divergences that are allowed.
#[derive(Clone, Debug, Default)]
pub struct Divergences(BTreeMap<(String, String), String>);

impl Divergences {
    /// Reads the table in a Markdown file; a missing file has none.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        Self::parse(&fs::read_to_string(path).unwrap_or_default())
    }

    /// The project's own.
    #[must_use]
    pub fn of_project() -> Self {
        Self::read(&suite_dir().join("../docs/divergences.md"))
    }

    fn parse(text: &str) -> Self {
        let rows = text.lines().filter_map(|line| {
            let cells: Vec<&str> = line
                .trim()
                .strip_prefix('|')?
                .split('|')
                .map(str::trim)
                .collect();
            let [scenario, kernel, reason, ..] = cells[..] else {
                return None;
            };
            let kernels = ["*", SHIM].contains(&kernel) || Kernel::by_name(kernel).is_some();
            let name = scenario.trim_matches('`').to_owned();
            kernels.then(|| ((name, kernel.to_owned()), reason.to_owned()))
        });
        Self(rows.collect())
    }

    /// Why `scenario` may differ from `kernel`.
    #[must_use]
    pub fn reason(&self, scenario: &str, kernel: Kernel) -> Option<&str> {
        let get = |kernel: &str| self.0.get(&(scenario.to_owned(), kernel.to_owned()));
        get(kernel.name).or_else(|| get("*")).map(String::as_str)
    }

    /// Why `scenario` may differ over shim and daemon.
    #[must_use]
    pub fn reason_over_shim(&self, scenario: &str) -> Option<&str> {
        let key = (scenario.to_owned(), SHIM.to_owned());
        self.0.get(&key).map(String::as_str)
    }

    /// Judges a comparison in the light of the table.
    ///
    /// # Errors
    /// An unlisted difference, or an entry that has become stale.
    pub fn judge(
        &self,
        scenario: &str,
        kernel: Kernel,
        result: Result<(), String>,
    ) -> Result<(), String> {
        match (result, self.reason(scenario, kernel)) {
            (Ok(()), Some(reason)) => Err(format!(
                "docs/divergences.md lists {scenario} on {} ({reason}), but they agree: remove it",
                kernel.name
            )),
            (Err(_), Some(_)) | (Ok(()), None) => Ok(()),
            (Err(difference), None) => Err(difference),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_and_judgement() {
        let list = Divergences::parse(
            "text\n| scenario | kernel | reason |\n|---|---|---|\n| `x` | 7.2 | because |\n",
        );
        let newest = Kernel::by_name("7.2").unwrap();
        let oldest = Kernel::by_name("6.1").unwrap();
        assert!(list.judge("x", newest, Err("differs".into())).is_ok());
        assert!(list.judge("x", newest, Ok(())).is_err());
        assert!(list.judge("x", oldest, Err("differs".into())).is_err());
        assert!(list.judge("y", newest, Ok(())).is_ok());
    }

    #[test]
    fn a_difference_names_its_request() {
        let old = "> a NEWSA add\n< a ERROR 0\n";
        let new = "> a NEWSA add\n< a ERROR -22\n";
        let text = compare(old, new).unwrap_err();
        assert!(
            text.contains("NEWSA add") && text.contains("-< a ERROR 0"),
            "{text}"
        );
    }
}
