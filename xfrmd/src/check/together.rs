//! Rules about SAs and policies that belong together, or are in each other's way.
//!
//! Which SA serves which template is decided as `net/xfrm/xfrm_state.c xfrm_state_look_at` and
//! `xfrm_policy.c xfrm_state_ok` do, for any packet that the policy is for.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use xfrm_proto::consts::*;
use xfrm_proto::uapi::{Address, Mark, Selector, UserTmpl};

use super::state::{address, protocol};
use super::{Finding, Kind, Policy, Sa, State, Subject};

pub(super) fn examine<'a>(state: &'a State, found: &mut Vec<Finding<'a>>) {
    directions(state, found);
    generations(state, found);
    demand(state, found);
    identities(state, found);
    shadows(state, found);
}

fn about<'a>(sa: &'a Sa, kind: Kind, why: String) -> Finding<'a> {
    Finding {
        kind,
        subject: Subject::Sa(sa),
        why,
    }
}

/// SAs that carry packets: no larval ones, and none that Linux adds by itself.
fn usable(state: &State) -> impl Iterator<Item = &Sa> {
    let all = state.sas.iter();
    all.filter(|sa| sa.is_negotiated() && !sa.is_larval())
}

/// Every negotiated SA has one for the way back.
fn directions<'a>(state: &'a State, found: &mut Vec<Finding<'a>>) {
    let way = |sa: &Sa, back: bool| {
        let info = &sa.info;
        let ends = match back {
            false => [info.saddr.0, info.id.daddr.0],
            true => [info.id.daddr.0, info.saddr.0],
        };
        (ends, info.family, info.id.proto, info.mode, info.reqid)
    };
    let there: BTreeSet<_> = usable(state).map(|sa| way(sa, false)).collect();
    for sa in usable(state) {
        let [source, destination] = sa.addresses();
        if source.is_unspecified() || destination.is_multicast() {
            continue;
        }
        if !there.contains(&way(sa, true)) {
            let reqid = match sa.info.reqid {
                0 => String::new(),
                reqid => format!(" with reqid {reqid}"),
            };
            found.push(about(
                sa,
                Kind::OneWaySa,
                format!("there is none from {destination} to {source}{reqid}"),
            ));
        }
    }
}

/// SAs that a rekeying has left.
fn generations<'a>(state: &'a State, found: &mut Vec<Finding<'a>>) {
    let mut alike: BTreeMap<_, Vec<&Sa>> = BTreeMap::new();
    for sa in usable(state) {
        let info = &sa.info;
        let key = (
            [info.saddr.0, info.id.daddr.0],
            (info.family, info.id.proto, info.mode, info.reqid),
            ends(&info.sel),
            (sa.mark.v, sa.mark.m, sa.if_id, sa.cpu, sa.direction),
        );
        alike.entry(key).or_default().push(sa);
    }
    for sas in alike.values() {
        let Some(newest) = sas.iter().max_by_key(|sa| sa.info.curlft.add_time) else {
            continue;
        };
        for sa in sas {
            let older = sa.info.curlft.add_time < newest.info.curlft.add_time;
            if older && sa.info.lft.hard_add_expires_seconds == 0 {
                found.push(about(
                    sa,
                    Kind::SupersededSa,
                    format!(
                        "spi {:#010x} has replaced it, and it has no hard lifetime",
                        newest.info.id.spi.get()
                    ),
                ));
            }
        }
    }
}

/// What tells selectors of the same flows.
fn ends(sel: &Selector) -> impl Ord + use<> {
    (
        [sel.saddr.0, sel.daddr.0],
        [sel.prefixlen_s, sel.prefixlen_d, sel.proto],
        [sel.sport.get(), sel.sport_mask.get()],
        [sel.dport.get(), sel.dport_mask.get()],
        sel.family,
    )
}

/// Where the packet that a template is for comes from and goes to.
#[derive(Clone, Copy)]
enum Ends {
    /// As the policy's selector says.
    Selected(Selector),
    /// Those of the tunnel inside.
    Outer(Address, Address),
}

/// A policy's template, and the packets that it is for.
struct Demand<'a> {
    policy: &'a Policy,
    template: &'a UserTmpl,
    ends: Ends,
}

fn has_outer_header(mode: u8) -> bool {
    matches!(mode, XFRM_MODE_TUNNEL | XFRM_MODE_BEET | XFRM_MODE_IPTFS)
}

