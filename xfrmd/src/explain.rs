//! `xfrmd explain`: the question from the command line, the answer for people.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

/// Tells what would become of a packet, and why; nothing is sent or changed.
#[derive(Args)]
pub(crate) struct Question {
    /// The packet leaves, or arrives (to stay or to go on).
    direction: Direction,
    /// Source address, with a port where the protocol has them: 10.1.0.5:4000, [fd00::5]:4000.
    #[arg(required_unless_present = "packet")]
    source: Option<String>,
    /// Destination address, with a port where the protocol has them.
    #[arg(required_unless_present = "packet")]
    destination: Option<String>,
    /// Protocol, by name or number. ICMP takes type and code for ports.
    #[arg(default_value = "udp")]
    protocol: String,
    /// A whole IP packet in hexadecimal, in place of addresses.
    #[arg(long, value_name = "HEX", conflicts_with_all = ["source", "destination"])]
    packet: Option<String>,
    /// Its firewall mark.
    #[arg(long, value_name = "MARK", default_value = "0", value_parser = number)]
    mark: u32,
    /// Its XFRM interface id.
    #[arg(long, value_name = "ID", default_value = "0", value_parser = number)]
    if_id: u32,
}

#[derive(Clone, Copy, ValueEnum)]
enum Direction {
    Out,
    In,
}

const PROTOCOLS: [(&str, u8); 9] = [
    ("icmp", 1),
    ("tcp", 6),
    ("udp", 17),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("icmpv6", 58),
    ("ipcomp", 108),
    ("sctp", 132),
];

/// A number, decimal or hexadecimal.
pub(crate) fn number(text: &str) -> Result<u32, std::num::ParseIntError> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    }
}

impl Question {
    /// As the daemon wants it.
    pub(crate) fn as_json(&self) -> Result<Value> {
        let direction = match self.direction {
            Direction::Out => "out",
            Direction::In => "in",
        };
        let (Some(source), Some(destination)) = (&self.source, &self.destination) else {
            return Ok(json!({
                "direction": direction,
                "packet": self.packet,
                "mark": self.mark,
                "if_id": self.if_id,
            }));
        };
        let (source, source_port) = end(source)?;
        let (destination, destination_port) = end(destination)?;
        if source.is_ipv4() != destination.is_ipv4() {
            bail!("{source} and {destination} are not of one family");
        }
        Ok(json!({
            "direction": direction,
            "source": source.to_string(),
            "destination": destination.to_string(),
            "source_port": source_port,
            "destination_port": destination_port,
            "protocol": protocol(&self.protocol)?,
            "mark": self.mark,
            "if_id": self.if_id,
        }))
    }
}

/// An address, and a port behind it.
fn end(text: &str) -> Result<(IpAddr, u16)> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok((address, 0));
    }
    let both = text.parse::<std::net::SocketAddr>();
    let both = both.with_context(|| format!("{text}: not an address or address:port"))?;
    Ok((both.ip(), both.port()))
}

fn protocol(text: &str) -> Result<u8> {
    let named = PROTOCOLS.iter().find(|(name, _)| *name == text);
    match named {
        Some(&(_, number)) => Ok(number),
        None => text
            .parse()
            .with_context(|| format!("{text}: not a protocol")),
    }
}

/// The answer in words.
pub(crate) fn plain(answer: &Value) -> String {
    let flow = &answer["flow"];
    let mut out = format!(
        "{} > {} {}, mark {:#x}\n",
        with_port(flow, "source"),
        with_port(flow, "destination"),
        protocol_name(&flow["protocol"]),
        flow["mark"].as_u64().unwrap_or(0),
    );
    for sa in list(&answer["passed"]) {
        out += &format!("meets {}\n", sa_name(sa));
    }
    out += &format!("policies {}:\n", text(&answer["direction"]));
    let policies = list(&answer["policies"]);
    if policies.is_empty() {
        out += "  none\n";
    }
    for policy in policies {
        out += &policy_line(policy);
    }
    if let Some(more @ 1..) = answer["policies_not_listed"].as_u64() {
        out += &format!("  and {more} more that are not for it\n");
    }
    for template in list(&answer["templates"]) {
        out += &template_lines(template);
    }
    for check in list(&answer["checks"]) {
        out += &check_lines(check);
    }
    out += &verdict(&answer["outcome"]);
    match answer["counter"].as_str() {
        Some(counter) => out += &format!("counter: {counter}\n"),
        None => out += "counter: none\n",
    }
    out
}

fn policy_line(policy: &Value) -> String {
    let why = match (policy["mismatch"].as_str(), policy["chosen"] == true) {
        (Some(mismatch), _) => mismatch,
        (None, true) => "chosen",
        (None, false) => "matches, but another comes first",
    };
    format!(
        "  {} {} > {} {} priority {} index {} {}: {why}\n",
        text(&policy["type"]),
        with_port(policy, "source"),
        with_port(policy, "destination"),
        protocol_name(&policy["protocol"]),
        policy["priority"],
        policy["index"],
        text(&policy["action"]),
    )
}

fn template_lines(template: &Value) -> String {
    let optional = match template["optional"] == true {
        true => " (optional)",
        false => "",
    };
    let mut out = format!(
        "template of policy {}{optional}: {} {} > {} reqid {}\n",
        template["policy"],
        protocol_name(&template["protocol"]),
        text(&template["source"]),
        text(&template["destination"]),
        template["reqid"],
    );
    for sa in list(&template["candidates"]) {
        let taken = sa.get("spi") == template.pointer("/sa/spi");
        let why = match (sa["misfit"].as_str(), taken) {
            (Some(misfit), _) => misfit,
            (None, true) => "chosen",
            (None, false) => "would do, but another is preferred",
        };
        out += &format!(
            "  {} from {} reqid {}: {why}\n",
            sa_name(sa),
            text(&sa["source"]),
            sa["reqid"]
        );
    }
    out + match text(&template["found"]) {
        "acquire" => "  no SA: key managers would be asked for one\n",
        "larval" => "  no SA: key managers have been asked for one\n",
        "nothing" => "  no SA, and no key manager listens\n",
        "SPI taken" => "  the template's SPI belongs to an SA that does not fit\n",
        _ => "",
    }
}

