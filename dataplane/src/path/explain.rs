//! What would become of a packet, and why: the engine's own decision, told
//! instead of done. Nothing is counted, asked for or used up.
//!
//! The decision itself is `lookup`'s for packets that leave, `receive`'s for those
//! that arrive; around it stand the policies that were passed over and the SAs
//! that were not taken, with what was against them. A packet that arrives meets
//! copies of its SAs, on which it may leave its traces.

use std::cell::RefCell;

use xfrm_proto::consts::*;
use xfrm_proto::uapi::{Address, UserTmpl, XfrmId};

use crate::drop_reason::DropReason;
use crate::netns::Netns;
use crate::packet::PacketBuf;
use crate::path::bundle::Bundle;
pub use crate::path::check::Objection;
use crate::path::check::{Question, Seen};
use crate::path::input::destination;
use crate::path::lookup::{Decision, Lookup};
use crate::path::output::{OutputMeta, quoted_flow};
use crate::path::receive::{Host, InputMeta, Received, Step};
use crate::path::route::Routes;
use crate::path::sec_path::SecPath;
use crate::path::transmit::too_big;
use crate::path::witness::Witness;
use crate::path::worker::Worker;
use crate::sad::choose::{Choice, Wanted};
use crate::sad::{Misfit, Sa};
use crate::spd::{Flow, Mismatch, Policy, PolicyId};
use crate::time::Now;

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
    /// SAs that a packet that arrives would meet, outermost first.
    pub passed: Vec<XfrmId>,
    /// How the policies of a packet that arrives would judge these: once for the packet that came
    /// out of them, and before it for one that is ESP in UDP.
    pub checks: Vec<Check>,
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

/// A packet that has arrived, held against its policies (`__xfrm_policy_check`).
#[derive(Clone, Debug)]
pub struct Check {
    /// What the packet shows to policies.
    pub flow: Flow,
    /// `XFRM_POLICY_IN` or `_FWD`.
    pub dir: u8,
    /// SAs whose selectors were looked at, innermost first, and what of them is not for the packet.
    pub selectors: Vec<(XfrmId, Option<Mismatch>)>,
    /// Templates in the order in which they were held against the SAs.
    pub templates: Vec<Examined>,
    /// Tunnels that no template names.
    pub unnamed: Vec<XfrmId>,
    /// Why the packet is refused, if it is.
    pub refusal: Option<DropReason>,
}

/// A template for which the packet's SAs were looked through.
#[derive(Clone, Debug)]
pub struct Examined {
    /// The policy's index.
    pub policy: u32,
    /// The template.
    pub template: UserTmpl,
    /// The SAs, up to the one that serves it, and what is against each.
    pub sas: Vec<(XfrmId, Option<Objection>)>,
}

