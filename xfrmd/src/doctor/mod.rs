//! `xfrmd doctor`: what this machine has, what will be used, what is missing and how to get it.
//!
//! First what can be read where we are, and what this process may do there; then, in a network
//! namespace of its own (with a user namespace around it, if need be), what can only be found out
//! by doing it ([`probe`]). Nothing of the host is changed, but that its kernel loads modules that
//! it would load for xfrmd, too.

mod probe;

use serde_json::{Value, json};

/// What an answer matters for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    /// Answering requests at all.
    Requests,
    /// Carrying packets.
    Packets,
    /// Something less, or nothing.
    Else,
}

/// How it is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// There.
    Found,
    /// Not there, and how to get it.
    Missing(String),
    /// Not known, because something else is missing.
    Unknown,
}

/// One thing that was looked at.
#[derive(Clone, Debug)]
struct Finding {
    name: &'static str,
    wanted_for: For,
    state: State,
    /// What was seen, and what it means.
    detail: String,
}

/// All of it.
pub(crate) struct Report {
    /// Name, release and machine of the host's kernel.
    kernel: String,
    findings: Vec<Finding>,
}

/// Looks at everything. To be called while the process has one thread.
pub(crate) fn examine() -> Report {
    let mut findings = probe::here();
    findings.extend(probe::elsewhere(&findings));
    Report {
        kernel: probe::kernel(),
        findings,
    }
}

impl Report {
    fn lacks(&self, what: For) -> impl Iterator<Item = &Finding> {
        let of_kind = move |it: &&Finding| it.wanted_for == what && it.state != State::Found;
        self.findings.iter().filter(of_kind)
    }

    fn answers_requests(&self) -> bool {
        self.lacks(For::Requests).next().is_none()
    }

    fn carries_packets(&self) -> bool {
        self.answers_requests() && self.lacks(For::Packets).next().is_none()
    }

    /// 0 if packets could be carried, 1 if requests could be answered only, 2 if not even that.
    pub(crate) fn exit_code(&self) -> u8 {
        match (self.answers_requests(), self.carries_packets()) {
            (false, _) => 2,
            (true, false) => 1,
            (true, true) => 0,
        }
    }

    /// For programs.
    pub(crate) fn to_json(&self) -> Value {
        let findings: Vec<Value> = self.findings.iter().map(Finding::to_json).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "kernel": self.kernel,
            "requests": self.answers_requests(),
            "packets": self.carries_packets(),
            "findings": findings,
        })
    }
}

impl Finding {
    fn to_json(&self) -> Value {
        let (state, remedy) = match &self.state {
            State::Found => ("found", None),
            State::Missing(remedy) => ("missing", Some(remedy)),
            State::Unknown => ("unknown", None),
        };
        let wanted_for = match self.wanted_for {
            For::Requests => Some("requests"),
            For::Packets => Some("packets"),
            For::Else => None,
        };
        json!({
            "name": self.name,
            "state": state,
            "wanted_for": wanted_for,
            "detail": self.detail,
            "remedy": remedy.filter(|remedy| !remedy.is_empty()),
        })
    }
}

/// For people, of the JSON.
pub(crate) fn plain(report: &Value) -> String {
    let text = |value: &Value, name: &str| {
        let text = value.get(name).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    let mut out = format!(
        "xfrmd {} on {}\n\n",
        text(report, "version"),
        text(report, "kernel")
    );
    let mut remedies = Vec::new();
    let findings = report.get("findings").and_then(Value::as_array);
    for finding in findings.into_iter().flatten() {
        let wanted = finding.get("wanted_for").is_some_and(|it| !it.is_null());
        let mark = match (text(finding, "state").as_str(), wanted) {
            ("found", _) => "yes",
            ("missing", true) => "NO",
            ("missing", false) => "no",
            _ => "?",
        };
        let (name, detail) = (text(finding, "name"), text(finding, "detail"));
        out += &format!("  {mark:3}  {name:26} {detail}\n");
        let remedy = text(finding, "remedy");
        if wanted && !remedy.is_empty() {
            remedies.push(format!("  {name}: {remedy}\n"));
        }
    }
    let can = |name| report.get(name) == Some(&Value::Bool(true));
    out += match (can("requests"), can("packets")) {
        (true, true) => {
            "\nRequests can be answered and packets carried: xfrmd --packets, xfrmd run --packets\n"
        }
        (true, false) => "\nRequests can be answered (xfrmd, xfrmd run), but no packets carried.\n",
        (false, _) => "\nNot even requests can be answered.\n",
    };
    if !remedies.is_empty() {
        out += "What is missing, and how to get it:\n";
        out += &remedies.concat();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(states: [(For, State); 3]) -> Report {
        let finding = |(wanted_for, state)| Finding {
            name: "thing",
            wanted_for,
            state,
            detail: "seen".into(),
        };
        Report {
            kernel: "Linux".into(),
            findings: states.map(finding).into(),
        }
    }

    #[test]
    fn exit_codes_say_what_would_work() {
        let missing = || State::Missing("modprobe thing".into());
        for (requests, packets, code) in [
            (State::Found, State::Found, 0),
            (State::Found, missing(), 1),
            (State::Found, State::Unknown, 1),
            (missing(), State::Found, 2),
        ] {
            let states = [
                (For::Requests, requests),
                (For::Packets, packets),
                (For::Else, missing()),
            ];
            let report = report(states);
            assert_eq!(report.exit_code(), code);
            let text = plain(&report.to_json());
            assert_eq!(text.contains("thing: modprobe thing"), text.contains("NO"));
        }
    }
}
