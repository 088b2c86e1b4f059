//! What `xfrmd explain` is told: the engine's own decision about a packet, as JSON.
//!
//! The question names a packet or the flow of one; of a flow the smallest packet is made. Routes
//! and addresses are the host's, of the asker's network namespace.

use std::io;
use std::os::fd::AsFd;

use dataplane::DropReason;
use dataplane::mib::Counter;
use dataplane::packet::buffer::MAX_PACKET;
use dataplane::packet::{PacketBuf, ip4, ip6};
use dataplane::path::explain::{
    Candidate, Check, Considered, Examined, Explanation, Found, Objection, Outcome, Tried,
};
use dataplane::path::{InputMeta, OutputMeta, Worker};
use dataplane::sad::Misfit;
use dataplane::spd::{Flow, Mismatch};
use serde_json::{Value, json};
use xfrm_proto::consts::*;
use xfrm_proto::uapi::{Address, XfrmId};

use super::connection::{Connection, Reply};
use super::{Daemon, Owner};
use crate::attach::HostRoutes;

/// MTU and hop limit of a packet for which the host has no route.
const UNROUTED: (u32, u8) = (1500, 64);

impl Daemon {
    /// Answers a question about the namespace with that cookie.
    pub(super) fn explain(
        &mut self,
        connection: &Connection,
        netns: u64,
        question: &[u8],
    ) -> Reply {
        if !self.shows_all_to(connection) {
            return Reply::error(libc::EPERM);
        }
        let Ok(question) = serde_json::from_slice::<Value>(question) else {
            return Reply::error(libc::EINVAL);
        };
        match self.answer(netns, &question) {
            Ok(answer) => Reply::document(answer.to_string()),
            Err(error) => Reply::error(error.raw_os_error().unwrap_or(libc::EINVAL)),
        }
    }

    /// Whether the client may learn of all packets and SAs.
    pub(super) fn shows_all_to(&self, connection: &Connection) -> bool {
        match self.settings.owner {
            Owner::System => connection.peer.uid == 0,
            Owner::Private { .. } => true,
        }
    }

    fn answer(&mut self, netns: u64, question: &Value) -> io::Result<Value> {
        let unknown = || io::Error::from_raw_os_error(libc::ENOENT);
        let id = *self.by_cookie.get(&netns).ok_or_else(unknown)?;
        let instance = self.instances.get(&id).ok_or_else(unknown)?;
        let routes = match &instance.namespace {
            Some(namespace) if netns != self.home.cookie => {
                let namespace = namespace.as_fd();
                self.home.inside(namespace, HostRoutes::open)?
            }
            _ => HostRoutes::open()?,
        };
        let netns = self.emulator.netns(id).ok_or_else(unknown)?;
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        let asked = Question::read(question).ok_or_else(invalid)?;
        let mut packet = PacketBuf::with_capacity(MAX_PACKET);
        packet.fill(&asked.packet);
        let mut worker = Worker::new(0, Box::new(self.settings.randomness.stream(u64::MAX)));
        let explanation = if asked.leaves {
            let mobility = netns.profile.decodes_mobility;
            let mut flow = Flow::of_packet(&packet, asked.mark, 0, mobility).ok_or_else(invalid)?;
            let way = routes.way(flow.family, flow.daddr, flow.mark);
            let (mtu, hop_limit) = way.map_or(UNROUTED, |(_, way)| (way.mtu, way.hop_limit));
            flow.ifindex = way.map_or(0, |(ifindex, _)| ifindex);
            let meta = OutputMeta {
                mark: asked.mark,
                if_id: asked.if_id,
                ifindex: flow.ifindex,
                socket: None,
                forwarded: !routes.is_local(flow.family, flow.saddr),
                bypasses: false,
                loopback: false,
                mtu,
                hop_limit,
            };
            let whole = asked.is_whole.then_some(&packet[..]);
            worker.explain_output(&netns, &flow, whole, &meta, &routes)
        } else {
            let mut meta = InputMeta {
                mark: asked.mark,
                if_id: asked.if_id,
                ..InputMeta::default()
            };
            worker.explain_input(&netns, self.clock.now(), &mut packet, &mut meta, &routes)
        };
        Ok(described(&explanation))
    }
}

/// What is asked.
struct Question {
    /// Or arrives.
    leaves: bool,
    packet: Vec<u8>,
    /// The packet is the asker's own, and not made of a flow.
    is_whole: bool,
    mark: u32,
    if_id: u32,
}

