//! What would become of a packet, and why: the engine's own decision, told
//! instead of done. Nothing is counted, asked for or used up.
//!
//! The decision itself is `lookup`'s; around it stand the policies that were
//! passed over and the SAs that were not taken, with what was against them.

use std::cell::RefCell;

use xfrm_proto::consts::*;
use xfrm_proto::uapi::{Address, UserTmpl, XfrmId};

use crate::drop_reason::DropReason;
use crate::netns::Netns;
use crate::path::bundle::Bundle;
use crate::path::lookup::{Decision, Lookup};
use crate::path::output::OutputMeta;
use crate::path::route::Routes;
use crate::path::transmit::too_big;
use crate::path::worker::Worker;
use crate::sad::choose::{Choice, Wanted};
use crate::sad::{Misfit, Sa};
use crate::spd::{Flow, Mismatch, Policy, PolicyId};

/// Policies that are listed at most before the one that is chosen.
const MOST_POLICIES: usize = 32;
/// SAs that are listed at most for a template.
const MOST_SAS: usize = 32;

/// An answer.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// What the packet shows to policies.
    pub flow: Flow,
    /// `XFRM_POLICY_OUT`, `_IN` or `_FWD`.
    pub dir: u8,
    /// Policies in the order in which a lookup prefers them, up to the last that is chosen.
    pub considered: Vec<Considered>,
    /// How many more were passed over and are not listed.
    pub passed_over: usize,
    /// Templates of the chosen policies, as far as the decision got.
    pub tried: Vec<Tried>,
    /// What would become of the packet.
    pub outcome: Outcome,
}

/// A policy that was looked at.
#[derive(Clone, Debug)]
pub struct Considered {
    /// It, as it is now.
    pub policy: Policy,
    /// Why it is not for the flow; `None` for one that is.
    pub mismatch: Option<Mismatch>,
    /// It is one of those that count.
    pub chosen: bool,
}

/// A template for which an SA was looked for.
#[derive(Clone, Debug)]
pub struct Tried {
    /// The policy's index.
    pub policy: u32,
    /// The template.
    pub template: UserTmpl,
    /// Ends of the SA that is wanted: the template's, or the packet's own.
    pub ends: (Address, Address),
    /// SAs between these ends.
    pub candidates: Vec<Candidate>,
    /// What was found.
    pub found: Found,
}

/// What there is for a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// An SA.
    Sa(XfrmId),
    /// None, and an acquire would be sent.
    Acquire,
    /// A larval one: key managers have been asked already.
    Waiting,
    /// None, and nobody who could make one.
    Nothing,
    /// The template's SPI belongs to another one.
    SpiTaken,
}

/// An SA that might have served a template.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Destination, SPI and protocol.
    pub id: XfrmId,
    /// Source.
    pub saddr: Address,
    /// Request id.
    pub reqid: u32,
    /// What is against it; `None` for one that would do, chosen or not.
    pub misfit: Option<Misfit>,
}

/// What would become of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes, or is let in, as it is.
    Plain,
    /// It passes SAs; a longer packet than `mtu` does not fit.
    Protect {
        /// The longest packet.
        mtu: u32,
    },
    /// It waits for SAs.
    Held,
    /// It is longer than fits.
    TooBig {
        /// What would have been right.
        mtu: u32,
    },
    /// It is dropped.
    Drop {
        /// Why.
        reason: DropReason,
        /// What a sender on this host hears, 0 for nothing.
        errno: i32,
    },
}

impl Worker {
    /// Explains what [`Worker::output`] would do with packets of a flow; with `packet`, the packet
    /// that the flow was read from, also whether that one fits.
    pub fn explain_output(
        &mut self,
        netns: &Netns,
        flow: &Flow,
        packet: Option<&[u8]>,
        meta: &OutputMeta,
        routes: &dyn Routes,
    ) -> Explanation {
        let tried = RefCell::new(Vec::new());
        let witness = |wanted: &Wanted<'_>, choice: Choice| {
            tried.borrow_mut().push(Tried::new(netns, wanted, choice));
        };
        let lookup = Lookup {
            netns,
            flow,
            meta,
            routes,
            may_hold: true,
            witness: Some(&witness),
        };
        let chosen = match lookup.first() {
            Some((first, _)) => lookup.expand(first).0,
            None => [None, None],
        };
        let outcome = match lookup.decide(&mut self.tools).decision {
            Decision::Plain => Outcome::Plain,
            Decision::Hold => Outcome::Held,
            Decision::Drop(reason, errno) => Outcome::Drop { reason, errno },
            Decision::Transform(bundle) => foresee(netns, &bundle, packet, meta),
        };
        Explanation::new(netns, flow, XFRM_POLICY_OUT, meta.if_id, chosen, outcome)
            .with_tried(tried.into_inner())
    }
}

