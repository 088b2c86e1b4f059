//! MIGRATE_STATE.

use xfrm_proto::consts::errno;
use xfrm_proto::extack::XfrmError;

use super::{Call, Request};

pub(crate) fn state(_call: &mut Call<'_, '_>, _request: &Request<'_>) -> Result<(), XfrmError> {
    Err(XfrmError::new(errno::ENOSYS))
}
