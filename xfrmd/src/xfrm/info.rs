//! Tables and defaults: GETSADINFO, NEWSPDINFO, GETSPDINFO, SETDEFAULT, GETDEFAULT.

use xfrm_proto::consts::errno;
use xfrm_proto::extack::XfrmError;

use super::{Call, Request};

pub(crate) fn get_sad(_call: &mut Call<'_, '_>, _request: &Request<'_>) -> Result<(), XfrmError> {
    Err(XfrmError::new(errno::ENOSYS))
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
