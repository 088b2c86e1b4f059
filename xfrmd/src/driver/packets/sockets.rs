//! The sockets of a namespace: where protected packets come from and go to.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use dataplane::io::bulk::{Bulk, BulkReceiver};
use dataplane::io::raw::Raw;
use dataplane::io::udp_encap::UdpEncap;
use dataplane::io::{PacketIo, Sent};
use dataplane::packet::{Family, PacketBuf};
use dataplane::path::Departure;
use xfrm_proto::consts::{IPPROTO_AH, IPPROTO_COMP, IPPROTO_ESP};

use crate::attach::{BYPASS, MARK_MASK};
use crate::driver::keeper::Role;

/// `IPPROTO_RAW`.
const IPPROTO_RAW: u8 = 255;
/// Sockets for marks that SAs set.
const MOST_MARKS: usize = 64;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// A host may do without IPv6.
fn open_both(
    opened: &mut Vec<Raw>,
    mut open: impl FnMut(Family) -> io::Result<Raw>,
) -> io::Result<()> {
    for family in FAMILIES {
        match open(family) {
            Err(error) if family == Family::V6 => tracing::debug!(%error, "no IPv6"),
            other => opened.push(other?),
        }
    }
    Ok(())
}

/// Receiving sockets of a daemon before us, and what has come to them since.
pub(crate) type Left = BTreeMap<Role, OwnedFd>;

/// Protocols, and as what their sockets are held.
const PROTOCOLS: [(u8, [Role; 2]); 3] = [
    (IPPROTO_ESP, [Role::Esp, Role::EspV6]),
    (IPPROTO_AH, [Role::Ah, Role::AhV6]),
    (IPPROTO_COMP, [Role::Comp, Role::CompV6]),
];
const IN_UDP: [Role; 2] = [Role::Udp, Role::UdpV6];

fn of_family([v4, v6]: [Role; 2], family: Family) -> Role {
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}

/// Sockets that protected packets come from.
pub(super) struct Receivers {
    protocols: Vec<Raw>,
    udp: Vec<UdpEncap>,
    bulk: Vec<BulkReceiver<Arc<Bulk>>>,
}

impl Receivers {
    /// In the calling thread's namespace; with those that are left.
    pub(super) fn open(left: &mut Left) -> io::Result<Self> {
        let mut protocols = Vec::new();
        for (protocol, roles) in PROTOCOLS {
            open_both(&mut protocols, |family| {
                match left.remove(&of_family(roles, family)) {
                    Some(fd) => Ok(Raw::adopt(fd, family, protocol)),
                    None => Raw::open(family, protocol, BYPASS),
                }
            })?;
        }
        let mut udp = Vec::new();
        for family in FAMILIES {
            let opened = match left.remove(&of_family(IN_UDP, family)) {
                Some(fd) => Ok(UdpEncap::adopt(fd, family)),
                None => UdpEncap::open(family, &[], BYPASS),
            };
            match opened {
                Err(error) if family == Family::V6 => tracing::debug!(%error, "no IPv6"),
                other => udp.push(other?),
            }
        }
        Ok(Self {
            protocols,
            udp,
            bulk: Vec::new(),
        })
    }

    /// What a daemon after us can go on with.
    pub(super) fn held(&self) -> impl Iterator<Item = (Role, BorrowedFd<'_>)> {
        let protocols = self.protocols.iter().filter_map(|raw| {
            let mut all = PROTOCOLS.iter();
            let (_, roles) = all.find(|(protocol, _)| *protocol == raw.protocol())?;
            Some((of_family(*roles, raw.family()), raw.fd()))
        });
        let udp = self.udp.iter();
        protocols.chain(udp.map(|udp| (of_family(IN_UDP, udp.family()), udp.fd())))
    }

    /// Takes ESP in UDP for these ports: from these sockets, and where there is none for a port
    /// and family, from raw ones. Nothing may come from both.
    pub(super) fn set_ports(&mut self, ports: &[u16], bulk: &[Arc<Bulk>]) {
        for udp in &self.udp {
            let has_bulk = |port| {
                let is_it = |it: &Arc<Bulk>| it.family() == udp.family() && it.port() == port;
                bulk.iter().any(is_it)
            };
            let raw = ports.iter().copied().filter(|&port| !has_bulk(port));
            let raw: Vec<u16> = raw.collect();
            if let Err(error) = udp.set_ports(&raw) {
                tracing::error!(%error, ?raw, "no ESP in UDP for these ports");
            }
        }
        let knows =
            |it: &BulkReceiver<Arc<Bulk>>, other: &Arc<Bulk>| std::ptr::eq(&**other, it.bulk());
        self.bulk
            .retain(|it| bulk.iter().any(|other| knows(it, other)));
        for other in bulk {
            if !self.bulk.iter().any(|it| knows(it, other)) {
                let mut receiver = BulkReceiver::new(Arc::clone(other));
                // A raw socket has received it too.
                if let Err(error) = receiver.discard() {
                    tracing::debug!(%error, "receiving");
                }
                self.bulk.push(receiver);
            }
        }
    }

