//! Metrics for Prometheus: their text, and who serves it.
//!
//! * [`text`]: statistics as metrics.
//! * [`Server`]: one thread that answers `GET /metrics`, one request after the other. It is a client
//!   of the daemon like any other: a scrape costs what `xfrmd stat` costs, however many ask at once,
//!   and whoever is slow holds up the other scrapes at most, for a few seconds.

mod server;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde_json::Value;

pub(crate) use server::Server;

/// Where metrics are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// An address and port.
    Inet(SocketAddr),
    /// A Unix socket's path.
    Path(PathBuf),
}

impl FromStr for Endpoint {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with('/') {
            return Ok(Self::Path(text.into()));
        }
        text.parse()
            .map(Self::Inet)
            .map_err(|_| "it is ADDRESS:PORT, as in 127.0.0.1:9468, or an absolute path")
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

/// Metrics of one kind: name, type, meaning, and the samples' labels and values.
struct Family {
    name: String,
    kind: &'static str,
    help: String,
    samples: Vec<(String, u64)>,
}

impl Family {
    fn new(name: impl Into<String>, kind: &'static str, help: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            kind,
            help: help.into(),
            samples: Vec::new(),
        }
    }

    fn sample(&mut self, labels: String, value: Option<u64>) {
        self.samples.extend(value.map(|value| (labels, value)));
    }

    fn write(&self, out: &mut String) {
        if self.samples.is_empty() {
            return;
        }
        let Self {
            name, kind, help, ..
        } = self;
        *out += &format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (labels, value) in &self.samples {
            *out += &format!("{name}{{{labels}}} {value}\n");
        }
    }
}

/// Statistics as metrics, in Prometheus's text format 0.0.4.
///
/// A counter of `/proc/net/xfrm_stat` keeps its name, so that what is known of it is found by it:
/// `XfrmInNoStates` is `xfrmd_XfrmInNoStates_total`. `netns` is the number that `xfrmd stat` shows.
pub(crate) fn text(statistics: &Value) -> String {
    let number = |value: Option<&Value>| value.and_then(Value::as_u64);
    let word = |name| statistics.get(name).and_then(Value::as_str).unwrap_or("");
    let mut build = Family::new("xfrmd_build_info", "gauge", "Version and imitated kernel.");
    let labels = format!(
        "version=\"{}\",kernel=\"{}\"",
        word("version"),
        word("kernel")
    );
    build.sample(labels, Some(1));
    let mut clients = Family::new("xfrmd_clients", "gauge", "Connections of client processes.");
    clients.sample(String::new(), number(statistics.get("clients")));
    let mut states = Family::new("xfrmd_states", "gauge", "SAs.");
    let mut policies = Family::new("xfrmd_policies", "gauge", "Policies, by direction.");
    let mut carrying = Family::new(
        "xfrmd_carrying",
        "gauge",
        "Whether packets of the namespace are carried now.",
    );
    let mut packets = Family::new(
        "xfrmd_packets_total",
        "counter",
        "Protected packets that were sent or came.",
    );
    let mut bytes = Family::new(
        "xfrmd_bytes_total",
        "counter",
        "Their bytes, with all headers.",
    );
    let mut counters: Vec<Family> = Vec::new();
    let namespaces = statistics.get("namespaces").and_then(Value::as_array);
    for namespace in namespaces.into_iter().flatten() {
        let netns = format!("netns=\"{}\"", number(namespace.get("cookie")).unwrap_or(0));
        states.sample(netns.clone(), number(namespace.get("states")));
        let table = |name| namespace.get(name).and_then(Value::as_object);
        for (direction, count) in table("policies").into_iter().flatten() {
            policies.sample(format!("{netns},dir=\"{direction}\""), count.as_u64());
        }
        if let Some(carried) = table("carried") {
            let attached = carried.get("attached").and_then(Value::as_bool);
            carrying.sample(netns.clone(), attached.map(u64::from));
            for direction in ["in", "out"] {
                let labels = || format!("{netns},dir=\"{direction}\"");
                let of = |what| number(carried.get(direction).and_then(|it| it.get(what)));
                packets.sample(labels(), of("packets"));
                bytes.sample(labels(), of("bytes"));
            }
        }
        for (index, (name, value)) in table("counters").into_iter().flatten().enumerate() {
            if counters.len() <= index {
                counters.push(Family::new(
                    format!("xfrmd_{name}_total"),
                    "counter",
                    format!("{name} of /proc/net/xfrm_stat."),
                ));
            }
            if let Some(family) = counters.get_mut(index) {
                family.sample(netns.clone(), value.as_u64());
            }
        }
    }
    let mut out = String::new();
    for family in [build, clients, states, policies, carrying, packets, bytes] {
        family.write(&mut out);
    }
    for family in counters {
        family.write(&mut out);
    }
    // Metrics without labels have no braces.
    out.replace("{}", "")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_those_of_xfrm_stat() {
        let namespace = |cookie: u64, count: u64| {
            json!({
                "cookie": cookie, "states": 2, "policies": {"in": 1, "out": 3},
                "counters": {"XfrmInNoStates": count, "XfrmOutNoStates": 0},
            })
        };
        let mut second = namespace(8, 5);
        second["carried"] = json!({"attached": true,
            "in": {"packets": 1, "bytes": 100}, "out": {"packets": 2, "bytes": 300}});
        let text = text(&json!({
            "version": "1", "kernel": "7.2", "clients": 4,
            "namespaces": [namespace(7, 1), second],
        }));
        for line in [
            "xfrmd_build_info{version=\"1\",kernel=\"7.2\"} 1",
            "xfrmd_clients 4",
            "xfrmd_states{netns=\"7\"} 2",
            "xfrmd_policies{netns=\"8\",dir=\"out\"} 3",
            "# TYPE xfrmd_XfrmInNoStates_total counter",
            "xfrmd_XfrmInNoStates_total{netns=\"8\"} 5",
            "xfrmd_bytes_total{netns=\"8\",dir=\"out\"} 300",
            "xfrmd_carrying{netns=\"8\"} 1",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
        // Samples of one name stand together, behind its type.
        let heads = text
            .lines()
            .filter(|line| line.starts_with("# TYPE"))
            .count();
        assert_eq!(heads, 9);
    }

    #[test]
    fn endpoints() {
        assert_eq!("/run/m".parse(), Ok(Endpoint::Path("/run/m".into())));
        let inet: Endpoint = "127.0.0.1:9468".parse().unwrap();
        assert_eq!(inet.to_string(), "127.0.0.1:9468");
        assert!("9468".parse::<Endpoint>().is_err());
        assert!("localhost:9468".parse::<Endpoint>().is_err());
    }
}
