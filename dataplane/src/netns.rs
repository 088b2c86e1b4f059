//! One network namespace's XFRM: the SAD, the SPD and what belongs to neither.

use std::collections::VecDeque;

use crate::entropy::Entropy;
use crate::event::Event;
use crate::keep::Keeping;
use crate::mib::Mib;
use crate::path::aggregate::IptfsTimers;
use crate::path::hold::Holds;
use crate::path::notify::AeventTimers;
use crate::profile::Profile;
use crate::sad::Sad;
use crate::spd::Spd;
use crate::sysctl::Sysctls;
use crate::time::{BootNanos, Now};

/// What a call into the engine may use of the world outside its namespace.
pub struct Context<'a> {
    /// The present.
    pub now: Now,
    /// Random numbers.
    pub entropy: &'a mut dyn Entropy,
    /// The acquire sequence, one for all namespaces (`net/xfrm/xfrm_state.c acqseq`).
    pub acqseq: &'a mut u32,
}

impl Context<'_> {
    /// The number of the next acquire, never 0 (`xfrm_get_acqseq`).
    pub fn next_acqseq(&mut self) -> u32 {
        *self.acqseq = self.acqseq.checked_add(1).unwrap_or(1);
        *self.acqseq
    }
}

/// One network namespace.
pub struct Netns {
    /// Which kernel it behaves as.
    pub profile: &'static Profile,
    /// Security associations.
    pub sad: Sad,
    /// Security policies.
    pub spd: Spd,
    /// Settings.
    pub sysctls: Sysctls,
    /// Counters.
    pub mib: Mib,
    /// Who listens.
    pub listeners: Listeners,
    pub(crate) events: VecDeque<Event>,
    /// Packets that wait for SAs.
    pub(crate) holds: Holds,
    pub(crate) aevent_timers: AeventTimers,
    pub(crate) iptfs_timers: IptfsTimers,
    pub(crate) keeping: Keeping,
}

/// Whether key managers listen; without, some events are not even prepared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listeners {
    /// For acquires (`km_is_alive`): without, no larval SA is made.
    pub acquire: bool,
    /// For aevents (`xfrm_aevent_is_on`).
    pub aevents: bool,
}

impl Netns {
    /// An empty namespace.
    #[must_use]
    pub fn new(profile: &'static Profile, limits: Limits) -> Self {
        Self {
            profile,
            sad: Sad::new(profile, limits),
            spd: Spd::new(profile, limits),
            sysctls: Sysctls::default(),
            mib: Mib::default(),
            listeners: Listeners::default(),
            events: VecDeque::new(),
            holds: Holds::default(),
            aevent_timers: AeventTimers::default(),
            iptfs_timers: IptfsTimers::default(),
            keeping: Keeping::default(),
        }
    }

    /// The next fact to tell, oldest first.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Does what Linux leaves to workers; they run between requests.
    pub fn run_workers(&mut self) {
        self.sad.run_workers();
        self.holds.follow(&self.spd);
    }

    /// Runs every timer that is due; their events wait in [`Netns::poll_event`].
    pub fn handle_timeout(&mut self, cx: &mut Context<'_>) {
        self.sad.handle_timeout(cx, &mut self.events);
        self.spd.handle_timeout(cx, &mut self.events);
        self.run_aevent_timers(cx);
    }

    /// When [`Netns::handle_timeout`], [`Netns::take_held`] or [`Netns::take_iptfs`] wants to be
    /// called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<BootNanos> {
        let timers = [
            self.sad.poll_timeout(),
            self.spd.poll_timeout(),
            self.holds.poll_timeout(),
            self.aevent_timers.first().map(|&(due, _)| due),
            self.iptfs_timers.first().map(|&(due, _)| due),
        ];
        timers.into_iter().flatten().min()
    }
}

/// How much a namespace may hold; beyond it requests fail as they do on a
/// kernel without memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most SAs.
    pub max_sas: usize,
    /// Most policies.
    pub max_policies: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_sas: 1 << 24,
            max_policies: 1 << 24,
        }
    }
}
