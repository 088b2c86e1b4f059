//! Faults as text: a file, or one on a command line.
//!
//! Both have the same words. A file is TOML:
//!
//! ```toml
//! seed = 7
//!
//! [[fault]]
//! kind = "netlink.error"
//! message = "NEWSA"
//! nth = 3
//! errno = "ENOMEM"
//! ```
//!
//! and the same on a command line is `netlink.error message=NEWSA nth=3 errno=ENOMEM`; a value with
//! spaces stands in quotation marks.

use std::fmt;

use serde_json::{Value, json};
use toml::de::{DeTable, DeValue};

use super::key::{Draft, KEYS, Key};
use super::kind::{KINDS, Kind};
use super::{Plan, Rule};

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The line, the first being 1.
    pub line: usize,
    /// What.
    pub what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.line, self.what)
    }
}

/// Something that was said: key, value, and where it stands.
struct Said {
    key: String,
    value: String,
    at: usize,
}

/// A mistake, and where it stands.
type Wrong = (usize, String);

/// Reads a file.
///
/// # Errors
/// All that is wrong with it.
pub fn read(text: &str) -> Result<Plan, Vec<Mistake>> {
    let mut plan = Plan::default();
    let mut wrong = Vec::new();
    match DeTable::parse(text) {
        Ok(table) => {
            for (name, value) in table.get_ref() {
                let at = name.span().start;
                match (name.get_ref().as_ref(), value.get_ref()) {
                    ("seed", value) => match whole(value) {
                        Some(seed) => plan.set_seed(seed),
                        None => wrong.push((at, "`seed` is a number, 0 or more".to_owned())),
                    },
                    ("fault", DeValue::Array(faults)) => {
                        for fault in faults.iter() {
                            let added = match fault.get_ref() {
                                DeValue::Table(table) => from_table(fault.span().start, table),
                                _ => Err((fault.span().start, TABLES.to_owned())),
                            };
                            let added = added.and_then(|(at, rule)| {
                                let taken = |name| (at, format!("there are two faults `{name}`"));
                                plan.add(rule).map_err(taken)
                            });
                            wrong.extend(added.err());
                        }
                    }
                    ("fault", _) => wrong.push((at, TABLES.to_owned())),
                    (other, _) => {
                        wrong.push((at, unknown("key", other, ["seed", "fault"].into_iter())));
                    }
                }
            }
        }
        Err(error) => {
            let at = error.span().map_or(0, |span| span.start);
            wrong.push((at, error.message().trim_end().replace('\n', ", ")));
        }
    }
    if wrong.is_empty() {
        return Ok(plan);
    }
    wrong.sort();
    let line = |at| 1 + text.bytes().take(at).filter(|&byte| byte == b'\n').count();
    Err(wrong
        .into_iter()
        .map(|(at, what)| Mistake {
            line: line(at),
            what,
        })
        .collect())
}

const TABLES: &str = "faults are tables: [[fault]]";

/// Reads one fault of a command line.
///
/// # Errors
/// What is wrong with it.
pub fn rule(text: &str) -> Result<Rule, String> {
    let mut words = words(text)?.into_iter();
    let kind = words.next().ok_or("no kind of fault")?;
    if kind.1.is_some() {
        return Err(format!("the kind of fault comes first, not `{}=`", kind.0));
    }
    let mut said = Vec::new();
    for (key, value) in words {
        let value = value.ok_or_else(|| format!("`{key}` has no value: {key}=VALUE"))?;
        said.push(Said { key, value, at: 0 });
    }
    assemble((0, &kind.0), said).map_err(|(_, what)| what)
}

/// Words, and what stands behind their `=`.
fn words(text: &str) -> Result<Vec<(String, Option<String>)>, String> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest
            .find(|it: char| it.is_whitespace() || it == '=')
            .unwrap_or(rest.len());
        let (word, behind) = rest.split_at(end);
        let Some(value) = behind.strip_prefix('=') else {
            words.push((word.to_owned(), None));
            rest = behind.trim_start();
            continue;
        };
        let (value, behind) = match value.strip_prefix('"') {
            Some(quoted) => {
                let mut value = String::new();
                let mut characters = quoted.chars();
                loop {
                    match characters.next() {
                        Some('"') => break,
                        Some('\\') => value.extend(characters.next()),
                        Some(other) => value.push(other),
                        None => return Err(format!("the text of `{word}` has no end")),
                    }
                }
                (value, characters.as_str())
            }
            None => {
                let end = value.find(char::is_whitespace).unwrap_or(value.len());
                let (value, behind) = value.split_at(end);
                (value.to_owned(), behind)
            }
        };
        words.push((word.to_owned(), Some(value)));
        rest = behind.trim_start();
    }
    Ok(words)
}

