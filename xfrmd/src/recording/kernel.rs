//! What a Linux kernel was asked and said, as an nlmon device shows it, as a recording.
//!
//! Such a device shows messages, not whose they are: port ids and acknowledgement options are worked out
//! from answers, and so are the random numbers that an SPI was made of. That timers have run is known
//! from what they tell, and that somebody listens to a group from the first event to the last.

use std::collections::{BTreeMap, VecDeque};

use dataplane::netns::Limits;
use dataplane::{BootNanos, Now, WallSecs};
use xfrm_proto::consts::*;
use xfrm_proto::extack::AckOptions;
use xfrm_proto::reply::messages;
use xfrm_proto::uapi::{NlMsgHdr, Pod, UserSaInfo, UserSpiInfo};

use super::format::{Head, Source, To};
use super::reel::{Memory, Reel};
use crate::emulator::{Destination, NetnsId, Peer};
use crate::tape::Step;

/// A datagram that was seen.
#[derive(Clone, Debug)]
pub struct Frame {
    /// When, in nanoseconds since 1970.
    pub nanos: u64,
    /// Its messages.
    pub bytes: Vec<u8>,
}

/// Whether it went to the kernel.
///
/// QUIRK: nlmon_shows_no_direction. The device is told, but whoever listens to it is told that
/// everything leaves (`dev_queue_xmit_nit`). Requests are known by their flag, without which the kernel
/// passes over a message, and which it gives to none of its own.
fn is_request(header: NlMsgHdr) -> bool {
    header.kind >= NLMSG_MIN_TYPE && header.flags & NLM_F_REQUEST != 0
}

/// The only namespace there is.
const NETNS: NetnsId = NetnsId(0);
/// How long the machine had been up, as far as anybody knows.
const UPTIME_NANOS: u64 = 1_000_000_000;
/// A buffer of a client's.
const RECV_BYTES: usize = 32768;
/// Of a client of whom nothing else is known.
const UNKNOWN_PORT: u32 = 1;

/// The group in which a message is an event.
fn group_of(kind: u16) -> Option<u32> {
    Some(match kind {
        XFRM_MSG_ACQUIRE => group::ACQUIRE,
        XFRM_MSG_EXPIRE | XFRM_MSG_POLEXPIRE => group::EXPIRE,
        XFRM_MSG_NEWSA | XFRM_MSG_UPDSA | XFRM_MSG_DELSA | XFRM_MSG_FLUSHSA => group::SA,
        XFRM_MSG_NEWPOLICY | XFRM_MSG_UPDPOLICY | XFRM_MSG_DELPOLICY | XFRM_MSG_FLUSHPOLICY
        | XFRM_MSG_GETDEFAULT => group::POLICY,
        XFRM_MSG_NEWAE => group::AEVENTS,
        XFRM_MSG_REPORT => group::REPORT,
        XFRM_MSG_MIGRATE | XFRM_MSG_MIGRATE_STATE => group::MIGRATE,
        XFRM_MSG_MAPPING => group::MAPPING,
        _ => return None,
    })
}

/// Whether requests of that type are answered with more than an acknowledgement.
const fn is_question(kind: u16) -> bool {
    matches!(
        kind,
        XFRM_MSG_GETSA
            | XFRM_MSG_GETPOLICY
            | XFRM_MSG_ALLOCSPI
            | XFRM_MSG_GETAE
            | XFRM_MSG_GETSADINFO
            | XFRM_MSG_GETSPDINFO
            | XFRM_MSG_GETDEFAULT
    )
}

/// What is known of the socket behind a port.
#[derive(Clone, Copy)]
struct Known {
    options: AckOptions,
    privileged: bool,
}

/// A request and what came of it; without one, something that happened by itself.
struct Conversation<'f> {
    nanos: u64,
    request: Option<&'f [u8]>,
    answers: Vec<(Option<u32>, &'f [u8])>,
}

