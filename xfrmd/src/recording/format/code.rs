//! The same as numbers, and back. A reader takes any bytes.

use std::borrow::Cow;

use dataplane::keep::{Reader, Writer};
use dataplane::netns::Limits;
use dataplane::spd::SocketKey;
use dataplane::sysctl::Sysctls;
use dataplane::{BootNanos, Now, WallSecs};
use xfrm_proto::extack::AckOptions;
use xfrm_proto::uapi::Address;

use super::passage::*;
use super::{Happened, Head, Passage, Source, To, VERSION, What};
use crate::emulator::{self, NetnsId, Peer};
use crate::tape::{Asked, Step};

/// [`What::Recall`], behind the kinds of steps.
const RECALL: u64 = 31;

impl Head {
    pub(in super::super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut out = Writer::new(&mut bytes);
        out.int(VERSION);
        out.flag(self.source == Source::Kernel);
        out.bytes(self.kernel.as_bytes());
        out.flag(self.keys);
        out.bytes(self.program.as_bytes());
        limits(&mut out, self.limits);
        out.option(self.seed, Writer::int);
        bytes
    }

    pub(in super::super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let mut from = Reader::new(bytes);
        match from.int() {
            Some(VERSION) => {}
            Some(version) if version > VERSION => {
                return Err(format!(
                    "a recording of format {version}; this xfrmd knows {VERSION}: take a newer one"
                ));
            }
            _ => return Err("the head makes no sense".into()),
        }
        let mut read = || {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
            Some(Self {
                source: if from.flag()? {
                    Source::Kernel
                } else {
                    Source::Instance
                },
                kernel: text(from.bytes()?)?,
                keys: from.flag()?,
                program: text(from.bytes()?)?,
                limits: read_limits(&mut from)?,
                seed: from.option(Reader::int)?,
            })
        };
        read().ok_or_else(|| "the head makes no sense".into())
    }
}

/// What follows in [`ANSWER`](super::ANSWER).
pub(in super::super) fn write_answer(bytes: &mut Vec<u8>, number: u64, to: To) {
    let mut out = Writer::behind(bytes);
    out.int(number);
    let (kind, netns, value) = match to {
        To::Client(netns, emulator::Destination::Port(port)) => (0, netns.0, port),
        To::Client(netns, emulator::Destination::Group(group)) => (1, netns.0, group),
        To::Wire(mark) => (2, 0, mark),
        To::Host => (3, 0, 0),
    };
    for value in [kind, netns, value] {
        out.int(value.into());
    }
}

/// Its number and where it goes.
#[must_use]
pub fn decode_answer(bytes: &[u8]) -> Option<(u64, To)> {
    let mut from = Reader::new(bytes);
    let number = from.int()?;
    let [kind, netns, value] = [from.u32()?, from.u32()?, from.u32()?];
    from.end()?;
    let netns = NetnsId(netns);
    let to = match kind {
        0 => To::Client(netns, emulator::Destination::Port(value)),
        1 => To::Client(netns, emulator::Destination::Group(value)),
        2 => To::Wire(value),
        3 => To::Host,
        _ => return None,
    };
    Some((number, to))
}

pub(super) fn limits(out: &mut Writer<'_>, limits: Limits) {
    for count in [limits.max_sas, limits.max_policies] {
        out.int(u64::try_from(count).unwrap_or(u64::MAX));
    }
}

pub(super) fn read_limits(from: &mut Reader<'_>) -> Option<Limits> {
    Some(Limits {
        max_sas: usize::try_from(from.int()?).ok()?,
        max_policies: usize::try_from(from.int()?).ok()?,
    })
}

pub(super) fn moment(out: &mut Writer<'_>, now: Now) {
    out.int(now.boot.0);
    out.int(now.real.0);
}

pub(super) fn read_moment(from: &mut Reader<'_>) -> Option<Now> {
    Some(Now {
        boot: BootNanos(from.int()?),
        real: WallSecs(from.int()?),
    })
}

