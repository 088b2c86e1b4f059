//! Rules and routes in place of nf_tables, for a host without it.
//!
//! | preference | does |
//! |---|---|
//! | 10 | lets pass the checks: what this host sends, what comes from the device, what is protected, IKE |
//! | 11 | leads every protocol to the checks; what has none is a question that ARP asks |
//! | 12 | lets pass the checks |
//! | 19 | nothing: where 11 leads |
//! | 20 to 27 | drops what IN policies want protected, block, or have no policy for |
//! | 60 | the table `local`, which stands at 0 otherwise |
//! | 61 | lets pass the next checks: what this host sends, what comes from the device |
//! | 70 to 77 | the same for FWD policies |
//! | 78 | nothing: where 61 leads |
//! | 79 to 86 | leads what goes to the destinations of OUT policies to the devices |
//!
//! A rule cannot say all that a policy can, and a local sender's packet has no source yet when its
//! route is looked up. So output is a superset, of which the engine finds out what no policy is
//! for: that is sent on as it is. What is checked is a superset too, and there nobody gives
//! anything back: ports, ICMP types, interfaces and marks are left out where a policy protects or
//! blocks, and a policy that lets pass and has any of them lets nothing pass. Forwarded packets
//! meet IN policies too. Nothing is counted, and blocked senders get no error.
//!
//! The host must not deliver by what it remembers of a socket's last packet, which may have come
//! from the device: `ip_early_demux` is off meanwhile.
//!
//! A change is a new set of rules at another preference of the eight, all of it there before the
//! old one goes from its end: a part of a set decides as the whole or not at all. Our rules are
//! known by their protocol, so that whoever comes after a daemon that was killed finds them.
//!
//! Source: rtnetlink(7), `include/uapi/linux/fib_rules.h`, `net/core/fib_rules.c`.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io;

use nix::sys::socket::SockProtocol;
use xfrm_proto::consts::*;
use xfrm_proto::uapi::Address;

use super::classify::{Shape, Verdict, prefix_mask};
use super::firewall::{Chain, Firewall};
use super::netlink::{Messages, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, Socket, attrs};
use super::{DEVICE, MARK_MASK, link, routes};

const EXEMPT: u32 = 10;
const WITH_PROTOCOL: u32 = 11;
const WITHOUT: u32 = 12;
const BEFORE_CHECKS: u32 = 19;
const CHECK_INPUT: u32 = 20;
const LOCAL: u32 = 60;
const EXEMPT_FORWARDED: u32 = 61;
const CHECK_FORWARD: u32 = 70;
const BEHIND_CHECKS: u32 = 78;
const CAPTURE: u32 = 79;
/// Sets of rules that may be there at once: one, and what daemons left that were killed at work.
const SETS: u32 = 8;

