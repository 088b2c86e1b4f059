//! The SAs that a flow passes, in order, and what was worked out for them.
//!
//! Source: `net/xfrm/xfrm_policy.c xfrm_bundle_create, xfrm_init_pmtu`.

use xfrm_proto::uapi::Address;

use crate::Netns;
use crate::drop_reason::DropReason;
use crate::entropy::Entropy;
use crate::packet::Family;
use crate::path::route::{RouteQuery, Routes};
use crate::sad::choices::Shard;
use crate::sad::{Sa, SaHandle, Sad};
use crate::spd::Flow;
use crate::transform::{Mode, Protocol};

/// The most SAs that a packet can pass.
///
/// QUIRK: six_templates_install_and_never_work. Linux wants the sum below `XFRM_MAX_DEPTH`.
pub(super) const MOST_STEPS: usize = 5;

/// One SA of a bundle.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Step {
    pub(super) sa: SaHandle,
    /// TTL or hop limit of the outer header.
    pub(super) hop_limit: u8,
    /// What may leave the SA (`child_mtu_cached`).
    pub(super) outer_mtu: u32,
    /// What may enter it, if it checks that.
    pub(super) inner_mtu: u32,
    /// Packets wait in its queue (IPTFS).
    pub(super) aggregates: bool,
}

/// The SAs for a flow (`struct xfrm_dst`, all of a chain).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Bundle {
    /// What may enter the bundle.
    pub(super) mtu: u32,
    /// What the route of the outermost packet takes.
    pub(super) path_mtu: u32,
    /// Whether the outermost packet may be fragmented whatever its header says: a tunnel made it.
    pub(super) ignores_df: bool,
    /// The first SA is of tunnel mode.
    is_tunnel: bool,
    /// How many steps there are.
    count: usize,
    steps: [Step; MOST_STEPS],
}

/// What an SA of each template was chosen among; goes stale with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sources {
    shards: [Option<(Shard, u32)>; MOST_STEPS],
}

impl Sources {
    pub(super) fn note(&mut self, sad: &Sad, shard: Shard) {
        if let Some(free) = self.shards.iter_mut().find(|place| place.is_none()) {
            *free = Some((shard, sad.choices.of(shard)));
        }
    }

    pub(super) fn are_current(&self, sad: &Sad) -> bool {
        let mut shards = self.shards.iter().flatten();
        shards.all(|&(shard, number)| sad.choices.of(shard) == number)
    }
}

/// SAs in order, first the innermost.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chain {
    sas: [Option<SaHandle>; MOST_STEPS],
}

impl Chain {
    pub(super) fn push(&mut self, sa: SaHandle) {
        if let Some(free) = self.sas.iter_mut().find(|place| place.is_none()) {
            *free = Some(sa);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = SaHandle> + '_ {
        self.sas.iter().flatten().copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sas.iter().all(Option::is_none)
    }

    /// Puts SAs of several policies into the order of IPv6 headers (`xfrm_state_sort`).
    pub(super) fn sort(&mut self, sad: &Sad) {
        self.sas
            .sort_by_key(|sa| match sa.and_then(|sa| sad.by_handle(sa)) {
                Some(sa) => header_rank(sa),
                None => u8::MAX,
            });
    }
}

fn header_rank(sa: &Sa) -> u8 {
    use xfrm_proto::consts::*;
    match (sa.mode, sa.id.proto) {
        (XFRM_MODE_TRANSPORT, IPPROTO_AH) => 3,
        (XFRM_MODE_TRANSPORT, _) => 1,
        (XFRM_MODE_ROUTEOPTIMIZATION, _) => 2,
        _ => 4,
    }
}

/// What a bundle begins with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin<'a> {
    pub(super) flow: &'a Flow,
    /// MTU and hop limit of the packet's own route.
    pub(super) mtu: u32,
    pub(super) hop_limit: u8,
}

impl Bundle {
    #[inline]
    pub(super) fn steps(&self) -> &[Step] {
        self.steps.get(..self.count).unwrap_or_default()
    }

