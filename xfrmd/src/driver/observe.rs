//! What is seen of a namespace's packets: how many pass, and each of them while somebody captures.
//!
//! A packet thread asks once for each batch whether anybody captures ([`Observed::watch`]); as long
//! as nobody does, that is all it costs. Then packets are copied before they are changed, and what
//! belongs together is told together: a packet, what it became, and why it was dropped.
//!
//! The other end of a capture is a socket with a fixed amount of room. What does not fit is lost
//! and counted; the thread does not wait.

use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dataplane::packet::PacketBuf;
use dataplane::path::{Received, Verdict};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, send, setsockopt, socketpair, sockopt,
};
use nix::time::{ClockId, clock_gettime};
use serde_json::Value;
use xfrm_proto::consts::{IPPROTO_AH, IPPROTO_COMP, IPPROTO_ESP};
use xfrmd::recording::compare::ends;
use xfrmd::recording::fate;

use super::Daemon;
use super::connection::{Connection, Reply};
use crate::capture::record::{Direction, Layer, Record};

/// Captures of a namespace at once.
const MOST_CAPTURES: usize = 8;
/// Room for packets on their way to a capture.
const ROOM_BYTES: usize = 8 << 20;
const IPPROTO_UDP: u8 = 17;

/// Packets and bytes, with all headers.
#[derive(Debug, Default)]
pub(super) struct Tally {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl Tally {
    /// Counts what went or came together.
    pub(super) fn add(&self, packets: &[PacketBuf]) {
        let count = u64::try_from(packets.len()).unwrap_or(0);
        let bytes: usize = packets.iter().map(|packet| packet.len()).sum();
        self.packets.fetch_add(count, Ordering::Relaxed);
        let bytes = u64::try_from(bytes).unwrap_or(0);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// How many.
    pub(super) fn packets(&self) -> u64 {
        self.packets.load(Ordering::Relaxed)
    }

    /// Both, as statistics have them.
    pub(super) fn to_json(&self) -> Value {
        serde_json::json!({
            "packets": self.packets.load(Ordering::Relaxed),
            "bytes": self.bytes.load(Ordering::Relaxed),
        })
    }
}

/// What is seen of a namespace.
#[derive(Debug, Default)]
pub(super) struct Observed {
    /// Protected packets that were sent.
    pub(super) sent: Tally,
    /// Protected packets that came.
    pub(super) received: Tally,
    captured: AtomicBool,
    captures: Mutex<Vec<Capture>>,
    numbers: AtomicU64,
}

/// Somebody who captures.
#[derive(Debug)]
struct Capture {
    to: OwnedFd,
    wanted: Wanted,
    lost: u32,
}

/// What somebody wants to see.
#[derive(Debug)]
struct Wanted {
    outer: bool,
    inner: bool,
    spi: Option<u32>,
    prefix: Option<(IpAddr, u32)>,
    most_bytes: usize,
}

impl Wanted {
    fn read(asked: &Value) -> Option<Self> {
        let number = |name: &str| asked.get(name).and_then(Value::as_u64);
        let prefix = match asked.get("address").and_then(Value::as_str) {
            Some(address) => Some((address.parse().ok()?, u32::try_from(number("bits")?).ok()?)),
            None => None,
        };
        Some(Self {
            outer: asked.get("outer")?.as_bool()?,
            inner: asked.get("inner")?.as_bool()?,
            spi: match number("spi") {
                Some(spi) => Some(u32::try_from(spi).ok()?),
                None => None,
            },
            prefix,
            most_bytes: usize::try_from(number("snaplen")?).ok()?,
        })
    }

    fn wants(&self, seen: &[Seen]) -> bool {
        let has_spi = |spi| {
            let mut outer = seen.iter().filter(|it| it.layer == Layer::Outer);
            outer.any(|it| Sa::of(&it.packet).is_some_and(|sa| sa.spi == spi))
        };
        let has_address = |(prefix, bits): (IpAddr, u32)| {
            seen.iter()
                .filter_map(|it| ends(&it.packet))
                .any(|ends| is_inside(ends.0, prefix, bits) || is_inside(ends.1, prefix, bits))
        };
        self.spi.is_none_or(has_spi) && self.prefix.is_none_or(has_address)
    }
}

fn is_inside(address: IpAddr, prefix: IpAddr, bits: u32) -> bool {
    let differs = match (address, prefix) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let differs = a.to_bits() ^ b.to_bits();
            differs
                .checked_shr(32_u32.saturating_sub(bits))
                .unwrap_or(0)
                .into()
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            let differs = a.to_bits() ^ b.to_bits();
            differs
                .checked_shr(128_u32.saturating_sub(bits))
                .unwrap_or(0)
        }
        _ => return false,
    };
    differs == 0
}

