//! Whether the SAs that brought a packet are what policies want.
//!
//! Every SA's selector must be for the packet; then the policies of the flow
//! are looked up, and their templates are held against the sec path: the last
//! template against the outermost SA, in order, with transport SAs that no
//! template names let through and tunnels that none names refused.
//!
//! Source: `net/xfrm/xfrm_policy.c __xfrm_policy_check, xfrm_policy_ok,
//! xfrm_state_ok`.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::{Selector, UserTmpl};

use crate::drop_reason::DropReason;
use crate::netns::Netns;
use crate::packet::Family;
use crate::path::lookup;
use crate::path::sec_path::SecPath;
use crate::sad::Sa;
use crate::spd::{Flow, Mismatch, Policy, PolicyId, SocketKey, selector_mismatch};
use crate::time::WallSecs;

/// A packet before its policies.
#[derive(Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) netns: &'a Netns,
    /// When its policies are used; `None` where nothing may change.
    pub(super) used: Option<WallSecs>,
    pub(super) packet: &'a [u8],
    pub(super) flow: &'a Flow,
    /// `XFRM_POLICY_IN` or `_FWD`.
    pub(super) dir: u8,
    /// The socket that it is for, which may have a policy of its own.
    pub(super) socket: Option<SocketKey>,
    /// Interface id, 0 but for packets of an XFRM interface.
    pub(super) if_id: u32,
}

/// What is seen while a packet is held against its policies.
#[derive(Clone, Copy, Debug)]
pub(super) enum Seen<'a> {
    /// An SA that brought the packet, and what of its selector is not for it.
    Selector(&'a Sa, Option<Mismatch>),
    /// A template of a policy; SAs follow until one serves it.
    Template(&'a Policy, &'a UserTmpl),
    /// An SA, and what is against it for the template.
    Sa(&'a Sa, Option<Objection>),
    /// A tunnel that no template names.
    Unnamed(&'a Sa),
}

/// What is against an SA for a template of a policy that a packet which has arrived is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objection {
    /// The hidden tunnel of IPCOMP, which only an optional template of its source lets through.
    Hidden,
    /// Another protocol.
    Protocol,
    /// The template names another SPI.
    Spi,
    /// Another request id.
    Reqid,
    /// Another mode.
    Mode,
    /// An authentication algorithm that the template does not allow.
    Algorithm,
    /// Another source.
    Source,
    /// Another interface id than the policy's.
    IfId,
}

impl Objection {
    /// In words.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Hidden => "a hidden IPCOMP tunnel, which the template does not allow",
            Self::Protocol => "another protocol",
            Self::Spi => "the template names another SPI",
            Self::Reqid => "another reqid",
            Self::Mode => "another mode",
            Self::Algorithm => "the template does not allow its algorithm",
            Self::Source => "another source",
            Self::IfId => "another interface id",
        }
    }
}

/// The policies of a packet: one, or one of type sub and one of type main.
type Policies<'a> = [Option<&'a Policy>; 2];

impl<'a> Question<'a> {
    /// Lets the packet pass by these policies, or says why not.
    pub(super) fn check(&self, path: &mut SecPath) -> Result<lookup::Policies, DropReason> {
        self.examine(path, &mut |_| {})
    }