/// The recording of what was seen of a kernel, called as `--kernel` calls it.
#[must_use]
pub fn recording(kernel: &str, keys: bool, frames: &[Frame]) -> Vec<u8> {
    let conversations = conversations(frames);
    let known = sockets(&conversations);
    let began = frames.first().map_or(0, |frame| frame.nanos);
    let head = Head {
        source: Source::Kernel,
        kernel: kernel.into(),
        keys,
        program: env!("CARGO_PKG_VERSION").into(),
        limits: Limits::default(),
        seed: None,
    };
    let memory = Memory::default();
    let boot = BootNanos(UPTIME_NANOS);
    let reel = Reel::begin(&head, boot, began, Box::new(memory.clone()));
    reel.step(boot, &Step::Create { netns: NETNS }, &[], "", []);
    let listen = |group, count| {
        let netns = NETNS;
        let step = Step::Listeners {
            netns,
            group,
            count,
        };
        reel.step(boot, &step, &[], "", []);
    };
    let heard = heard(&conversations);
    for (index, conversation) in conversations.iter().enumerate() {
        for (&group, &[first, last]) in &heard {
            if first == index {
                listen(group, 1);
            }
            if last + 1 == index {
                listen(group, 0);
            }
        }
        let since = conversation.nanos.saturating_sub(began);
        let now = Now {
            boot: boot.plus_nanos(since),
            real: WallSecs(conversation.nanos / 1_000_000_000),
        };
        let answers = |port| {
            let answers = conversation.answers.iter();
            answers.map(move |&(group, bytes)| {
                let to = group.map_or(Destination::Port(port), Destination::Group);
                (To::Client(NETNS, to), bytes)
            })
        };
        let timers = Step::Timers { now, netns: NETNS };
        let Some(request) = conversation.request else {
            reel.step(now.boot, &timers, &[], "", answers(UNKNOWN_PORT));
            continue;
        };
        reel.step(now.boot, &timers, &[], "", []);
        let port = port(conversation);
        let known = known.get(&port).copied();
        let peer = Peer {
            netns: NETNS,
            port,
            options: known.map_or_else(AckOptions::default, |it| it.options),
            privileged: known.is_none_or(|it| it.privileged),
            recv_bytes: RECV_BYTES,
        };
        let step = Step::Request {
            now,
            peer,
            bytes: request.into(),
        };
        reel.step(now.boot, &step, &drawn(conversation), "", answers(port));
    }
    reel.end();
    memory.take_bytes()
}

/// Puts answers to their requests. The kernel answers one before it takes the next, but for dumps,
/// which go on later.
fn conversations(frames: &[Frame]) -> Vec<Conversation<'_>> {
    let mut all: Vec<Conversation<'_>> = Vec::new();
    let mut last_event: Option<&[u8]> = None;
    for frame in frames {
        let Some(header) = NlMsgHdr::read(&frame.bytes) else {
            continue;
        };
        if is_request(header) {
            last_event = None;
            all.push(Conversation {
                nanos: frame.nanos,
                request: Some(&frame.bytes),
                answers: Vec::new(),
            });
            continue;
        }
        let asked = |it: &&mut Conversation<'_>| {
            let mut asked = messages(it.request.unwrap_or_default());
            asked.any(|(request, _)| request.seq == header.seq)
        };
        let request = all.iter_mut().rev().find(asked);
        let is_reply = request.as_ref().is_some_and(|it| {
            let mut asked = messages(it.request.unwrap_or_default());
            header.kind < NLMSG_MIN_TYPE || asked.any(|(request, _)| is_question(request.kind))
        });
        let group = group_of(header.kind).filter(|_| !is_reply);
        // Each listener's copy is seen.
        if group.is_some() && last_event == Some(&frame.bytes) {
            continue;
        }
        last_event = group.map(|_| &*frame.bytes);
        let by_itself = header.seq == 0 && header.pid == 0;
        match request.filter(|_| !by_itself) {
            Some(request) => request.answers.push((group, &frame.bytes)),
            None => all.push(Conversation {
                nanos: frame.nanos,
                request: None,
                answers: vec![(group, &frame.bytes)],
            }),
        }
    }
    all
}

/// The port that asked: answers have it.
fn port(conversation: &Conversation<'_>) -> u32 {
    let said = conversation.answers.iter().map(|(_, bytes)| *bytes);
    let said = said.chain(conversation.request);
    let mut ports = said.filter_map(|bytes| Some(NlMsgHdr::read(bytes)?.pid));
    ports.find(|&port| port != 0).unwrap_or(UNKNOWN_PORT)
}

