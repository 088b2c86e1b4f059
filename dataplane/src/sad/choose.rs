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
use crate::spd::{Flow, Policy, selector_matches};
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
        let per_cpu = wanted.policy.flags & XFRM_POLICY_CPU_ACQUIRE != 0
            && self.profile.attr_max >= XFRMA_SA_PCPU;
        if let Some((id, sa)) = found.best
            && (!per_cpu || sa.pcpu == wanted.cpu)
        {
            return Choice::Sa { id, acquire: false };
        }
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
            let spi = template.id.spi.get();
            let fits = sa.matches_mark(mark)
                && sa.if_id == wanted.policy.key.if_id
                && sa.flags & XFRM_STATE_WILDRECV == 0
                && (spi == 0 || spi == sa.id.spi.get());
            if fits {
                look_at(id, sa, wanted, found);
            }
        }
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

/// Judges one SA that has the template's identity (`xfrm_state_look_at`).
fn look_at<'a>(id: SaId, sa: &'a Sa, wanted: &Wanted<'_>, found: &mut Found<'a>) {
    if sa.state == Lifecycle::Larval {
        if found.best.is_none() || sa.pcpu == wanted.cpu {
            found.waiting = true;
        }
        return;
    }
    // A selector without family is for everything, whatever else it says.
    let selected = sa.sel.family == AF_UNSPEC || selector_matches(&sa.sel, wanted.flow);
    if !selected {
        return;
    }
    if sa.traffic.is_expired() {
        found.expired = true;
        return;
    }
    if sa.pcpu != ANY_CPU && sa.pcpu != wanted.cpu {
        return;
    }
    let is_better = found.best.is_none_or(|(_, best)| {
        let dying = (best.traffic.is_dying(), sa.traffic.is_dying());
        (best.pcpu == ANY_CPU && sa.pcpu == wanted.cpu)
            || dying == (true, false)
            || (dying.0 == dying.1 && best.traffic.add_time() < sa.traffic.add_time())
    });
    if is_better {
        found.best = Some((id, sa));
    }
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
