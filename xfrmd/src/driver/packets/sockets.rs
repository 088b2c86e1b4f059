//! The sockets of a namespace: where protected packets come from and go to.

use std::io;

use dataplane::io::raw::Raw;
use dataplane::io::udp_encap::UdpEncap;
use dataplane::io::{PacketIo, Sent};
use dataplane::packet::{Family, PacketBuf};
use dataplane::path::Departure;
use nix::poll::PollFd;
use xfrm_proto::consts::{IPPROTO_AH, IPPROTO_COMP, IPPROTO_ESP};

use super::wait_for;
use crate::attach::{BYPASS, MARK_MASK};

/// `IPPROTO_RAW`.
const IPPROTO_RAW: u8 = 255;
/// Sockets for marks that SAs set.
const MOST_MARKS: usize = 64;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// A host may do without IPv6.
fn open_both(opened: &mut Vec<Raw>, open: impl Fn(Family) -> io::Result<Raw>) -> io::Result<()> {
    for family in FAMILIES {
        match open(family) {
            Err(error) if family == Family::V6 => tracing::debug!(%error, "no IPv6"),
            other => opened.push(other?),
        }
    }
    Ok(())
}

/// Sockets that protected packets come from.
pub(super) struct Receivers {
    protocols: Vec<Raw>,
    udp: Vec<UdpEncap>,
}

impl Receivers {
    /// In the calling thread's namespace.
    pub(super) fn open() -> io::Result<Self> {
        let mut protocols = Vec::new();
        for protocol in [IPPROTO_ESP, IPPROTO_AH, IPPROTO_COMP] {
            open_both(&mut protocols, |family| Raw::open(family, protocol, BYPASS))?;
        }
        let mut udp = Vec::new();
        for family in FAMILIES {
            match UdpEncap::open(family, &[], BYPASS) {
                Err(error) if family == Family::V6 => tracing::debug!(%error, "no IPv6"),
                other => udp.push(other?),
            }
        }
        Ok(Self { protocols, udp })
    }

    /// Takes ESP in UDP for these ports.
    pub(super) fn set_ports(&self, ports: &[u16]) {
        for udp in &self.udp {
            if let Err(error) = udp.set_ports(ports) {
                tracing::error!(%error, ?ports, "no ESP in UDP for these ports");
            }
        }
    }

    /// What to wait for, in the order of [`Receivers::sources`].
    pub(super) fn poll_fds(&self) -> impl Iterator<Item = PollFd<'_>> {
        let protocols = self.protocols.iter().map(Raw::fd);
        let udp = self.udp.iter().map(UdpEncap::fd);
        protocols.chain(udp).map(wait_for)
    }

    /// All of them.
    pub(super) fn sources(&mut self) -> impl Iterator<Item = &mut dyn PacketIo> {
        let protocols = self.protocols.iter_mut().map(|it| it as &mut dyn PacketIo);
        protocols.chain(self.udp.iter_mut().map(|it| it as &mut dyn PacketIo))
    }
}

/// Sockets that protected packets go to, and where answers to them come from.
pub(super) struct Senders {
    too_big: Vec<Raw>,
    /// By family and mark, opened when needed.
    raw: Vec<(Family, u32, Raw)>,
}

impl Senders {
    /// In the calling thread's namespace, in which more are opened later.
    pub(super) fn open() -> io::Result<Self> {
        let mut too_big = Vec::new();
        open_both(&mut too_big, |family| Raw::open_too_big(family, BYPASS))?;
        Ok(Self {
            too_big,
            raw: Vec::new(),
        })
    }

    /// What to wait for, in the order of [`Senders::too_big`].
    pub(super) fn poll_fds(&self) -> impl Iterator<Item = PollFd<'_>> {
        self.too_big.iter().map(Raw::fd).map(wait_for)
    }

    /// Sockets that get what routers say.
    pub(super) fn too_big(&mut self) -> impl Iterator<Item = &mut Raw> {
        self.too_big.iter_mut()
    }

    /// Sends packets that go the same way.
    pub(super) fn send(&mut self, to: Departure, packets: &[PacketBuf]) -> io::Result<Sent> {
        let mark = BYPASS | to.mark & !MARK_MASK;
        let find = |it: &(Family, u32, Raw)| (it.0, it.1) == (to.family, mark);
        let at = match self.raw.iter().position(find) {
            Some(at) => at,
            None => {
                if self.raw.len() >= MOST_MARKS {
                    self.raw.clear();
                }
                // Any protocol; with this one nothing is received.
                let raw = Raw::open(to.family, IPPROTO_RAW, mark)?;
                self.raw.push((to.family, mark, raw));
                self.raw.len() - 1
            }
        };
        let sender = self.raw.get_mut(at).ok_or(io::ErrorKind::NotFound)?;
        Ok(sender.2.send(packets))
    }
}