fn demands(state: &State) -> impl Iterator<Item = Demand<'_>> {
    state.policies.iter().flat_map(|policy| {
        let mut ends = Ends::Selected(policy.info.sel);
        policy.templates.iter().map(move |template| {
            let demand = Demand {
                policy,
                template,
                ends,
            };
            if has_outer_header(template.mode) {
                ends = Ends::Outer(template.saddr, template.id.daddr);
            }
            demand
        })
    })
}

impl Demand<'_> {
    fn is_served_by(&self, sa: &Sa) -> bool {
        let (info, template) = (&sa.info, self.template);
        let leaves = self.policy.direction() == XFRM_POLICY_OUT;
        let says_otherwise = match sa.direction {
            None => false,
            Some(direction) => (direction == XFRM_SA_DIR_OUT) != leaves,
        };
        let any_protocol = matches!(template.id.proto, 0 | IPSEC_PROTO_ANY);
        let mark = self.policy.mark.v & self.policy.mark.m;
        !says_otherwise
            && (any_protocol || template.id.proto == info.id.proto)
            && template.mode == info.mode
            && (template.reqid == info.reqid || (template.reqid == 0 && !leaves))
            && (template.id.spi.get() == 0 || template.id.spi == info.id.spi)
            && self.policy.if_id == sa.if_id
            && (mark & sa.mark.m == sa.mark.v || !leaves)
            && self.joins(sa)
    }

    /// Whether the SA is between the right ends.
    fn joins(&self, sa: &Sa) -> bool {
        let info = &sa.info;
        let is = |wanted: Address, there: Address, family| {
            wanted.is_any(family) || there.is_any(family) || wanted.equal(there, family)
        };
        if has_outer_header(self.template.mode) {
            let family = self.template.family;
            return family == info.family
                && is(self.template.id.daddr, info.id.daddr, family)
                && is(self.template.saddr, info.saddr, family);
        }
        match self.ends {
            Ends::Outer(source, destination) => {
                is(destination, info.id.daddr, info.family) && is(source, info.saddr, info.family)
            }
            Ends::Selected(sel) => {
                sel.family == info.family
                    && is_within(info.id.daddr, sel.daddr, sel.prefixlen_d, sel.family)
                    && (info.saddr.is_any(info.family)
                        || is_within(info.saddr, sel.saddr, sel.prefixlen_s, sel.family))
            }
        }
    }
}

fn is_within(it: Address, prefix: Address, bits: u8, family: u16) -> bool {
    let differing = it.for_family(family).bits() ^ prefix.for_family(family).bits();
    differing.leading_zeros() >= u32::from(bits)
}

/// Whether the SA is for packets that arrive, as far as can be known.
pub(super) fn is_inbound(state: &State, sa: &Sa) -> bool {
    match sa.direction {
        Some(direction) => direction == XFRM_SA_DIR_IN,
        None if sa.received > 0 => true,
        None => {
            demands(state).any(|it| it.policy.direction() != XFRM_POLICY_OUT && it.is_served_by(sa))
        }
    }
}

/// SAs that nobody wants, and wishes that no SA fulfils.
fn demand<'a>(state: &'a State, found: &mut Vec<Finding<'a>>) {
    // SAs by request id, since those of large tables differ in it.
    let mut by_reqid: HashMap<u32, Vec<usize>> = HashMap::new();
    for (place, sa) in state.sas.iter().enumerate() {
        by_reqid.entry(sa.info.reqid).or_default().push(place);
    }
    let mut wanted = vec![false; state.sas.len()];
    for demand in demands(state) {
        let leaves = demand.policy.direction() == XFRM_POLICY_OUT;
        let reqid = demand.template.reqid;
        let alike = by_reqid.get(&reqid).map(Vec::as_slice).unwrap_or_default();
        let every: Vec<usize> = match reqid == 0 && !leaves {
            true => (0..state.sas.len()).collect(),
            false => alike.to_vec(),
        };
        let mut served = false;
        for place in every {
            let Some(sa) = state.sas.get(place) else {
                continue;
            };
            if !sa.is_larval() && demand.is_served_by(sa) {
                served = true;
                if let Some(slot) = wanted.get_mut(place) {
                    *slot = true;
                }
            }
        }
        let policy = demand.policy;
        if !served && demand.template.optional == 0 && policy.info.action == XFRM_POLICY_ALLOW {
            found.push(Finding {
                kind: Kind::PolicyWithoutSa,
                subject: Subject::Policy(policy),
                why: wish(&demand),
            });
        }
    }
    for (sa, wanted) in state.sas.iter().zip(wanted) {
        if !wanted && sa.is_negotiated() && !sa.is_larval() {
            found.push(about(
                sa,
                Kind::SaWithoutPolicy,
                "no policy has a template for it".to_owned(),
            ));
        }
    }
}

