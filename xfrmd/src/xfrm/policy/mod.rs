//! Policy messages: NEWPOLICY, UPDPOLICY, DELPOLICY, GETPOLICY, POLEXPIRE,
//! FLUSHPOLICY, ACQUIRE, MIGRATE.
//!
//! * `verify`: the checks of a request. * `encode`: policies as messages.
//! * `dump`, `acquire`, `migrate`: these requests. * `socket`: setsockopt.
//!
//! Source: `net/xfrm/xfrm_user.c xfrm_add_policy`, `xfrm_get_policy`,
//! `xfrm_add_pol_expire`, `xfrm_flush_policy`.

mod acquire;
mod dump;
pub(super) mod encode;
mod migrate;
pub(crate) mod socket;
#[cfg(test)]
mod tests;
mod verify;

pub(crate) use acquire::acquire;
use dataplane::security::SecurityContext;
use dataplane::spd::{Policy, PolicyId, PolicyKey, Templates};
pub(crate) use dump::{PolicyDump, start_dump};
pub(crate) use migrate::migrate;
use xfrm_proto::consts::*;
use xfrm_proto::extack::XfrmError;
use xfrm_proto::uapi::{Mark, Selector, UserPolExpire, UserPolicyId, UserPolicyInfo, UserTmpl};

use super::{Call, Request};
use crate::netlink::Destination;

/// NEWPOLICY and UPDPOLICY.
pub(crate) fn new_policy(call: &mut Call<'_, '_>, request: &Request<'_>) -> Result<(), XfrmError> {
    let info: UserPolicyInfo = request.fixed();
    verify::info(&info)?;
    verify::security_context(&request.attrs)?;
    let policy = construct(call, request, &info)?;
    let exclusive = request.header.kind == XFRM_MSG_NEWPOLICY;
    let id = call.ns.spd.insert(policy, exclusive, call.cx.now)?;
    call.multicast_policy(group::POLICY, id, |out, policy| {
        encode::added(out, policy, &request.header);
    });
    Ok(())
}

/// `xfrm_policy_construct`.
fn construct(
    call: &mut Call<'_, '_>,
    request: &Request<'_>,
    info: &UserPolicyInfo,
) -> Result<Policy, XfrmError> {
    call.ns.spd.reserve()?;
    let attrs = &request.attrs;
    let profile = call.ns.profile;
    let kind = verify::policy_type(attrs)?;
    let templates = match attrs.payload_offset(XFRMA_TMPL) {
        None => Templates::default(),
        Some(start) => {
            let given = attrs.array::<UserTmpl>(XFRMA_TMPL);
            verify::templates(profile, given, info.sel.family, info.dir, |number| {
                call.rewrite_family(start + number * 64 + 24, info.sel.family);
            })?
        }
    };
    let security = security_context(call, request)?;
    let mut policy = Policy::new(info, kind, templates);
    policy.key.mark = attrs.pod::<Mark>(XFRMA_MARK).unwrap_or_default();
    policy.key.if_id = attrs.u32(XFRMA_IF_ID).unwrap_or_default();
    policy.key.labelled = security.is_some();
    policy.security = security;
    verify::offload(profile, attrs)?;
    Ok(policy)
}

/// The request's security context, if it has one and somebody keeps it.
fn security_context(
    call: &Call<'_, '_>,
    request: &Request<'_>,
) -> Result<Option<SecurityContext>, XfrmError> {
    match request.attrs.bytes(XFRMA_SEC_CTX) {
        Some(attr) => SecurityContext::admit(call.ns.profile, attr),
        None => Ok(None),
    }
}

/// GETPOLICY and DELPOLICY.
pub(crate) fn get_policy(call: &mut Call<'_, '_>, request: &Request<'_>) -> Result<(), XfrmError> {
    let wanted: UserPolicyId = request.fixed();
    let id = find(call, request, wanted.dir, wanted.index, &wanted.sel)?;
    if request.header.kind == XFRM_MSG_GETPOLICY {
        call.reply_policy(request, id);
        return Ok(());
    }
    if let Some(policy) = call.ns.spd.remove(id) {
        call.multicast(group::POLICY, |out| {
            encode::deleted(out, &policy, wanted.index != 0, &request.header);
        });
    }
    Ok(())
}

/// The policy that a request names, by index unless that is 0.
fn find(
    call: &Call<'_, '_>,
    request: &Request<'_>,
    dir: u8,
    index: u32,
    sel: &Selector,
) -> Result<PolicyId, XfrmError> {
    let attrs = &request.attrs;
    let kind = verify::policy_type(attrs)?;
    verify::direction(dir)?;
    let mut key = PolicyKey {
        selector: *sel,
        mark: attrs.pod::<Mark>(XFRMA_MARK).unwrap_or_default(),
        if_id: attrs.u32(XFRMA_IF_ID).unwrap_or_default(),
        kind,
        dir,
        labelled: false,
    };
    let found = if index != 0 {
        call.ns.spd.by_index(index, &key)
    } else {
        verify::security_context(attrs)?;
        key.labelled = security_context(call, request)?.is_some();
        call.ns.spd.by_key(&key)
    };
    found.ok_or(XfrmError::new(errno::ENOENT))
}

/// POLEXPIRE: a user says that a policy has expired; a hard expiry deletes it.
pub(crate) fn expire(call: &mut Call<'_, '_>, request: &Request<'_>) -> Result<(), XfrmError> {
    let given: UserPolExpire = request.fixed();
    let id = find(
        call,
        request,
        given.pol.dir,
        given.pol.index,
        &given.pol.sel,
    )?;
    let hard = given.hard != 0;
    let pid = request.header.pid;
    if !hard {
        call.multicast_policy(group::EXPIRE, id, |out, policy| {
            encode::expired(out, policy, hard, pid);
        });
    } else if let Some(policy) = call.ns.spd.remove(id) {
        call.multicast(group::EXPIRE, |out| {
            encode::expired(out, &policy, hard, pid);
        });
    }
    Ok(())
}

/// FLUSHPOLICY. An empty table is a success without an event.
pub(crate) fn flush(call: &mut Call<'_, '_>, request: &Request<'_>) -> Result<(), XfrmError> {
    let kind = verify::policy_type(&request.attrs)?;
    if call.ns.spd.flush(kind) > 0 {
        call.multicast(group::POLICY, |out| {
            encode::flushed(out, kind, &request.header);
        });
    }
    Ok(())
}

impl Call<'_, '_> {
    fn multicast_policy(
        &mut self,
        group: u32,
        id: PolicyId,
        write: impl FnOnce(&mut Vec<u8>, &Policy),
    ) {
        if let Some(policy) = self.ns.spd.get(id)
            && self.sockets.has_listeners(group)
        {
            self.out.send(self.netns, Destination::Group(group), |out| {
                write(out, policy)
            });
        }
    }

    fn reply_policy(&mut self, request: &Request<'_>, id: PolicyId) {
        if let Some(policy) = self.ns.spd.get(id) {
            let (seq, port) = (request.header.seq, request.port);
            self.out.send(self.netns, Destination::Port(port), |out| {
                encode::new_policy(out, policy, 0, seq, port);
            });
        }
    }
}
