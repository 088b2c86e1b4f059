//! Aevents: NEWAE sets an SA's counters and thresholds, GETAE tells them.
//!
//! Source: `net/xfrm/xfrm_user.c xfrm_new_ae, xfrm_get_ae`.

use dataplane::sad::SaId;
use dataplane::sad::sa::mark_key;
use xfrm_proto::consts::*;
use xfrm_proto::extack::XfrmError;
use xfrm_proto::uapi::AeventId;

use super::sa::{encode, origin_of, request, require_valid};
use super::{Call, Request};

pub(crate) fn new_ae(call: &mut Call<'_, '_>, request: &Request<'_>) -> Result<(), XfrmError> {
    let profile = call.ns.profile;
    let settable = [
        XFRMA_LTIME_VAL,
        XFRMA_REPLAY_VAL,
        XFRMA_REPLAY_ESN_VAL,
        XFRMA_ETIMER_THRESH,
        XFRMA_REPLAY_THRESH,
    ];
    if !settable.iter().any(|&kind| request.attrs.has(kind)) {
        return Err(profile.late_error(errno::EINVAL, "Missing required attribute for AE"));
    }
    if request.header.flags & NLM_F_REPLACE == 0 {
        return Err(profile.late_error(errno::EINVAL, "NLM_F_REPLACE flag is required"));
    }
    let id = find(call, request)?;
    require_valid(call, id)
        .map_err(|()| profile.late_error(errno::EINVAL, "SA must be in VALID state"))?;
    let Some(sa) = call.ns.sad.get_mut(id) else {
        return Err(XfrmError::new(errno::ESRCH));
    };
    let params = request::aevent_params(&request.attrs);
    params.verify(profile, sa)?;
    params.apply(sa);
    let sa = &*sa;
    if call.sockets.has_listeners(group::AEVENTS) {
        let to = super::Destination::Group(group::AEVENTS);
        call.out.send(call.netns, to, |out| {
            encode::aevent(out, profile, origin_of(request), &sa.aevent(XFRM_AE_CU));
        });
    }
    Ok(())
}

pub(crate) fn get_ae(call: &mut Call<'_, '_>, request: &Request<'_>) -> Result<(), XfrmError> {
    let id = find(call, request)?;
    let profile = call.ns.profile;
    let flags = request.fixed::<AeventId>().flags;
    if let Some(sa) = call.ns.sad.get(id) {
        // QUIRK: getae_replies_with_the_requests_pid.
        let to = super::Destination::Port(request.port);
        call.out.send(call.netns, to, |out| {
            encode::aevent(out, profile, origin_of(request), &sa.aevent(flags));
        });
    }
    Ok(())
}

fn find(call: &Call<'_, '_>, request: &Request<'_>) -> Result<SaId, XfrmError> {
    let id = request.fixed::<AeventId>().sa_id;
    let mark = mark_key(request::mark(&request.attrs));
    call.ns
        .sad
        .lookup(mark, id.daddr, id.spi.get(), id.proto, id.family)
        .ok_or(XfrmError::new(errno::ESRCH))
}
