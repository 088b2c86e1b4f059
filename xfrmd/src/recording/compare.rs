//! What differs: between a recording and its replay, and between two recordings.
//!
//! A replay had the same clock and the same random numbers, so everything counts. Two recordings are
//! compared by what was meant: clock values, sequence numbers and port ids of messages, keys, and SPIs
//! that only one of them has are renamed or left out.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use similar::{ChangeTag, TextDiff};
use xfrm_proto::consts::*;
use xfrm_proto::decode;
use xfrm_proto::reply::messages;
use xfrm_proto::uapi::{NlMsgHdr, Pod, UserSaInfo};

use super::format::{Passage, Source, To, What};
use super::keys;
use super::normalize::Normalizer;
use super::read::{Answer, Happening, Recording};
use super::replay::Outcome;
use crate::emulator::Destination;
use crate::tape::Step;

/// Lines around what differs.
const CONTEXT: usize = 2;
/// In front of the request in an error.
const ERRNO_BYTES: usize = 4;

/// A happening of which something else came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its number.
    pub number: u64,
    /// Where in the file.
    pub offset: usize,
    /// Nanoseconds since 1970, 0 for what has no time of its own.
    pub nanos: u64,
    /// What it was.
    pub what: String,
    /// What came of it: lines of both begin with a blank, of the recording with `-`, of the replay
    /// with `+`.
    pub lines: Vec<String>,
}

/// What a replay has done differently.
#[must_use]
pub fn with_replay(recording: &Recording<'_>, outcomes: &[Outcome]) -> Vec<Difference> {
    let mut judge = Judge::of(recording);
    let both = recording.happenings.iter().zip(outcomes);
    let mut differences = Vec::new();
    for (happening, outcome) in both {
        if let (Some(judge), What::Step(Step::Listeners { group, count, .. })) =
            (&mut judge, &happening.happened.what)
        {
            judge.listen(*group, *count);
        }
        let [recorded, replayed] = match &mut judge {
            None if happening.answers == outcome.answers => [Vec::new(), Vec::new()],
            None => [&happening.answers, &outcome.answers].map(|answers| lines(answers)),
            Some(judge) => judge.lines(&happening.answers, &outcome.answers),
        };
        let [fate, fate_now] = [&*happening.happened.fate, &outcome.fate];
        if recorded == replayed && fate == fate_now {
            continue;
        }
        let with_fate = |fate: &str, lines: Vec<String>| {
            let fate = Some(fate.to_owned()).filter(|fate| !fate.is_empty());
            fate.into_iter().chain(lines).collect::<Vec<_>>()
        };
        differences.push(Difference {
            number: happening.happened.number,
            offset: happening.offset,
            nanos: happening.nanos,
            what: title(happening),
            lines: changes(&with_fate(fate, recorded), &with_fate(fate_now, replayed)),
        });
    }
    differences
}

/// Judges what a kernel has said: as messages, since how they were put together depends on who read
/// when, without clock values, and without events that nobody listened to.
struct Judge {
    listened: BTreeSet<u32>,
    recorded: Normalizer,
    replayed: Normalizer,
}

impl Judge {
    fn of(recording: &Recording<'_>) -> Option<Self> {
        if recording.head.source != Source::Kernel {
            return None;
        }
        let begin = recording.happenings.iter().map(|it| it.nanos);
        let begin = begin.filter(|&nanos| nanos != 0).min().unwrap_or(0);
        let normalizer = || Normalizer::new(begin / 1_000_000_000, false);
        Some(Self {
            listened: BTreeSet::new(),
            recorded: normalizer(),
            replayed: normalizer(),
        })
    }

    fn listen(&mut self, group: u32, count: u32) {
        match count {
            0 => self.listened.remove(&group),
            _ => self.listened.insert(group),
        };
    }

