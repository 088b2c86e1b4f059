//! Which policies are for a packet that leaves, and what they ask for.
//!
//! Source: `net/xfrm/xfrm_policy.c xfrm_lookup_with_ifid, xfrm_bundle_lookup,
//! xfrm_expand_policies, xfrm_tmpl_resolve`.

use std::cell::Cell;

use xfrm_proto::consts::*;
use xfrm_proto::uapi::UserTmpl;

use crate::drop_reason::DropReason;
use crate::mib::Counter;
use crate::netns::Netns;
use crate::path::bundle::{Bundle, Chain, MOST_STEPS, Origin, Sources};
use crate::path::output::OutputMeta;
use crate::path::request::{AcquireRequest, Request};
use crate::path::route::{RouteQuery, Routes};
use crate::path::worker::Tools;
use crate::sad::choices::Choices;
use crate::sad::choose::{Choice, Wanted};
use crate::spd::{Flow, Policy, PolicyId};
use crate::time::{Now, WallSecs};

/// The policies of a packet: one, or one of type sub and one of type main.
pub(super) type Policies = [Option<PolicyId>; 2];

/// What a lookup comes to. Which of them is its first byte, beside what else each packet looks at.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum Decision {
    /// The packet goes as it is.
    Plain,
    /// It passes these SAs.
    Transform(Bundle),
    /// It is dropped; this is what the sender hears.
    Drop(DropReason, i32),
    /// It waits for SAs.
    Hold,
}

/// A decision, and what it rests on. What each packet looks at comes first.
#[derive(Clone, Debug)]
#[repr(C)]
pub(super) struct Looked {
    /// When the policies were marked as used last, or [`NEVER`].
    marked: Cell<WallSecs>,
    pub(super) decision: Decision,
    /// Policies to be marked as used by every packet.
    pub(super) policies: Policies,
    pub(super) sources: Sources,
    /// Whether the next packet of the flow will come to the same until a table changes.
    pub(super) lasts: bool,
}

const NEVER: WallSecs = WallSecs(u64::MAX);

impl Default for Looked {
    fn default() -> Self {
        Self {
            marked: Cell::new(NEVER),
            decision: Decision::Plain,
            policies: [None; 2],
            sources: Sources::default(),
            lasts: false,
        }
    }
}

impl Looked {
    /// Marks its policies as used.
    #[inline]
    pub(super) fn mark_used(&self, netns: &Netns, now: Now) {
        if self.marked.replace(now.real) == now.real {
            return;
        }
        for &policy in self.policies.iter().flatten() {
            netns.spd.mark_used(policy, now.real);
        }
    }
}

/// Why templates come to nothing.
enum Unresolved {
    /// An SA is missing.
    Waiting,
    Failed(DropReason, i32),
}

/// What a policy, or two, ask for.
pub(super) enum Asked {
    Block,
    Nothing,
    Templates,
}

/// One lookup.
pub(super) struct Lookup<'a> {
    pub(super) netns: &'a Netns,
    pub(super) flow: &'a Flow,
    pub(super) meta: &'a OutputMeta,
    pub(super) routes: &'a dyn Routes,
    /// Whether a packet may be held (`XFRM_LOOKUP_QUEUE`).
    pub(super) may_hold: bool,
    /// Who is told what there is for each template; then nothing is counted or asked for.
    pub(super) witness: Option<&'a OnTemplate<'a>>,
}

/// Hears what there is for a template.
pub(super) type OnTemplate<'a> = dyn Fn(&Wanted<'_>, Choice) + 'a;