pub(super) fn peer(out: &mut Writer<'_>, peer: Peer) {
    out.int(peer.netns.0.into());
    out.int(peer.port.into());
    for flag in [peer.options.cap_ack, peer.options.ext_ack, peer.privileged] {
        out.flag(flag);
    }
    out.int(u64::try_from(peer.recv_bytes).unwrap_or(u64::MAX));
}

pub(super) fn read_peer(from: &mut Reader<'_>) -> Option<Peer> {
    Some(Peer {
        netns: NetnsId(from.u32()?),
        port: from.u32()?,
        options: AckOptions {
            cap_ack: from.flag()?,
            ext_ack: from.flag()?,
        },
        privileged: from.flag()?,
        recv_bytes: usize::try_from(from.int()?).ok()?,
    })
}

pub(super) fn signed(value: i32) -> u64 {
    value.cast_unsigned().into()
}

pub(super) fn read_signed(from: &mut Reader<'_>) -> Option<i32> {
    Some(from.u32()?.cast_signed())
}

pub(super) fn read_u16(from: &mut Reader<'_>) -> Option<u16> {
    u16::try_from(from.int()?).ok()
}

pub(super) fn address(out: &mut Writer<'_>, address: Address) {
    out.pod(&address);
}

pub(super) fn read_address(from: &mut Reader<'_>) -> Option<Address> {
    from.pod()
}

fn step(out: &mut Writer<'_>, step: &Step<'_>) {
    match step {
        Step::Create { netns } => {
            out.int(1);
            out.int(netns.0.into());
        }
        Step::Destroy { netns } => {
            out.int(2);
            out.int(netns.0.into());
        }
        Step::Limits(most) => {
            out.int(3);
            limits(out, *most);
        }
        Step::Request { now, peer: who, .. } => {
            out.int(4);
            moment(out, *now);
            peer(out, *who);
        }
        Step::Pull { peer: who } => {
            out.int(5);
            peer(out, *who);
        }
        Step::Close { netns, port } => {
            out.int(6);
            out.int(netns.0.into());
            out.int((*port).into());
        }
        Step::SocketPolicy {
            now,
            netns,
            socket,
            family,
            option_family,
            value,
        } => {
            out.int(7);
            moment(out, *now);
            out.int(netns.0.into());
            out.int(socket.0);
            out.int((*family).into());
            out.int((*option_family).into());
            out.option(value.as_deref(), Writer::bytes);
        }
        Step::Listeners {
            netns,
            group,
            count,
        } => {
            out.int(8);
            for value in [netns.0, *group, *count] {
                out.int(value.into());
            }
        }
        Step::Sysctls { netns, sysctls } => {
            out.int(9);
            out.int(netns.0.into());
            out.int(sysctls.aevent_etime.into());
            out.int(sysctls.aevent_rseqth.into());
            out.int(signed(sysctls.larval_drop));
            out.int(sysctls.acq_expires.into());
        }
        Step::Timers { now, netns } => {
            out.int(10);
            moment(out, *now);
            out.int(netns.0.into());
        }
        Step::Inquiries { now, asked } => {
            out.int(11);
            moment(out, *now);
            out.int(asked.netns.0.into());
            out.int(asked.worker.into());
            out.limit(asked.upto);
        }
        Step::Release { netns, now } => {
            out.int(12);
            out.int(netns.0.into());
            out.int(now.0);
        }
    }
}