impl Question {
    fn read(question: &Value) -> Option<Self> {
        let number = |name: &str| -> Option<u64> {
            match question.get(name) {
                None | Some(Value::Null) => Some(0),
                Some(value) => value.as_u64(),
            }
        };
        let port = |name| u16::try_from(number(name)?).ok();
        let text = |name: &str| question.get(name).and_then(Value::as_str);
        let given = match text("packet") {
            Some(packet) => Some(unhex(packet).filter(|packet| packet.len() <= MAX_PACKET)?),
            None => None,
        };
        let is_whole = given.is_some();
        let packet = match given {
            Some(packet) => packet,
            None => smallest_packet(
                text("source")?.parse().ok()?,
                text("destination")?.parse().ok()?,
                u8::try_from(number("protocol")?).ok()?,
                (port("source_port")?, port("destination_port")?),
            )?,
        };
        Some(Self {
            leaves: text("direction")? == "out",
            packet,
            is_whole,
            mark: u32::try_from(number("mark")?).ok()?,
            if_id: u32::try_from(number("if_id")?).ok()?,
        })
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u32> = text
        .chars()
        .filter(|digit| !digit.is_whitespace())
        .map(|digit| digit.to_digit(16))
        .collect::<Option<_>>()?;
    let bytes = digits.chunks_exact(2);
    if !bytes.remainder().is_empty() {
        return None;
    }
    bytes
        .map(|pair| match pair {
            &[high, low] => u8::try_from(high << 4 | low).ok(),
            _ => None,
        })
        .collect()
}

/// The smallest packet of a flow. ICMP's type and code stand where ports would.
fn smallest_packet(
    source: std::net::IpAddr,
    destination: std::net::IpAddr,
    protocol: u8,
    (sport, dport): (u16, u16),
) -> Option<Vec<u8>> {
    use std::net::IpAddr;
    const HOP_LIMIT: u8 = 64;
    let mut transport = [0; 20];
    let is_icmp = matches!(protocol, IPPROTO_ICMP | IPPROTO_ICMPV6);
    let words = match is_icmp {
        true => u32::from(sport) << 24 | u32::from(dport) << 16,
        false => u32::from(sport) << 16 | u32::from(dport),
    };
    transport
        .first_chunk_mut()?
        .clone_from(&words.to_be_bytes());
    let mut packet = Vec::with_capacity(60);
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            packet.extend([0x45, 0, 0, 0, 0, 0, 0, 0, HOP_LIMIT, protocol, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            packet.extend(transport);
            ip4::finish(&mut packet)?;
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet.extend([0x60, 0, 0, 0, 0, 0, protocol, HOP_LIMIT]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            packet.extend(transport);
            ip6::finish(&mut packet)?;
        }
        _ => return None,
    }
    Some(packet)
}

fn described(explanation: &Explanation) -> Value {
    json!({
        "flow": flow(&explanation.flow),
        "direction": direction(explanation.dir),
        "policies": explanation.considered.iter().map(policy).collect::<Vec<_>>(),
        "policies_not_listed": explanation.passed_over,
        "templates": explanation.tried.iter().map(template).collect::<Vec<_>>(),
        "passed": explanation.passed.iter().map(|sa| named(sa, None)).collect::<Vec<_>>(),
        "checks": explanation.checks.iter().map(check).collect::<Vec<_>>(),
        "outcome": outcome(&explanation.outcome),
        "counter": explanation.counter().map(Counter::name),
    })
}

fn flow(flow: &Flow) -> Value {
    json!({
        "source": shown(flow.saddr, flow.family),
        "destination": shown(flow.daddr, flow.family),
        "protocol": flow.proto,
        "source_port": flow.sport,
        "destination_port": flow.dport,
        "mark": flow.mark,
        "ifindex": flow.ifindex,
    })
}

const fn direction(dir: u8) -> &'static str {
    match dir {
        XFRM_POLICY_OUT => "out",
        XFRM_POLICY_FWD => "fwd",
        _ => "in",
    }
}

fn outcome(outcome: &Outcome) -> Value {
    match *outcome {
        Outcome::Plain => json!({ "verdict": "plain" }),
        Outcome::Deliver => json!({ "verdict": "deliver" }),
        Outcome::Forward => json!({ "verdict": "forward" }),
        Outcome::Kept => json!({ "verdict": "kept" }),
        Outcome::Protect { mtu } => json!({ "verdict": "protect", "mtu": mtu }),
        Outcome::Held => json!({ "verdict": "hold" }),
        Outcome::TooBig { mtu } => json!({ "verdict": "too big", "mtu": mtu }),
        Outcome::Drop { reason, errno } => {
            json!({ "verdict": "drop", "reason": reason.text(), "errno": errno })
        }
    }
}

fn policy(considered: &Considered) -> Value {
    let policy = &considered.policy;
    let key = &policy.key;
    let sel = &key.selector;
    json!({
        "index": policy.index,
        "priority": policy.priority,
        "type": if key.kind == XFRM_POLICY_TYPE_MAIN { "main" } else { "sub" },
        "source": network(sel.saddr, sel.family, sel.prefixlen_s),
        "destination": network(sel.daddr, sel.family, sel.prefixlen_d),
        "protocol": sel.proto,
        "source_port": sel.sport.get(),
        "destination_port": sel.dport.get(),
        "mark": key.mark.v,
        "mark_mask": key.mark.m,
        "if_id": key.if_id,
        "action": if policy.action == XFRM_POLICY_ALLOW { "allow" } else { "block" },
        "templates": policy.templates.len(),
        "mismatch": considered.mismatch.map(Mismatch::text),
        "chosen": considered.chosen,
    })
}

fn template(tried: &Tried) -> Value {
    let template = &tried.template;
    let (from, to) = tried.ends;
    let found = match &tried.found {
        Found::Sa(_) => "SA",
        Found::Acquire => "acquire",
        Found::Waiting => "larval",
        Found::Nothing => "nothing",
        Found::SpiTaken => "SPI taken",
    };
    let sa = match &tried.found {
        Found::Sa(sa) => named(sa, None),
        _ => Value::Null,
    };
    json!({
        "policy": tried.policy,
        "source": shown(from, template.family),
        "destination": shown(to, template.family),
        "protocol": template.id.proto,
        "spi": template.id.spi.get(),
        "reqid": template.reqid,
        "mode": template.mode,
        "optional": template.optional != 0,
        "candidates": tried
            .candidates
            .iter()
            .map(|sa| candidate(sa, template.family))
            .collect::<Vec<_>>(),
        "found": found,
        "sa": sa,
    })
}

/// Policies held against the SAs that brought a packet.
fn check(check: &Check) -> Value {
    let selector = |(sa, mismatch): &(XfrmId, Option<Mismatch>)| {
        judged(sa, "mismatch", mismatch.map(Mismatch::text))
    };
    let unnamed = check.unnamed.iter();
    json!({
        "flow": flow(&check.flow),
        "direction": direction(check.dir),
        "selectors": check.selectors.iter().map(selector).collect::<Vec<_>>(),
        "templates": check.templates.iter().map(examined).collect::<Vec<_>>(),
        "unnamed": unnamed.map(|sa| named(sa, None)).collect::<Vec<_>>(),
        "refusal": check.refusal.map(DropReason::text),
    })
}

fn examined(examined: &Examined) -> Value {
    let template = &examined.template;
    let sa = |(sa, objection): &(XfrmId, Option<Objection>)| {
        judged(sa, "objection", objection.map(Objection::text))
    };
    json!({
        "policy": examined.policy,
        "source": shown(template.saddr, template.family),
        "destination": shown(template.id.daddr, template.family),
        "protocol": template.id.proto,
        "spi": template.id.spi.get(),
        "reqid": template.reqid,
        "mode": template.mode,
        "optional": template.optional != 0,
        "sas": examined.sas.iter().map(sa).collect::<Vec<_>>(),
        "sa": examined.served_by().map(|sa| named(&sa, None)),
    })
}

/// An SA, and what is against it.
fn judged(sa: &XfrmId, what: &str, against: Option<&str>) -> Value {
    let mut value = named(sa, None);
    if let Some(value) = value.as_object_mut() {
        value.insert(what.into(), against.into());
    }
    value
}

fn candidate(sa: &Candidate, family: u16) -> Value {
    let mut value = named(&sa.id, Some(family));
    if let Some(value) = value.as_object_mut() {
        value.insert("source".into(), shown(sa.saddr, family).into());
        value.insert("reqid".into(), sa.reqid.into());
        value.insert("misfit".into(), sa.misfit.map(Misfit::text).into());
    }
    value
}

fn named(sa: &XfrmId, family: Option<u16>) -> Value {
    let mut value = json!({ "spi": sa.spi.get(), "protocol": sa.proto });
    if let (Some(family), Some(value)) = (family, value.as_object_mut()) {
        value.insert("destination".into(), shown(sa.daddr, family).into());
    }
    value
}

fn shown(address: Address, family: u16) -> String {
    let Address(bytes) = address;
    match (family, bytes) {
        (AF_INET, [a, b, c, d, ..]) => std::net::Ipv4Addr::new(a, b, c, d).to_string(),
        _ => std::net::Ipv6Addr::from(bytes).to_string(),
    }
}

fn network(address: Address, family: u16, bits: u8) -> String {
    format!("{}/{bits}", shown(address, family))
}
