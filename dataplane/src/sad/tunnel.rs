//! The hidden SA behind IPCOMP tunnels.
//!
//! Packets too small to be worth compressing travel as plain IP in IP, which
//! inbound policies must accept as if an SA had carried it. So an IPCOMP tunnel
//! SA brings a tunnel SA of protocol 4 (IPv4; its SPI is the source address) or
//! 41 (IPv6; SPIs are counted), shared by all that have its addresses. Clients
//! see it in dumps but cannot remove it; it goes with its last user.
//!
//! Source: `net/ipv4/ipcomp.c ipcomp_tunnel_attach`, `net/ipv6/ipcomp6.c`,
//! `net/ipv6/xfrm6_tunnel.c`, `net/xfrm/xfrm_state.c xfrm_state_delete_tunnel`.

use std::collections::BTreeMap;

use hashbrown::HashMap;
use xfrm_proto::consts::*;
use xfrm_proto::uapi::{Address, XfrmId};

use super::sa::mark_key;
use super::{Sa, SaId, Sad};
use crate::keep::{Reader, Writer};
use crate::netns::Context;
use crate::packet::Family;

/// A hidden tunnel SA, also after somebody has expired it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TunnelKey(pub(super) u64);

struct Tunnel {
    /// Its place while it is in the SAD.
    id: Option<SaId>,
    users: u32,
    /// Whose counted SPI it holds, of an IPv6 tunnel.
    spi_of: Option<Address>,
}

/// All hidden tunnel SAs.
#[derive(Default)]
pub(super) struct Tunnels {
    by_key: BTreeMap<TunnelKey, Tunnel>,
    made: u64,
    /// SPI and holders for each IPv6 source (`xfrm6_tunnel_spi`).
    spis: HashMap<Address, (u32, u32), foldhash::fast::RandomState>,
    last_spi: u32,
    /// Uses by SAs that were refused, until the worker has let go of them.
    refused: Vec<TunnelKey>,
}

impl Tunnels {
    /// The SPI of an IPv6 source, one more holder (`xfrm6_tunnel_alloc_spi`).
    fn hold_spi(&mut self, source: Address) -> u32 {
        if let Some((spi, holders)) = self.spis.get_mut(&source) {
            *holders += 1;
            return *spi;
        }
        self.last_spi = self.last_spi.checked_add(1).unwrap_or(1);
        self.spis.insert(source, (self.last_spi, 1));
        self.last_spi
    }

    /// Whether there has never been any.
    pub(super) const fn are_untouched(&self) -> bool {
        self.made == 0 && self.last_spi == 0
    }

    pub(super) fn write(&self, out: &mut Writer<'_>) {
        out.int(self.made);
        out.int(self.last_spi.into());
        out.int(self.by_key.len() as u64);
        for (key, tunnel) in &self.by_key {
            out.int(key.0);
            let spi = tunnel
                .spi_of
                .and_then(|of| Some((of, self.spis.get(&of)?.0)));
            out.option(spi, |out, (of, spi)| {
                out.pod(&of);
                out.int(spi.into());
            });
        }
    }

    /// The reverse, without SAs.
    pub(super) fn read(&mut self, from: &mut Reader<'_>) -> Option<()> {
        self.made = from.int()?;
        self.last_spi = from.u32()?;
        for _ in 0..from.int()? {
            let key = TunnelKey(from.int()?);
            let spi = from.option(|from| Some((from.pod()?, from.u32()?)))?;
            if let Some((of, spi)) = spi {
                self.spis.entry(of).or_insert((spi, 0)).1 += 1;
            }
            let tunnel = Tunnel {
                id: None,
                users: 0,
                spi_of: spi.map(|(of, _)| of),
            };
            self.by_key.insert(key, tunnel);
        }
        Some(())
    }

    /// An SA that uses a tunnel, or is it.
    pub(super) fn recall(&mut self, key: TunnelKey, itself: Option<SaId>) -> Option<()> {
        let tunnel = self.by_key.get_mut(&key)?;
        match itself {
            Some(_) => tunnel.id = itself,
            None => tunnel.users += 1,
        }
        Some(())
    }

    fn release_spi(&mut self, source: Address) {
        if let Some((_, holders)) = self.spis.get_mut(&source) {
            *holders -= 1;
            if *holders == 0 {
                self.spis.remove(&source);
            }
        }
    }
}

