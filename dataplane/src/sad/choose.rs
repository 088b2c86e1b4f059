//! The SA that a template gets, and the larval SA while there is none.
//!
//! Source: `net/xfrm/xfrm_state.c xfrm_state_find, xfrm_state_look_at,
//! xfrm_init_tempstate`. The list of SAs that a policy has used
//! (`state_cache_list`), which Linux looks through first, is left out: nothing
//! ever gets into it.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::{Address, Selector, UserAcquire, UserPolicyInfo, UserTmpl};

use super::sa::{ANY_CPU, Lifecycle, mark_key};
use super::{Sa, SaId, Sad, SourceKey, TemplateKey};
use crate::event::Acquire;
use crate::netns::Context;
use crate::spd::{Flow, Mismatch, Policy, selector_mismatch};
use crate::sysctl::Sysctls;

/// What an SA is wanted for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) policy: &'a Policy,
    pub(crate) template: &'a UserTmpl,
    /// Destination and source of the SA: the template's, or those of the packet so far.
    pub(crate) daddr: Address,
    pub(crate) saddr: Address,
    pub(crate) flow: &'a Flow,
    /// The CPU that the packet is on.
    pub(crate) cpu: u32,
}

/// What there is for a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// This SA. `acquire` for one of this CPU's own is due as well.
    Sa { id: SaId, acquire: bool },
    /// Nothing, and an acquire is due.
    Acquire,
    /// A larval SA waits for its key manager.
    Waiting,
    /// One that has expired, or nobody who could make another.
    None,
    /// The template's SPI is taken by an SA that does not fit.
    SpiTaken,
}

/// What a walk over the SAs of a template has found.
#[derive(Default)]
struct Found<'a> {
    best: Option<(SaId, &'a Sa)>,
    waiting: bool,
    expired: bool,
}

impl Found<'_> {
    const fn ends(&self) -> bool {
        self.best.is_some() || self.waiting
    }
}

impl Sad {
    /// The SA for a template (`xfrm_state_find`). `listened`: whether there is a key manager.
    pub(crate) fn choose(&self, wanted: &Wanted<'_>, listened: bool) -> Choice {
        let mut found = Found::default();
        self.look_at_all(wanted, wanted.saddr, &mut found);
        if !found.ends() {
            self.look_at_all(wanted, Address::ANY, &mut found);
        }
        let per_cpu =
            wanted.policy.flags & XFRM_POLICY_CPU_ACQUIRE != 0 && self.profile.acquires_for_cpus;
        if let Some((id, sa)) = found.best
            && (!per_cpu || sa.pcpu == wanted.cpu)
        {
            return Choice::Sa { id, acquire: false };
        }
        // QUIRK: a_shared_sa_rests_while_a_cpu_waits_for_its_own. By the source: the reference
        // kernels have one CPU.
        if found.waiting {
            return Choice::Waiting;
        }
        if found.expired {
            return Choice::None;
        }
        if self.spi_is_taken(wanted) {
            return Choice::SpiTaken;
        }
        match found.best {
            _ if !listened => Choice::None,
            Some((id, _)) => Choice::Sa { id, acquire: true },
            None => Choice::Acquire,
        }
    }