impl Observed {
    /// The captures, if there are any.
    pub(super) fn watch(&self) -> Option<&Self> {
        self.captured.load(Ordering::Relaxed).then_some(self)
    }

    fn captures(&self) -> MutexGuard<'_, Vec<Capture>> {
        self.captures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a capture; where its records can be read.
    ///
    /// # Errors
    /// EINVAL for a question that makes no sense, EBUSY when too many capture; the host's.
    pub(super) fn capture(&self, asked: &Value) -> io::Result<OwnedFd> {
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        let wanted = Wanted::read(asked).ok_or_else(invalid)?;
        let (to, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        if setsockopt(&to, sockopt::SndBufForce, &ROOM_BYTES).is_err() {
            setsockopt(&to, sockopt::SndBuf, &ROOM_BYTES)?;
        }
        let mut captures = self.captures();
        captures.retain(Capture::is_read);
        if captures.len() >= MOST_CAPTURES {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        captures.push(Capture {
            to,
            wanted,
            lost: 0,
        });
        self.captured.store(true, Ordering::Relaxed);
        Ok(theirs)
    }

    /// A packet before anything has happened to it.
    pub(super) fn begin(&self, direction: Direction, packet: &[u8]) -> Passage<'_> {
        let layer = match direction {
            Direction::In => Layer::Outer,
            Direction::Out => Layer::Inner,
        };
        let mut passage = Passage {
            observed: self,
            direction,
            seen: Vec::new(),
        };
        passage.see(layer, packet);
        passage
    }

    /// A packet that has nothing to do with another: it has waited, or is a piece.
    pub(super) fn alone(&self, direction: Direction, layer: Layer, packet: &[u8]) {
        let mut passage = Passage {
            observed: self,
            direction,
            seen: Vec::new(),
        };
        passage.see(layer, packet);
        passage.tell("");
    }
}

impl Daemon {
    /// Lets a client see packets of the namespace with that cookie: where they can be read.
    pub(super) fn capture(&mut self, connection: &Connection, netns: u64, asked: &[u8]) -> Reply {
        if !self.shows_all_to(connection) {
            return Reply::error(libc::EPERM);
        }
        if self.inquiries.is_none() {
            return Reply::error(libc::EOPNOTSUPP);
        }
        let Some(&id) = self.by_cookie.get(&netns) else {
            return Reply::error(libc::ENOENT);
        };
        let Ok(asked) = serde_json::from_slice::<Value>(asked) else {
            return Reply::error(libc::EINVAL);
        };
        match self.observed(id).capture(&asked) {
            Ok(fd) => Reply::Descriptor(fd),
            Err(error) => Reply::error(error.raw_os_error().unwrap_or(libc::EIO)),
        }
    }
}

impl Capture {
    /// Whether somebody has the other end.
    fn is_read(&self) -> bool {
        let mut fds = [PollFd::new(self.to.as_fd(), PollFlags::empty())];
        let _ = poll(&mut fds, PollTimeout::ZERO);
        let [fd] = fds;
        !fd.revents()
            .is_some_and(|found| found.intersects(PollFlags::POLLHUP))
    }

    /// Never waits.
    fn send(&self, record: &[u8]) -> Result<(), Errno> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        send(self.to.as_raw_fd(), record, flags).map(drop)
    }
}

struct Seen {
    layer: Layer,
    packet: Vec<u8>,
}

/// A packet on its way, and what it becomes.
pub(super) struct Passage<'a> {
    observed: &'a Observed,
    direction: Direction,
    seen: Vec<Seen>,
}