    fn lines(&mut self, recorded: &[Answer<'_>], replayed: &[Answer<'_>]) -> [Vec<String>; 2] {
        let listened = &self.listened;
        let read = |normalizer: &mut Normalizer, answers: &[Answer<'_>]| {
            let mut out = Vec::new();
            for answer in answers {
                let To::Client(netns, to) = answer.to else {
                    continue;
                };
                let group = match to {
                    Destination::Port(_) => 0,
                    Destination::Group(group) if listened.contains(&group) => group,
                    Destination::Group(_) => continue,
                };
                let bytes = normalizer.datagram(&answer.bytes, group).into();
                let to = To::Client(netns, to);
                out.extend(lines(&[Answer { to, bytes }]));
            }
            out
        };
        [
            read(&mut self.recorded, recorded),
            read(&mut self.replayed, replayed),
        ]
    }
}

/// Lines that differ, and a few around them.
fn changes(recorded: &[String], replayed: &[String]) -> Vec<String> {
    let [recorded, replayed] =
        [recorded, replayed].map(|lines| lines.iter().map(String::as_str).collect::<Vec<&str>>());
    let diff = TextDiff::from_slices(&recorded, &replayed);
    let mut out = Vec::new();
    for group in diff.grouped_ops(CONTEXT) {
        if !out.is_empty() {
            out.push("   ...".to_owned());
        }
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            let sign = match change.tag() {
                ChangeTag::Equal => ' ',
                ChangeTag::Delete => '-',
                ChangeTag::Insert => '+',
            };
            out.push(format!("{sign} {}", change.value()));
        }
    }
    out
}

