//! SA messages: NEWSA, UPDSA, DELSA, GETSA, ALLOCSPI, EXPIRE, FLUSHSA.

use xfrm_proto::consts::errno;
use xfrm_proto::extack::XfrmError;

use dataplane::Netns;

use super::{Call, Dump, Request};

pub(crate) fn new_sa(_call: &mut Call<'_, '_>, _request: &Request<'_>) -> Result<(), XfrmError> {
    Err(XfrmError::new(errno::ENOSYS))
}

pub(crate) fn del_sa(_call: &mut Call<'_, '_>, _request: &Request<'_>) -> Result<(), XfrmError> {
    Err(XfrmError::new(errno::ENOSYS))
}

pub(crate) fn get_sa(_call: &mut Call<'_, '_>, _request: &Request<'_>) -> Result<(), XfrmError> {
    Err(XfrmError::new(errno::ENOSYS))
}

pub(crate) fn alloc_spi(_call: &mut Call<'_, '_>, _request: &Request<'_>) -> Result<(), XfrmError> {
    Err(XfrmError::new(errno::ENOSYS))
}

pub(crate) fn expire(_call: &mut Call<'_, '_>, _request: &Request<'_>) -> Result<(), XfrmError> {
    Err(XfrmError::new(errno::ENOSYS))
}

pub(crate) fn flush(_call: &mut Call<'_, '_>, _request: &Request<'_>) -> Result<(), XfrmError> {
    Err(XfrmError::new(errno::ENOSYS))
}

/// A dump under way.
pub(crate) struct SaDump;

pub(crate) fn start_dump(_ns: &mut Netns, _message: &[u8]) -> Dump {
    Dump::Sa(SaDump)
}

impl SaDump {
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