impl Examined {
    /// The SA that serves it.
    #[must_use]
    pub fn served_by(&self) -> Option<XfrmId> {
        let serves =
            |(sa, objection): &(XfrmId, Option<Objection>)| objection.is_none().then_some(*sa);
        self.sas.last().and_then(serves)
    }
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
    /// It goes, or comes in, as it is.
    Plain,
    /// It is delivered on this host.
    Deliver,
    /// It may go on its way through this host.
    Forward,
    /// It is a fragment or a part of a payload, and waits for the rest.
    Kept,
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
        let mut decision = lookup.decide(&mut self.tools).decision;
        let quoted = packet.and_then(|packet| quoted_flow(netns, flow, packet, meta));
        if let (Decision::Plain, Some(flow)) = (&decision, &quoted) {
            let lookup = Lookup { flow, ..lookup };
            let followed = lookup.decide(&mut self.tools).decision;
            if lookup.takes_errors() && matches!(followed, Decision::Transform(_)) {
                decision = followed;
            }
        }
        let outcome = match decision {
            Decision::Plain => Outcome::Plain,
            Decision::Hold => Outcome::Held,
            Decision::Drop(reason, errno) => Outcome::Drop { reason, errno },
            Decision::Transform(bundle) => foresee(netns, &bundle, packet, meta),
        };
        let asked = (flow, XFRM_POLICY_OUT, meta.if_id);
        Explanation {
            tried: tried.into_inner(),
            ..Explanation::new(netns, asked, chosen, outcome)
        }
    }

    /// Explains what [`Worker::receive`] would do with a packet. The buffer then holds what came
    /// out of it. To be asked of a worker that does nothing else: it keeps fragments.
    pub fn explain_input(
        &mut self,
        netns: &Netns,
        now: Now,
        packet: &mut PacketBuf,
        meta: &mut InputMeta,
        host: &dyn Host,
    ) -> Explanation {
        let mut onlooker = Onlooker::default();
        let outcome = loop {
            match self.step(netns, now, packet, meta, host, &mut onlooker) {
                Ok(Step::Again) => {}
                Ok(Step::Done(received)) => {
                    break match received {
                        Received::Forward => Outcome::Forward,
                        Received::Kept | Received::Inner => Outcome::Kept,
                        Received::Dropped(reason) => Outcome::Drop { reason, errno: 0 },
                        Received::Local | Received::Consumed => Outcome::Deliver,
                    };
                }
                Err(reason) => break Outcome::Drop { reason, errno: 0 },
            }
        };
        self.tools.requests.clear();
        let end =
            destination(packet).and_then(|(address, family)| host.destination(family, address));
        let is_local = end.is_none_or(|end| end.is_local);
        let ifindex = end.map_or(0, |end| end.ifindex);
        let mobility = netns.profile.decodes_mobility;
        let flow = Flow::of_packet(packet, meta.mark, ifindex, mobility).unwrap_or_default();
        let dir = if is_local {
            XFRM_POLICY_IN
        } else {
            XFRM_POLICY_FWD
        };
        let question = Question {
            netns,
            used: None,
            packet,
            flow: &flow,
            dir,
            socket: None,
            if_id: meta.if_id,
        };
        let asked = (&flow, dir, meta.if_id);
        Explanation {
            passed: onlooker.met,
            checks: onlooker.checks,
            ..Explanation::new(netns, asked, question.policies(), outcome)
        }
    }
}

/// Sees which SAs a packet meets, and lends it copies.
#[derive(Default)]
struct Onlooker {
    met: Vec<XfrmId>,
    checks: Vec<Check>,
}

impl Witness for Onlooker {
    const COUNTS: bool = false;

    fn meet(&mut self, sa: &Sa) -> Option<Box<Sa>> {
        self.met.push(sa.id);
        Some(sa.stand_in())
    }

    fn check(&mut self, question: &Question<'_>, path: &SecPath) {
        let mut check = Check {
            flow: *question.flow,
            dir: question.dir,
            selectors: Vec::new(),
            templates: Vec::new(),
            unnamed: Vec::new(),
            refusal: None,
        };
        let mut path = *path;
        let verdict = question.examine(&mut path, &mut |seen| check.note(seen));
        check.refusal = verdict.err();
        self.checks.push(check);
    }
}

impl Check {
    fn note(&mut self, seen: Seen<'_>) {
        match seen {
            Seen::Selector(sa, mismatch) => self.selectors.push((sa.id, mismatch)),
            Seen::Template(policy, template) => self.templates.push(Examined {
                policy: policy.index,
                template: *template,
                sas: Vec::new(),
            }),
            Seen::Sa(sa, objection) => {
                let last = self.templates.last_mut();
                last.into_iter()
                    .for_each(|examined| examined.sas.push((sa.id, objection)));
            }
            Seen::Unnamed(sa) => self.unnamed.push(sa.id),
        }
    }
}

impl Explanation {
    pub(super) fn new(
        netns: &Netns,
        (flow, dir, if_id): (&Flow, u8, u32),
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
            passed: Vec::new(),
            checks: Vec::new(),
            outcome,
        }
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
        .iter()
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
    } else if numbered && sa.traffic.has_no_number() {
        Some((DropReason::OutSequence, errno::EOVERFLOW))
    } else {
        None
    }
}
