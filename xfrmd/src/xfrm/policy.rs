//! Policy messages: NEWPOLICY, UPDPOLICY, DELPOLICY, GETPOLICY, POLEXPIRE, FLUSHPOLICY, ACQUIRE.

use xfrm_proto::consts::errno;
use xfrm_proto::extack::XfrmError;

use dataplane::Netns;

use super::{Call, Dump, Request};

pub(crate) fn new_policy(
    _call: &mut Call<'_, '_>,
    _request: &Request<'_>,
) -> Result<(), XfrmError> {
    Err(XfrmError::new(errno::ENOSYS))
}

pub(crate) fn get_policy(
    _call: &mut Call<'_, '_>,
    _request: &Request<'_>,
) -> Result<(), XfrmError> {
    Err(XfrmError::new(errno::ENOSYS))
}

pub(crate) fn acquire(_call: &mut Call<'_, '_>, _request: &Request<'_>) -> Result<(), XfrmError> {
    Err(XfrmError::new(errno::ENOSYS))
}

pub(crate) fn expire(_call: &mut Call<'_, '_>, _request: &Request<'_>) -> Result<(), XfrmError> {
    Err(XfrmError::new(errno::ENOSYS))
}

pub(crate) fn flush(_call: &mut Call<'_, '_>, _request: &Request<'_>) -> Result<(), XfrmError> {
    Err(XfrmError::new(errno::ENOSYS))
}

/// A dump under way.
pub(crate) struct PolicyDump;

pub(crate) fn start_dump(_ns: &mut Netns, _message: &[u8]) -> Dump {
    Dump::Policy(PolicyDump)
}

impl PolicyDump {
    pub(crate) fn fill(
        &mut self,
        _ns: &mut Netns,
        _out: &mut Vec<u8>,
        _limit: usize,
        _seq: u32,
        _port: u32,
    ) -> Result<(), XfrmError> {
        Ok(())
    }
}