    fn look_at_all<'a>(&'a self, wanted: &Wanted<'_>, saddr: Address, found: &mut Found<'a>) {
        let template = wanted.template;
        let family = template.family;
        let key = TemplateKey {
            source: SourceKey {
                daddr: wanted.daddr.for_family(family),
                saddr: saddr.for_family(family),
                proto: template.id.proto,
                family,
            },
            reqid: template.reqid,
            mode: template.mode,
        };
        let mark = mark_key(wanted.policy.key.mark);
        for id in self.template_chain(key) {
            let Some(sa) = self.get(id) else { continue };
            match misfit(sa, wanted, mark) {
                Some(Misfit::Larval) if found.best.is_none() || sa.pcpu == wanted.cpu => {
                    found.waiting = true;
                }
                Some(Misfit::Expired) => found.expired = true,
                Some(_) => {}
                None if found
                    .best
                    .is_none_or(|(_, best)| is_better(sa, best, wanted.cpu)) =>
                {
                    found.best = Some((id, sa));
                }
                None => {}
            }
        }
    }

    /// The SAs between the ends of a template, and what is against each. Made for people: it
    /// looks at all SAs.
    pub(crate) fn candidates<'a>(
        &'a self,
        wanted: &Wanted<'_>,
    ) -> impl Iterator<Item = (SaId, &'a Sa, Option<Misfit>)> {
        let (wanted, template) = (*wanted, wanted.template);
        let mark = mark_key(wanted.policy.key.mark);
        let between = self.iter().filter(move |(_, sa)| {
            sa.family == template.family
                && sa.id.proto == template.id.proto
                && sa.id.daddr.equal(wanted.daddr, sa.family)
        });
        between.map(move |(id, sa)| {
            let from = [wanted.saddr, Address::ANY];
            let against = if !from.iter().any(|from| from.equal(sa.saddr, sa.family)) {
                Some(Misfit::Source)
            } else if sa.reqid != template.reqid {
                Some(Misfit::Reqid)
            } else if sa.mode != template.mode {
                Some(Misfit::Mode)
            } else {
                misfit(sa, &wanted, mark)
            };
            (id, sa, against)
        })
    }

    fn spi_is_taken(&self, wanted: &Wanted<'_>) -> bool {
        let UserTmpl { id, family, .. } = wanted.template;
        let mark = mark_key(wanted.policy.key.mark);
        let found = || self.lookup(mark, wanted.daddr, id.spi.get(), id.proto, *family);
        id.spi.get() != 0 && found().is_some()
    }

    /// Makes the larval SA of an acquire, and what key managers are told (`km_query`).
    ///
    /// QUIRK: an_acquire_asks_for_the_one_flow. Its selector is that of the packet's addresses
    /// and ports, but while it waits no other flow of the same template asks again.
    pub(crate) fn acquire(
        &mut self,
        cx: &mut Context<'_>,
        sysctls: &Sysctls,
        wanted: &Wanted<'_>,
        for_cpu: bool,
    ) -> Option<Acquire> {
        if self.is_full() {
            return None;
        }
        let Wanted {
            policy, template, ..
        } = *wanted;
        let or = |addr: Address, other: Address| match addr.is_any(template.family) {
            true => other,
            false => addr,
        };
        let mut sa = Box::new(Sa::blank(cx.now.real.0));
        sa.sel = selector_of(wanted.flow);
        sa.id = template.id;
        sa.id.daddr = or(template.id.daddr, wanted.daddr);
        sa.saddr = or(template.saddr, wanted.saddr);
        sa.mode = template.mode;
        sa.reqid = template.reqid;
        sa.family = template.family;
        sa.mark = policy.key.mark;
        sa.if_id = policy.key.if_id;
        sa.pcpu = if for_cpu { wanted.cpu } else { ANY_CPU };
        sa.seq = cx.next_acqseq();
        let event = Acquire {
            body: UserAcquire {
                id: sa.id,
                saddr: sa.saddr,
                sel: sa.sel,
                policy: UserPolicyInfo {
                    dir: XFRM_POLICY_OUT,
                    ..policy.info()
                },
                aalgos: template.aalgos,
                ealgos: template.ealgos,
                calgos: template.calgos,
                seq: sa.seq,
            },
            templates: policy.templates.clone(),
            security: policy.security.clone(),
            kind: policy.key.kind,
            mark: policy.key.mark,
            if_id: policy.key.if_id,
            pcpu: sa.pcpu,
        };
        if let Some(context) = &policy.security {
            sa.options_mut().security = Some(context.clone());
        }
        sa.state = Lifecycle::Larval;
        if self.profile.knows_direction() {
            sa.dir = XFRM_SA_DIR_OUT;
        }
        let expires = u64::from(sysctls.acq_expires);
        sa.lft.hard_add_expires_seconds = expires;
        let id = self.link(sa);
        self.arm(id, cx.now.boot.plus_secs(expires));
        Some(event)
    }
}