    /// The same, with somebody who is told what is seen.
    pub(super) fn examine(
        &self,
        path: &mut SecPath,
        seen: &mut impl FnMut(Seen<'_>),
    ) -> Result<lookup::Policies, DropReason> {
        let netns = self.netns;
        for sa in path.iter(&netns.sad, 0).rev() {
            let sa = sa.ok_or(DropReason::InSelector)?;
            let mismatch = self.mismatch(sa, self.flow);
            let passes = mismatch.is_none() || self.is_error_for(sa);
            seen(Seen::Selector(sa, mismatch.filter(|_| !passes)));
            if !passes {
                return Err(DropReason::InSelector);
            }
        }
        let chosen = self.policies();
        if chosen == [None, None] {
            return self.without_policy(path).map(|()| chosen);
        }
        if let Some(now) = self.used {
            let chosen = chosen.iter().flatten();
            chosen.for_each(|&id| netns.spd.mark_used(id, now));
        }
        let policies = chosen.map(|id| netns.spd.get(id?));
        if policies[0].is_some_and(|policy| policy.action != XFRM_POLICY_ALLOW) {
            return Err(DropReason::InPolicyBlock);
        }
        self.match_templates(&policies, path, seen).map(|()| chosen)
    }

    /// What of an SA's selector is not for a flow.
    ///
    /// QUIRK: old_sec_paths_do_not_compare_families: up to 6.1 an IPv4 selector is read as IPv6.
    fn mismatch(&self, sa: &Sa, flow: &Flow) -> Option<Mismatch> {
        if self.netns.profile.sec_path_compares_families {
            return selector_mismatch(&sa.sel, flow);
        }
        let selector = Selector {
            family: AF_UNSPEC,
            ..sa.sel
        };
        selector_mismatch(&selector, flow)
    }

    fn policy(&self) -> Option<PolicyId> {
        let (spd, flow) = (&self.netns.spd, self.flow);
        let own = self
            .socket
            .and_then(|socket| spd.lookup_socket(socket, self.dir, flow, self.if_id));
        own.or_else(|| spd.lookup(flow, self.dir, self.if_id))
            .or_else(|| {
                let errors_pass = self.netns.profile.icmp_errors_follow_their_flow;
                let flow = (self.dir == XFRM_POLICY_FWD && errors_pass).then(|| self.inner_flow());
                spd.lookup(&flow??, XFRM_POLICY_FWD, self.if_id)
            })
    }

    fn without_policy(&self, path: &SecPath) -> Result<(), DropReason> {
        let netns = self.netns;
        let defaults = netns.spd.defaults();
        let default = match self.dir {
            XFRM_POLICY_FWD => defaults.fwd,
            _ => defaults.input,
        };
        // QUIRK: transport_without_policy_passes.
        if default == XFRM_USERPOLICY_BLOCK || has_tunnel(netns, path, 0) {
            return Err(DropReason::InNoPolicy);
        }
        Ok(())
    }

    /// The policies that count: the first, and beside one of type sub the main one.
    ///
    /// QUIRK: forwarding_asks_the_main_input_policy: whatever the direction of the sub policy.
    pub(super) fn policies(&self) -> lookup::Policies {
        let spd = &self.netns.spd;
        let first = self.policy();
        let is_sub = first
            .and_then(|first| spd.get(first))
            .is_some_and(|policy| policy.key.kind != XFRM_POLICY_TYPE_MAIN);
        let kind = XFRM_POLICY_TYPE_MAIN;
        let second = || spd.lookup_type(self.flow, XFRM_POLICY_IN, kind, self.if_id);
        [first, is_sub.then(second).flatten()]
    }

    fn match_templates(
        &self,
        policies: &Policies<'_>,
        path: &mut SecPath,
        seen: &mut impl FnMut(Seen<'_>),
    ) -> Result<(), DropReason> {
        let mut templates = [None; XFRM_MAX_DEPTH];
        let mut count = 0;
        for policy in policies.iter().flatten() {
            if policy.action != XFRM_POLICY_ALLOW {
                return Err(DropReason::InPolicyBlock);
            }
            if count + policy.templates.len() >= XFRM_MAX_DEPTH {
                return Err(DropReason::InPolicyDepth);
            }
            for (place, template) in templates
                .iter_mut()
                .skip(count)
                .zip(policy.templates.iter())
            {
                *place = Some((*policy, template));
                count += 1;
            }
        }
        if policies.iter().flatten().count() > 1 && self.flow.family == AF_INET6 {
            templates
                .sort_by_key(|entry| entry.map_or(u8::MAX, |(_, template)| sort_class(template)));
        }
        let mut next = 0;
        for &(policy, template) in templates.iter().rev().flatten() {
            seen(Seen::Template(policy, template));
            next = self.match_template(template, path, next, seen)?;
        }
        if has_tunnel(self.netns, path, next) {
            let left = path.iter(&self.netns.sad, next).flatten();
            let tunnels = left.filter(|sa| sa.mode != XFRM_MODE_TRANSPORT);
            tunnels.for_each(|sa| seen(Seen::Unnamed(sa)));
            return Err(DropReason::InTemplate);
        }
        path.verified = next;
        Ok(())
    }

    /// Finds the SA of a template from place `start` on; the place behind it (`xfrm_policy_ok`).
    ///
    /// QUIRK: an_optional_transport_template_matches_nothing: it is passed without a look.
    fn match_template(
        &self,
        template: &UserTmpl,
        path: &SecPath,
        start: usize,
        seen: &mut impl FnMut(Seen<'_>),
    ) -> Result<usize, DropReason> {
        let optional = template.optional != 0;
        if optional && template.mode == XFRM_MODE_TRANSPORT {
            return Ok(start);
        }
        for (place, sa) in (start..).zip(path.iter(&self.netns.sad, start)) {
            let sa = sa.ok_or(DropReason::InTemplate)?;
            let objection = objection(sa, template, self.flow.family, self.if_id);
            seen(Seen::Sa(sa, objection));
            if objection.is_none() {
                return Ok(place + 1);
            }
            if sa.mode != XFRM_MODE_TRANSPORT && place >= path.verified {
                break;
            }
        }
        if optional {
            Ok(start)
        } else {
            Err(DropReason::InTemplate)
        }
    }

    /// Whether the packet is an ICMP error about a packet that the SA's selector is for.
    ///
    /// QUIRK: icmp_errors_for_this_host_are_not_understood: Linux looks 20 bytes too far into them.
    fn is_error_for(&self, sa: &Sa) -> bool {
        self.netns.profile.icmp_errors_follow_their_flow
            && self.dir == XFRM_POLICY_FWD
            && sa.flags & XFRM_STATE_ICMP != 0
            && self
                .inner_flow()
                .is_some_and(|flow| self.mismatch(sa, &flow).is_none())
    }

    fn inner_flow(&self) -> Option<Flow> {
        let mobility = self.netns.profile.decodes_mobility;
        self.flow.of_quoted(self.packet, mobility)
    }
}

/// Whether an SA other than of transport mode is in the path from a place on
/// (`secpath_has_nontransport`).
fn has_tunnel(netns: &Netns, path: &SecPath, first: usize) -> bool {
    path.iter(&netns.sad, first)
        .any(|sa| sa.is_none_or(|sa| sa.mode != XFRM_MODE_TRANSPORT))
}

/// What is against an SA for a template (`xfrm_state_ok`).
///
/// QUIRK: destinations_are_not_compared: nor are sources by the template's own family, but by
/// the packet's.
fn objection(sa: &Sa, template: &UserTmpl, family: u16, if_id: u32) -> Option<Objection> {
    if sa.is_kernel_owned() {
        let passes = template.optional != 0 && source_fits(sa, template, template.family);
        return (!passes).then_some(Objection::Hidden);
    }
    let all = template.aalgos & template.ealgos & template.calgos == u32::MAX;
    let auth = sa.auth.as_ref().map_or(0, |auth| auth.algorithm.id);
    let bit = 1u32.wrapping_shl(u32::from(auth));
    let spi = template.id.spi.get();
    if sa.id.proto != template.id.proto {
        Some(Objection::Protocol)
    } else if spi != 0 && sa.id.spi.get() != spi {
        Some(Objection::Spi)
    } else if template.reqid != 0 && sa.reqid != template.reqid {
        Some(Objection::Reqid)
    } else if sa.mode != template.mode {
        Some(Objection::Mode)
    } else if !all && template.aalgos & bit == 0 && has_algorithms(template.id.proto) {
        Some(Objection::Algorithm)
    } else if sa.mode != XFRM_MODE_TRANSPORT && !source_fits(sa, template, family) {
        Some(Objection::Source)
    } else if if_id != 0 && sa.if_id != if_id {
        Some(Objection::IfId)
    } else {
        None
    }
}

const fn has_algorithms(proto: u8) -> bool {
    matches!(proto, IPPROTO_AH | IPPROTO_ESP | IPPROTO_COMP)
}

/// `xfrm_state_addr_cmp`.
fn source_fits(sa: &Sa, template: &UserTmpl, family: u16) -> bool {
    Family::from_af(family).is_some()
        && (template.saddr.is_any(family) || template.saddr.equal(sa.saddr, family))
}

/// `__xfrm6_tmpl_sort_cmp`.
const fn sort_class(template: &UserTmpl) -> u8 {
    match template.mode {
        XFRM_MODE_TRANSPORT => 1,
        XFRM_MODE_ROUTEOPTIMIZATION | XFRM_MODE_IN_TRIGGER => 2,
        XFRM_MODE_TUNNEL | XFRM_MODE_BEET | XFRM_MODE_IPTFS => 3,
        _ => 4,
    }
}