/// How the SAs that brought a packet were held against policies.
fn check_lines(check: &Value) -> String {
    let flow = &check["flow"];
    let mut out = format!(
        "check {}: {} > {} {}\n",
        text(&check["direction"]),
        with_port(flow, "source"),
        with_port(flow, "destination"),
        protocol_name(&flow["protocol"]),
    );
    for sa in list(&check["selectors"]) {
        let why = match sa["mismatch"].as_str() {
            None => "its selector is for the packet".to_owned(),
            Some(mismatch) => format!("its selector is not for the packet: {mismatch}"),
        };
        out += &format!("  {}: {why}\n", sa_name(sa));
    }
    for template in list(&check["templates"]) {
        out += &examined_lines(template);
    }
    for sa in list(&check["unnamed"]) {
        out += &format!("  {}: a tunnel that no template names\n", sa_name(sa));
    }
    let refusal = check["refusal"].as_str();
    out + &format!(
        "  {}\n",
        refusal.map_or("passes".to_owned(), |why| format!("refused, {why}"))
    )
}

fn examined_lines(template: &Value) -> String {
    let is_optional = template["optional"] == true;
    let mut out = format!(
        "  template of policy {}{}: {} {} > {} reqid {}\n",
        template["policy"],
        if is_optional { " (optional)" } else { "" },
        protocol_name(&template["protocol"]),
        text(&template["source"]),
        text(&template["destination"]),
        template["reqid"],
    );
    for sa in list(&template["sas"]) {
        let why = sa["objection"].as_str().unwrap_or("serves it");
        out += &format!("    {}: {why}\n", sa_name(sa));
    }
    match (template["sa"].is_null(), is_optional) {
        (false, _) => {}
        (true, true) => out += "    no SA, and none is needed\n",
        (true, false) => out += "    no SA serves it\n",
    }
    out
}

fn verdict(outcome: &Value) -> String {
    let mtu = &outcome["mtu"];
    match text(&outcome["verdict"]) {
        "plain" => "verdict: it goes as it is\n".into(),
        "deliver" => "verdict: it is delivered\n".into(),
        "forward" => "verdict: it may go on\n".into(),
        "kept" => "verdict: it waits for its other parts\n".into(),
        "protect" => format!("verdict: it is protected; up to {mtu} bytes fit\n"),
        "hold" => "verdict: it waits for an SA\n".into(),
        "too big" => format!("verdict: it is too big; up to {mtu} bytes fit\n"),
        _ => {
            let heard = match outcome["errno"].as_i64() {
                None | Some(0) => String::new(),
                Some(errno) => {
                    let errno = i32::try_from(errno).unwrap_or(0);
                    let error = std::io::Error::from_raw_os_error(errno);
                    format!("; its sender hears: {error}")
                }
            };
            format!("verdict: dropped, {}{heard}\n", text(&outcome["reason"]))
        }
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn sa_name(sa: &Value) -> String {
    let spi = sa["spi"].as_u64().unwrap_or(0);
    format!("{} spi {spi:#010x}", protocol_name(&sa["protocol"]))
}

fn with_port(of: &Value, which: &str) -> String {
    let address = text(&of[which]);
    match of[format!("{which}_port")].as_u64() {
        None | Some(0) => address.to_owned(),
        Some(port) => format!("{address} port {port}"),
    }
}

fn protocol_name(value: &Value) -> String {
    let number = value.as_u64().unwrap_or(0);
    let named = PROTOCOLS.iter().find(|&&(_, it)| u64::from(it) == number);
    match (named, number) {
        (Some((name, _)), _) => (*name).to_owned(),
        (None, 0) => "any".into(),
        (None, _) => format!("protocol {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_have_ports_or_not() {
        assert_eq!(end("10.0.0.1").unwrap(), ("10.0.0.1".parse().unwrap(), 0));
        assert_eq!(end("[fd00::1]:53").unwrap().1, 53);
        assert!(end("10.0.0").is_err() && end("host:1").is_err());
        assert_eq!(protocol("esp").unwrap(), 50);
        assert!(protocol("256").is_err());
    }

    #[test]
    fn a_check_says_which_template_refused_which_sa() {
        let check = json!({
            "flow": { "source": "10.1.0.1", "destination": "10.2.0.1", "protocol": 6 },
            "direction": "fwd",
            "selectors": [{ "spi": 1, "protocol": 50, "mismatch": null }],
            "templates": [{
                "policy": 18, "source": "10.0.0.1", "destination": "10.0.0.2", "protocol": 50,
                "reqid": 2, "optional": false,
                "sas": [{ "spi": 1, "protocol": 50, "objection": "another reqid" }], "sa": null,
            }],
            "unnamed": [],
            "refusal": "its SAs are not those that policy wants",
        });
        let expected = "\
check fwd: 10.1.0.1 > 10.2.0.1 tcp
  esp spi 0x00000001: its selector is for the packet
  template of policy 18: esp 10.0.0.1 > 10.0.0.2 reqid 2
    esp spi 0x00000001: another reqid
    no SA serves it
  refused, its SAs are not those that policy wants
";
        assert_eq!(check_lines(&check), expected);
    }
}
