//! Aevents: NEWAE, GETAE.

use xfrm_proto::consts::errno;
use xfrm_proto::extack::XfrmError;

use super::{Call, Request};

pub(crate) fn new_ae(_call: &mut Call<'_, '_>, _request: &Request<'_>) -> Result<(), XfrmError> {
    Err(XfrmError::new(errno::ENOSYS))
}

pub(crate) fn get_ae(_call: &mut Call<'_, '_>, _request: &Request<'_>) -> Result<(), XfrmError> {
    Err(XfrmError::new(errno::ENOSYS))
}
