//! Limits in time.
//!
//! An SA's timer first runs a second after the SA was added or updated, and
//! then whenever the next limit is due. It counts from wall-clock seconds, as
//! Linux does, so that setting the clock moves limits. An SA without limits in
//! time has no timer: Linux's runs once and finds nothing to do.
//!
//! Limits in bytes and packets are the packet path's; what it shares with
//! UPDSA is `Sad::check_expire`.
//!
//! Source: `net/xfrm/xfrm_state.c xfrm_timer_handler, xfrm_state_check_expire`.

use std::collections::{BTreeMap, VecDeque};

use xfrm_proto::uapi::LifetimeCfg;

use super::traffic::Limit;
use super::{Sa, SaId, Sad};
use crate::event::{Event, SaExpire};
use crate::netns::Context;
use crate::time::{BootNanos, Now};

/// When a timer is due; those due at once run in the order they were armed.
type Due = (BootNanos, u64);

/// An SA's timer.
#[derive(Debug, Default)]
pub(super) struct Expiry {
    pub(super) due: Option<Due>,
    /// Seconds that the soft limit was away when it was last looked at, while
    /// the timer waits for it (`XFRM_SOFT_EXPIRE`, `saved_tmo`).
    pub(super) soft_wait: Option<i64>,
}

/// All timers of a SAD.
#[derive(Default)]
pub(super) struct Timers {
    queue: BTreeMap<Due, SaId>,
    armed: u64,
}

impl Timers {
    /// Arms a timer as it was.
    pub(super) fn recall(&mut self, due: Due, id: SaId) {
        self.queue.insert(due, id);
        self.armed = self.armed.max(due.1.saturating_add(1));
    }
}

/// What a timer found.
enum Verdict {
    Rest,
    Wait { secs: u64, soft: bool },
    RestSoft,
    Hard,
}

impl Sad {
    /// Starts an SA's timer if it has a limit in time.
    pub(super) fn arm(&mut self, id: SaId, due: BootNanos) {
        self.disarm(id);
        let Some(sa) = self.get(id) else { return };
        if has_time_limit(&sa.lft) {
            self.arm_at(id, due);
        }
    }

    /// Stops an SA's timer.
    pub(super) fn disarm(&mut self, id: SaId) {
        let due = self.get_mut(id).and_then(|sa| sa.expiry.due.take());
        if let Some(due) = due {
            self.timers.queue.remove(&due);
        }
    }

    /// Marks an SA as used and checks its limits in bytes and packets; what there is to tell.
    /// An SA that has reached a hard one is removed.
    pub(super) fn check_expire(&mut self, id: SaId, now: Now) -> Option<SaExpire> {
        let sa = self.get(id)?;
        match sa.traffic.check(&sa.lft, now.real) {
            Limit::Within => None,
            Limit::Soft => Some(sa.expire(false)),
            Limit::Hard => Some(self.delete(id)?.expire(true)),
        }
    }

    pub(crate) fn handle_timeout(&mut self, cx: &mut Context<'_>, events: &mut VecDeque<Event>) {
        while let Some(entry) = self.timers.queue.first_entry() {
            let (due, id) = (entry.key().0, *entry.get());
            if due > cx.now.boot {
                break;
            }
            entry.remove();
            let Some(sa) = self.get_mut(id) else { continue };
            sa.expiry.due = None;
            match run(sa, cx.now) {
                Verdict::Hard => {
                    if let Some(sa) = self.delete(id) {
                        events.push_back(Event::SaExpire(Box::new(sa.expire(true))));
                    }
                }
                verdict => {
                    let (soft, wait) = match verdict {
                        Verdict::Wait { secs, soft } => (soft, Some(secs)),
                        Verdict::RestSoft => (true, None),
                        Verdict::Rest | Verdict::Hard => (false, None),
                    };
                    if soft {
                        events.push_back(Event::SaExpire(Box::new(sa.expire(false))));
                    }
                    if let Some(secs) = wait {
                        self.arm_at(id, forward(due, cx.now.boot, secs));
                    }
                }
            }
        }
        self.run_workers();
    }

    pub(crate) fn poll_timeout(&self) -> Option<BootNanos> {
        self.timers.queue.first_key_value().map(|(due, _)| due.0)
    }

    fn arm_at(&mut self, id: SaId, due: BootNanos) {
        let due = (due, self.timers.armed);
        self.timers.armed += 1;
        if let Some(sa) = self.get_mut(id) {
            sa.expiry.due = Some(due);
            self.timers.queue.insert(due, id);
        }
    }
}

fn has_time_limit(lft: &LifetimeCfg) -> bool {
    lft.soft_add_expires_seconds != 0
        || lft.hard_add_expires_seconds != 0
        || lft.soft_use_expires_seconds != 0
        || lft.hard_use_expires_seconds != 0
}

/// What `xfrm_timer_handler` decides. Arithmetic wraps as the kernel's does.
fn run(sa: &mut Sa, now: Now) -> Verdict {
    let lft = sa.lft;
    let real = now.real.0;
    let left = |limit: u64, since: u64| limit.wrapping_add(since).wrapping_sub(real).cast_signed();
    let used_since = |sa: &Sa| match sa.traffic.use_time() {
        0 => real,
        used => used,
    };
    let mut next = i64::MAX;
    if lft.hard_add_expires_seconds != 0 {
        let mut tmo = left(lft.hard_add_expires_seconds, sa.traffic.add_time());
        if tmo <= 0 {
            // The clock was set past both limits: the soft one has its turn first.
            let Some(saved) = sa.expiry.soft_wait else {
                return Verdict::Hard;
            };
            let add_time = real.wrapping_sub(saved.cast_unsigned()).wrapping_sub(1);
            sa.traffic.set_add_time(add_time);
            tmo = lft
                .hard_add_expires_seconds
                .wrapping_sub(saved.cast_unsigned())
                .cast_signed();
        }
        next = next.min(tmo);
    }
    if lft.hard_use_expires_seconds != 0 {
        let tmo = left(lft.hard_use_expires_seconds, used_since(sa));
        if tmo <= 0 {
            return Verdict::Hard;
        }
        next = next.min(tmo);
    }
    let mut soft = false;
    if !sa.traffic.is_dying() {
        if lft.soft_add_expires_seconds != 0 {
            let tmo = left(lft.soft_add_expires_seconds, sa.traffic.add_time());
            if tmo <= 0 {
                soft = true;
                sa.expiry.soft_wait = None;
            } else if tmo < next {
                next = tmo;
                sa.expiry.soft_wait = Some(tmo);
            }
        }
        if lft.soft_use_expires_seconds != 0 {
            let tmo = left(lft.soft_use_expires_seconds, used_since(sa));
            if tmo <= 0 {
                soft = true;
            } else {
                next = next.min(tmo);
            }
        }
        sa.traffic.set_dying(soft);
    }
    match (next, soft) {
        (i64::MAX, true) => Verdict::RestSoft,
        (i64::MAX, false) => Verdict::Rest,
        _ => Verdict::Wait {
            secs: u64::try_from(next).unwrap_or(0),
            soft,
        },
    }
}

/// `hrtimer_forward_now`: the first of `due` + n × `secs` (n > 0) that is yet to come.
fn forward(due: BootNanos, now: BootNanos, secs: u64) -> BootNanos {
    let step = secs.max(1).saturating_mul(1_000_000_000);
    let steps = now.0.saturating_sub(due.0) / step + 1;
    due.plus_nanos(step.saturating_mul(steps))
}
