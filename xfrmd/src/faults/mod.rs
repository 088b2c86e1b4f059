//! Faults on purpose: which request, event or packet goes wrong, and how.
//!
//! A [`Plan`] is a list of rules. Each place where something can go wrong shows it what is about to
//! happen (a [`Subject`], or a packet), and it says which rules strike ([`Struck`]); carrying that out
//! is the caller's. No I/O and no clock here: whether a rule strikes what it sees for the nth time is a
//! function of the plan's seed, the rule's name and n, so that a run can be repeated, and rules do not
//! disturb each other.
//!
//! * [`subject`]: what a message is about.
//! * [`kind`]: the kinds of faults; [`key`]: what can be said of each: the tables that the parser and
//!   the documentation are made of.
//! * [`scenario`]: files and single rules.
#![forbid(unsafe_code)]

pub mod key;
pub mod kind;
pub mod scenario;
pub mod subject;
#[cfg(test)]
mod tests;

use std::fmt;

use dataplane::{Entropy, SeededEntropy};

pub use kind::{Effect, Place};
pub use scenario::Mistake;
pub use subject::{Direction, Prefix, Subject};

/// What a rule looks at; nothing said is anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matching {
    /// Message types.
    pub messages: Vec<u16>,
    /// SPI.
    pub spi: Option<u32>,
    /// Destination: of the SA, or a policy's selector or template.
    pub dst: Option<Prefix>,
    /// Request id.
    pub reqid: Option<u32>,
    /// Of packets.
    pub direction: Option<Direction>,
    /// Only packets that are longer, in bytes.
    pub longer_than: Option<usize>,
}

/// Of what a rule looks at, how much it strikes; nothing said is everything.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Share {
    /// From this one on, the first being 1; only this one unless `times` says more.
    pub nth: Option<u64>,
    /// Each that many.
    pub every: Option<u64>,
    /// With this probability.
    pub probability: Option<f64>,
    /// At most so often.
    pub times: Option<u64>,
}

impl Share {
    /// Whether it strikes what is there for the `seen`th time, after `struck` strikes.
    fn strikes(&self, seen: u64, struck: u64, chance: f64) -> bool {
        let most = match (self.times, self.nth) {
            (Some(times), _) => times,
            (None, Some(_)) => 1,
            (None, None) => u64::MAX,
        };
        struck < most
            && self.nth.is_none_or(|nth| seen >= nth)
            && self.every.is_none_or(|every| seen.is_multiple_of(every))
            && self
                .probability
                .is_none_or(|probability| chance < probability)
    }
}

/// One fault.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// How it is called.
    pub name: String,
    /// How it was said, on one line, without its name.
    pub text: String,
    /// What it looks at.
    pub matching: Matching,
    /// How much of it.
    pub share: Share,
    /// What happens then.
    pub effect: Effect,
    /// How often it has met what it looks at.
    pub seen: u64,
    /// How often it has struck.
    pub struck: u64,
}

impl Rule {
    /// Draws what is random about its strikes: the same for the same seed, name and count.
    fn chance(&self, seed: u64) -> SeededEntropy {
        // FNV-1a.
        let name = self.name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        let mut mixed = SeededEntropy::new(seed ^ name);
        SeededEntropy::new(mixed.u64().wrapping_add(self.seen))
    }

    fn meets(&mut self, seed: u64, on: &dyn fmt::Display) -> Option<Struck> {
        self.seen += 1;
        let mut chance = self.chance(seed);
        // 53 bits are what an f64 holds.
        let drawn = (chance.u64() >> 11) as f64 / (1_u64 << 53) as f64;
        if !self.share.strikes(self.seen, self.struck, drawn) {
            return None;
        }
        self.struck += 1;
        Some(Struck {
            rule: self.name.clone(),
            nth: self.seen,
            on: on.to_string(),
            effect: self.effect.clone(),
            random: chance.u64(),
        })
    }
}

/// A strike: what has to be done, told and recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct Struck {
    /// The rule's name.
    pub rule: String,
    /// What it looks at was there for the nth time.
    pub nth: u64,
    /// What it hit.
    pub on: String,
    /// What happens.
    pub effect: Effect,
    /// For what is random about that.
    pub random: u64,
}

impl fmt::Display for Struck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, nth, on, .. } = self;
        write!(f, "{} ({rule}), {nth}: {on}", self.effect.name())
    }
}

/// All faults of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    seed: u64,
    rules: Vec<Rule>,
}

impl Plan {
    /// Nothing goes wrong.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            rules: Vec::new(),
        }
    }

    /// What is random comes from this.
    #[must_use]
    pub const fn seed(&self) -> u64 {
        self.seed
    }

    /// Lets what is random come from another number.
    pub const fn set_seed(&mut self, seed: u64) {
        self.seed = seed;
    }

    /// The rules, oldest first.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Whether something can go wrong there.
    #[must_use]
    pub fn concerns(&self, place: Place) -> bool {
        self.rules.iter().any(|it| it.effect.place() == place)
    }

    /// Adds a rule; one without a name gets that of its kind.
    ///
    /// # Errors
    /// The name, if there is a rule of that name.
    pub fn add(&mut self, mut rule: Rule) -> Result<(), String> {
        if rule.name.is_empty() {
            let kind = rule.effect.name();
            let names = std::iter::once(kind.to_owned())
                .chain((2_u32..).map(|number| format!("{kind}-{number}")));
            let mut free = names.filter(|name| self.rules.iter().all(|it| it.name != *name));
            rule.name = free.next().unwrap_or_default();
        }
        if self.rules.iter().any(|it| it.name == rule.name) {
            return Err(rule.name);
        }
        self.rules.push(rule);
        Ok(())
    }

    /// Takes a rule away; whether there was one of that name.
    pub fn remove(&mut self, name: &str) -> bool {
        let before = self.rules.len();
        self.rules.retain(|it| it.name != name);
        self.rules.len() != before
    }

    /// Takes all rules away.
    pub fn clear(&mut self) {
        self.rules.clear();
    }

    /// What strikes a client's request.
    pub fn request(&mut self, subject: &Subject) -> Vec<Struck> {
        let is_dump = subject.is_dump;
        self.meet(Some(subject), subject, |rule| match rule.effect.place() {
            Place::Request => rule.effect.concerns(subject.kind),
            Place::Dump => is_dump,
            Place::Event | Place::Packet => false,
        })
    }

    /// What strikes an event.
    pub fn event(&mut self, subject: &Subject) -> Vec<Struck> {
        self.meet(Some(subject), subject, |rule| {
            rule.effect.place() == Place::Event
        })
    }

    /// What strikes a protected packet.
    pub fn packet(
        &mut self,
        direction: Direction,
        spi: Option<u32>,
        bytes: usize,
        packet: &dyn fmt::Display,
    ) -> Vec<Struck> {
        self.meet(None, packet, |rule| {
            let wanted = &rule.matching;
            rule.effect.place() == Place::Packet
                && wanted.direction.is_none_or(|it| it == direction)
                && (wanted.spi.is_none() || wanted.spi == spi)
                && wanted.longer_than.is_none_or(|most| bytes > most)
        })
    }

    fn meet(
        &mut self,
        subject: Option<&Subject>,
        on: &dyn fmt::Display,
        concerned: impl Fn(&Rule) -> bool,
    ) -> Vec<Struck> {
        let seed = self.seed;
        let met = self.rules.iter_mut().filter(|rule| {
            concerned(rule) && subject.is_none_or(|subject| subject.fits(&rule.matching))
        });
        met.filter_map(|rule| rule.meets(seed, on)).collect()
    }
}
