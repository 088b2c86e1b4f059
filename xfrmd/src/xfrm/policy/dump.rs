//! GETPOLICY dumps: all policies, newest first, sockets' own included.
//!
//! What the request says beside `NLM_F_DUMP` (a policy type, say) does not matter.
//!
//! Source: `net/xfrm/xfrm_user.c xfrm_dump_policy`.

use dataplane::Netns;
use dataplane::spd::Walk;
use xfrm_proto::consts::NLM_F_MULTI;
use xfrm_proto::extack::XfrmError;

use super::encode;
use crate::xfrm::Dump;

/// A dump under way.
pub(crate) struct PolicyDump {
    walk: Walk,
}

pub(crate) fn start_dump(ns: &mut Netns, _message: &[u8]) -> Dump {
    Dump::Policy(PolicyDump {
        walk: ns.spd.walk(),
    })
}

impl PolicyDump {
    #[expect(clippy::unnecessary_wraps, reason = "the dump of SAs can fail")]
    pub(crate) fn fill(
        &mut self,
        ns: &mut Netns,
        out: &mut Vec<u8>,
        limit: usize,
        seq: u32,
        port: u32,
    ) -> Result<(), XfrmError> {
        while let Some(policy) = ns.spd.at(&self.walk) {
            let before = out.len();
            encode::new_policy(out, policy, NLM_F_MULTI, seq, port);
            if out.len() > limit {
                out.truncate(before);
                break;
            }
            ns.spd.advance(&self.walk);
        }
        Ok(())
    }
}