impl Explanation {
    pub(super) fn new(
        netns: &Netns,
        flow: &Flow,
        dir: u8,
        if_id: u32,
        chosen: [Option<PolicyId>; 2],
        outcome: Outcome,
    ) -> Self {
        let spd = &netns.spd;
        let is_chosen = |id: PolicyId| chosen.contains(&Some(id));
        let order = spd.in_order(dir);
        let last = order.iter().rposition(|&id| is_chosen(id));
        let order = order.get(..last.map_or(order.len(), |last| last + 1));
        let mut passed_over = 0;
        let mut considered = Vec::new();
        // A socket's own policy is in no list.
        let own = chosen.into_iter().flatten().filter(|id| {
            let dir_of = |policy: &Policy| policy.key.dir;
            spd.get(*id).is_some_and(|policy| dir_of(policy) != dir)
        });
        for id in own.chain(order.unwrap_or_default().iter().copied()) {
            let Some(policy) = spd.get(id) else { continue };
            let chosen = is_chosen(id);
            if !chosen && considered.len() >= MOST_POLICIES {
                passed_over += 1;
                continue;
            }
            considered.push(Considered {
                policy: policy.clone(),
                mismatch: policy.mismatch(flow, if_id),
                chosen,
            });
        }
        Self {
            flow: *flow,
            dir,
            considered,
            passed_over,
            tried: Vec::new(),
            outcome,
        }
    }

    fn with_tried(mut self, tried: Vec<Tried>) -> Self {
        self.tried = tried;
        self
    }

    /// The counter that would move, if one would.
    #[must_use]
    pub const fn counter(&self) -> Option<crate::mib::Counter> {
        match self.outcome {
            Outcome::Drop { reason, .. } => reason.counter(),
            _ => None,
        }
    }
}

impl Tried {
    fn new(netns: &Netns, wanted: &Wanted<'_>, choice: Choice) -> Self {
        let sad = &netns.sad;
        let candidates = sad.candidates(wanted).take(MOST_SAS);
        let candidates = candidates.map(|(_, sa, misfit)| Candidate {
            id: sa.id,
            saddr: sa.saddr,
            reqid: sa.reqid,
            misfit,
        });
        Self {
            policy: wanted.policy.index,
            template: *wanted.template,
            ends: (wanted.saddr, wanted.daddr),
            candidates: candidates.collect(),
            found: match choice {
                Choice::Sa { id, .. } => sad.get(id).map_or(Found::Nothing, |sa| Found::Sa(sa.id)),
                Choice::Acquire => Found::Acquire,
                Choice::Waiting => Found::Waiting,
                Choice::None => Found::Nothing,
                Choice::SpiTaken => Found::SpiTaken,
            },
        }
    }
}

/// What a packet would meet in its SAs.
fn foresee(netns: &Netns, bundle: &Bundle, packet: Option<&[u8]>, meta: &OutputMeta) -> Outcome {
    if let Some(packet) = packet
        && u32::try_from(packet.len()).unwrap_or(u32::MAX) > bundle.mtu
        && let Some(mtu) = too_big(packet, meta, bundle)
    {
        return Outcome::TooBig { mtu };
    }
    let refusal = bundle
        .steps()
        .find_map(|step| refusal_of(netns.sad.by_handle(step.sa)));
    match refusal {
        Some((reason, errno)) => Outcome::Drop { reason, errno },
        None => Outcome::Protect { mtu: bundle.mtu },
    }
}

fn refusal_of(sa: Option<&Sa>) -> Option<(DropReason, i32)> {
    let Some(sa) = sa.filter(|sa| sa.is_valid()) else {
        return Some((DropReason::OutInvalid, errno::EINVAL));
    };
    let numbered = matches!(sa.id.proto, IPPROTO_ESP | IPPROTO_AH);
    if sa.traffic.is_used_up(&sa.lft) {
        Some((DropReason::OutExpired, errno::EINVAL))
    } else if numbered && sa.traffic.numbers_are_used_up() {
        Some((DropReason::OutSequence, errno::EOVERFLOW))
    } else {
        None
    }
}