    /// Looks up the routes of all outer packets and works out what fits.
    pub(super) fn create(
        entropy: &mut dyn Entropy,
        netns: &Netns,
        chain: &Chain,
        origin: &Origin<'_>,
        routes: &dyn Routes,
    ) -> Result<Self, (DropReason, i32)> {
        use xfrm_proto::consts::errno;
        let flow = origin.flow;
        let mut bundle = Self {
            steps: [Step::default(); MOST_STEPS],
            count: 0,
            mtu: 0,
            path_mtu: origin.mtu,
            ignores_df: false,
            is_tunnel: false,
        };
        let mut hop_limit = origin.hop_limit;
        let (mut daddr, mut saddr) = (flow.daddr, flow.saddr);
        // By step: the MTU of the route that leads to it.
        let mut route_mtus = [0; MOST_STEPS];
        let places = bundle.steps.iter_mut().zip(&mut route_mtus);
        for ((place, route_mtu), handle) in places.zip(chain.iter()) {
            *route_mtu = bundle.path_mtu;
            let sa = netns.sad.by_handle(handle);
            let sa = sa.ok_or((DropReason::OutNoStates, errno::EAGAIN))?;
            let transform = sa
                .transform(netns.profile, entropy)
                .ok_or((DropReason::OutUnsupported, errno::EOPNOTSUPP))?;
            if Mode::Transport != transform.mode().params().mode {
                let smark = sa.options().smark;
                let mark = match smark.v | smark.m {
                    0 => 0,
                    _ => set_mark(flow.mark, sa),
                };
                (daddr, saddr) = outer_addresses(sa, transform.protocol(), daddr, saddr);
                let query = RouteQuery {
                    family: sa.family,
                    daddr,
                    saddr,
                    ifindex: flow.ifindex,
                    mark,
                };
                let route = routes
                    .route(&query)
                    .map_err(|errno| (DropReason::OutRoute, errno))?;
                bundle.path_mtu = route.mtu;
                hop_limit = route.hop_limit;
            }
            *place = Step {
                sa: handle,
                hop_limit,
                outer_mtu: 0,
                inner_mtu: u32::MAX,
                aggregates: matches!(transform.mode().params().mode, Mode::Iptfs { .. }),
            };
            bundle.count += 1;
        }
        bundle.work_out_mtus(entropy, netns, &route_mtus);
        Ok(bundle)
    }

    /// Whether a long packet is cut before its first SA, not behind the last.
    pub(super) fn is_cut_before(&self, packet: &[u8]) -> bool {
        self.is_tunnel && Family::of(packet) == Some(Family::V6)
    }

    /// From the outermost in, what still fits.
    fn work_out_mtus(
        &mut self,
        entropy: &mut dyn Entropy,
        netns: &Netns,
        route_mtus: &[u32; MOST_STEPS],
    ) {
        let mut mtu = self.path_mtu;
        let mut first_tunnel = None;
        let steps = self.steps.iter_mut().take(self.count);
        let steps = steps.zip(route_mtus).enumerate().rev();
        for (number, (step, &route_mtu)) in steps {
            step.outer_mtu = mtu;
            let sa = netns.sad.by_handle(step.sa);
            let transform = sa.and_then(|sa| sa.transform(netns.profile, entropy));
            let Some(transform) = transform else { continue };
            mtu = transform.mtu(mtu).min(route_mtu);
            let mode = transform.mode().params().mode;
            self.is_tunnel = number == 0 && mode == Mode::Tunnel;
            if matches!(mode, Mode::Tunnel | Mode::Beet) {
                first_tunnel = Some((number, mtu));
            }
        }
        self.mtu = mtu;
        if let Some((number, mtu)) = first_tunnel
            && let Some(step) = self.steps.get_mut(number)
        {
            step.inner_mtu = mtu;
            self.ignores_df = true;
        }
    }
}

/// The mark of a packet that an SA has taken (`xfrm_smark_get`).
pub(super) fn set_mark(mark: u32, sa: &Sa) -> u32 {
    let smark = sa.options().smark;
    (smark.v & smark.m) | (mark & !smark.m)
}

/// Where a packet goes behind an SA (`xfrm_dst_lookup`).
fn outer_addresses(
    sa: &Sa,
    protocol: &Protocol,
    daddr: Address,
    saddr: Address,
) -> (Address, Address) {
    use crate::transform::route_optimization::Kind;
    match protocol {
        Protocol::RouteOptimization(header) => match header.kind {
            Kind::HomeAddress => (daddr, header.care_of),
            Kind::Routing => (header.care_of, saddr),
        },
        _ => (sa.id.daddr, sa.saddr),
    }
}
