//! SA messages: NEWSA, UPDSA, DELSA, GETSA, ALLOCSPI, EXPIRE, FLUSHSA.
//!
//! * [`verify`]: what a request is checked for by itself.
//! * [`request`]: its attributes, taken apart for the engine.
//! * [`encode`]: an SA as bytes. [`dump`]: GETSA with NLM_F_DUMP.
//!
//! Source: `net/xfrm/xfrm_user.c xfrm_add_sa, xfrm_del_sa, xfrm_get_sa,
//! xfrm_alloc_userspi, xfrm_add_sa_expire, xfrm_flush_sa`.

pub(crate) mod dump;
pub(crate) mod encode;
pub(crate) mod request;
pub(crate) mod verify;

use dataplane::sad::add::Updated;
use dataplane::sad::sa::{has_spi, mark_key};
use dataplane::sad::spi::SpiRequest;
use dataplane::sad::{Lifecycle, Sa, SaId};
use xfrm_proto::consts::*;
use xfrm_proto::extack::XfrmError;
use xfrm_proto::uapi::{Address, UserExpire, UserSaFlush, UserSaId, UserSaInfo, UserSpiInfo};

use super::{Call, Request};
pub(crate) use dump::{SaDump, start as start_dump};
use encode::Origin;

/// The room of a reply (`NLMSG_DEFAULT_SIZE`, header included).
const REPLY_ROOM: usize = 4096 - 320;

pub(crate) fn new_sa(call: &mut Call<'_, '_>, request: &Request<'_>) -> Result<(), XfrmError> {
    let info = request.fixed::<UserSaInfo>();
    verify::new_sa(call.ns.profile, &info, &request.attrs, call.rewrites)?;
    let wanted = request::sa(info, &request.attrs);
    let (sad, now) = (&mut call.ns.sad, call.cx.now);
    let sa = sad.construct(call.cx, &call.ns.sysctls, wanted)?;
    let updated = if request.header.kind == XFRM_MSG_NEWSA {
        Updated::Inserted(sad.add(sa, now)?)
    } else {
        sad.update(sa, now)?
    };
    let kind = request.header.kind;
    match updated {
        Updated::Inserted(id) => tell(call, request, id, |out, origin, sa| {
            encode::sa(out, kind, 0, origin, sa);
        }),
        // QUIRK: update_event_shows_the_request.
        Updated::Changed {
            request: sa,
            expired,
        } => {
            if let Some(expire) = expired {
                call.multicast(group::EXPIRE, |out| encode::expired(out, 0, &expire));
            }
            call.multicast(group::SA, |out| {
                encode::sa(out, kind, 0, origin_of(request), &sa);
            });
        }
    }
    Ok(())
}

pub(crate) fn del_sa(call: &mut Call<'_, '_>, request: &Request<'_>) -> Result<(), XfrmError> {
    let id = find(call, request)?;
    let sad = &mut call.ns.sad;
    if sad.get(id).is_some_and(Sa::is_kernel_owned) {
        let profile = call.ns.profile;
        return Err(profile.late_error(errno::EPERM, "SA is in use by tunnels"));
    }
    if let Some(sa) = sad.delete(id) {
        call.multicast(group::SA, |out| {
            encode::deleted(out, origin_of(request), &sa);
        });
    }
    Ok(())
}

pub(crate) fn get_sa(call: &mut Call<'_, '_>, request: &Request<'_>) -> Result<(), XfrmError> {
    let id = find(call, request)?;
    reply_sa(call, request, id)
}

pub(crate) fn alloc_spi(call: &mut Call<'_, '_>, request: &Request<'_>) -> Result<(), XfrmError> {
    let attrs = &request.attrs;
    let wanted = SpiRequest {
        body: request.fixed::<UserSpiInfo>(),
        mark: request::mark(attrs),
        if_id: attrs.u32(XFRMA_IF_ID).unwrap_or(0),
        pcpu: attrs.u32(XFRMA_SA_PCPU),
        dir: attrs.u8(XFRMA_SA_DIR),
    };
    let id = call.ns.sad.alloc_spi(call.cx, &call.ns.sysctls, &wanted)?;
    reply_sa(call, request, id)
}

