//! What is wrong with a namespace's SAs and policies: what a finished test, a crashed key manager or a
//! careless script leaves behind.
//!
//! [`State`] is read from dumps, the daemon's or a kernel's, without keys. [`findings`] looks at it and at
//! nothing else: no I/O, no clock. `alone` holds the rules about one SA, `together` those about several
//! entries.
//!
//! Dumps do not say who made an entry. What a process has left behind is known only where nothing is
//! supposed to be there any more ([`Kind::LeftBehind`]).
#![forbid(unsafe_code)]

mod alone;
mod state;
#[cfg(test)]
mod tests;
mod together;

use std::fmt;
use std::str::FromStr;

pub use state::{Malformed, Policy, Sa, State};

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// It is there although nothing should be.
    LeftBehind,
    /// An SA without one for the other direction.
    OneWaySa,
    /// An SA that a newer one has replaced, and that nothing will ever remove.
    SupersededSa,
    /// An SA that no policy asks for.
    SaWithoutPolicy,
    /// A policy that wants an SA that is not there.
    PolicyWithoutSa,
    /// Two SAs that one packet could belong to.
    DuplicateSpi,
    /// An SPI that was reserved, or an SA that was asked for, and nobody came back.
    UnresolvedLarval,
    /// More than nine tenths of the sequence numbers are used.
    SequenceNearEnd,
    /// A hard limit without an earlier soft one: nobody is told in time to replace the SA.
    NoRekeyMargin,
    /// An algorithm that RFC 8221 forbids or advises against.
    WeakAlgorithm,
    /// Packets that arrive can be replayed.
    NoReplayWindow,
    /// A policy that protects, behind one that lets the same packets pass in clear.
    ShadowedPolicy,
}

impl Kind {
    /// All of them, in the order of reports.
    pub const ALL: [Self; 12] = [
        Self::LeftBehind,
        Self::OneWaySa,
        Self::SupersededSa,
        Self::SaWithoutPolicy,
        Self::PolicyWithoutSa,
        Self::DuplicateSpi,
        Self::UnresolvedLarval,
        Self::SequenceNearEnd,
        Self::NoRekeyMargin,
        Self::WeakAlgorithm,
        Self::NoReplayWindow,
        Self::ShadowedPolicy,
    ];

    /// Its name in reports and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::LeftBehind => "left-behind",
            Self::OneWaySa => "one-way-sa",
            Self::SupersededSa => "superseded-sa",
            Self::SaWithoutPolicy => "sa-without-policy",
            Self::PolicyWithoutSa => "policy-without-sa",
            Self::DuplicateSpi => "duplicate-spi",
            Self::UnresolvedLarval => "unresolved-larval",
            Self::SequenceNearEnd => "sequence-near-end",
            Self::NoRekeyMargin => "no-rekey-margin",
            Self::WeakAlgorithm => "weak-algorithm",
            Self::NoReplayWindow => "no-replay-window",
            Self::ShadowedPolicy => "shadowed-policy",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|kind| kind.name()).collect();
            format!("no such finding; there are {}", names.join(", "))
        })
    }
}

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject<'a> {
    /// An SA.
    Sa(&'a Sa),
    /// A policy.
    Policy(&'a Policy),
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding<'a> {
    /// What.
    pub kind: Kind,
    /// With what.
    pub subject: Subject<'a>,
    /// Why it is thought so.
    pub why: String,
}

/// What is not to be found, and what else is.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Kinds that are accepted.
    pub ignored: Vec<Kind>,
    /// Nothing should be there: each entry is a finding.
    pub expects_nothing: bool,
}

/// Everything that is wrong, by kind, and within a kind as the state lists it.
#[must_use]
pub fn findings<'a>(state: &'a State, scope: &Scope) -> Vec<Finding<'a>> {
    let mut found = Vec::new();
    if scope.expects_nothing {
        found.extend(left_behind(state));
    }
    for sa in &state.sas {
        alone::examine(state, sa, &mut found);
    }
    together::examine(state, &mut found);
    found.retain(|finding| !scope.ignored.contains(&finding.kind));
    found.sort_by_key(|finding| finding.kind);
    found
}

/// Sockets' own policies end with their sockets and are not counted.
fn left_behind(state: &State) -> impl Iterator<Item = Finding<'_>> {
    let all = state.sas.iter().map(Subject::Sa);
    let policies = state.policies.iter().filter(|it| !it.is_sockets());
    all.chain(policies.map(Subject::Policy))
        .map(|subject| Finding {
            kind: Kind::LeftBehind,
            subject,
            why: "it was not removed".to_owned(),
        })
}
