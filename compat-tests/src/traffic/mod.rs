//! Traffic: the same packets through a kernel and through the engine.
//!
//! A scenario configures SAs and policies, then lets packets arrive, leave and pass through; its
//! transcript says after each step what came out, which counters moved, which SAs changed and
//! what key managers were told. Scenarios are [`Scenario`]s like all others, named `traffic/...`.
//!
//! * `craft`: the SAs, policies and packets they are made of;
//! * `road`: the steps, and what the transcript says of each;
//! * `describe`: packets as text.

mod acquire;
mod check;
mod craft;
mod describe;
mod errors;
mod iptfs;
mod limits;
mod outcome;
mod receive;
mod receive_encap;
mod receive_headers;
mod replay;
mod road;
mod select;
mod size;

use crate::scenario::Scenario;

/// All of them, by area.
const AREAS: &[&[Scenario]] = &[
    outcome::SCENARIOS,
    select::SCENARIOS,
    acquire::SCENARIOS,
    limits::SCENARIOS,
    replay::SCENARIOS,
    receive::SCENARIOS,
    receive_encap::SCENARIOS,
    receive_headers::SCENARIOS,
    check::SCENARIOS,
    size::SCENARIOS,
    errors::SCENARIOS,
    iptfs::SCENARIOS,
];

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Scenario> {
    AREAS.iter().copied().flatten()
}