pub(crate) fn expire(call: &mut Call<'_, '_>, request: &Request<'_>) -> Result<(), XfrmError> {
    let wanted = request.fixed::<UserExpire>();
    let (profile, info) = (call.ns.profile, wanted.state);
    let id = call
        .ns
        .sad
        .lookup(
            mark_key(request::mark(&request.attrs)),
            info.id.daddr,
            info.id.spi.get(),
            info.id.proto,
            info.family,
        )
        .ok_or(XfrmError::new(errno::ENOENT))?;
    require_valid(call, id)
        .map_err(|()| profile.late_error(errno::EINVAL, "SA must be in VALID state"))?;
    let hard = wanted.hard != 0;
    tell_expire(call, id, hard, request.header.pid);
    if hard {
        call.ns.sad.delete(id);
    }
    Ok(())
}

pub(crate) fn flush(call: &mut Call<'_, '_>, request: &Request<'_>) -> Result<(), XfrmError> {
    let proto = request.fixed::<UserSaFlush>().proto;
    if call.ns.sad.flush(proto) > 0 {
        call.multicast(group::SA, |out| {
            encode::flushed(out, origin_of(request), proto);
        });
    }
    Ok(())
}

/// The SA that a DELSA or GETSA means (`xfrm_user_state_lookup`).
fn find(call: &Call<'_, '_>, request: &Request<'_>) -> Result<SaId, XfrmError> {
    let id = request.fixed::<UserSaId>();
    let mark = mark_key(request::mark(&request.attrs));
    let sad = &call.ns.sad;
    let found = if has_spi(id.proto) {
        sad.lookup(mark, id.daddr, id.spi.get(), id.proto, id.family)
    } else {
        let saddr = request
            .attrs
            .pod::<Address>(XFRMA_SRCADDR)
            .ok_or(XfrmError::new(errno::EINVAL))?;
        sad.lookup_by_source(mark, id.daddr, saddr, id.proto, id.family)
    };
    found.ok_or(XfrmError::new(errno::ESRCH))
}

pub(crate) fn require_valid(call: &Call<'_, '_>, id: SaId) -> Result<(), ()> {
    match call.ns.sad.get(id).map(|sa| sa.state) {
        Some(Lifecycle::Valid) => Ok(()),
        _ => Err(()),
    }
}

/// Sends an SA to the requester.
///
/// QUIRK: big_sa_cannot_be_got. The reply's room is fixed; an SA with a large key does not fit.
fn reply_sa(call: &mut Call<'_, '_>, request: &Request<'_>, id: SaId) -> Result<(), XfrmError> {
    let Some(sa) = call.ns.sad.get(id) else {
        return Err(XfrmError::new(errno::ESRCH));
    };
    let origin = Origin {
        seq: request.header.seq,
        pid: request.port,
    };
    let mut fits = true;
    call.out
        .send(call.netns, super::Destination::Port(request.port), |out| {
            let start = out.len();
            encode::sa(out, XFRM_MSG_NEWSA, 0, origin, sa);
            fits = out.len() - start <= REPLY_ROOM;
            if !fits {
                out.truncate(start);
            }
        });
    if fits {
        Ok(())
    } else {
        Err(XfrmError::new(errno::EMSGSIZE))
    }
}

fn tell(
    call: &mut Call<'_, '_>,
    request: &Request<'_>,
    id: SaId,
    encode: impl FnOnce(&mut Vec<u8>, Origin, &Sa),
) {
    if let Some(sa) = call.ns.sad.get(id)
        && call.sockets.has_listeners(group::SA)
    {
        let to = super::Destination::Group(group::SA);
        call.out.send(call.netns, to, |out| {
            encode(out, origin_of(request), sa);
        });
    }
}

fn tell_expire(call: &mut Call<'_, '_>, id: SaId, hard: bool, pid: u32) {
    if let Some(expire) = call.ns.sad.get(id).map(|sa| sa.expire(hard)) {
        call.multicast(group::EXPIRE, |out| encode::expired(out, pid, &expire));
    }
}

/// Events carry what the request's header says, not who sent it.
pub(crate) fn origin_of(request: &Request<'_>) -> Origin {
    Origin {
        seq: request.header.seq,
        pid: request.header.pid,
    }
}
