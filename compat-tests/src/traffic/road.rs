//! What a traffic scenario does, and what goes into its transcript.
//!
//! After every step stand, in this order: packets that left, datagrams that sockets got,
//! counters that moved, SAs and policies that changed, and then the events.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;

use super::craft::ip;
use super::describe;
use crate::message::Message;
use crate::scenario::Sa;
use crate::scenario::build::Policy;
use crate::session::{Open, Session};
use crate::subject::packets::{LINKS, Link, UdpOptions};
use crate::subject::{Socket, UdpSocket};
use xfrm_proto::decode::{self, hex};

/// A subject under traffic.
pub(super) struct Road<'a, 's> {
    session: &'a mut Session<'s>,
    control: Socket,
    listener: Option<Socket>,
    udp: Vec<UdpSocket>,
    mib: BTreeMap<String, u64>,
    sas: BTreeMap<String, String>,
    policies: BTreeMap<String, String>,
}

impl<'a, 's> Road<'a, 's> {
    /// With a listener for all events, and without those that depend on how long a step takes.
    pub(super) fn new(session: &'a mut Session<'s>) -> Self {
        session.set_sysctl_silently("xfrm_aevent_etime", 0);
        Self::with_aevent_timers(session)
    }

    /// With a listener for all events.
    pub(super) fn with_aevent_timers(session: &'a mut Session<'s>) -> Self {
        let mut road = Self::without_listener(session);
        road.listener = Some(road.session.open("events", Open::new().all_groups()));
        road
    }

    /// Without one.
    pub(super) fn without_listener(session: &'a mut Session<'s>) -> Self {
        let control = session.open("control", Open::new());
        let mut road = Self {
            session,
            control,
            listener: None,
            udp: Vec::new(),
            mib: BTreeMap::new(),
            sas: BTreeMap::new(),
            policies: BTreeMap::new(),
        };
        road.mib = road.session.packets().mib().into_iter().collect();
        road
    }

    /// Says what comes.
    pub(super) fn note(&mut self, text: &str) {
        self.session.note(text);
    }

    /// Asks for something; the answer and the events that follow it are not shown unless it fails.
    pub(super) fn request(&mut self, label: &str, message: Message) {
        let answer = self.session.fetch(self.control, message);
        let errno = answer.iter().find_map(|message| {
            let header = NlMsgHdr::read(message)?;
            (header.kind == NLMSG_ERROR)
                .then(|| -i32::from_ne_bytes(message[16..20].try_into().unwrap()))
        });
        self.session.line(&match errno {
            Some(0) => format!("> {label}"),
            other => format!("> {label} -> errno {}", other.unwrap_or(-1)),
        });
        self.session.drain_silently();
        self.remember();
        self.session.expect_prompt();
    }

    /// NEWSA.
    pub(super) fn sa(&mut self, label: &str, sa: &Sa) {
        self.request(&format!("sa {label}"), sa.new_sa());
    }

    /// NEWPOLICY.
    pub(super) fn policy(&mut self, label: &str, policy: &Policy) {
        self.request(&format!("policy {label}"), policy.new_policy());
    }

    /// SETDEFAULT.
    pub(super) fn defaults(&mut self, input: u8, fwd: u8, out: u8) {
        let wanted = UserPolicyDefault { input, fwd, out };
        let label = format!("defaults in {input} fwd {fwd} out {out}");
        self.request(&label, Message::with(XFRM_MSG_SETDEFAULT, &wanted));
    }

    /// Sets `net.core.NAME`.
    pub(super) fn set_sysctl(&mut self, name: &str, value: u32) {
        self.session.set_sysctl(name, value);
    }

    /// A UDP socket.
    pub(super) fn udp(&mut self, source: &str, port: u16) -> UdpSocket {
        let source = Some(SocketAddr::new(ip(source), port));
        self.udp_with(UdpOptions {
            source,
            ..UdpOptions::default()
        })
    }

    /// A UDP socket that is something special.
    pub(super) fn udp_with(&mut self, options: UdpOptions) -> UdpSocket {
        let v6 = options.source.is_some_and(|source| source.is_ipv6());
        let socket = self.session.open_udp(if v6 { AF_INET6 } else { AF_INET });
        self.udp.push(socket);
        let result = self.session.packets().configure_udp(socket, &options);
        if let Err(errno) = result {
            self.session
                .line(&format!("> udp {} -> errno {errno}", socket.0));
        }
        socket
    }

    /// A UDP socket's own policy.
    pub(super) fn socket_policy(&mut self, socket: UdpSocket, label: &str, value: Option<&[u8]>) {
        self.session
            .set_socket_policy(socket, label, AF_INET, value);
        self.remember();
    }

    /// Sends a datagram.
    pub(super) fn send(&mut self, socket: UdpSocket, to: &str, port: u16, payload: &[u8]) {
        let sent = self
            .session
            .packets()
            .send_udp(socket, SocketAddr::new(ip(to), port), payload);
        let what = format!(
            "> udp {} sends {} bytes to {to}:{port}",
            socket.0,
            payload.len()
        );
        self.session.line(&match sent {
            Ok(()) => what,
            Err(errno) => format!("{what} -> errno {errno}"),
        });
        self.report(false);
    }

    /// Sends a datagram; what comes of it is shown with the next step.
    pub(super) fn send_quietly(&mut self, socket: UdpSocket, to: &str, port: u16, payload: &[u8]) {
        let to = SocketAddr::new(ip(to), port);
        if let Err(errno) = self.session.packets().send_udp(socket, to, payload) {
            let text = format!("> udp {} sends {}: errno {errno}", socket.0, hex(payload));
            self.session.line(&text);
        }
    }

