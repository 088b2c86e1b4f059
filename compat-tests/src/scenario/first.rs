//! The shortest way through everything.

use xfrm_proto::consts::*;

use super::{Sa, Scenario};
use crate::message::Message;
use crate::session::{Open, Session};

pub(super) const SCENARIOS: &[Scenario] = &[Scenario::new("sa_life", sa_life)];

fn sa_life(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let sa = Sa::esp();
    s.request(a, "add", sa.new_sa());
    s.request(a, "again", sa.new_sa());
    s.request(a, "get", sa.by_id(XFRM_MSG_GETSA));
    s.request(a, "dump", Message::dump(XFRM_MSG_GETSA));
    s.request(a, "delete", sa.by_id(XFRM_MSG_DELSA));
    s.request(a, "get", sa.by_id(XFRM_MSG_GETSA));
    s.request(a, "empty dump", Message::dump(XFRM_MSG_GETSA));
}
