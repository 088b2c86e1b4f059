//! What the daemon is told: defaults, over them the configuration file, over that the command line.
//!
//! [`KEYS`] is the only list: it reads the file, writes the documented one that `xfrmd config`
//! prints, and knows what can change while the daemon runs.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::ValueEnum;
use dataplane::Profile;
use dataplane::netns::Limits;
use toml::de::{DeTable, DeValue};
use xfrm_proto::control::SYSTEM_PATH;

use crate::attach::Capture;
use crate::log::Format;
use crate::metrics::Endpoint;

/// Read if it is there.
pub(crate) const PATH: &str = "/etc/xfrmd/xfrmd.toml";

/// Everything that can be said.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// The kernel to behave as.
    pub(crate) kernel: &'static Profile,
    /// Whether packets are carried.
    pub(crate) packets: bool,
    /// By what the host picks them.
    pub(crate) capture: Capture,
    /// Where the daemon listens.
    pub(crate) socket: PathBuf,
    /// Table sizes of each namespace.
    pub(crate) limits: Limits,
    /// Clients at once.
    pub(crate) max_clients: usize,
    /// What is logged, as a filter of `tracing`.
    pub(crate) log: String,
    /// How.
    pub(crate) log_format: Format,
    /// Where metrics are served.
    pub(crate) metrics: Vec<Endpoint>,
}

impl Default for Config {
    fn default() -> Self {
        let [.., newest] = Profile::ALL;
        Self {
            kernel: newest,
            packets: false,
            capture: Capture::default(),
            socket: SYSTEM_PATH.into(),
            limits: Limits::default(),
            max_clients: 16384,
            log: "info".into(),
            log_format: Format::Text,
            metrics: Vec::new(),
        }
    }
}