const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;
const RTM_GETADDR: u16 = 22;
const RTM_NEWADDR: u16 = 20;
const NLM_F_DUMP: u16 = 0x300;
const HEADER_BYTES: usize = 12;
const FRA_PRIORITY: u16 = 6;
const FRA_PROTOCOL: u16 = 21;
/// By which our rules are known; nobody's else (`/etc/iproute2/rt_protos`).
const PROTOCOL: u8 = 0x78;
const RTPROT_KERNEL: u8 = 2;
const TABLE_LOCAL: u32 = 255;
const FAMILIES: [u16; 2] = [AF_INET, AF_INET6];
/// UDP ports of IKE.
const IKE_PORTS: [u16; 2] = [500, 4500];
const PROTECTED: [u8; 5] = [
    IPPROTO_ESP,
    IPPROTO_AH,
    IPPROTO_COMP,
    IPPROTO_IPIP,
    IPPROTO_IPV6,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Action {
    Table(u32),
    Goto(u32),
    Nothing,
    Drop,
}

/// An address and how many of its bits count.
type Prefix = ([u8; 16], u8);
const ANY: Prefix = ([0; 16], 0);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rule {
    family: u16,
    preference: u32,
    action: Action,
    source: Prefix,
    destination: Prefix,
    protocol: u8,
    /// Destination port of UDP.
    port: Option<u16>,
    input: Option<&'static str>,
    /// Bits of the mark that are all zero.
    unmarked: u32,
    /// Who made it.
    maker: u8,
}

impl Rule {
    const fn new(family: u16, preference: u32, action: Action) -> Self {
        Self {
            family,
            preference,
            action,
            source: ANY,
            destination: ANY,
            protocol: 0,
            port: None,
            input: None,
            unmarked: 0,
            maker: PROTOCOL,
        }
    }

    /// `struct fib_rule_hdr` and attributes.
    fn push(&self, messages: &mut Messages, kind: u16, flags: u16) {
        const FRA_DST: u16 = 1;
        const FRA_SRC: u16 = 2;
        const FRA_IIFNAME: u16 = 3;
        const FRA_GOTO: u16 = 4;
        const FRA_FWMARK: u16 = 10;
        const FRA_TABLE: u16 = 15;
        const FRA_FWMASK: u16 = 16;
        const FRA_IP_PROTO: u16 = 22;
        const FRA_DPORT_RANGE: u16 = 24;
        let action = match self.action {
            Action::Table(_) => 1,
            Action::Goto(_) => 2,
            Action::Nothing => 3,
            Action::Drop => 6,
        };
        let bytes = if self.family == AF_INET6 { 16 } else { 4 };
        let [family, _] = self.family.to_le_bytes();
        let ((source, source_bits), (destination, destination_bits)) =
            (self.source, self.destination);
        messages.push(kind, flags | NLM_F_ACK, |out| {
            let bits = [destination_bits, source_bits];
            out.fixed(&[family, bits[0], bits[1], 0, 0, 0, 0, action, 0, 0, 0, 0]);
            out.number(FRA_PRIORITY, self.preference);
            out.attr(FRA_PROTOCOL, &[self.maker]);
            for (kind, address, bits) in [
                (FRA_SRC, source, source_bits),
                (FRA_DST, destination, destination_bits),
            ] {
                if bits > 0 {
                    out.attr(kind, address.get(..bytes).unwrap_or_default());
                }
            }
            match self.action {
                Action::Table(table) => out.number(FRA_TABLE, table),
                Action::Goto(preference) => out.number(FRA_GOTO, preference),
                Action::Nothing | Action::Drop => {}
            }
            if let Some(input) = self.input {
                out.text(FRA_IIFNAME, input);
            }
            if self.unmarked != 0 {
                out.number(FRA_FWMARK, 0);
                out.number(FRA_FWMASK, self.unmarked);
            }
            if self.protocol != 0 {
                out.attr(FRA_IP_PROTO, &[self.protocol]);
            }
            if let Some(port) = self.port {
                let [a, b] = port.to_ne_bytes();
                out.attr(FRA_DPORT_RANGE, &[a, b, a, b]);
            }
        });
    }
}

/// A rule of ours that the host has.
struct Found {
    preference: u32,
    /// As the host says it, and takes it back.
    body: Vec<u8>,
}

/// The rules of a namespace.
#[derive(Debug)]
pub(super) struct Rules {
    socket: Socket,
    ways: Vec<link::Way>,
    /// The fixed ones are there.
    is_begun: Cell<bool>,
}

const EARLY_DEMUX: &str = "/proc/sys/net/ipv4/ip_early_demux";

impl Rules {
    /// In the thread's namespace, which has the devices.
    ///
    /// # Errors
    /// The host's.
    pub(super) fn open() -> io::Result<Self> {
        let socket = Socket::open(SockProtocol::NetlinkRoute)?;
        let ways = link::ways()?;
        let is_begun = Cell::new(false);
        std::fs::write(EARLY_DEMUX, "0")?;
        Ok(Self {
            socket,
            ways,
            is_begun,
        })
    }

    /// By which they are made.
    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Whether what the host has is ours.
    pub(super) fn are_ours(&self) -> bool {
        self.is_begun.get()
    }

    /// Brings the host up to date. What a daemon has left that was killed stays until there is
    /// something in its place.
    ///
    /// # Errors
    /// The host's: then it has what it had, and possibly a part of what it should have, which adds
    /// to that and is taken away with the next change.
    pub(super) fn apply(&self, firewall: &mut Firewall) -> io::Result<()> {
        firewall.forget_edits();
        let begins = !self.is_begun.get();
        let is_left = begins && firewall.is_idle() && !firewall.is_ours();
        if is_left && !dump(&self.socket, AF_INET)?.is_empty() {
            return Ok(());
        }
        for family in FAMILIES {
            if let Err(error) = self.apply_family(firewall, family) {
                let absent = matches!(
                    error.raw_os_error(),
                    Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)
                );
                if family == AF_INET6 && absent {
                    tracing::debug!("no IPv6");
                    continue;
                }
                return Err(error);
            }
        }
        self.is_begun.set(true);
        Ok(())
    }

    fn apply_family(&self, firewall: &Firewall, family: u16) -> io::Result<()> {
        let before = dump(&self.socket, family)?;
        let is_used = |set: &u32| {
            let ours = [CHECK_INPUT, CHECK_FORWARD, CAPTURE].map(|first| first + set);
            before.iter().any(|found| ours.contains(&found.preference))
        };
        let set = (0..SETS).find(|set| !is_used(set));
        let set = set.ok_or(io::ErrorKind::StorageFull)?;
        if !self.is_begun.get() {
            for rule in fixed(family) {
                add(&self.socket, &rule)?;
            }
        }
        // Only now the other one of these may go.
        forget(&self.socket, |messages| {
            local(family, 0, RTPROT_KERNEL).push(messages, RTM_DELRULE, 0)
        })?;
        for destination in self.captured(firewall, family) {
            link::lead_destination(&self.socket, &self.ways, &destination)?;
            let destination = destination.prefix;
            for &link::Way { table, .. } in &self.ways {
                let is_plain = table == link::TABLE;
                let unmarked = if is_plain { u32::MAX } else { MARK_MASK };
                add(
                    &self.socket,
                    &Rule {
                        destination,
                        unmarked,
                        ..Rule::new(family, CAPTURE + set, Action::Table(table))
                    },
                )?;
            }
        }
        for rule in checks(firewall, family, set) {
            add(&self.socket, &rule)?;
        }
        let is_old = |found: &&Found| {
            let ranges = [CHECK_INPUT, CHECK_FORWARD, CAPTURE].map(|first| first..first + SETS);
            let place = ranges
                .iter()
                .find(|range| range.contains(&found.preference));
            place.is_some_and(|range| found.preference != range.start + set)
        };
        delete(&self.socket, before.iter().filter(is_old).rev())
    }

    /// Destinations of what OUT policies protect or block, and the ways there.
    fn captured(&self, firewall: &Firewall, family: u16) -> Vec<link::Destination> {
        let mut wanted: BTreeSet<(Prefix, Prefix)> = BTreeSet::new();
        for chain in firewall.chains().filter(|it| it.dir == XFRM_POLICY_OUT) {
            if chain.default_blocks {
                wanted.insert((ANY, ANY));
            }
            for (verdict, shape, key) in entries(&chain, family) {
                if verdict != Verdict::Bypass {
                    let (source, destination) = ends(shape, key);
                    wanted.insert((destination, source));
                }
            }
        }
        let own = self.own_addresses(family);
        let mut found: Vec<link::Destination> = Vec::new();
        for (prefix, source) in wanted {
            let inside = |address: &Address| source.1 > 0 && is_in(address, source, family);
            let source = own.iter().copied().find(inside);
            if let Some(last) = found.last_mut().filter(|last| last.prefix == prefix) {
                last.source = source.or(last.source);
                continue;
            }
            let to = match prefix {
                (_, 0) => anywhere(family),
                (address, _) => Address(address),
            };
            let way = routes::own_way(&self.socket, family, to);
            let (usual, mtu) = way.unwrap_or((Address::ANY, routes::LEAST_MTU_V6));
            found.push(link::Destination {
                family,
                prefix,
                source: source.or(Some(usual).filter(|it| *it != Address::ANY)),
                mtu,
            });
        }
        found
    }

    /// This host's addresses, but for those of the loopback.
    fn own_addresses(&self, family: u16) -> Vec<Address> {
        const IFA_ADDRESS: u16 = 1;
        const IFA_LOCAL: u16 = 2;
        const ADDRESS_HEADER_BYTES: usize = 8;
        const RT_SCOPE_HOST: u8 = 254;
        let mut messages = Messages::default();
        let [family_byte, _] = family.to_le_bytes();
        messages.push(RTM_GETADDR, NLM_F_DUMP, |out| {
            out.fixed(&[family_byte, 0, 0, 0, 0, 0, 0, 0]);
        });
        let mut found = Vec::new();
        let asked = self.socket.exchange(&messages, |kind, payload| {
            let usable = payload.get(3).is_some_and(|&scope| scope < RT_SCOPE_HOST);
            if kind != RTM_NEWADDR || payload.first() != Some(&family_byte) || !usable {
                return;
            }
            let all = || attrs(payload.get(ADDRESS_HEADER_BYTES..).unwrap_or_default());
            let of = |wanted| all().find(|&(kind, _)| kind == wanted).map(|(_, it)| it);
            found.extend(
                of(IFA_LOCAL)
                    .or_else(|| of(IFA_ADDRESS))
                    .map(routes::address),
            );
        });
        if let Err(error) = asked {
            tracing::debug!(%error, "asking for addresses");
        }
        found
    }
}