impl Sad {
    /// The SPI that packets of plain IP in IP have (`xfrm_tunnel_rcv`, `xfrm6_tunnel_rcv`);
    /// `None` for an IPv6 source that no hidden tunnel is for.
    pub(crate) fn tunnel_spi(&self, outer: Family, source: Address) -> Option<u32> {
        match outer {
            Family::V6 => self.tunnels.spis.get(&source).map(|(spi, _)| *spi),
            Family::V4 => Some(source.v4_bits()),
        }
    }

    /// Gives an IPCOMP tunnel SA its hidden SA, a new one if there is none.
    pub(super) fn attach_tunnel(&mut self, sa: &mut Sa, cx: &Context<'_>) {
        let found = match sa.family {
            AF_INET6 => self
                .tunnels
                .spis
                .get(&sa.saddr)
                .map(|&(spi, _)| (spi, IPPROTO_IPV6)),
            _ => Some((sa.saddr.v4_bits(), IPPROTO_IPIP)),
        };
        let key = found
            .and_then(|(spi, proto)| {
                self.lookup(mark_key(sa.mark), sa.id.daddr, spi, proto, sa.family)
            })
            .and_then(|id| self.get(id)?.tunnel)
            .unwrap_or_else(|| self.create_tunnel(sa, cx));
        if let Some(tunnel) = self.tunnels.by_key.get_mut(&key) {
            tunnel.users += 1;
        }
        sa.tunnel = Some(key);
    }

    fn create_tunnel(&mut self, user: &Sa, cx: &Context<'_>) -> TunnelKey {
        let key = TunnelKey(self.tunnels.made);
        self.tunnels.made += 1;
        let is_ipv6 = user.family == AF_INET6;
        let (spi, proto) = if is_ipv6 {
            (self.tunnels.hold_spi(user.saddr), IPPROTO_IPV6)
        } else {
            (user.saddr.v4_bits(), IPPROTO_IPIP)
        };
        let mut sa = Box::new(Sa::blank(cx.now.real.0));
        sa.id = XfrmId {
            daddr: user.id.daddr.for_family(user.family),
            spi: spi.into(),
            proto,
            pad: [0; 3],
        };
        sa.saddr = user.saddr.for_family(user.family);
        sa.family = user.family;
        sa.mode = user.mode;
        sa.sel = user.sel;
        sa.mark = user.mark;
        sa.if_id = user.if_id;
        sa.tunnel = Some(key);
        sa.is_tunnel = true;
        if !is_ipv6 {
            sa.flags = user.flags;
            if user.options().extra_flags != 0 {
                sa.options_mut().extra_flags = user.options().extra_flags;
            }
        }
        let id = self.insert(sa, cx.now);
        self.tunnels.by_key.insert(
            key,
            Tunnel {
                id: Some(id),
                users: 0,
                spi_of: is_ipv6.then_some(user.saddr),
            },
        );
        key
    }

    /// Lets go of what a removed SA used, or notes that the hidden SA itself is gone.
    pub(super) fn release_tunnel(&mut self, removed: &Sa) {
        let Some(key) = removed.tunnel else { return };
        if removed.is_tunnel {
            if let Some(tunnel) = self.tunnels.by_key.get_mut(&key) {
                tunnel.id = None;
            }
        } else {
            self.release_tunnel_use(key);
        }
    }

    /// Lets go of what an SA used that will not come into the SAD, once the worker gets to it.
    pub fn discard(&mut self, sa: &Sa) {
        self.tunnels.refused.extend(sa.tunnel);
    }

    /// The worker's part of [`Sad::discard`].
    pub(super) fn release_refused(&mut self) {
        while let Some(key) = self.tunnels.refused.pop() {
            self.release_tunnel_use(key);
        }
    }

    fn release_tunnel_use(&mut self, key: TunnelKey) {
        let Some(tunnel) = self.tunnels.by_key.get_mut(&key) else {
            return;
        };
        tunnel.users -= 1;
        if tunnel.users > 0 {
            return;
        }
        let (id, spi_of) = (tunnel.id, tunnel.spi_of);
        self.tunnels.by_key.remove(&key);
        if let Some(id) = id {
            self.unlink(id);
        }
        if let Some(source) = spi_of {
            self.tunnels.release_spi(source);
        }
    }
}