impl Passage<'_> {
    /// It has become this.
    pub(super) fn see(&mut self, layer: Layer, packet: &[u8]) {
        let packet = packet.to_vec();
        self.seen.push(Seen { layer, packet });
    }

    /// It leaves, or does not.
    pub(super) fn leaves(self, verdict: &Verdict) {
        self.tell(&fate::of_departure(verdict));
    }

    /// It has arrived, and is what is in the buffer now, or is gone.
    pub(super) fn arrives(mut self, received: &Received, packet: &[u8]) {
        if matches!(received, Received::Local | Received::Forward) {
            self.see(Layer::Inner, packet);
        }
        self.tell(&fate::of_arrival(received));
    }

    fn tell(self, fate: &str) {
        let time = clock_gettime(ClockId::CLOCK_REALTIME).map_or(0, |now| {
            let nanos = i128::from(now.tv_sec()) * 1_000_000_000 + i128::from(now.tv_nsec());
            u64::try_from(nanos).unwrap_or(0)
        });
        let number = self.observed.numbers.fetch_add(1, Ordering::Relaxed) + 1;
        let outer = self.seen.iter().filter(|it| it.layer == Layer::Outer);
        let mut sas = String::new();
        for sa in outer.filter_map(|it| Sa::of(&it.packet)) {
            let _ = write!(sas, " {sa}");
            if sas.len() > MOST_SAS_BYTES {
                sas += " ...";
                break;
            }
        }
        let mut record = Vec::new();
        let mut captures = self.observed.captures();
        captures.retain_mut(|capture| {
            if !capture.wanted.wants(&self.seen) {
                return true;
            }
            for seen in &self.seen {
                let wanted = match seen.layer {
                    Layer::Outer => capture.wanted.outer,
                    Layer::Inner => capture.wanted.inner,
                };
                if !wanted {
                    continue;
                }
                let sas = match seen.layer {
                    Layer::Outer => {
                        Sa::of(&seen.packet).map_or_else(String::new, |sa| format!(" {sa}"))
                    }
                    Layer::Inner => sas.clone(),
                };
                let fate = if fate.is_empty() {
                    String::new()
                } else {
                    format!(": {fate}")
                };
                let most = capture.wanted.most_bytes;
                record.clear();
                Record {
                    layer: seen.layer,
                    direction: self.direction,
                    time,
                    number,
                    lost: capture.lost,
                    comment: &format!("#{number}{sas}{fate}"),
                    bytes: u32::try_from(seen.packet.len()).unwrap_or(u32::MAX),
                    packet: seen.packet.get(..most).unwrap_or(&seen.packet),
                }
                .encode(&mut record);
                match capture.send(&record) {
                    Ok(()) => capture.lost = 0,
                    Err(Errno::EPIPE | Errno::ECONNRESET | Errno::ECONNREFUSED) => return false,
                    Err(_) => capture.lost = capture.lost.saturating_add(1),
                }
            }
            true
        });
        let some = !captures.is_empty();
        self.observed.captured.store(some, Ordering::Relaxed);
    }
}

/// The SAs of the segments that one large packet becomes are named up to about here.
const MOST_SAS_BYTES: usize = 128;

/// What the outermost header of an SA says.
pub(super) struct Sa {
    protocol: &'static str,
    pub(super) spi: u32,
    /// IPComp has none.
    sequence: Option<u32>,
}

impl std::fmt::Display for Sa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} spi 0x{:08x}", self.protocol, self.spi)?;
        match self.sequence {
            Some(sequence) => write!(f, " seq {sequence}"),
            None => Ok(()),
        }
    }
}

impl Sa {
    pub(super) fn of(packet: &[u8]) -> Option<Self> {
        let first = *packet.first()?;
        let (protocol, at) = match first >> 4 {
            4 => (*packet.get(9)?, usize::from(first & 0xf) * 4),
            6 => (*packet.get(6)?, 40),
            _ => return None,
        };
        let word = |at: usize| {
            packet
                .get(at..)?
                .first_chunk()
                .copied()
                .map(u32::from_be_bytes)
        };
        let (protocol, spi, sequence) = match protocol {
            IPPROTO_ESP => ("ESP", word(at)?, Some(word(at + 4)?)),
            // Four zeros mean IKE.
            IPPROTO_UDP if word(at + 8)? != 0 => ("ESP", word(at + 8)?, Some(word(at + 12)?)),
            IPPROTO_AH => ("AH", word(at + 4)?, Some(word(at + 8)?)),
            IPPROTO_COMP => ("IPComp", word(at)? & 0xffff, None),
            _ => return None,
        };
        Some(Self {
            protocol,
            spi,
            sequence,
        })
    }
}

#[cfg(test)]
mod tests {
    use dataplane::DropReason;
    use nix::sys::socket::recv;
    use serde_json::json;

    use super::*;