fn from_table(at: usize, table: &DeTable<'_>) -> Result<(usize, Rule), Wrong> {
    let mut kind = None;
    let mut said = Vec::new();
    let mut first = usize::MAX;
    for (name, value) in table {
        let (at, key) = (name.span().start, name.get_ref().to_string());
        first = first.min(at);
        let text = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(_) => match whole(value.get_ref()) {
                Some(number) => number.to_string(),
                None => return Err((at, is_no(&key))),
            },
            DeValue::Float(number) => number.as_str().replace('_', ""),
            DeValue::Array(values) => {
                let texts = values.iter().map(|value| value.get_ref().as_str());
                let texts: Option<Vec<&str>> = texts.collect();
                texts.ok_or_else(|| (at, is_no(&key)))?.join(",")
            }
            _ => return Err((at, is_no(&key))),
        };
        if key == "kind" {
            kind = Some((at, text));
        } else {
            let value = text;
            said.push(Said { key, value, at });
        }
    }
    let at = if first == usize::MAX { at } else { first };
    let (kind_at, kind) = kind.ok_or((at, "a fault without `kind`".to_owned()))?;
    Ok((kind_at, assemble((kind_at, &kind), said)?))
}

fn whole(value: &DeValue<'_>) -> Option<u64> {
    let number = value.as_integer()?;
    u64::from_str_radix(number.as_str(), number.radix()).ok()
}

fn is_no(key: &str) -> String {
    match Key::named(key) {
        Some(key) => format!("`{}` is {}", key.name, key.value),
        None => unknown("key", key, KEYS.iter().map(|key| key.name)),
    }
}

fn assemble((kind_at, name): (usize, &str), mut said: Vec<Said>) -> Result<Rule, Wrong> {
    let kinds = KINDS.iter().map(|kind| kind.name);
    let kind = Kind::named(name).ok_or_else(|| (kind_at, unknown("fault", name, kinds)))?;
    said.sort_by_key(|said| said.at);
    let mut draft = Draft::default();
    let mut text = kind.name.to_owned();
    let mut seen: Vec<&str> = Vec::new();
    for Said { key, value, at } in &said {
        let wrong = |what| Err((*at, what));
        if !kind.keys().any(|it| it == key) {
            let what = unknown("key", key, kind.keys());
            return wrong(format!("{what}, of {}", kind.name));
        }
        if seen.contains(&key.as_str()) {
            return wrong(format!("`{key}` is said twice"));
        }
        seen.push(key);
        let taken = Key::named(key).and_then(|it| it.set(&mut draft, value));
        if taken.is_none() {
            return wrong(is_no(key));
        }
        if key != "name" {
            text += &format!(" {key}={}", quoted(value));
        }
    }
    if let Some(missing) = kind.needs().find(|needed| !seen.contains(needed)) {
        let what = Key::named(missing).map_or("", |key| key.value);
        return Err((kind_at, format!("{} needs `{missing}`, {what}", kind.name)));
    }
    Ok(Rule {
        effect: kind.effect(&draft),
        name: draft.name,
        text,
        matching: draft.matching,
        share: draft.share,
        seen: 0,
        struck: 0,
    })
}

fn quoted(value: &str) -> String {
    let is_plain = |it: char| !it.is_whitespace() && it != '"' && it != '\\';
    if !value.is_empty() && value.chars().all(is_plain) {
        return value.to_owned();
    }
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Names what was probably meant.
fn unknown(what: &str, name: &str, known: impl Iterator<Item = &'static str>) -> String {
    let known: Vec<&str> = known.collect();
    let nearness = |it: &&str| strsim::jaro_winkler(it, name);
    let nearest = known
        .iter()
        .max_by(|a, b| nearness(a).total_cmp(&nearness(b)))
        .filter(|it| nearness(it) > 0.7);
    match nearest {
        Some(nearest) => {
            format!("there is no {what} `{name}`; `{nearest}` is probably meant")
        }
        None => format!(
            "there is no {what} `{name}`; there are {}",
            known.join(", ")
        ),
    }
}

impl Plan {
    /// Everything of it, as it is kept and listed.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let rules = self.rules.iter().map(|rule| {
            json!({
                "name": rule.name,
                "fault": rule.text,
                "seen": rule.seen,
                "struck": rule.struck,
            })
        });
        json!({ "seed": self.seed, "faults": rules.collect::<Vec<_>>() })
    }

    /// What [`Plan::to_json`] has said; `None` if it makes no sense.
    #[must_use]
    pub fn from_json(value: &Value) -> Option<Self> {
        let mut plan = Self::new(value.get("seed")?.as_u64()?);
        for said in value.get("faults")?.as_array()? {
            let name = said.get("name")?.as_str()?;
            let mut rule = rule(said.get("fault")?.as_str()?).ok()?;
            name.clone_into(&mut rule.name);
            rule.seen = said.get("seen")?.as_u64()?;
            rule.struck = said.get("struck")?.as_u64()?;
            plan.add(rule).ok()?;
        }
        Some(plan)
    }
}