    /// What to wait for, in the order of [`Receivers::sources`].
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let protocols = self.protocols.iter().map(Raw::fd);
        let udp = self.udp.iter().map(UdpEncap::fd);
        let bulk = self.bulk.iter().map(|it| it.bulk().fd());
        protocols.chain(udp).chain(bulk)
    }

    /// All of them.
    pub(super) fn sources(&mut self) -> impl Iterator<Item = &mut dyn PacketIo> {
        let protocols = self.protocols.iter_mut().map(|it| it as &mut dyn PacketIo);
        let udp = self.udp.iter_mut().map(|it| it as &mut dyn PacketIo);
        let bulk = self.bulk.iter_mut().map(|it| it as &mut dyn PacketIo);
        protocols.chain(udp).chain(bulk)
    }
}

/// Sockets that protected packets go to, and where answers to them come from.
pub(super) struct Senders {
    too_big: Vec<Raw>,
    /// By family and mark, opened when needed.
    raw: Vec<(Family, u32, Raw)>,
    bulk: Vec<Arc<Bulk>>,
}

impl Senders {
    /// In the calling thread's namespace, in which more are opened later.
    pub(super) fn open() -> io::Result<Self> {
        let mut too_big = Vec::new();
        open_both(&mut too_big, |family| Raw::open_too_big(family, BYPASS))?;
        Ok(Self {
            too_big,
            raw: Vec::new(),
            bulk: Vec::new(),
        })
    }

    /// What to wait for, in the order of [`Senders::too_big`].
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.too_big.iter().map(Raw::fd)
    }

    /// Sockets that get what routers say.
    pub(super) fn too_big(&mut self) -> impl Iterator<Item = &mut Raw> {
        self.too_big.iter_mut()
    }

    /// Sends ESP in UDP from these sockets, where they can.
    pub(super) fn set_bulk(&mut self, bulk: Vec<Arc<Bulk>>) {
        self.bulk = bulk;
    }

    /// Sends packets that go the same way; what became of them, and how many are kept at the end.
    /// With `more` to come, those are kept that could go with others in one call.
    pub(super) fn send(
        &mut self,
        to: Departure,
        packets: &[PacketBuf],
        more: bool,
    ) -> io::Result<(Sent, usize)> {
        let mark = to.mark & !MARK_MASK;
        let mut sent = Sent::default();
        let mut rest = packets;
        while let [first, ..] = rest {
            let bulk = self.bulk.iter().find(|it| mark == 0 && it.takes(first));
            if more && bulk.is_some_and(|bulk| bulk.has_room_beside(rest)) {
                return Ok((sent, rest.len()));
            }
            // What fails so is tried once more: then it is known why.
            let (count, in_bulk) = match bulk.map(|bulk| bulk.send(rest)) {
                Some(Ok(count @ 1..)) => (count, true),
                Some(_) => (1, false),
                None if self.bulk.is_empty() || mark != 0 => (rest.len(), false),
                None => {
                    let others = rest.iter();
                    let others =
                        others.take_while(|packet| !self.bulk.iter().any(|it| it.takes(packet)));
                    (others.count(), false)
                }
            };
            let (these, others) = rest.split_at(count.max(1).min(rest.len()));
            if in_bulk {
                sent.packets += count;
            } else {
                sent += self.raw(to.family, BYPASS | mark)?.send(these);
            }
            rest = others;
        }
        Ok((sent, 0))
    }

    fn raw(&mut self, family: Family, mark: u32) -> io::Result<&mut Raw> {
        let find = |it: &(Family, u32, Raw)| (it.0, it.1) == (family, mark);
        let at = match self.raw.iter().position(find) {
            Some(at) => at,
            None => {
                if self.raw.len() >= MOST_MARKS {
                    self.raw.clear();
                }
                // Any protocol; with this one nothing is received.
                let raw = Raw::open(family, IPPROTO_RAW, mark)?;
                self.raw.push((family, mark, raw));
                self.raw.len() - 1
            }
        };
        let sender = self.raw.get_mut(at).ok_or(io::ErrorKind::NotFound)?;
        Ok(&mut sender.2)
    }
}
