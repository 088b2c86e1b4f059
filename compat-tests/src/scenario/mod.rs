//! The scenarios: what a client does, whoever answers.
//!
//! Beside those written here, every sequence in `regressions/*.txt` is one: what
//! fuzzing found and was put right.

mod aevents;
mod attributes;
pub(crate) mod build;
mod dumps;
mod first;
mod larval;
mod lifetimes;
mod migrate;
mod migrate_state;
mod netlink;
mod policy_checks;
mod policy_order;
mod policy_sets;
mod policy_tables;
mod sa_algorithms;
mod sa_checks;
mod sa_options;
mod sa_tables;
mod sa_updates;
mod socket_policies;
mod spd_checks;
mod spd_life;

pub use build::Sa;

use std::fs;
use std::sync::OnceLock;
use std::time::Duration;

use crate::fuzz::Sequence;
use crate::kernel::suite_dir;
use crate::session::Session;
use crate::subject::Subject;

/// A scenario.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name, that of its golden files.
    pub name: &'static str,
    script: Script,
    /// It lets time pass: seconds of clock values count, and it begins early in a second.
    pub sleeps: bool,
}

#[derive(Clone, Copy)]
enum Script {
    Code(fn(&mut Session<'_>)),
    Sequence(&'static Sequence),
}

impl Scenario {
    pub(crate) const fn new(name: &'static str, run: fn(&mut Session<'_>)) -> Self {
        Self {
            name,
            script: Script::Code(run),
            sleeps: false,
        }
    }

    pub(crate) const fn sleeping(name: &'static str, run: fn(&mut Session<'_>)) -> Self {
        Self {
            sleeps: true,
            ..Self::new(name, run)
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
        if self.name.starts_with("traffic/")
            && let Some(packets) = subject.packets()
        {
            packets.prepare();
        }
        if self.sleeps {
            while !(50..150).contains(&subject.wall().subsec_millis()) {
                subject.sleep(Duration::from_millis(20));
            }
        }
        let mut session = Session::new(subject, self.sleeps);
        match &self.script {
            Script::Code(run) => run(&mut session),
            Script::Sequence(sequence) => sequence.replay(&mut session),
        }
        let timely = !session.is_late();
        (session.finish(), timely)
    }
}

/// Every scenario, by area.
const AREAS: &[&[Scenario]] = &[
    first::SCENARIOS,
    netlink::SCENARIOS,
    dumps::SCENARIOS,
    attributes::SCENARIOS,
    sa_checks::SCENARIOS,
    sa_options::SCENARIOS,
    sa_algorithms::SCENARIOS,
    sa_tables::SCENARIOS,
    sa_updates::SCENARIOS,
    larval::SCENARIOS,
    lifetimes::SCENARIOS,
    aevents::SCENARIOS,
    policy_checks::SCENARIOS,
    policy_tables::SCENARIOS,
    policy_sets::SCENARIOS,
    socket_policies::SCENARIOS,
    policy_order::SCENARIOS,
    migrate::SCENARIOS,
    migrate_state::SCENARIOS,
    spd_checks::SCENARIOS,
    spd_life::SCENARIOS,
];

/// Every scenario.
///
/// # Panics
/// When a regression cannot be read.
pub fn all() -> impl Iterator<Item = &'static Scenario> {
    static REGRESSIONS: OnceLock<Vec<Scenario>> = OnceLock::new();
    let written = AREAS.iter().copied().flatten();
    written.chain(REGRESSIONS.get_or_init(regressions))
}

fn regressions() -> Vec<Scenario> {
    let directory = suite_dir().join("regressions");
    let files = fs::read_dir(&directory).into_iter().flatten().flatten();
    let mut paths: Vec<_> = files.map(|file| file.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|kind| kind == "txt"));
    paths.sort();
    let scenarios = paths.into_iter().map(|path| {
        let text = fs::read_to_string(&path).unwrap();
        let sequence = Sequence::from_text(&text);
        let name = path.file_stem().unwrap().to_string_lossy();
        Scenario {
            name: Box::leak(format!("found_{name}").into_boxed_str()),
            script: Script::Sequence(Box::leak(Box::new(
                sequence.expect("a regression is a sequence"),
            ))),
            sleeps: false,
        }
    });
    scenarios.collect()
}