impl Lookup<'_> {
    /// Decides what happens to a packet (`xfrm_lookup_with_ifid`). Counters of what is
    /// dropped are the caller's, acquires are left with the tools.
    pub(super) fn decide(&self, tools: &mut Tools) -> Looked {
        match self.first() {
            Some((policy, own)) => self.by_policies(tools, policy, own),
            None => self.without_policy(),
        }
    }

    /// The policy that counts first, and whether it is the socket's own.
    pub(super) fn first(&self) -> Option<(PolicyId, bool)> {
        let (spd, meta) = (&self.netns.spd, self.meta);
        let own = |socket| spd.lookup_socket(socket, XFRM_POLICY_OUT, self.flow, meta.if_id);
        if let Some(policy) = meta.socket.and_then(own) {
            return Some((policy, true));
        }
        if meta.if_id == 0 && meta.bypasses {
            return None;
        }
        let policy = spd.lookup(self.flow, XFRM_POLICY_OUT, meta.if_id)?;
        Some((policy, false))
    }

    /// Whether the policy that counts first is also for ICMP errors about its packets
    /// (`XFRM_LOOKUP_ICMP`).
    pub(super) fn takes_errors(&self) -> bool {
        let policy = self.first().and_then(|(id, _)| self.netns.spd.get(id));
        policy.is_some_and(|policy| policy.flags & XFRM_POLICY_ICMP != 0)
    }

    /// QUIRK: a_default_block_is_not_counted.
    fn without_policy(&self) -> Looked {
        let blocked = self.netns.spd.defaults().out == XFRM_USERPOLICY_BLOCK;
        let decision = if blocked && !self.meta.loopback {
            Decision::Drop(DropReason::OutDefaultBlock, errno::EPERM)
        } else {
            Decision::Plain
        };
        Looked {
            marked: Cell::new(NEVER),
            decision,
            policies: [None, None],
            sources: Sources::default(),
            lasts: true,
        }
    }

    fn by_policies(&self, tools: &mut Tools, first: PolicyId, socket: bool) -> Looked {
        let (policies, asked) = self.expand(first);
        let mut sources = Sources::default();
        let resolved = match asked {
            Asked::Templates => self.resolve(tools, &policies, &mut sources),
            Asked::Nothing | Asked::Block => Ok(None),
        };
        let unused = [None, None];
        let (decision, policies, lasts) = match (asked, resolved) {
            (Asked::Block, _) => {
                let drop = Decision::Drop(DropReason::OutPolicyBlock, errno::EPERM);
                (drop, policies, true)
            }
            (_, Ok(None)) => (Decision::Plain, policies, true),
            (_, Ok(Some(bundle))) => (Decision::Transform(bundle), policies, true),
            (_, Err(Unresolved::Failed(reason, errno))) => {
                (Decision::Drop(reason, errno), unused, false)
            }
            // QUIRK: a_socket_policy_without_sa_is_eagain: neither counted nor held.
            (_, Err(Unresolved::Waiting)) if socket => {
                let drop = Decision::Drop(DropReason::OutSocketNoStates, errno::EAGAIN);
                (drop, unused, false)
            }
            (_, Err(Unresolved::Waiting)) => {
                let larval_drop = self.netns.sysctls.larval_drop != 0;
                if !larval_drop && self.may_hold {
                    (Decision::Hold, policies, false)
                } else {
                    // QUIRK: unresolved_send_succeeds. The packet vanishes, and its sender
                    // hears nothing.
                    let errno = if larval_drop { 0 } else { errno::EAGAIN };
                    (
                        Decision::Drop(DropReason::OutNoStates, errno),
                        unused,
                        false,
                    )
                }
            }
        };
        Looked {
            marked: Cell::new(NEVER),
            decision,
            policies,
            sources,
            lasts,
        }
    }

    /// Adds the main policy to one of type sub (`xfrm_expand_policies`).
    pub(super) fn expand(&self, first: PolicyId) -> (Policies, Asked) {
        let spd = &self.netns.spd;
        let Some(policy) = spd.get(first) else {
            return ([None, None], Asked::Nothing);
        };
        let mut policies = [Some(first), None];
        let is_sub = policy.key.kind != XFRM_POLICY_TYPE_MAIN;
        if policy.action == XFRM_POLICY_ALLOW && is_sub {
            let (kind, if_id) = (XFRM_POLICY_TYPE_MAIN, policy.key.if_id);
            policies = [
                Some(first),
                spd.lookup_type(self.flow, XFRM_POLICY_OUT, kind, if_id),
            ];
        }
        let all = || policies.iter().flatten().filter_map(|&id| spd.get(id));
        let asked = if all().any(|policy| policy.action != XFRM_POLICY_ALLOW) {
            Asked::Block
        } else if all().all(|policy| policy.templates.is_empty()) {
            Asked::Nothing
        } else {
            Asked::Templates
        };
        (policies, asked)
    }

    /// Finds an SA for each template (`xfrm_tmpl_resolve`) and makes the bundle.
    fn resolve(
        &self,
        tools: &mut Tools,
        policies: &Policies,
        sources: &mut Sources,
    ) -> Result<Option<Bundle>, Unresolved> {
        let spd = &self.netns.spd;
        let mut chain = Chain::default();
        let mut count = 0;
        for &id in policies.iter().flatten() {
            let Some(policy) = spd.get(id) else { continue };
            if count + policy.templates.len() > MOST_STEPS {
                return Err(Unresolved::Failed(DropReason::OutDepth, errno::ENOBUFS));
            }
            count += self.resolve_one(tools, id, policy, &mut chain, sources)?;
        }
        if chain.is_empty() {
            return Ok(None);
        }
        if policies.iter().flatten().count() > 1 && self.flow.family == AF_INET6 {
            chain.sort(&self.netns.sad);
        }
        let origin = Origin {
            flow: self.flow,
            mtu: self.meta.mtu,
            hop_limit: self.meta.hop_limit,
        };
        let entropy = &mut *tools.entropy;
        let bundle = Bundle::create(entropy, self.netns, &chain, &origin, self.routes);
        let failed = |(reason, errno)| Unresolved::Failed(reason, errno);
        bundle.map(Some).map_err(failed)
    }

    /// Finds an SA for each template of a policy (`xfrm_tmpl_resolve_one`).
    fn resolve_one(
        &self,
        tools: &mut Tools,
        id: PolicyId,
        policy: &Policy,
        chain: &mut Chain,
        sources: &mut Sources,
    ) -> Result<usize, Unresolved> {
        let sad = &self.netns.sad;
        let (mut daddr, mut saddr) = (self.flow.daddr, self.flow.saddr);
        let mut found = 0;
        for (number, template) in policy.templates.iter().enumerate() {
            let (remote, local) = if has_endpoints(template.mode) {
                (template.id.daddr, self.local_address(template)?)
            } else {
                (daddr, saddr)
            };
            let wanted = Wanted {
                policy,
                template,
                daddr: remote,
                saddr: local,
                flow: self.flow,
                cpu: tools.cpu,
            };
            sources.note(sad, Choices::shard(remote, template.family, template.reqid));
            let choice = sad.choose(&wanted, self.netns.listeners.acquire);
            let ask = matches!(choice, Choice::Acquire | Choice::Sa { acquire: true, .. });
            if let Some(witness) = self.witness {
                witness(&wanted, choice);
            } else if ask && let Some(policy) = self.netns.spd.handle(id) {
                tools
                    .requests
                    .push(Request::Acquire(Box::new(AcquireRequest {
                        policy,
                        template: number,
                        daddr: remote,
                        saddr: local,
                        flow: *self.flow,
                        cpu: tools.cpu,
                        for_cpu: choice != Choice::Acquire,
                        last_use: wanted.policy.used.secs(),
                    })));
            }
            let error = match choice {
                Choice::Sa { id, .. } => {
                    let Some(sa) = sad.get(id) else { continue };
                    // QUIRK: wrong_direction_counts_twice.
                    if sa.dir != 0 && sa.dir != XFRM_SA_DIR_OUT {
                        if self.witness.is_none() {
                            self.netns.mib.count(Counter::OutStateDirError);
                        }
                        return Err(Unresolved::Failed(DropReason::OutDirection, errno::EINVAL));
                    }
                    chain.push(sa.handle(id));
                    found += 1;
                    (daddr, saddr) = (remote, local);
                    continue;
                }
                Choice::Acquire | Choice::Waiting | Choice::None => Unresolved::Waiting,
                Choice::SpiTaken => Unresolved::Failed(DropReason::OutSpiTaken, errno::EEXIST),
            };
            if template.optional == 0 {
                return Err(error);
            }
        }
        Ok(found)
    }

    fn local_address(&self, template: &UserTmpl) -> Result<xfrm_proto::uapi::Address, Unresolved> {
        if !template.saddr.is_any(template.family) {
            return Ok(template.saddr);
        }
        let query = RouteQuery {
            family: template.family,
            daddr: template.id.daddr,
            saddr: template.saddr,
            ifindex: self.flow.ifindex,
            mark: 0,
        };
        let source = self.routes.source(&query);
        source.map_err(|errno| Unresolved::Failed(DropReason::OutSource, errno))
    }
}

/// Whether a template says where its SA begins and ends.
const fn has_endpoints(mode: u8) -> bool {
    matches!(mode, XFRM_MODE_TUNNEL | XFRM_MODE_BEET | XFRM_MODE_IPTFS)
}
