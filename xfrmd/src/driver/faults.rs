//! Faults on purpose, carried out: what [`xfrmd::faults`] says strikes, here becomes of it.
//!
//! A request that is to fail never gets to the emulator: it is refused as the kernel would, by the
//! emulator's own acknowledgement. What becomes of answers and events is decided between the
//! emulator's outbox and the sockets. The packet threads ask for themselves
//! ([`super::packets`]).
//!
//! Without faults there is one look at a flag at each of these places. How far each rule has come is
//! kept in memory that the keeper holds too, so that a daemon that was killed by a rule, or otherwise,
//! goes on where it was.

use std::fmt::Display;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dataplane::BootNanos;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, raise};
use serde_json::Value;
use xfrm_proto::consts::*;
use xfrm_proto::extack::{AckOptions, ExtAck, XfrmError, write_done};
use xfrm_proto::reply::messages;
use xfrm_proto::uapi::{NlMsgHdr, Pod};
use xfrmd::emulator::{Destination, NetnsId, Peer};
use xfrmd::faults::kind::no_memory;
use xfrmd::faults::{Direction, Effect, Place, Plan, Struck, Subject, scenario};

use super::connection::{Connection, Reply};
use super::{Daemon, clock};

/// After this time an event is no longer kept for the next one.
const LONGEST_SWAP: u64 = 1_000_000_000;

/// What is to go wrong, as all threads know it.
#[derive(Debug)]
pub(super) struct Faults {
    /// Whether anything strikes requests or events.
    netlink: AtomicBool,
    /// Whether anything strikes packets.
    packets: AtomicBool,
    plan: Mutex<Plan>,
    kept: Arc<File>,
}

/// Memory in which a plan outlives the daemon.
pub(crate) fn keep(plan: &Plan) -> io::Result<Arc<File>> {
    let file = File::from(memfd_create(c"xfrmd-faults", MFdFlags::MFD_CLOEXEC)?);
    write(&file, plan)?;
    Ok(Arc::new(file))
}

/// A length comes first, so that what is there of a longer one does not matter.
fn write(file: &File, plan: &Plan) -> io::Result<()> {
    let text = plan.to_json().to_string();
    let bytes = u64::try_from(text.len()).unwrap_or(0).to_le_bytes();
    file.write_all_at(&[&bytes[..], text.as_bytes()].concat(), 0)
}

fn read(file: &File) -> Option<Plan> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, 0).ok()?;
    let most = file.metadata().ok()?.len();
    let len = u64::from_le_bytes(bytes).min(most);
    let mut text = vec![0; usize::try_from(len).ok()?];
    file.read_exact_at(&mut text, 8).ok()?;
    Plan::from_json(&serde_json::from_slice(&text).ok()?)
}

impl Faults {
    /// Goes on with a plan that is kept.
    pub(super) fn new(kept: Arc<File>) -> Self {
        let plan = read(&kept).unwrap_or_else(|| {
            tracing::error!("what was to go wrong is not known any more");
            Plan::default()
        });
        let faults = Self {
            netlink: AtomicBool::new(false),
            packets: AtomicBool::new(false),
            plan: Mutex::new(plan),
            kept,
        };
        faults.change(|_| ());
        faults
    }

    /// Whether anything strikes packets.
    pub(super) fn strike_packets(&self) -> bool {
        self.packets.load(Ordering::Relaxed)
    }

    fn strike_netlink(&self) -> bool {
        self.netlink.load(Ordering::Relaxed)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Plan) -> T) -> T {
        let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut plan);
        let netlink = [Place::Request, Place::Dump, Place::Event];
        let netlink = netlink.iter().any(|&place| plan.concerns(place));
        self.netlink.store(netlink, Ordering::Relaxed);
        let packets = plan.concerns(Place::Packet);
        self.packets.store(packets, Ordering::Relaxed);
        if let Err(error) = write(&self.kept, &plan) {
            tracing::error!(%error, "faults would not outlive the daemon");
        }
        changed
    }

    /// What strikes a packet.
    pub(super) fn packet(
        &self,
        direction: Direction,
        spi: Option<u32>,
        bytes: usize,
        packet: &dyn Display,
    ) -> Vec<Struck> {
        // Counts of packets are kept when something else is.
        let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        let struck = plan.packet(direction, spi, bytes, packet);
        drop(plan);
        struck.iter().for_each(tell);
        struck
    }
}