    fn esp(spi: u32) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 60, 0, 0, 0, 0, 64, IPPROTO_ESP, 0, 0];
        packet.extend_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        packet.extend_from_slice(&spi.to_be_bytes());
        packet.extend_from_slice(&7_u32.to_be_bytes());
        packet.resize(60, 0);
        packet
    }

    fn plain() -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0];
        packet.extend_from_slice(&[192, 168, 1, 1, 192, 168, 2, 2]);
        packet.resize(28, 0);
        packet
    }

    fn asked(spi: Option<u32>, address: Option<&str>) -> Value {
        json!({"outer": true, "inner": true, "spi": spi, "address": address, "bits": 24,
            "snaplen": 40})
    }

    /// Comments of what waits.
    fn comments(from: &OwnedFd) -> Vec<String> {
        let mut buffer = [0; 4096];
        let mut out = Vec::new();
        while let Ok(len @ 1..) = recv(from.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            let record = Record::decode(&buffer[..len]).unwrap();
            assert!(record.packet.len() <= 40);
            out.push(format!("{:?} {}", record.layer, record.comment));
        }
        out
    }

    #[test]
    fn pairs_name_their_sa() {
        let observed = Observed::default();
        assert!(observed.watch().is_none());
        let from = observed.capture(&asked(None, None)).unwrap();
        let watched = observed.watch().unwrap();
        let mut passage = watched.begin(Direction::Out, &plain());
        passage.see(Layer::Outer, &esp(0x100));
        passage.leaves(&Verdict::Sent(1));
        let passage = watched.begin(Direction::In, &esp(0x200));
        passage.arrives(&Received::Dropped(DropReason::InNoStates), &[]);
        assert_eq!(
            comments(&from),
            [
                "Inner #1 ESP spi 0x00000100 seq 7",
                "Outer #1 ESP spi 0x00000100 seq 7",
                "Outer #2 ESP spi 0x00000200 seq 7: dropped: no SA has that SPI (XfrmInNoStates)",
            ]
        );
    }

    #[test]
    fn filters_look_at_the_whole_pair() {
        let observed = Observed::default();
        let by_spi = observed.capture(&asked(Some(0x100), None)).unwrap();
        let other_spi = observed.capture(&asked(Some(0x101), None)).unwrap();
        let by_address = observed.capture(&asked(None, Some("192.168.2.0"))).unwrap();
        let other_address = observed.capture(&asked(None, Some("192.168.3.0"))).unwrap();
        let mut passage = observed.begin(Direction::Out, &plain());
        passage.see(Layer::Outer, &esp(0x100));
        passage.leaves(&Verdict::Sent(1));
        let counts = [by_spi, other_spi, by_address, other_address].map(|it| comments(&it).len());
        assert_eq!(counts, [2, 0, 2, 0]);
    }

    #[test]
    fn nobody_is_waited_for_and_what_is_lost_is_counted() {
        let observed = Observed::default();
        let from = observed.capture(&asked(None, None)).unwrap();
        let sent = 200_000;
        for _ in 0..sent {
            observed.alone(Direction::In, Layer::Outer, &esp(1));
        }
        let kept = comments(&from).len();
        assert!(kept > 100 && kept < sent, "{kept}");
        observed.alone(Direction::In, Layer::Outer, &esp(1));
        let mut buffer = [0; 4096];
        let len = recv(from.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).unwrap();
        let record = Record::decode(&buffer[..len]).unwrap();
        assert_eq!(usize::try_from(record.lost).unwrap(), sent - kept);
    }

    #[test]
    fn a_capture_that_has_ended_costs_nothing() {
        let observed = Observed::default();
        drop(observed.capture(&asked(None, None)).unwrap());
        observed.alone(Direction::In, Layer::Outer, &esp(1));
        assert!(observed.watch().is_none());
        for _ in 0..3 * MOST_CAPTURES {
            drop(observed.capture(&asked(None, None)).unwrap());
        }
        let kept: Vec<_> = (0..MOST_CAPTURES)
            .map(|_| observed.capture(&asked(None, None)).unwrap())
            .collect();
        let refused = observed.capture(&asked(None, None)).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EBUSY));
        drop(kept);
    }

    #[test]
    fn questions_that_make_no_sense_are_refused() {
        let observed = Observed::default();
        for wrong in [json!({}), json!(5), asked(None, Some("nowhere"))] {
            let refused = observed.capture(&wrong).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
        }
    }
}