/// What errors tell of sockets: only they differ by options.
fn sockets(conversations: &[Conversation<'_>]) -> BTreeMap<u32, Known> {
    let mut known = BTreeMap::new();
    for conversation in conversations.iter().filter(|it| it.request.is_some()) {
        let entry = known.entry(port(conversation)).or_insert(Known {
            options: AckOptions::default(),
            privileged: true,
        });
        let answers = conversation.answers.iter();
        for (header, message) in answers.flat_map(|(_, bytes)| messages(bytes)) {
            let errno = message.get(NLMSG_HDRLEN..).and_then(<[u8]>::first_chunk);
            let errno = errno.map_or(0, |errno| i32::from_ne_bytes(*errno));
            entry.options.ext_ack |= header.flags & NLM_F_ACK_TLVS != 0
                && matches!(header.kind, NLMSG_ERROR | NLMSG_DONE);
            if header.kind == NLMSG_ERROR && errno != 0 {
                entry.options.cap_ack |= header.flags & NLM_F_CAPPED != 0;
                entry.privileged &= errno != -errno::EPERM;
            }
        }
    }
    known
}

/// The first and the last conversation in which a group has heard something.
fn heard(conversations: &[Conversation<'_>]) -> BTreeMap<u32, [usize; 2]> {
    let mut heard = BTreeMap::new();
    for (index, conversation) in conversations.iter().enumerate() {
        for group in conversation.answers.iter().filter_map(|(group, _)| *group) {
            let [_, last] = heard.entry(group).or_insert([index; 2]);
            *last = index;
        }
    }
    heard
}

/// The random numbers of which SPIs were made that were answered.
fn drawn(conversation: &Conversation<'_>) -> Vec<u64> {
    let answers = conversation.answers.iter();
    let given = answers.filter(|(group, _)| group.is_none());
    let mut given: VecDeque<u32> = given
        .flat_map(|(_, bytes)| messages(bytes))
        .filter(|(header, _)| header.kind == XFRM_MSG_NEWSA)
        .filter_map(|(_, message)| UserSaInfo::read(message.get(NLMSG_HDRLEN..)?))
        .map(|info| info.id.spi.get())
        .collect();
    let asked = messages(conversation.request.unwrap_or_default());
    let asked = asked.filter(|(header, _)| header.kind == XFRM_MSG_ALLOCSPI);
    asked
        .filter_map(|(_, message)| {
            let asked = UserSpiInfo::read(message.get(NLMSG_HDRLEN..)?)?;
            draw(given.pop_front()?, asked.min, asked.max)
        })
        .collect()
}

/// What has to be drawn for `spi` to come out of the range.
fn draw(spi: u32, low: u32, high: u32) -> Option<u64> {
    let count = u64::from(high.checked_sub(low)?) + 1;
    let nth = u64::from(spi.checked_sub(low)?);
    Some((nth << 32).div_ceil(count) << 32)
}

#[cfg(test)]
mod tests {
    use dataplane::Entropy;
    use proptest::prelude::*;
    use xfrm_proto::reply::Writer;

    use super::*;
    use crate::recording::format::What;
    use crate::recording::read::Recording;

    fn frame(kind: u16, flags: u16, seq: u32, pid: u32) -> Frame {
        let mut bytes = Vec::new();
        Writer::begin(&mut bytes, kind, flags, seq, pid).end();
        Frame { nanos: 5, bytes }
    }

    #[test]
    fn nlmon_shows_no_direction() {
        let frames = [
            frame(XFRM_MSG_FLUSHSA, NLM_F_REQUEST | NLM_F_ACK, 7, 0),
            frame(XFRM_MSG_FLUSHSA, 0, 7, 42),
            frame(NLMSG_ERROR, NLM_F_CAPPED, 7, 42),
            frame(XFRM_MSG_EXPIRE, 0, 0, 0),
        ];
        let file = recording("7.2", true, &frames);
        let read = Recording::read(&file).unwrap();
        let mut requests = read.happenings.iter().filter_map(|it| {
            let What::Step(Step::Request { peer, .. }) = &it.happened.what else {
                return None;
            };
            Some((peer.port, it.answers.len()))
        });
        assert_eq!(requests.next(), Some((42, 2)));
        assert_eq!(requests.next(), None);
        let by_itself = read.happenings.last().unwrap();
        let to = To::Client(NETNS, Destination::Group(group::EXPIRE));
        assert_eq!(by_itself.answers[0].to, to);
    }

    struct Once(u64);

    impl Entropy for Once {
        fn u64(&mut self) -> u64 {
            self.0
        }
    }

    proptest! {
        #[test]
        fn a_draw_gives_its_spi(low: u32, span in 1..u32::MAX, nth: u32) {
            let high = low.saturating_add(span);
            let spi = low + nth % (high - low).max(1);
            let drawn = draw(spi, low, high).unwrap();
            let count = (high - low).wrapping_add(1);
            prop_assume!(count > 1);
            prop_assert_eq!(low + Once(drawn).below(count), spi);
        }
    }
}