fn wish(demand: &Demand<'_>) -> String {
    let template = demand.template;
    let mut why = format!("no SA serves its template {}", protocol(template.id.proto));
    if has_outer_header(template.mode) {
        let [source, destination] =
            [template.saddr, template.id.daddr].map(|it| address(it, template.family));
        why += &format!(" {source} > {destination}");
    }
    if template.reqid != 0 {
        why += &format!(" reqid {}", template.reqid);
    }
    why
}

/// SAs that a lookup by destination, protocol and SPI cannot tell from each other.
fn identities<'a>(state: &'a State, found: &mut Vec<Finding<'a>>) {
    let mut same: BTreeMap<_, Vec<&Sa>> = BTreeMap::new();
    for sa in state.sas.iter().filter(|sa| sa.info.id.spi.get() != 0) {
        let id = &sa.info.id;
        let key = (id.daddr.0, id.spi.get(), id.proto, sa.info.family);
        same.entry(key).or_default().push(sa);
    }
    for sas in same.values() {
        for (place, sa) in sas.iter().enumerate() {
            let others = sas.iter().enumerate().filter(|&(other, _)| other != place);
            let mut confused = others.filter(|(_, other)| overlap(sa.mark, other.mark));
            if let Some((_, other)) = confused.next() {
                let [source, _] = other.addresses();
                found.push(about(
                    sa,
                    Kind::DuplicateSpi,
                    format!("a packet for it may as well be for the one from {source}"),
                ));
            }
        }
    }
}

/// Whether a packet's mark can be one of both.
fn overlap(a: Mark, b: Mark) -> bool {
    (a.v ^ b.v) & a.m & b.m == 0
}

/// Policies that never get a packet, because an earlier one lets it pass in clear.
fn shadows<'a>(state: &'a State, found: &mut Vec<Finding<'a>>) {
    let own = |policy: &&Policy| !policy.is_sockets();
    let policies = || state.policies.iter().filter(own);
    let clear: Vec<&Policy> = policies().filter(|it| it.passes_plaintext()).collect();
    for policy in policies().filter(|it| it.protects()) {
        let first = clear.iter().find(|clear| {
            comes_before(clear, policy)
                && clear.info.dir == policy.info.dir
                && clear.kind == policy.kind
                && clear.if_id == policy.if_id
                && covers_mark(clear.mark, policy.mark)
                && covers(&clear.info.sel, &policy.info.sel)
        });
        if let Some(first) = first {
            found.push(Finding {
                kind: Kind::ShadowedPolicy,
                subject: Subject::Policy(policy),
                why: format!("all that it would protect passes in clear by {first}"),
            });
        }
    }
}

/// By priority; of the same, the older one. Numbers of policies grow.
fn comes_before(a: &Policy, b: &Policy) -> bool {
    (a.info.priority, a.info.index) < (b.info.priority, b.info.index)
}

/// Whether every mark that is one of `b` is one of `a`.
fn covers_mark(a: Mark, b: Mark) -> bool {
    a.m & !b.m == 0 && (a.v ^ b.v) & a.m == 0
}

/// Whether every flow of `b` is one of `a`.
fn covers(a: &Selector, b: &Selector) -> bool {
    let port = |(port, mask): (u16, u16), (other, other_mask): (u16, u16)| {
        mask & !other_mask == 0 && (port ^ other) & mask == 0
    };
    a.family == b.family
        && a.prefixlen_d <= b.prefixlen_d
        && a.prefixlen_s <= b.prefixlen_s
        && is_within(b.daddr, a.daddr, a.prefixlen_d, a.family)
        && is_within(b.saddr, a.saddr, a.prefixlen_s, a.family)
        && (a.proto == 0 || a.proto == b.proto)
        && (a.ifindex == 0 || a.ifindex == b.ifindex)
        && port(
            (a.dport.get(), a.dport_mask.get()),
            (b.dport.get(), b.dport_mask.get()),
        )
        && port(
            (a.sport.get(), a.sport_mask.get()),
            (b.sport.get(), b.sport_mask.get()),
        )
}
