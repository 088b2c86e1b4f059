//! The scenarios: what a client does, whoever answers.

mod aevents;
mod attributes;
pub(crate) mod build;
mod first;
mod larval;
mod lifetimes;
mod migrate;
mod netlink;
mod policy_checks;
mod policy_order;
mod policy_tables;
mod sa_algorithms;
mod sa_checks;
mod sa_tables;
mod spd_checks;
mod spd_life;

pub use build::Sa;

use std::time::Duration;

use crate::session::Session;
use crate::subject::Subject;

/// A scenario.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name, that of its golden files.
    pub name: &'static str,
    /// What it does.
    pub run: fn(&mut Session<'_>),
    /// It lets time pass: seconds of clock values count, and it begins early in a second.
    pub sleeps: bool,
}

impl Scenario {
    const fn new(name: &'static str, run: fn(&mut Session<'_>)) -> Self {
        Self {
            name,
            run,
            sleeps: false,
        }
    }

    /// Runs it; the transcript.
    #[must_use]
    pub fn transcript(&self, subject: &mut dyn Subject) -> String {
        self.timely_transcript(subject).0
    }

    /// Runs it; the transcript, and whether all sleepers woke in time.
    #[must_use]
    pub fn timely_transcript(&self, subject: &mut dyn Subject) -> (String, bool) {
        if self.sleeps {
            while !(50..150).contains(&subject.wall().subsec_millis()) {
                subject.sleep(Duration::from_millis(20));
            }
        }
        let mut session = Session::new(subject, self.sleeps);
        (self.run)(&mut session);
        let timely = !session.is_late();
        (session.finish(), timely)
    }
}

/// Every scenario, by area.
const AREAS: &[&[Scenario]] = &[
    first::SCENARIOS,
    netlink::SCENARIOS,
    attributes::SCENARIOS,
    sa_checks::SCENARIOS,
    sa_algorithms::SCENARIOS,
    sa_tables::SCENARIOS,
    larval::SCENARIOS,
    lifetimes::SCENARIOS,
    aevents::SCENARIOS,
    policy_checks::SCENARIOS,
    policy_tables::SCENARIOS,
    policy_order::SCENARIOS,
    migrate::SCENARIOS,
    spd_checks::SCENARIOS,
    spd_life::SCENARIOS,
];

/// Every scenario.
pub fn all() -> impl Iterator<Item = &'static Scenario> {
    AREAS.iter().copied().flatten()
}