/// The line that says so.
fn tell(struck: &Struck) {
    tracing::warn!(
        target: "fault",
        fault = struck.rule,
        kind = struck.effect.name(),
        nth = struck.nth,
        on = struck.on,
        "a fault strikes"
    );
}

/// A datagram on its way.
struct Outgoing {
    netns: NetnsId,
    to: Destination,
    bytes: Vec<u8>,
}

/// A datagram that is kept back.
struct Kept {
    due: BootNanos,
    /// It goes as soon as another event of its namespace has gone.
    swapped: bool,
    datagram: Outgoing,
}

/// A dump with which something is wrong.
struct Dump {
    netns: NetnsId,
    port: u32,
    seq: u32,
    options: AckOptions,
    effect: Effect,
    /// Datagrams that it has made.
    chunks: u32,
}

/// What is under way.
pub(super) struct Mischief {
    pub(super) faults: Arc<Faults>,
    kept: Vec<Kept>,
    dumps: Vec<Dump>,
}

impl Mischief {
    pub(super) fn new(kept: Arc<File>) -> Self {
        Self {
            faults: Arc::new(Faults::new(kept)),
            kept: Vec::new(),
            dumps: Vec::new(),
        }
    }

    /// Whether requests have to be looked at.
    pub(super) fn strikes_requests(&self) -> bool {
        self.faults.strike_netlink()
    }

    /// Whether datagrams have to be looked at.
    pub(super) fn meddles(&self) -> bool {
        self.faults.strike_netlink() || !self.kept.is_empty() || !self.dumps.is_empty()
    }

    /// When a datagram that is kept back is due.
    pub(super) fn poll_timeout(&self) -> Option<BootNanos> {
        self.kept.iter().map(|it| it.due).min()
    }

    fn keep_back(&mut self, nanos: u64, swapped: bool, datagram: Outgoing) {
        self.kept.push(Kept {
            due: clock::uptime().plus_nanos(nanos),
            swapped,
            datagram,
        });
    }
}

/// Does nothing for a while, as far as clients can see.
fn pause(nanos: u64) {
    std::thread::sleep(Duration::from_nanos(nanos));
}

/// Ends as when somebody kills us.
fn crash() {
    let _ = raise(Signal::SIGKILL);
}

/// What becomes of the answer to a request.
#[derive(Clone, Copy, Default)]
enum Answered {
    #[default]
    AsUsual,
    Lost,
    Late(u64),
}

impl Daemon {
    /// Handles a datagram of which something may be struck; whether its sender is to learn that it
    /// has lost an answer.
    pub(super) fn handle_struck(&mut self, peer: Peer, datagram: &[u8]) -> bool {
        let faults = Arc::clone(&self.mischief.faults);
        let all: Vec<(&[u8], Vec<Struck>)> = faults.change(|plan| {
            let meet = |(header, message): (NlMsgHdr, _)| {
                let executes = header.flags & NLM_F_REQUEST != 0 && header.kind >= NLMSG_MIN_TYPE;
                let struck =
                    (executes && peer.privileged).then(|| plan.request(&Subject::of(message)));
                (message, struck.unwrap_or_default())
            };
            messages(datagram).map(meet).collect()
        });
        if all.iter().all(|(_, struck)| struck.is_empty()) {
            self.execute(peer, datagram);
            return false;
        }
        let mut overrun = false;
        let mut out = Vec::new();
        for (message, struck) in all {
            let mut answered = Answered::default();
            let mut error = None;
            let mut dies = false;
            for strike in &struck {
                tell(strike);
                match &strike.effect {
                    Effect::Pause(nanos) => pause(*nanos),
                    Effect::Crash { after: false } => crash(),
                    Effect::Crash { after: true } => dies = true,
                    Effect::Error {
                        errno,
                        extack,
                        after,
                    } => {
                        let text = extack.clone().map(Into::into);
                        error = Some((text_error(*errno, text), *after));
                    }
                    Effect::NoMemory => {
                        let kind = Subject::of(message).kind;
                        error = Some((no_memory(kind, self.settings.profile), false));
                    }
                    Effect::ReplyLost => answered = Answered::Lost,
                    Effect::ReplyLate(nanos) => answered = Answered::Late(*nanos),
                    Effect::Overrun => {
                        answered = Answered::Lost;
                        overrun = true;
                    }
                    Effect::DumpInterrupted { .. }
                    | Effect::DumpCut { .. }
                    | Effect::DumpError { .. } => {
                        self.mischief
                            .dumps
                            .retain(|it| (it.netns, it.port) != (peer.netns, peer.port));
                        self.mischief.dumps.push(Dump {
                            netns: peer.netns,
                            port: peer.port,
                            seq: NlMsgHdr::read(message).unwrap_or_default().seq,
                            options: peer.options,
                            effect: strike.effect.clone(),
                            chunks: 0,
                        });
                    }
                    // These strike elsewhere.
                    Effect::EventLost
                    | Effect::EventTwice
                    | Effect::EventLate(_)
                    | Effect::EventSwapped
                    | Effect::EventOverrun
                    | Effect::PacketLost
                    | Effect::PacketTwice
                    | Effect::PacketSwapped
                    | Effect::PacketCorrupt
                    | Effect::PacketLate(_)
                    | Effect::PacketTooBig => {}
                }
            }
            let answer = Destination::Port(peer.port);
            if error.as_ref().is_none_or(|&(_, after)| after) {
                self.execute(peer, message);
            }
            let mut made = self.take_outgoing();
            if dies {
                crash();
            }
            if let Some((error, after)) = error {
                made.retain(|it| it.to != answer);
                if after {
                    self.emulator.close_socket(peer.netns, peer.port);
                }
                self.emulator.refuse(peer, message, &error);
                made.append(&mut self.take_outgoing());
            }
            for datagram in made {
                match answered {
                    Answered::Lost if datagram.to == answer => {}
                    Answered::Late(nanos) if datagram.to == answer => {
                        self.mischief.keep_back(nanos, false, datagram);
                    }
                    _ => out.push(datagram),
                }
            }
        }
        self.put_back(out);
        overrun
    }