fn read_step<'a>(kind: u64, from: &mut Reader<'_>, bytes: &'a [u8]) -> Option<Step<'a>> {
    Some(match kind {
        1 => Step::Create {
            netns: NetnsId(from.u32()?),
        },
        2 => Step::Destroy {
            netns: NetnsId(from.u32()?),
        },
        3 => Step::Limits(read_limits(from)?),
        4 => Step::Request {
            now: read_moment(from)?,
            peer: read_peer(from)?,
            bytes: bytes.into(),
        },
        5 => Step::Pull {
            peer: read_peer(from)?,
        },
        6 => Step::Close {
            netns: NetnsId(from.u32()?),
            port: from.u32()?,
        },
        7 => Step::SocketPolicy {
            now: read_moment(from)?,
            netns: NetnsId(from.u32()?),
            socket: SocketKey(from.int()?),
            family: read_u16(from)?,
            option_family: read_u16(from)?,
            value: from.option(|from| Some(Cow::Owned(from.bytes()?.to_vec())))?,
        },
        8 => Step::Listeners {
            netns: NetnsId(from.u32()?),
            group: from.u32()?,
            count: from.u32()?,
        },
        9 => Step::Sysctls {
            netns: NetnsId(from.u32()?),
            sysctls: Sysctls {
                aevent_etime: from.u32()?,
                aevent_rseqth: from.u32()?,
                larval_drop: read_signed(from)?,
                acq_expires: from.u32()?,
            },
        },
        10 => Step::Timers {
            now: read_moment(from)?,
            netns: NetnsId(from.u32()?),
        },
        11 => Step::Inquiries {
            now: read_moment(from)?,
            asked: Asked {
                netns: NetnsId(from.u32()?),
                worker: from.u32()?,
                upto: from.limit()?,
            },
        },
        12 => Step::Release {
            netns: NetnsId(from.u32()?),
            now: BootNanos(from.int()?),
        },
        _ => return None,
    })
}

pub(in super::super) fn write_step(
    bytes: &mut Vec<u8>,
    number: u64,
    what: &Step<'_>,
    drawn: &[u64],
    fate: &str,
) {
    let mut out = Writer::behind(bytes);
    out.int(number);
    step(&mut out, what);
    end(&mut out, drawn, fate);
}

/// That a daemon goes on; what it has found is in options of its own.
pub(in super::super) fn write_recall(bytes: &mut Vec<u8>, number: u64, most: Limits) {
    let mut out = Writer::behind(bytes);
    out.int(number);
    out.int(RECALL);
    limits(&mut out, most);
    end(&mut out, &[], "");
}

/// A passage; what the host said is written already.
pub(in super::super) fn write_passage(
    bytes: &mut Vec<u8>,
    (number, netns, worker): (u64, NetnsId, u32),
    what: &Passage,
    (said, host): (u64, &[u8]),
    drawn: &[u64],
    fate: &str,
) {
    let mut out = Writer::behind(bytes);
    out.int(number);
    out.int(kind_of(what));
    out.int(netns.0.into());
    out.int(worker.into());
    passage(&mut out, what);
    out.int(said);
    out.bytes(host);
    end(&mut out, drawn, fate);
}

fn end(out: &mut Writer<'_>, drawn: &[u64], fate: &str) {
    out.int(u64::try_from(drawn.len()).unwrap_or(0));
    for &number in drawn {
        out.int(number);
    }
    out.bytes(fate.as_bytes());
}

impl<'a> Happened<'a> {
    /// Reads one; `bytes` are the block's own.
    #[must_use]
    pub fn decode(option: &[u8], bytes: &'a [u8]) -> Option<Self> {
        let mut from = Reader::new(option);
        let (number, kind) = (from.int()?, from.int()?);
        let what = if kind == RECALL {
            What::Recall {
                limits: read_limits(&mut from)?,
                kept: Vec::new(),
            }
        } else if kind < FIRST_PASSAGE {
            What::Step(read_step(kind, &mut from, bytes)?)
        } else {
            let (netns, worker) = (NetnsId(from.u32()?), from.u32()?);
            let passage = read_passage(kind, &mut from)?;
            let (said, host) = (from.int()?, from.bytes()?);
            let mut from_host = Reader::new(host);
            let host = (0..said).map(|_| read_host_said(&mut from_host));
            let host = host.collect::<Option<Vec<_>>>()?;
            from_host.end()?;
            What::Passage {
                netns,
                worker,
                passage,
                host,
                bytes: bytes.into(),
            }
        };
        let drawn = from.int()?;
        let drawn = (0..drawn).map(|_| from.int()).collect::<Option<Vec<_>>>()?;
        let fate = String::from_utf8(from.bytes()?.to_vec()).ok()?;
        from.end()?;
        Some(Self {
            number,
            what,
            drawn: drawn.into(),
            fate: fate.into(),
        })
    }
}