    /// A packet arrives.
    pub(super) fn inject(&mut self, label: &str, link: Link, packet: &[u8]) {
        let name = link_name(link);
        self.session.line(&format!(
            "> {label}: {name} {}",
            describe::packet(packet, true)
        ));
        self.session.packets().inject(link, packet);
        self.report(true);
    }

    /// Lets time pass until so long after the scenario began.
    pub(super) fn sleep_until(&mut self, milliseconds: u64) {
        self.session
            .sleep_until(Duration::from_millis(milliseconds));
        self.report(false);
    }

    /// `with_ids`: none of the packets is from a socket, which has identifications of its own.
    fn report(&mut self, with_ids: bool) {
        for link in LINKS {
            while let Some(packet) = self.session.packets().take(link) {
                let name = link_name(link);
                self.session
                    .line(&format!("< {name} {}", describe::packet(&packet, with_ids)));
            }
        }
        for index in 0..self.udp.len() {
            let socket = self.udp[index];
            loop {
                let text = match self.session.packets().receive_udp(socket) {
                    Ok(None) => break,
                    Ok(Some(datagram)) => {
                        let text = match datagram.payload.len() {
                            0..48 => hex(&datagram.payload),
                            bytes => format!("{bytes} bytes"),
                        };
                        format!("from {}: {text}", datagram.from)
                    }
                    Err(errno) => format!("errno {errno}"),
                };
                self.session.line(&format!("< udp {} {text}", socket.0));
            }
        }
        let before = std::mem::take(&mut self.mib);
        self.mib = self.session.packets().mib().into_iter().collect();
        for (name, now) in &self.mib {
            let moved = now - before.get(name).copied().unwrap_or(0);
            if moved != 0 {
                self.session.line(&format!("  {name} +{moved}"));
            }
        }
        let (sas, policies) = (self.sas.clone(), self.policies.clone());
        self.remember();
        changes(self.session, &sas, &self.sas);
        changes(self.session, &policies, &self.policies);
        if let Some(listener) = self.listener {
            self.session.drain(listener);
        }
        self.session.expect_prompt();
    }

    /// What SAs and policies are there, and how they are.
    fn remember(&mut self) {
        let sas = self
            .session
            .fetch(self.control, Message::dump(XFRM_MSG_GETSA));
        self.sas = sas.iter().filter_map(|message| sa_line(message)).collect();
        let policies = self
            .session
            .fetch(self.control, Message::dump(XFRM_MSG_GETPOLICY));
        let lines = policies.iter().filter_map(|message| policy_line(message));
        self.policies = lines.collect();
    }
}

fn link_name(link: Link) -> &'static str {
    match link {
        Link::Inside => "inside",
        Link::Outside => "outside",
    }
}

fn changes(
    session: &mut Session<'_>,
    before: &BTreeMap<String, String>,
    now: &BTreeMap<String, String>,
) {
    for (name, text) in now {
        match before.get(name) {
            None => session.line(&format!("  new {name}: {text}")),
            Some(old) if old != text => session.line(&format!("  {name}: {text}")),
            Some(_) => {}
        }
    }
    for name in before.keys().filter(|name| !now.contains_key(*name)) {
        session.line(&format!("  gone {name}"));
    }
}

/// What names an SA in a dump, and what changes about it.
fn sa_line(message: &[u8]) -> Option<(String, String)> {
    let header = NlMsgHdr::read(message)?;
    if header.kind != XFRM_MSG_NEWSA {
        return None;
    }
    let body = &message[NLMSG_HDRLEN..];
    let info = UserSaInfo::read(body)?;
    let mut message = message.to_vec();
    let larval = info.id.spi.get() == 0;
    if larval {
        // The number of its acquire, which all namespaces share.
        message[NLMSG_HDRLEN + 204..][..4].fill(0);
    }
    let lines = decode::message(&message);
    let attr = |name: &str| lines.iter().find(|line| line.starts_with(name));
    let replay = attr("REPLAY_").map_or("", |line| line.as_str());
    let used = if info.curlft.use_time == 0 {
        "unused"
    } else {
        "used"
    };
    let last = if attr("LASTUSED").is_some() {
        " lastused"
    } else {
        ""
    };
    let mut name = format!("sa {} {:#x}", info.id.proto, info.id.spi);
    if larval {
        // A larval one: all there is to see.
        name += &format!(" {}", lines[1]);
    }
    let text = format!(
        "{} bytes {} packets {used}{last} errors {}/{}/{} {replay}",
        info.curlft.bytes,
        info.curlft.packets,
        info.stats.replay_window,
        info.stats.replay,
        info.stats.integrity_failed,
    );
    Some((name, text))
}

/// What names a policy in a dump, and what changes about it.
fn policy_line(message: &[u8]) -> Option<(String, String)> {
    let header = NlMsgHdr::read(message)?;
    if header.kind != XFRM_MSG_NEWPOLICY {
        return None;
    }
    let info = UserPolicyInfo::read(&message[NLMSG_HDRLEN..])?;
    let used = if info.curlft.use_time == 0 {
        "unused"
    } else {
        "used"
    };
    let text = format!(
        "{} bytes {} packets {used}",
        info.curlft.bytes, info.curlft.packets
    );
    Some((format!("policy {} {}", info.dir, info.index), text))
}