    fn take_outgoing(&mut self) -> Vec<Outgoing> {
        let mut taken = Vec::new();
        while let Some(datagram) = self.emulator.poll_datagram() {
            taken.push(Outgoing {
                netns: datagram.netns,
                to: datagram.to,
                bytes: datagram.bytes.to_vec(),
            });
        }
        taken
    }

    fn put_back(&mut self, datagrams: Vec<Outgoing>) {
        for Outgoing { netns, to, bytes } in datagrams {
            self.emulator.queue(netns, to, &bytes);
        }
    }

    /// Has what waits to be delivered, and what is due, struck.
    pub(super) fn meddle(&mut self) {
        let mut out = Vec::new();
        for datagram in self.take_outgoing() {
            match datagram.to {
                Destination::Group(group) => self.meddle_with_event(group, datagram, &mut out),
                Destination::Port(_) => out.extend(self.meddle_with_dump(datagram)),
            }
        }
        let now = clock::uptime();
        let (due, kept) = std::mem::take(&mut self.mischief.kept)
            .into_iter()
            .partition(|it| it.due <= now);
        self.mischief.kept = kept;
        let due: Vec<Kept> = due;
        out.extend(due.into_iter().map(|it| it.datagram));
        self.put_back(out);
    }

    fn meddle_with_event(&mut self, group: u32, event: Outgoing, out: &mut Vec<Outgoing>) {
        let faults = Arc::clone(&self.mischief.faults);
        let struck = if faults.strike_netlink() {
            faults.change(|plan| plan.event(&Subject::of(&event.bytes)))
        } else {
            Vec::new()
        };
        let netns = event.netns;
        let mut copies = 1_u32;
        let mut kept = None;
        for strike in &struck {
            tell(strike);
            match strike.effect {
                Effect::EventLost => copies = 0,
                Effect::EventTwice => copies += 1,
                Effect::EventLate(nanos) => kept = Some((nanos, false)),
                Effect::EventSwapped => kept = Some((LONGEST_SWAP, true)),
                Effect::EventOverrun => {
                    copies = 0;
                    if let Some(instance) = self.instances.get_mut(&netns) {
                        self.overruns |= instance.lose_event(group);
                    }
                }
                _ => {}
            }
        }
        match kept {
            _ if copies == 0 => return,
            Some((nanos, swapped)) => {
                self.mischief.keep_back(nanos, swapped, event);
                return;
            }
            None => {}
        }
        for _ in 1..copies {
            out.push(Outgoing {
                bytes: event.bytes.clone(),
                ..event
            });
        }
        out.push(event);
        let waits = |it: &mut Kept| it.swapped && it.datagram.netns == netns;
        let swapped = self.mischief.kept.extract_if(.., waits);
        out.extend(swapped.map(|it| it.datagram));
    }

