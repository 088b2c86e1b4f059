//! When policies expire (`xfrm_policy_timer`).
//!
//! A timer looks at a policy one second after it was added or replaced, and
//! then whenever the next of its four limits can be reached. Limits count wall
//! seconds; the timer runs on boot time. A soft limit that has passed is told
//! again every 30 s. Byte and packet limits are kept and never enforced.
//!
//! QUIRK: use_limits_count_from_addition_until_first_use.
//!
//! Timers fire when Linux's timer wheel lets them: in coarser steps the
//! further away they are, never early, and within a step the one that was
//! armed last comes first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

use hashbrown::HashMap;

use super::policy::{Policy, hash_state};
use super::{PolicyId, Spd};
use crate::event::{Event, PolicyExpire};
use crate::netns::Context;
use crate::profile::Profile;
use crate::time::{BootNanos, WallSecs};

/// Seconds until a passed soft limit is told again (`XFRM_KM_TIMEOUT`).
const REPEAT_SECS: i64 = 30;

/// What the timer finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A hard limit has passed.
    Expired,
    /// Look again in `next` seconds, if at all; tell about a soft limit when `warn`.
    Alive { warn: bool, next: Option<u64> },
}

/// Looks at a policy's limits.
///
/// QUIRK: absurd_lifetimes_wrap_and_expire_at_once: the sums are done in 64-bit signed
/// arithmetic, so that a limit near 2^64 seconds lies in the past.
pub(super) fn check(policy: &Policy, now: WallSecs) -> Verdict {
    let lft = &policy.lft;
    let used = match policy.used.secs() {
        0 => policy.add_time,
        time => time,
    };
    let left = |limit: u64, since: u64| {
        (limit != 0).then(|| limit.wrapping_add(since).wrapping_sub(now.0).cast_signed())
    };
    let hard = [
        left(lft.hard_add_expires_seconds, policy.add_time),
        left(lft.hard_use_expires_seconds, used),
    ];
    let soft = [
        left(lft.soft_add_expires_seconds, policy.add_time),
        left(lft.soft_use_expires_seconds, used),
    ];
    if hard.iter().flatten().any(|&secs| secs <= 0) {
        return Verdict::Expired;
    }
    let warn = soft.iter().flatten().any(|&secs| secs <= 0);
    let again = |secs: &i64| if *secs <= 0 { REPEAT_SECS } else { *secs };
    let next = hard.iter().chain(&soft).flatten().map(again).min();
    Verdict::Alive {
        warn,
        next: next.map(i64::unsigned_abs),
    }
}

/// The jiffy in which the wheel fires a timer that is armed at `now` for `secs` later
/// (`kernel/time/timer.c calc_wheel_index`).
fn wheel_expiry(hz: u64, now: BootNanos, secs: u64) -> u64 {
    const LEVELS: u32 = 9;
    const COARSEST: u32 = 3 * (LEVELS - 1);
    let delta = secs
        .saturating_mul(hz)
        .min((63 << COARSEST) - (1 << COARSEST));
    let level = (0..LEVELS).find(|level| delta < 63 << (3 * level));
    let shift = level.map_or(COARSEST, |level| 3 * level);
    (((now.0 / (1_000_000_000 / hz) + delta) >> shift) + 1) << shift
}

/// The timers of all policies that have limits.
#[derive(Debug)]
pub(super) struct Timers {
    /// By jiffy, then youngest first.
    queue: BTreeMap<(u64, Reverse<u64>), u32>,
    of_slot: HashMap<u32, (u64, Reverse<u64>), foldhash::fast::FixedState>,
    armed: u64,
    /// Jiffies a second.
    hz: u64,
}

impl Timers {
    pub(super) fn new(profile: &Profile) -> Self {
        Self {
            hz: u64::from(profile.hz.max(1)),
            queue: BTreeMap::new(),
            of_slot: HashMap::with_hasher(hash_state()),
            armed: 0,
        }
    }

    pub(super) fn arm(&mut self, slot: u32, now: BootNanos, secs: u64) {
        self.disarm(slot);
        self.armed += 1;
        let key = (wheel_expiry(self.hz, now, secs), Reverse(self.armed));
        self.queue.insert(key, slot);
        self.of_slot.insert(slot, key);
    }

    pub(super) fn disarm(&mut self, slot: u32) {
        if !self.of_slot.is_empty()
            && let Some(key) = self.of_slot.remove(&slot)
        {
            self.queue.remove(&key);
        }
    }

    /// The timer of a policy.
    pub(super) fn of(&self, slot: u32) -> Option<(u64, Reverse<u64>)> {
        self.of_slot.get(&slot).copied()
    }

    /// Arms a timer as it was.
    pub(super) fn recall(&mut self, slot: u32, due: (u64, Reverse<u64>)) {
        self.queue.insert(due, slot);
        self.of_slot.insert(slot, due);
        self.armed = self.armed.max(due.1.0);
    }

    /// When the first timer is due.
    pub(super) fn next(&self) -> Option<BootNanos> {
        let (&(jiffy, _), _) = self.queue.first_key_value()?;
        Some(BootNanos(jiffy.saturating_mul(1_000_000_000 / self.hz)))
    }

    /// Takes the first timer that is due.
    pub(super) fn pop(&mut self, now: BootNanos) -> Option<u32> {
        if self.next()? > now {
            return None;
        }
        let (_, slot) = self.queue.pop_first()?;
        self.of_slot.remove(&slot);
        Some(slot)
    }
}

impl Spd {
    pub(crate) fn handle_timeout(&mut self, cx: &mut Context<'_>, events: &mut VecDeque<Event>) {
        while let Some(slot) = self.timers.pop(cx.now.boot) {
            let Some(policy) = self.store.get(slot) else {
                continue;
            };
            match check(policy, cx.now.real) {
                Verdict::Expired => {
                    if let Some(policy) = self.remove(PolicyId(slot)) {
                        events.push_back(Event::policy_expire(policy, true));
                    }
                }
                Verdict::Alive { warn, next } => {
                    if warn {
                        events.push_back(Event::policy_expire(policy.clone(), false));
                    }
                    if let Some(secs) = next {
                        self.timers.arm(slot, cx.now.boot, secs);
                    }
                    self.change(slot);
                }
            }
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<BootNanos> {
        self.timers.next()
    }
}

impl Event {
    fn policy_expire(policy: Policy, hard: bool) -> Self {
        Self::PolicyExpire(Box::new(PolicyExpire { policy, hard }))
    }
}