type Set = fn(&mut Config, &DeValue<'_>) -> Result<(), &'static str>;

/// A key of the file.
struct Key {
    /// With the table that it is in.
    name: &'static str,
    about: &'static str,
    /// Whether a daemon that runs can take it up.
    live: bool,
    /// Its value as the file has it.
    show: fn(&Config) -> String,
    set: Set,
}

const KEYS: &[Key] = &[
    Key {
        name: "kernel",
        about: "The kernel to behave as: \"6.1\", \"6.12\" or \"7.2\".",
        live: false,
        show: |config| quoted(config.kernel.name),
        set: |config, value| {
            let name = value.as_str();
            config.kernel = name
                .and_then(Profile::by_name)
                .ok_or("\"6.1\", \"6.12\" or \"7.2\"")?;
            Ok(())
        },
    },
    Key {
        name: "packets",
        about: "Carry packets, too: what policies select goes through a TUN device, protected or\n\
                checked as SAs say. `xfrmd doctor` tells whether this machine can.",
        live: false,
        show: |config| config.packets.to_string(),
        set: |config, value| {
            config.packets = value.as_bool().ok_or("true or false")?;
            Ok(())
        },
    },
    Key {
        name: "capture",
        about: "By what the host picks packets: \"nf_tables\"; \"routes\", where policies protect whole\n\
                prefixes and what comes in is checked by prefixes and protocol; or \"auto\", which is\n\
                nf_tables where the host has it.",
        live: false,
        show: |config| quoted(&config.capture.name()),
        set: |config, value| {
            let name = value
                .as_str()
                .and_then(|name| Capture::from_str(name, false).ok());
            config.capture = name.ok_or("\"auto\", \"nf_tables\" or \"routes\"")?;
            Ok(())
        },
    },
    Key {
        name: "socket",
        about: "Where clients find the daemon. With another path they need\n\
                `xfrmd env --socket PATH`.",
        live: false,
        show: |config| quoted(&config.socket.to_string_lossy()),
        set: |config, value| {
            let path = value.as_str().filter(|path| path.starts_with('/'));
            config.socket = path.ok_or("an absolute path")?.into();
            Ok(())
        },
    },
    Key {
        name: "limits.states",
        about: "Most SAs of a network namespace; beyond, requests fail as without memory.",
        live: true,
        show: |config| config.limits.max_sas.to_string(),
        set: |config, value| {
            config.limits.max_sas = count(value)?;
            Ok(())
        },
    },
    Key {
        name: "limits.policies",
        about: "Most policies of a network namespace.",
        live: true,
        show: |config| config.limits.max_policies.to_string(),
        set: |config, value| {
            config.limits.max_policies = count(value)?;
            Ok(())
        },
    },
    Key {
        name: "limits.clients",
        about: "Most connections of client processes; half of them for any one user but root.",
        live: true,
        show: |config| config.max_clients.to_string(),
        set: |config, value| {
            config.max_clients = count(value)?;
            Ok(())
        },
    },
    Key {
        name: "log.level",
        about: "What is logged to standard error: error, warn, info, debug or trace; also by module,\n\
                as in \"info,xfrmd::driver::attaching=debug\". The variables XFRMD_LOG and RUST_LOG\n\
                come first.",
        live: true,
        show: |config| quoted(&config.log),
        set: |config, value| {
            let text = value.as_str().filter(|text| crate::log::is_filter(text));
            config.log = text
                .ok_or("a level, or MODULE=LEVEL, with commas between")?
                .into();
            Ok(())
        },
    },
    Key {
        name: "log.format",
        about: "\"text\", or \"json\" for one object a line.",
        live: false,
        show: |config| quoted(config.log_format.name()),
        set: |config, value| {
            let format = value.as_str().map(|text| Format::from_str(text, false));
            config.log_format = format.and_then(Result::ok).ok_or("\"text\" or \"json\"")?;
            Ok(())
        },
    },
    Key {
        name: "metrics.listen",
        about: "Where Prometheus can ask, at /metrics: addresses such as \"127.0.0.1:9468\", and\n\
                paths of Unix sockets such as \"/run/xfrmd/metrics\". Nothing in the answer is\n\
                secret, and nobody is asked who he is.",
        live: true,
        show: |config| {
            let all: Vec<String> = config
                .metrics
                .iter()
                .map(|it| quoted(&it.to_string()))
                .collect();
            format!("[{}]", all.join(", "))
        },
        set: |config, value| {
            const WANTED: &str = "a list of ADDRESS:PORT and absolute paths";
            let list = value.as_array().ok_or(WANTED)?;
            let endpoint = |value: &DeValue<'_>| value.as_str()?.parse().ok();
            let listed = list.iter().map(|value| endpoint(value.get_ref()));
            config.metrics = listed.collect::<Option<_>>().ok_or(WANTED)?;
            Ok(())
        },
    },
];

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn count(value: &DeValue<'_>) -> Result<usize, &'static str> {
    let number = value.as_integer();
    let number = number.and_then(|it| usize::from_str_radix(it.as_str(), it.radix()).ok());
    number
        .filter(|&number| number > 0)
        .ok_or("a number, 1 or more")
}

/// Defaults with a file over them: that one, which must be there, or the system's, which may.
pub(crate) fn load(path: Option<&Path>) -> Result<Config> {
    let mut config = Config::default();
    let file = path.unwrap_or(Path::new(PATH));
    let text = match std::fs::read_to_string(file) {
        Err(error) if path.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(config);
        }
        other => other.with_context(|| file.display().to_string())?,
    };
    let mistakes = config.read(&text);
    if mistakes.is_empty() {
        return Ok(config);
    }
    let lines: Vec<String> = mistakes
        .into_iter()
        .map(|(line, mistake)| format!("{}:{line}: {mistake}", file.display()))
        .collect();
    bail!(lines.join("\nxfrmd: "))
}

impl Config {
    /// Takes up what a file says; its mistakes, with their lines.
    fn read(&mut self, text: &str) -> Vec<(usize, String)> {
        let mut mistakes = Vec::new();
        match DeTable::parse(text) {
            Ok(table) => self.read_table("", table.get_ref(), &mut mistakes),
            Err(error) => {
                let at = error.span().map_or(0, |span| span.start);
                mistakes.push((at, error.message().trim_end().replace('\n', ", ")));
            }
        }
        mistakes.sort_by_key(|&(at, _)| at);
        for (at, _) in &mut mistakes {
            let before = text.bytes().take(*at);
            *at = 1 + before.filter(|&byte| byte == b'\n').count();
        }
        mistakes
    }

    fn read_table(
        &mut self,
        table: &str,
        entries: &DeTable<'_>,
        mistakes: &mut Vec<(usize, String)>,
    ) {
        for (name, value) in entries {
            let at = name.span().start;
            let name = format!("{table}{}", name.get_ref());
            let is_table = KEYS
                .iter()
                .any(|key| key.name.starts_with(&format!("{name}.")));
            let key = KEYS.iter().find(|key| key.name == name);
            match (key, value.get_ref()) {
                (Some(key), value) => {
                    if let Err(wanted) = (key.set)(self, value) {
                        mistakes.push((at, format!("`{name}` is {wanted}")));
                    }
                }
                (None, DeValue::Table(entries)) if is_table => {
                    self.read_table(&format!("{name}."), entries, mistakes);
                }
                (None, _) if is_table => mistakes.push((at, format!("`{name}` is a table"))),
                (None, _) => mistakes.push((at, unknown(&name))),
            }
        }
    }

    /// The file that says what this says: every key with its meaning, and those that have their
    /// default as comments.
    pub(crate) fn to_file(&self) -> String {
        let default = Self::default();
        let mut out = String::from(
            "# xfrmd's configuration. What is commented out is the default. The command line comes\n\
             # first. `systemctl reload xfrmd` (SIGHUP) takes up changes of keys marked with *.\n",
        );
        let mut table = "";
        for key in KEYS {
            let (of, name) = key.name.split_once('.').unwrap_or(("", key.name));
            if of != table {
                table = of;
                out += &format!("\n[{table}]");
            }
            let star = if key.live { " *" } else { "" };
            let about = key.about.replace('\n', "\n# ");
            let value = (key.show)(self);
            let comment = if value == (key.show)(&default) {
                "#"
            } else {
                ""
            };
            out += &format!("\n# {about}{star}\n{comment}{name} = {value}\n");
        }
        out
    }

    /// Keys in which another configuration differs, and whether a daemon that runs can take the
    /// difference up.
    pub(crate) fn differences(&self, other: &Self) -> Vec<(&'static str, bool)> {
        KEYS.iter()
            .filter(|key| (key.show)(self) != (key.show)(other))
            .map(|key| (key.name, key.live))
            .collect()
    }
}

/// Names the key that was probably meant.
fn unknown(name: &str) -> String {
    let last = |name: &str| {
        name.rsplit('.')
            .next()
            .map_or_else(String::new, str::to_owned)
    };
    let nearness = |key: &Key| {
        let whole = strsim::jaro_winkler(key.name, name);
        whole.max(strsim::jaro_winkler(&last(key.name), &last(name)))
    };
    let nearest = KEYS
        .iter()
        .map(|key| (nearness(key), key.name))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((nearness, key)) if nearness > 0.7 => {
            format!("there is no key `{name}`; `{key}` is probably meant")
        }
        _ => {
            let names: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
            format!("there is no key `{name}`; keys are {}", names.join(", "))
        }
    }
}

/// A release's name as the command line has it.
pub(crate) fn parse_profile(name: &str) -> Result<&'static Profile> {
    Profile::by_name(name).ok_or_else(|| anyhow!("it is 6.1, 6.12 or 7.2"))
}

#[cfg(test)]
mod tests;
