//! The scenarios: what a client does, whoever answers.

mod attributes;
mod build;
mod first;
mod netlink;
mod policy_order;
mod sa_algorithms;
mod sa_checks;

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
        if self.sleeps {
            while !(50..250).contains(&subject.wall().subsec_millis()) {
                subject.sleep(Duration::from_millis(20));
            }
        }
        let mut session = Session::new(subject, self.sleeps);
        (self.run)(&mut session);
        session.finish()
    }
}

/// Every scenario, by area.
const AREAS: &[&[Scenario]] = &[
    first::SCENARIOS,
    netlink::SCENARIOS,
    attributes::SCENARIOS,
    sa_checks::SCENARIOS,
    sa_algorithms::SCENARIOS,
    policy_order::SCENARIOS,
];

/// Every scenario.
pub fn all() -> impl Iterator<Item = &'static Scenario> {
    AREAS.iter().copied().flatten()
}