/// What is against an SA for a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// Its source is another.
    Source,
    /// Its request id is another.
    Reqid,
    /// Its mode is another.
    Mode,
    /// The policy's mark does not find it.
    Mark,
    /// Its interface id is not the policy's.
    IfId,
    /// It is one that only receives (`XFRM_STATE_WILDRECV`).
    ReceivesOnly,
    /// The template names another SPI.
    Spi,
    /// It waits for its key manager.
    Larval,
    /// Its selector is not for the packet.
    Selector(Mismatch),
    /// It has reached a hard limit.
    Expired,
    /// It is for another CPU.
    Cpu,
}

impl Misfit {
    /// In words.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Source => "another source",
            Self::Reqid => "another reqid",
            Self::Mode => "another mode",
            Self::Mark => "its mark is not the policy's",
            Self::IfId => "its interface id is not the policy's",
            Self::ReceivesOnly => "it only receives (wildrecv)",
            Self::Spi => "the template names another SPI",
            Self::Larval => "it has no keys yet",
            Self::Selector(_) => "its selector is not for this packet",
            Self::Expired => "it has reached its limit",
            Self::Cpu => "it is for another CPU",
        }
    }
}

/// Judges one SA that has the template's identity (`xfrm_state_look_at`).
fn misfit(sa: &Sa, wanted: &Wanted<'_>, mark: u32) -> Option<Misfit> {
    let spi = wanted.template.id.spi.get();
    // A selector without family is for everything, whatever else it says.
    let selector = || match sa.sel.family {
        AF_UNSPEC => None,
        _ => selector_mismatch(&sa.sel, wanted.flow),
    };
    if !sa.matches_mark(mark) {
        Some(Misfit::Mark)
    } else if sa.if_id != wanted.policy.key.if_id {
        Some(Misfit::IfId)
    } else if sa.flags & XFRM_STATE_WILDRECV != 0 {
        Some(Misfit::ReceivesOnly)
    } else if spi != 0 && spi != sa.id.spi.get() {
        Some(Misfit::Spi)
    } else if sa.state == Lifecycle::Larval {
        Some(Misfit::Larval)
    } else if let Some(mismatch) = selector() {
        Some(Misfit::Selector(mismatch))
    } else if sa.traffic.is_expired() {
        Some(Misfit::Expired)
    } else if sa.pcpu != ANY_CPU && sa.pcpu != wanted.cpu {
        Some(Misfit::Cpu)
    } else {
        None
    }
}

/// Whether an SA is preferred to the best so far.
fn is_better(sa: &Sa, best: &Sa, cpu: u32) -> bool {
    let dying = (best.traffic.is_dying(), sa.traffic.is_dying());
    (best.pcpu == ANY_CPU && sa.pcpu == cpu)
        || dying == (true, false)
        || (dying.0 == dying.1 && best.traffic.add_time() < sa.traffic.add_time())
}

/// The selector of one flow (`__xfrm4_init_tempsel`).
fn selector_of(flow: &Flow) -> Selector {
    let prefix = if flow.family == AF_INET { 32 } else { 128 };
    Selector {
        daddr: flow.daddr,
        saddr: flow.saddr,
        dport: flow.dport.into(),
        dport_mask: 0xffff.into(),
        sport: flow.sport.into(),
        sport_mask: 0xffff.into(),
        family: flow.family,
        prefixlen_d: prefix,
        prefixlen_s: prefix,
        proto: flow.proto,
        ifindex: flow.ifindex,
        ..Selector::default()
    }
}