/// Takes all rules of ours away, in the thread's namespace or that of a socket.
///
/// # Errors
/// The host's.
pub(super) fn remove(socket: &Socket) -> io::Result<()> {
    for family in FAMILIES {
        let Ok(found) = dump(socket, family) else {
            continue;
        };
        if found.is_empty() {
            continue;
        }
        add(socket, &local(family, 0, RTPROT_KERNEL))?;
        delete(socket, found.iter().rev())?;
    }
    Ok(())
}

/// Has the host deliver as is usual, in the thread's namespace.
///
/// # Errors
/// The host's.
pub(super) fn restore_delivery() -> io::Result<()> {
    std::fs::write(EARLY_DEMUX, "1")
}

/// Whether a daemon, alive or killed, has put rules into the thread's namespace.
pub(super) fn are_there() -> bool {
    let found = Socket::open(SockProtocol::NetlinkRoute).and_then(|it| dump(&it, AF_INET));
    found.is_ok_and(|found| !found.is_empty())
}

fn add(socket: &Socket, rule: &Rule) -> io::Result<()> {
    let mut messages = Messages::default();
    rule.push(&mut messages, RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL);
    match socket.transact(&messages) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

fn forget(socket: &Socket, say: impl FnOnce(&mut Messages)) -> io::Result<()> {
    let mut messages = Messages::default();
    say(&mut messages);
    match socket.transact(&messages) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

fn delete<'a>(socket: &Socket, rules: impl Iterator<Item = &'a Found>) -> io::Result<()> {
    for rule in rules {
        forget(socket, |messages| {
            messages.push(RTM_DELRULE, NLM_F_ACK, |out| out.fixed(&rule.body));
        })?;
    }
    Ok(())
}

/// Our rules, in their order.
fn dump(socket: &Socket, family: u16) -> io::Result<Vec<Found>> {
    let mut messages = Messages::default();
    let [family_byte, _] = family.to_le_bytes();
    messages.push(RTM_GETRULE, NLM_F_DUMP, |out| {
        out.fixed(&[family_byte, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    });
    let mut found = Vec::new();
    socket.exchange(&messages, |kind, payload| {
        if kind != RTM_NEWRULE || payload.first() != Some(&family_byte) {
            return;
        }
        let all = || attrs(payload.get(HEADER_BYTES..).unwrap_or_default());
        let of = |wanted| all().find(|&(kind, _)| kind == wanted).map(|(_, it)| it);
        if of(FRA_PROTOCOL) != Some(&[PROTOCOL][..]) {
            return;
        }
        let preference = of(FRA_PRIORITY).and_then(|it| it.first_chunk());
        found.push(Found {
            preference: preference.map_or(0, |it| u32::from_ne_bytes(*it)),
            body: payload.to_vec(),
        });
    })?;
    Ok(found)
}

/// An address that the default route is for.
fn anywhere(family: u16) -> Address {
    let mut address = Address::ANY;
    let bytes: &[u8] = if family == AF_INET6 { &[0x20] } else { &[1; 4] };
    for (slot, byte) in address.0.iter_mut().zip(bytes) {
        *slot = *byte;
    }
    address
}

const fn local(family: u16, preference: u32, maker: u8) -> Rule {
    Rule {
        maker,
        ..Rule::new(family, preference, Action::Table(TABLE_LOCAL))
    }
}

/// Rules that are there whatever policies there are.
fn fixed(family: u16) -> Vec<Rule> {
    let exempt = Rule::new(family, EXEMPT, Action::Goto(LOCAL));
    let forwarded = Rule::new(family, EXEMPT_FORWARDED, Action::Goto(BEHIND_CHECKS));
    let mut rules = vec![
        local(family, LOCAL, PROTOCOL),
        Rule::new(family, BEHIND_CHECKS, Action::Nothing),
    ];
    for input in ["lo", DEVICE] {
        let input = Some(input);
        rules.push(Rule { input, ..exempt });
        rules.push(Rule { input, ..forwarded });
    }
    rules.extend(PROTECTED.map(|protocol| Rule { protocol, ..exempt }));
    rules.extend(IKE_PORTS.map(|port| Rule {
        protocol: IPPROTO_UDP,
        port: Some(port),
        ..exempt
    }));
    rules.push(Rule::new(family, BEFORE_CHECKS, Action::Nothing));
    let checked = Rule::new(family, WITH_PROTOCOL, Action::Goto(BEFORE_CHECKS));
    let common = [IPPROTO_TCP, IPPROTO_UDP, IPPROTO_ICMP, IPPROTO_ICMPV6];
    let others = (1..=u8::MAX).filter(|it| !common.contains(it) && !PROTECTED.contains(it));
    let protocols = common.into_iter().chain(others);
    rules.extend(protocols.map(|protocol| Rule {
        protocol,
        ..checked
    }));
    rules.push(Rule::new(family, WITHOUT, Action::Goto(LOCAL)));
    rules
}

/// What IN and FWD policies do to what is not protected, in their order.
fn checks(firewall: &Firewall, family: u16, set: u32) -> Vec<Rule> {
    let mut rules = Vec::new();
    for (dir, first, behind) in [
        (XFRM_POLICY_IN, CHECK_INPUT, LOCAL),
        (XFRM_POLICY_FWD, CHECK_FORWARD, BEHIND_CHECKS),
    ] {
        // A packet that a main policy lets pass is still a sub-policy's: those stand in front, and
        // let nothing pass by themselves.
        for kind in [XFRM_POLICY_TYPE_SUB, XFRM_POLICY_TYPE_MAIN] {
            let chains = firewall.chains();
            for chain in chains.filter(|it| (it.dir, it.kind) == (dir, kind)) {
                for (verdict, shape, key) in entries(&chain, family) {
                    let is_exact = shape.ports == [0; 4] && !shape.interface && shape.mark == 0;
                    let action = match verdict {
                        Verdict::Bypass if is_exact && kind == XFRM_POLICY_TYPE_MAIN => {
                            Action::Goto(behind)
                        }
                        Verdict::Bypass => continue,
                        Verdict::Protect | Verdict::Block => Action::Drop,
                    };
                    let (source, destination) = ends(shape, key);
                    rules.push(Rule {
                        source,
                        destination,
                        protocol: protocol(shape, key),
                        ..Rule::new(family, first + set, action)
                    });
                }
                if chain.default_blocks {
                    rules.push(Rule::new(family, first + set, Action::Drop));
                }
            }
        }
    }
    rules
}

/// All that a chain's policies select of a family, in their order.
fn entries<'a>(
    chain: &Chain<'a>,
    family: u16,
) -> impl Iterator<Item = (Verdict, &'a Shape, &'a [u8])> {
    chain.classifier.bands().iter().flat_map(move |band| {
        let sets = band.sets.iter();
        let ours = sets.filter(move |(shape, _)| shape.is_v6 == (family == AF_INET6));
        ours.flat_map(move |(shape, set)| set.keys().map(move |key| (band.verdict(), shape, key)))
    })
}

/// Source and destination of a key.
fn ends(shape: &Shape, key: &[u8]) -> (Prefix, Prefix) {
    let mut rest = key;
    let mut next = |bits: u8| {
        let (mut address, bytes) = ([0; 16], shape.address_bytes());
        if bits > 0
            && let Some((found, others)) = rest.split_at_checked(bytes)
        {
            for (slot, byte) in address.iter_mut().zip(found) {
                *slot = *byte;
            }
            rest = others;
        }
        (address, bits)
    };
    (next(shape.source_bits), next(shape.destination_bits))
}

/// The protocol of a key, 0 for any.
fn protocol(shape: &Shape, key: &[u8]) -> u8 {
    let addresses = [shape.source_bits, shape.destination_bits];
    let before = addresses.iter().filter(|bits| **bits > 0).count() * shape.address_bytes();
    let found = key.get(before).filter(|_| shape.protocol);
    found.copied().unwrap_or(0)
}

fn is_in(address: &Address, (network, bits): Prefix, family: u16) -> bool {
    let bytes = if family == AF_INET6 { 16 } else { 4 };
    let mask = prefix_mask(bits, bytes);
    let pairs = address.0.iter().zip(network).zip(mask);
    pairs.into_iter().all(|((a, b), mask)| a & mask == b & mask)
}
