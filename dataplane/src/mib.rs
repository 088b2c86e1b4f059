//! The XFRM MIB: `/proc/net/xfrm_stat`.
//!
//! Order and names are those of `net/xfrm/xfrm_proc.c`; which of them a
//! release has, its [`Profile`] says.

use crate::keep;
use crate::profile::Profile;
use crate::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident since $since:literal,)*) => {
        /// A counter of the XFRM MIB.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Counter { $($(#[$doc])* $name,)* }

        impl Counter {
            /// All counters, in the order of `/proc/net/xfrm_stat`.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The name in `/proc/net/xfrm_stat`.
            #[must_use]
            pub fn name(self) -> String {
                format!("Xfrm{}", self.short_name())
            }

            /// The name without its `Xfrm` prefix.
            const fn short_name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// The first profile (index in [`Profile::ALL`]) that has it.
            const fn since(self) -> usize {
                match self { $(Self::$name => $since,)* }
            }
        }
    };
}

counters! {
    /// No memory, no destination.
    InError since 0,
    /// Too deep, no buffer.
    InBufferError since 0,
    /// Short or undecodable header.
    InHdrError since 0,
    /// Unknown SPI.
    InNoStates since 0,
    /// Integrity check, truncation, padding.
    InStateProtoError since 0,
    /// Decapsulation or mode.
    InStateModeError since 0,
    /// Replay check.
    InStateSeqError since 0,
    /// SA expired.
    InStateExpired since 0,
    /// Encapsulation type or selector differs.
    InStateMismatch since 0,
    /// SA not valid.
    InStateInvalid since 0,
    /// Template unmet.
    InTmplMismatch since 0,
    /// No policy for a protected packet.
    InNoPols since 0,
    /// Policy blocks.
    InPolBlock since 0,
    /// Policy lookup failed.
    InPolError since 0,
    /// Output error.
    OutError since 0,
    /// Bundle could not be made.
    OutBundleGenError since 0,
    /// Bundle is stale.
    OutBundleCheckError since 0,
    /// No SA.
    OutNoStates since 0,
    /// Transform failed.
    OutStateProtoError since 0,
    /// Mode failed.
    OutStateModeError since 0,
    /// Sequence number overflow.
    OutStateSeqError since 0,
    /// SA expired.
    OutStateExpired since 0,
    /// Policy blocks.
    OutPolBlock since 0,
    /// Policy is dead.
    OutPolDead since 0,
    /// Policy could not be resolved.
    OutPolError since 0,
    /// Forwarded packet's header.
    FwdHdrError since 0,
    /// SA not valid.
    OutStateInvalid since 0,
    /// Input on a larval SA.
    AcquireError since 0,
    /// SA is for the other direction.
    OutStateDirError since 1,
    /// SA is for the other direction.
    InStateDirError since 1,
    /// IPTFS.
    InIptfsError since 2,
    /// IPTFS queue is full.
    OutNoQueueSpace since 2,
}

/// The counters of one namespace; packets count under a shared borrow.
#[derive(Debug)]
pub struct Mib {
    values: Words,
}

#[derive(Debug)]
enum Words {
    Own(Box<[AtomicU64]>),
    /// In memory that outlives the process.
    Lent(&'static [AtomicU64]),
}

impl Default for Mib {
    fn default() -> Self {
        Self {
            values: Words::Own(Counter::ALL.iter().map(|_| AtomicU64::new(0)).collect()),
        }
    }
}

impl Mib {
    fn of(&self, counter: Counter) -> Option<&AtomicU64> {
        match &self.values {
            Words::Own(values) => values.get(counter as usize),
            Words::Lent(values) => values.get(counter as usize),
        }
    }

    /// Goes on counting in `words`, from where it is.
    pub(crate) fn move_to(&mut self, words: &'static [AtomicU64]) {
        match &self.values {
            Words::Own(values) => keep::copy(values, words),
            Words::Lent(values) => keep::copy(values, words),
        }
        self.recall(words);
    }

    /// Goes on from what `words` say.
    pub(crate) fn recall(&mut self, words: &'static [AtomicU64]) {
        self.values = Words::Lent(words);
    }

    /// Counts one.
    pub fn count(&self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Counts many.
    pub fn add(&self, counter: Counter, many: u64) {
        if let Some(value) = self.of(counter) {
            value.fetch_add(many, Ordering::Relaxed);
        }
    }

    /// How often it was counted.
    #[must_use]
    pub fn value(&self, counter: Counter) -> u64 {
        let value = self.of(counter);
        value.map_or(0, |value| value.load(Ordering::Relaxed))
    }

    /// Names and values of the counters that `profile`'s release has, in its order.
    pub fn rows(&self, profile: &Profile) -> impl Iterator<Item = (String, u64)> + '_ {
        let release = Profile::ALL
            .iter()
            .position(|p| p.name == profile.name)
            .unwrap_or(usize::MAX);
        Counter::ALL
            .iter()
            .filter(move |counter| counter.since() <= release)
            .map(|&counter| (counter.name(), self.value(counter)))
    }
}
