//! Packets' passages as numbers, and back.

use dataplane::keep::{Reader, Writer};
use dataplane::packet::segment::Offload;
use dataplane::path::{Destination, OutputMeta, Owner, PathInfo, RouteQuery};
use dataplane::spd::{Flow, SocketKey};

use super::code::*;
use super::{HostSaid, Passage};

/// Kinds of passages follow those of steps.
pub(super) const FIRST_PASSAGE: u64 = 32;

pub(super) fn passage(out: &mut Writer<'_>, passage: &Passage) {
    match *passage {
        Passage::Begin { cpu } => out.int(cpu.into()),
        Passage::Output {
            now,
            meta,
            offload,
            asks_mtu,
        } => {
            moment(out, now);
            for value in [meta.mark, meta.if_id, meta.ifindex.cast_unsigned()] {
                out.int(value.into());
            }
            out.option(meta.socket, |out, socket| out.int(socket.0));
            for flag in [meta.forwarded, meta.bypasses, meta.loopback, asks_mtu] {
                out.flag(flag);
            }
            out.int(meta.mtu.into());
            out.int(meta.hop_limit.into());
            out.option(offload, |out, offload| {
                out.int(offload.segment_bytes.into());
                out.option(offload.checksum, |out, (start, offset)| {
                    out.int(start.into());
                    out.int(offset.into());
                });
            });
        }
        Passage::Input {
            now,
            mark,
            if_id,
            ifindex,
            no_policy,
        } => {
            moment(out, now);
            out.int(mark.into());
            out.int(if_id.into());
            out.int(signed(ifindex));
            out.flag(no_policy);
        }
        Passage::Inner { now } | Passage::Retry { now } | Passage::Iptfs { now } => {
            moment(out, now);
        }
    }
}

pub(super) const fn kind_of(passage: &Passage) -> u64 {
    FIRST_PASSAGE
        + match passage {
            Passage::Begin { .. } => 0,
            Passage::Output { .. } => 1,
            Passage::Input { .. } => 2,
            Passage::Inner { .. } => 3,
            Passage::Retry { .. } => 4,
            Passage::Iptfs { .. } => 5,
        }
}

pub(super) fn read_passage(kind: u64, from: &mut Reader<'_>) -> Option<Passage> {
    Some(match kind.checked_sub(FIRST_PASSAGE)? {
        0 => Passage::Begin { cpu: from.u32()? },
        1 => {
            let now = read_moment(from)?;
            let [mark, if_id] = [from.u32()?, from.u32()?];
            let ifindex = read_signed(from)?;
            let socket = from.option(|from| from.int().map(SocketKey))?;
            let [forwarded, bypasses, loopback, asks_mtu] =
                [from.flag()?, from.flag()?, from.flag()?, from.flag()?];
            let meta = OutputMeta {
                mark,
                if_id,
                ifindex,
                socket,
                forwarded,
                bypasses,
                loopback,
                mtu: from.u32()?,
                hop_limit: from.small()?,
            };
            let offload = from.option(|from| {
                Some(Offload {
                    segment_bytes: read_u16(from)?,
                    checksum: from.option(|from| Some((read_u16(from)?, read_u16(from)?)))?,
                })
            })?;
            Passage::Output {
                now,
                meta,
                offload,
                asks_mtu,
            }
        }
        2 => Passage::Input {
            now: read_moment(from)?,
            mark: from.u32()?,
            if_id: from.u32()?,
            ifindex: read_signed(from)?,
            no_policy: from.flag()?,
        },
        3 => Passage::Inner {
            now: read_moment(from)?,
        },
        4 => Passage::Retry {
            now: read_moment(from)?,
        },
        5 => Passage::Iptfs {
            now: read_moment(from)?,
        },
        _ => return None,
    })
}

pub(super) fn query(out: &mut Writer<'_>, query: &RouteQuery) {
    out.int(query.family.into());
    address(out, query.daddr);
    address(out, query.saddr);
    out.int(signed(query.ifindex));
    out.int(query.mark.into());
}

pub(super) fn read_query(from: &mut Reader<'_>) -> Option<RouteQuery> {
    Some(RouteQuery {
        family: read_u16(from)?,
        daddr: read_address(from)?,
        saddr: read_address(from)?,
        ifindex: read_signed(from)?,
        mark: from.u32()?,
    })
}

pub(super) fn answer<T>(
    out: &mut Writer<'_>,
    answer: &Result<T, i32>,
    write: impl FnOnce(&mut Writer<'_>, &T),
) {
    match answer {
        Ok(value) => {
            out.flag(true);
            write(out, value);
        }
        Err(errno) => {
            out.flag(false);
            out.int(signed(*errno));
        }
    }
}

pub(super) fn read_result<T>(
    from: &mut Reader<'_>,
    read: impl FnOnce(&mut Reader<'_>) -> Option<T>,
) -> Option<Result<T, i32>> {
    Some(match from.flag()? {
        true => Ok(read(from)?),
        false => Err(read_signed(from)?),
    })
}

pub(in crate::recording) fn host_said(out: &mut Writer<'_>, said: &HostSaid) {
    match said {
        HostSaid::Generation(generation) => {
            out.int(0);
            out.int(*generation);
        }
        HostSaid::Route(asked, route) => {
            out.int(1);
            query(out, asked);
            answer(out, route, |out, path| {
                out.int(path.mtu.into());
                out.int(path.hop_limit.into());
            });
        }
        HostSaid::Source(asked, source) => {
            out.int(2);
            query(out, asked);
            answer(out, source, |out, source| address(out, *source));
        }
        HostSaid::Destination(family, asked, destination) => {
            out.int(3);
            out.int((*family).into());
            address(out, *asked);
            out.option(*destination, |out, to| {
                out.flag(to.is_local);
                out.int(signed(to.ifindex));
            });
        }
        HostSaid::Owner(flow, owner) => {
            out.int(4);
            out.int(flow.family.into());
            address(out, flow.daddr);
            address(out, flow.saddr);
            for value in [flow.proto.into(), flow.dport, flow.sport] {
                out.int(value.into());
            }
            out.int(signed(flow.ifindex));
            out.int(flow.mark.into());
            out.option(*owner, |out, owner| {
                out.int(owner.socket.0);
                out.int(owner.encap.into());
            });
        }
    }
}

pub(super) fn read_host_said(from: &mut Reader<'_>) -> Option<HostSaid> {
    Some(match from.int()? {
        0 => HostSaid::Generation(from.int()?),
        1 => {
            let asked = read_query(from)?;
            let route = read_result(from, |from| {
                Some(PathInfo {
                    mtu: from.u32()?,
                    hop_limit: from.small()?,
                })
            })?;
            HostSaid::Route(asked, route)
        }
        2 => HostSaid::Source(read_query(from)?, read_result(from, read_address)?),
        3 => {
            let (family, asked) = (read_u16(from)?, read_address(from)?);
            let destination = from.option(|from| {
                Some(Destination {
                    is_local: from.flag()?,
                    ifindex: read_signed(from)?,
                })
            })?;
            HostSaid::Destination(family, asked, destination)
        }
        4 => {
            let flow = Flow {
                family: read_u16(from)?,
                daddr: read_address(from)?,
                saddr: read_address(from)?,
                proto: from.small()?,
                dport: read_u16(from)?,
                sport: read_u16(from)?,
                ifindex: read_signed(from)?,
                mark: from.u32()?,
            };
            let owner = from.option(|from| {
                Some(Owner {
                    socket: SocketKey(from.int()?),
                    encap: read_u16(from)?,
                })
            })?;
            HostSaid::Owner(flow, owner)
        }
        _ => return None,
    })
}