/// What came of something, as lines.
fn lines(answers: &[Answer<'_>]) -> Vec<String> {
    let mut out = Vec::new();
    for answer in answers {
        match answer.to {
            To::Client(_, to) => {
                let to = match to {
                    Destination::Port(port) => format!("to port {port}"),
                    Destination::Group(group) => format!("to group {group}"),
                };
                for (_, message) in messages(&answer.bytes) {
                    let mut text = decode::message(message).into_iter();
                    out.push(format!("{to}: {}", text.next().unwrap_or_default()));
                    out.extend(text.map(|line| format!("    {line}")));
                }
            }
            To::Wire(mark) => {
                let mark = match mark {
                    0 => String::new(),
                    mark => format!(" with mark {mark:#x}"),
                };
                out.push(format!("to the wire{mark}: {}", packet(&answer.bytes)));
                out.push(format!("    {}", decode::hex(&answer.bytes)));
            }
            To::Host => {
                out.push(format!("to the host: {}", packet(&answer.bytes)));
                out.push(format!("    {}", decode::hex(&answer.bytes)));
            }
        }
    }
    out
}

/// What a happening was.
#[must_use]
pub fn title(happening: &Happening<'_>) -> String {
    match &happening.happened.what {
        What::Step(step) => match step {
            Step::Create { netns } => format!("namespace {} is made", netns.0),
            Step::Destroy { netns } => format!("namespace {} ends", netns.0),
            Step::Limits(_) => "table sizes change".into(),
            Step::Request { peer, bytes, .. } => {
                format!("{} from port {}", kinds(bytes), peer.port)
            }
            Step::Pull { peer } => format!("port {} reads on", peer.port),
            Step::Close { port, .. } => format!("port {port} is closed"),
            Step::SocketPolicy { socket, value, .. } => match value {
                Some(_) => format!("socket {} gets a policy", socket.0),
                None => format!("socket {} has policies taken away", socket.0),
            },
            Step::Listeners { group, count, .. } => format!("{count} listen to group {group}"),
            Step::Sysctls { netns, .. } => format!("settings of namespace {} change", netns.0),
            Step::Timers { netns, .. } => format!("timers of namespace {}", netns.0),
            Step::Inquiries { asked, .. } => {
                format!("what packets of namespace {} asked for", asked.netns.0)
            }
            Step::Release { netns, .. } => format!("what waits in namespace {}", netns.0),
        },
        What::Passage { passage, bytes, .. } => match passage {
            Passage::Begin { .. } => "a packet thread begins".into(),
            Passage::Output { .. } => format!("out: {}", packet(bytes)),
            Passage::Input { .. } => format!("in: {}", packet(bytes)),
            Passage::Inner { .. } => "packets out of an IPTFS SA".into(),
            Passage::Retry { .. } => "packets that have waited".into(),
            Passage::Iptfs { .. } => "packets that have waited in an IPTFS SA".into(),
        },
        What::Recall { kept, .. } => format!(
            "another daemon goes on where one was killed, with {} records",
            kept.len()
        ),
    }
}

/// The messages of a datagram, by name.
fn kinds(datagram: &[u8]) -> String {
    let mut names = messages(datagram).map(|(header, _)| decode::kind_name(header.kind));
    let first = names.next().unwrap_or_else(|| "nothing".into());
    match names.count() {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// A packet in a few words.
fn packet(packet: &[u8]) -> String {
    let (from, to, protocol) = match ends(packet) {
        Some(ends) => ends,
        None => return format!("{} bytes", packet.len()),
    };
    format!("{from} > {to} protocol {protocol}, {} bytes", packet.len())
}

/// Source, destination and protocol of an IP packet.
#[must_use]
pub fn ends(packet: &[u8]) -> Option<(IpAddr, IpAddr, u8)> {
    fn address<const BYTES: usize>(packet: &[u8], at: usize) -> Option<IpAddr>
    where
        [u8; BYTES]: Into<IpAddr>,
    {
        Some((*packet.get(at..)?.first_chunk::<BYTES>()?).into())
    }
    match packet.first()? >> 4 {
        4 => Some((
            address::<4>(packet, 12)?,
            address::<4>(packet, 16)?,
            *packet.get(9)?,
        )),
        6 => Some((
            address::<16>(packet, 8)?,
            address::<16>(packet, 24)?,
            *packet.get(6)?,
        )),
        _ => None,
    }
}

/// What differs between two recordings, as a unified diff; nothing where nothing does.
#[must_use]
pub fn recordings(names: [&str; 2], recordings: [&Recording<'_>; 2]) -> String {
    let [a, b] = recordings.map(spis);
    let shared: BTreeSet<u32> = a.intersection(&b).copied().collect();
    let [old, new] = recordings.map(|recording| story(recording, &shared));
    let diff = TextDiff::from_lines(&old, &new);
    let [old_name, new_name] = names;
    let mut unified = diff.unified_diff();
    let unified = unified.context_radius(CONTEXT + 1);
    unified.header(old_name, new_name).to_string()
}

/// SPIs that SAs have in a recording.
fn spis(recording: &Recording<'_>) -> BTreeSet<u32> {
    let mut spis = BTreeSet::new();
    let mut see = |datagram: &[u8]| {
        for (_, message) in messages(datagram) {
            spis.extend(spi_of(message));
        }
    };
    for happening in &recording.happenings {
        if let What::Step(Step::Request { bytes, .. }) = &happening.happened.what {
            see(bytes);
        }
        for answer in &happening.answers {
            if matches!(answer.to, To::Client(..)) {
                see(&answer.bytes);
            }
        }
    }
    spis
}

fn spi_of(message: &[u8]) -> Option<u32> {
    let header = NlMsgHdr::read(message)?;
    let is_sa = matches!(
        header.kind,
        XFRM_MSG_NEWSA | XFRM_MSG_UPDSA | XFRM_MSG_EXPIRE
    );
    let info = UserSaInfo::read(message.get(NLMSG_HDRLEN..)?)?;
    Some(info.id.spi.get()).filter(|&spi| is_sa && spi != 0)
}

/// A recording as text that another one can be compared with.
fn story(recording: &Recording<'_>, shared: &BTreeSet<u32>) -> String {
    let mut out = String::new();
    let first = recording.happenings.iter().find(|it| it.nanos != 0);
    let begin = first.map_or(0, |it| it.nanos / 1_000_000_000);
    let mut normalizer = Normalizer::new(begin, false);
    for &spi in shared {
        normalizer.keep_spi(spi);
    }
    normalizer.learns_spis = true;
    let mut ports = Vec::new();
    let mut datagram = |out: &mut String, head: &str, bytes: &[u8], groups: u32| {
        let mut bytes = bytes.to_vec();
        keys::zero(&mut bytes);
        for (_, message) in messages(&bytes) {
            if spi_of(message).is_some_and(|spi| !shared.contains(&spi)) {
                normalizer.learn_spi(message);
            }
        }
        let bytes = normalizer.datagram(&bytes, groups);
        for (_, message) in messages(&bytes) {
            let mut message = message.to_vec();
            // Sequence number and port id, also of the request in an error.
            let is_error = NlMsgHdr::read(&message).is_some_and(|it| it.kind == NLMSG_ERROR);
            let copy = NLMSG_HDRLEN + ERRNO_BYTES;
            for at in [0, copy].into_iter().take(1 + usize::from(is_error)) {
                let from = message.get_mut(at + 8..at + NLMSG_HDRLEN);
                from.unwrap_or_default().fill(0);
            }
            let text = decode::message(&message);
            let mut text = text.iter();
            let first = text.next().map_or("", String::as_str);
            let _ = writeln!(out, "{head} {first}");
            for line in text {
                let _ = writeln!(out, "    {line}");
            }
        }
    };
    for happening in &recording.happenings {
        let interesting = !happening.answers.is_empty() || !happening.happened.fate.is_empty();
        match &happening.happened.what {
            What::Step(Step::Request { peer, bytes, .. }) => {
                let head = format!("> {}", name(&mut ports, peer.port));
                datagram(&mut out, &head, bytes, 0);
            }
            What::Passage { passage, .. } if interesting => {
                if matches!(passage, Passage::Output { .. } | Passage::Input { .. }) {
                    let _ = writeln!(out, "> {}", title(happening));
                }
            }
            What::Step(Step::SocketPolicy { value, .. }) => {
                let what = if value.is_some() { "set" } else { "taken away" };
                let _ = writeln!(out, "> a socket's policy is {what}");
            }
            What::Step(Step::Sysctls { sysctls, .. }) => {
                let _ = writeln!(out, "> settings {sysctls:?}");
            }
            What::Step(Step::Timers { .. }) if interesting => {
                let _ = writeln!(out, "> timers");
            }
            What::Recall { .. } => {
                let _ = writeln!(out, "> the daemon is killed, and another goes on");
            }
            _ => {}
        }
        if !happening.happened.fate.is_empty() {
            let _ = writeln!(out, "< {}", happening.happened.fate);
        }
        for answer in &happening.answers {
            match answer.to {
                To::Client(_, Destination::Port(port)) => {
                    let head = format!("< {}", name(&mut ports, port));
                    datagram(&mut out, &head, &answer.bytes, 0);
                }
                To::Client(_, Destination::Group(group)) => {
                    let head = format!("< group {group}");
                    datagram(&mut out, &head, &answer.bytes, group);
                }
                To::Wire(_) => {
                    let _ = writeln!(out, "< to the wire: {}", packet(&answer.bytes));
                }
                To::Host => {
                    let _ = writeln!(out, "< to the host: {}", packet(&answer.bytes));
                }
            }
        }
    }
    out
}

/// Sockets are named in the order in which they appear.
fn name(ports: &mut Vec<u32>, port: u32) -> String {
    let known = ports.iter().position(|&known| known == port);
    let index = known.unwrap_or_else(|| {
        ports.push(port);
        ports.len() - 1
    });
    format!("socket {}", index + 1)
}
