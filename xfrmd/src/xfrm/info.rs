//! Tables and defaults: GETSADINFO, NEWSPDINFO, GETSPDINFO, SETDEFAULT, GETDEFAULT.

use xfrm_proto::consts::*;
use xfrm_proto::extack::XfrmError;
use xfrm_proto::reply::Writer;

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

pub(crate) fn set_spd(_call: &mut Call<'_, '_>, _request: &Request<'_>) -> Result<(), XfrmError> {
    Err(XfrmError::new(errno::ENOSYS))
}

pub(crate) fn get_spd(_call: &mut Call<'_, '_>, _request: &Request<'_>) -> Result<(), XfrmError> {
    Err(XfrmError::new(errno::ENOSYS))
}

pub(crate) fn set_default(
    _call: &mut Call<'_, '_>,
    _request: &Request<'_>,
) -> Result<(), XfrmError> {
    Err(XfrmError::new(errno::ENOSYS))
}

pub(crate) fn get_default(
    _call: &mut Call<'_, '_>,
    _request: &Request<'_>,
) -> Result<(), XfrmError> {
    Err(XfrmError::new(errno::ENOSYS))
}