    /// A chunk of a dump, its end, or something else for one client.
    fn meddle_with_dump(&mut self, mut datagram: Outgoing) -> Option<Outgoing> {
        let is_it = |dump: &Dump| {
            dump.netns == datagram.netns && Destination::Port(dump.port) == datagram.to
        };
        let Some(at) = self.mischief.dumps.iter().position(is_it) else {
            return Some(datagram);
        };
        let Some(dump) = self.mischief.dumps.get_mut(at) else {
            return Some(datagram);
        };
        let header = NlMsgHdr::read(&datagram.bytes).unwrap_or_default();
        if header.flags & NLM_F_MULTI == 0 || header.seq != dump.seq {
            return Some(datagram);
        }
        dump.chunks += 1;
        let is_end = header.kind == NLMSG_DONE;
        let (chunk, ends) = match &dump.effect {
            Effect::DumpInterrupted { chunk } => (*chunk, false),
            Effect::DumpCut { chunk } | Effect::DumpError { chunk, .. } => (*chunk, true),
            _ => return Some(datagram),
        };
        let struck = is_end || dump.chunks >= chunk;
        if struck {
            match &dump.effect {
                Effect::DumpError { errno, extack, .. } => {
                    datagram.bytes.clear();
                    let error = text_error(*errno, extack.clone().map(Into::into));
                    let (seq, port) = (dump.seq, dump.port);
                    let ext_ack = dump.options.ext_ack;
                    let extack = &error.extack;
                    write_done(&mut datagram.bytes, seq, port, *errno, extack, ext_ack);
                }
                Effect::DumpCut { .. } => datagram.bytes.clear(),
                _ => set_flag(&mut datagram.bytes, NLM_F_DUMP_INTR),
            }
        }
        if is_end || struck && ends {
            // The engine need not go on with it.
            self.emulator.close_socket(dump.netns, dump.port);
            self.mischief.dumps.swap_remove(at);
        }
        (!datagram.bytes.is_empty()).then_some(datagram)
    }

    /// Answers what is asked of faults: `list`, `add`, `remove`, `clear`.
    pub(super) fn faults(&mut self, connection: &Connection, asked: &[u8]) -> Reply {
        if !self.shows_all_to(connection) {
            return Reply::error(libc::EPERM);
        }
        let Ok(asked) = serde_json::from_slice::<Value>(asked) else {
            return Reply::error(libc::EINVAL);
        };
        let text = |name: &str| asked.get(name).and_then(Value::as_str);
        let result = self.mischief.faults.change(|plan| {
            match (text("do"), text("fault")) {
                (Some("add"), Some(fault)) => {
                    let mut rule = scenario::rule(fault).map_err(|_| libc::EINVAL)?;
                    if let Some(name) = text("name") {
                        name.clone_into(&mut rule.name);
                    }
                    plan.add(rule).map_err(|_| libc::EEXIST)?;
                }
                (Some("remove"), Some(name)) if plan.remove(name) => {}
                (Some("remove"), Some(_)) => return Err(libc::ENOENT),
                (Some("clear"), _) => plan.clear(),
                (Some("list"), _) => {}
                _ => return Err(libc::EINVAL),
            }
            Ok(plan.to_json())
        });
        match result {
            Ok(plan) => Reply::document(plan.to_string()),
            Err(errno) => Reply::error(errno),
        }
    }
}

fn text_error(errno: i32, text: Option<std::borrow::Cow<'static, str>>) -> XfrmError {
    XfrmError {
        errno,
        extack: ExtAck {
            text,
            ..ExtAck::default()
        },
    }
}

/// Sets a flag of every message.
fn set_flag(datagram: &mut [u8], flag: u16) {
    const FLAGS: std::ops::Range<usize> = 6..8;
    let mut at = 0;
    while let Some(header) = datagram.get(at..).and_then(NlMsgHdr::read) {
        if let Some(place) = datagram.get_mut(at + FLAGS.start..at + FLAGS.end) {
            place.copy_from_slice(&(header.flags | flag).to_ne_bytes());
        }
        match usize::try_from(header.len) {
            Ok(len @ NLMSG_HDRLEN..) => at += xfrm_proto::align4(len),
            _ => return,
        }
    }
}
