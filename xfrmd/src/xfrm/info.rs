//! Tables and defaults: GETSADINFO, NEWSPDINFO, GETSPDINFO, SETDEFAULT, GETDEFAULT.
//!
//! Source: `net/xfrm/xfrm_user.c xfrm_set_spdinfo`, `build_spdinfo`,
//! `xfrm_set_default`, `xfrm_get_default`.

use xfrm_proto::consts::*;
use xfrm_proto::extack::XfrmError;
use xfrm_proto::reply::Writer;
use xfrm_proto::uapi::{SpdHthresh, UserPolicyDefault};

use super::{Call, Request};

pub(crate) fn get_sad(call: &mut Call<'_, '_>, request: &Request<'_>) -> Result<(), XfrmError> {
    let count = u32::try_from(call.ns.sad.len()).unwrap_or(u32::MAX);
    let sizes = call.ns.sad.hash_info();
    let flags = request.body.get(..4).unwrap_or_default();
    let (seq, port) = (request.header.seq, request.port);
    call.reply(request, |out| {
        let mut writer = Writer::begin(out, XFRM_MSG_NEWSADINFO, 0, seq, port);
        writer.put(flags);
        writer.attr_u32(XFRMA_SAD_CNT, count);
        writer.attr_pod(XFRMA_SAD_HINFO, &sizes);
        writer.end();
    });
    Ok(())
}

/// NEWSPDINFO: sets the hash thresholds.
pub(crate) fn set_spd(call: &mut Call<'_, '_>, request: &Request<'_>) -> Result<(), XfrmError> {
    let spd = &mut call.ns.spd;
    let mut thresholds = spd.thresholds();
    let too_long = |given: SpdHthresh, most: u8| given.lbits > most || given.rbits > most;
    if let Some(v4) = request.attrs.pod::<SpdHthresh>(XFRMA_SPD_IPV4_HTHRESH) {
        if too_long(v4, 32) {
            return Err(call.ns.profile.late_error(
                errno::EINVAL,
                "Invalid hash threshold (must be <= 32 for IPv4)",
            ));
        }
        thresholds.v4 = v4;
    }
    if let Some(v6) = request.attrs.pod::<SpdHthresh>(XFRMA_SPD_IPV6_HTHRESH) {
        if too_long(v6, 128) {
            return Err(call.ns.profile.late_error(
                errno::EINVAL,
                "Invalid hash threshold (must be <= 128 for IPv6)",
            ));
        }
        thresholds.v6 = v6;
    }
    if request.attrs.has(XFRMA_SPD_IPV4_HTHRESH) || request.attrs.has(XFRMA_SPD_IPV6_HTHRESH) {
        spd.set_thresholds(thresholds);
    }
    Ok(())
}

/// GETSPDINFO.
pub(crate) fn get_spd(call: &mut Call<'_, '_>, request: &Request<'_>) -> Result<(), XfrmError> {
    let flags: [u8; 4] = request.body.first_chunk().copied().unwrap_or_default();
    let spd = &call.ns.spd;
    let (counts, hash, thresholds) = (spd.counts(), spd.hash_info(), spd.thresholds());
    call.reply(request, |out| {
        let (seq, port) = (request.header.seq, request.port);
        let mut w = Writer::begin(out, XFRM_MSG_NEWSPDINFO, 0, seq, port);
        w.put(&flags);
        w.attr_pod(XFRMA_SPD_INFO, &counts);
        w.attr_pod(XFRMA_SPD_HINFO, &hash);
        w.attr_pod(XFRMA_SPD_IPV4_HTHRESH, &thresholds.v4);
        w.attr_pod(XFRMA_SPD_IPV6_HTHRESH, &thresholds.v6);
        w.end();
    });
    Ok(())
}

/// SETDEFAULT.
///
/// QUIRK: setdefault_event_is_a_getdefault.
pub(crate) fn set_default(call: &mut Call<'_, '_>, request: &Request<'_>) -> Result<(), XfrmError> {
    call.ns.spd.set_defaults(request.fixed());
    let defaults = call.ns.spd.defaults();
    call.multicast(group::POLICY, |out| write_defaults(out, &defaults, 0, 0));
    Ok(())
}

/// GETDEFAULT.
pub(crate) fn get_default(call: &mut Call<'_, '_>, request: &Request<'_>) -> Result<(), XfrmError> {
    let defaults = call.ns.spd.defaults();
    call.reply(request, |out| {
        write_defaults(out, &defaults, request.header.seq, request.port);
    });
    Ok(())
}

fn write_defaults(out: &mut Vec<u8>, defaults: &UserPolicyDefault, seq: u32, pid: u32) {
    let mut w = Writer::begin(out, XFRM_MSG_GETDEFAULT, 0, seq, pid);
    w.body(defaults);
    w.end();
}
