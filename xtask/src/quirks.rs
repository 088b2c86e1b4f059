//! Every surprise of the kernel that the sources name has a test of that name.
//!
//! What counts as named is the word `QUIRK`, a colon and an identifier in a Rust file; what counts
//! as its test is a function of that name under `#[test]`, or a scenario of that name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const MARKER: &str = concat!("QUIRK", ":");

/// What begins a scenario, whose golden files are its test.
const SCENARIOS: [&str; 2] = ["Scenario::new(", "Scenario::sleeping("];

/// What the sources say.
#[derive(Debug, Default)]
pub(crate) struct Quirks {
    /// Where each is named; the empty name where none is given.
    named: BTreeMap<String, PathBuf>,
    tests: BTreeSet<String>,
}

impl Quirks {
    /// Reads every Rust file below the workspace, but for what was built.
    ///
    /// # Errors
    /// When one cannot be read.
    pub(crate) fn of_workspace() -> io::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut quirks = Self::default();
        let mut folders = vec![root];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                if path.is_dir() {
                    if name != "target" && !name.starts_with('.') {
                        folders.push(path);
                    }
                } else if name.ends_with(".rs") {
                    quirks.read(&path, &fs::read_to_string(&path)?);
                }
            }
        }
        Ok(quirks)
    }

    fn read(&mut self, path: &Path, text: &str) {
        let mut is_test = false;
        for line in text.lines() {
            for (at, _) in line.match_indices(MARKER) {
                let name = identifier(line.get(at + MARKER.len()..).unwrap_or_default());
                self.named.entry(name).or_insert_with(|| path.to_owned());
            }
            let code = line.trim_start();
            if code == "#[test]" {
                is_test = true;
            } else if let Some(rest) = code.strip_prefix("fn ") {
                if is_test {
                    self.tests.insert(identifier(rest));
                }
                is_test = false;
            }
        }
        for constructor in SCENARIOS {
            for (at, _) in text.match_indices(constructor) {
                let rest = text.get(at + constructor.len()..).unwrap_or_default();
                if let Some(name) = rest.trim_start().strip_prefix('"') {
                    self.tests.insert(identifier(name));
                }
            }
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.named.len()
    }

    /// Those that no test shows, with where they are named.
    pub(crate) fn untested(&self) -> impl Iterator<Item = (&str, &Path)> {
        let untested = |(name, _): &(&String, &PathBuf)| !self.tests.contains(*name);
        let named = self.named.iter().filter(untested);
        named.map(|(name, path)| (name.as_str(), path.as_path()))
    }
}

/// The identifier that a text begins with.
fn identifier(text: &str) -> String {
    let belongs = |letter: &char| letter.is_ascii_alphanumeric() || *letter == '_';
    text.trim_start().chars().take_while(belongs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn untested(text: &str) -> Vec<String> {
        let mut quirks = Quirks::default();
        quirks.read(Path::new("a.rs"), text);
        let untested = quirks.untested().map(|(name, _)| name.to_owned());
        untested.collect()
    }

    #[test]
    fn a_quirk_without_a_test_is_found() {
        let quirk = format!("/// {MARKER} water_is_wet. So it is.\n");
        assert_eq!(untested(&quirk), ["water_is_wet"]);
        let function = format!("{quirk}fn water_is_wet() {{}}\n");
        assert_eq!(untested(&function), ["water_is_wet"]);
        let other = format!("{quirk}#[test]\nfn water() {{}}\nfn water_is_wet() {{}}\n");
        assert_eq!(untested(&other), ["water_is_wet"]);
        let test = format!("{quirk}    #[test]\n    fn water_is_wet() {{}}\n");
        assert!(untested(&test).is_empty());
        let scenario = format!("{quirk}    Scenario::new(\n \"water_is_wet\", wet),\n");
        assert!(untested(&scenario).is_empty());
    }

    #[test]
    fn a_quirk_has_a_name() {
        assert_eq!(untested(&format!("// {MARKER} (see above)\n")), [""]);
    }
}
