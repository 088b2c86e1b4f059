//! GETSA dumps.
//!
//! QUIRK: dump_attributes_follow_the_header. The kernel parses a dump request
//! as if it had no fixed part; a `usersa_id` in front happens to read as
//! attributes of no meaning.
//!
//! Source: `net/xfrm/xfrm_user.c xfrm_dump_sa`.

use dataplane::Netns;
use dataplane::sad::walk::{Filter, Walk};
use xfrm_proto::attrs::Attrs;
use xfrm_proto::consts::*;
use xfrm_proto::extack::XfrmError;
use xfrm_proto::policy::Table;
use xfrm_proto::uapi::AddressFilter;

use super::super::Dump;
use super::encode::{self, Origin};

const LEFTOVER: &str = "bytes leftover after parsing attributes";

/// A dump under way, or the error that its end will carry.
pub(crate) struct SaDump {
    walk: Result<Walk, XfrmError>,
    /// The request had bytes behind its attributes; an empty dump's end says so.
    leftover: bool,
}

pub(crate) fn start(ns: &mut Netns, message: &[u8]) -> Dump {
    let table = Table::xfrma(ns.profile.attr_max);
    let (mut walk, leftover) = match Attrs::parse(message, NLMSG_HDRLEN, &table) {
        Ok(attrs) => (filter(&attrs).map(Walk::new), attrs.leftover),
        Err(error) => (Err(error), false),
    };
    if let (Err(error), true) = (&mut walk, leftover) {
        error.extack.text = Some(LEFTOVER.into());
    }
    Dump::Sa(SaDump { walk, leftover })
}

fn filter(attrs: &Attrs<'_>) -> Result<Filter, XfrmError> {
    let addresses = attrs.pod::<AddressFilter>(XFRMA_ADDRESS_FILTER);
    if addresses.is_some_and(|filter| filter.splen > 128 || filter.dplen > 128) {
        return Err(XfrmError::new(errno::EINVAL));
    }
    Ok(Filter {
        proto: attrs.u8(XFRMA_PROTO).unwrap_or(0),
        addresses,
    })
}

impl SaDump {
    pub(crate) fn fill(
        &mut self,
        ns: &mut Netns,
        out: &mut Vec<u8>,
        limit: usize,
        seq: u32,
        port: u32,
    ) -> Result<(), XfrmError> {
        let walk = self.walk.as_mut().map_err(|error| error.clone())?;
        let start = out.len();
        let origin = Origin { seq, pid: port };
        walk.run(&ns.sad, |sa| {
            let start = out.len();
            encode::sa(out, XFRM_MSG_NEWSA, NLM_F_MULTI, origin, sa);
            let fits = out.len() <= limit;
            if !fits {
                out.truncate(start);
            }
            fits
        });
        let leftover = std::mem::take(&mut self.leftover);
        if leftover && out.len() == start {
            return Err(XfrmError::with_text(0, LEFTOVER));
        }
        Ok(())
    }
}
