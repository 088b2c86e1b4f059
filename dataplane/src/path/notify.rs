//! What packets make an SA tell key managers: limits reached, and aevents.
//!
//! An aevent is due when sequence numbers have gone on by `replay_maxdiff`
//! since the last one, or when `replay_maxage` has passed and they have gone on
//! at all. Linux runs a timer for the latter from the moment an SA is added;
//! here one is set when there is something that it might tell, and what it
//! would have found before is worked out.
//!
//! Source: `net/xfrm/xfrm_replay.c xfrm_replay_notify`,
//! `net/xfrm/xfrm_state.c xfrm_replay_timer_handler`.

use std::collections::BTreeSet;

use xfrm_proto::consts::*;

use crate::drop_reason::DropReason;
use crate::event::Event;
use crate::netns::{Context, Netns};
use crate::path::request::Request;
use crate::path::worker::Tools;
use crate::sad::traffic::Limit;
use crate::sad::{Sa, SaHandle};
use crate::time::{BootNanos, Now};

/// `XFRM_REPLAY_UPDATE`, `XFRM_REPLAY_TIMEOUT`.
const UPDATE: u32 = XFRM_AE_CR;
const TIMEOUT: u32 = XFRM_AE_CE;

/// Timers of SAs whose numbers have gone on without an aevent.
pub(crate) type AeventTimers = BTreeSet<(BootNanos, SaHandle)>;

impl Tools {
    /// Tells that an SA has reached a limit in bytes or packets.
    ///
    /// # Errors
    /// `reason`, for a hard one.
    #[cold]
    pub(super) fn reach(
        &mut self,
        netns: &Netns,
        sa: &Sa,
        handle: SaHandle,
        limit: Limit,
        reason: DropReason,
    ) -> Result<(), (DropReason, i32)> {
        // Another SA may serve the template now.
        netns.sad.choices.change(sa);
        if limit == Limit::Hard {
            self.requests.push(Request::Expire(handle));
            return Err((reason, errno::EINVAL));
        }
        let event = Event::SaExpire(Box::new(sa.expire(false)));
        self.requests.push(Request::Tell(event));
        Ok(())
    }

    /// Follows an SA's sequence numbers, and tells when it is time
    /// (`xfrm_replay_notify` with `XFRM_REPLAY_UPDATE`). Only where key managers listen.
    #[cold]
    ///
    /// `leaving`: the bytes of the packet that leaves. Linux tells its number and has not
    /// counted it yet.
    pub(super) fn notify_replay(
        &mut self,
        netns: &Netns,
        now: Now,
        sa: &Sa,
        handle: SaHandle,
        leaving: Option<u64>,
    ) {
        let value = sa.replay_value();
        let mut told = sa.told(netns.profile.hz);
        if !told.is_set && told.timer.is_some_and(|due| due <= now.boot) {
            // It found nothing that had changed.
            told.timer = None;
            told.deferred = true;
        }
        let [seq, oseq] = value.since(&told.value);
        let far = sa.replay_maxdiff != 0 && (seq >= sa.replay_maxdiff || oseq >= sa.replay_maxdiff);
        if !far && !told.deferred {
            if let Some(due) = told.timer.filter(|_| !told.is_set) {
                told.is_set = true;
                self.requests.push(Request::AeventTimer(due, handle));
            }
            return;
        }
        let flags = if far { UPDATE } else { TIMEOUT };
        told.tell(value, sa.aevent_wait(netns.profile.hz, now.boot));
        let mut aevent = sa.aevent(flags);
        if let Some(bytes) = leaving {
            let lifetime = &mut aevent.lifetime;
            lifetime.packets = lifetime.packets.wrapping_sub(1);
            lifetime.bytes = lifetime.bytes.wrapping_sub(bytes);
        }
        let event = Event::Aevent(Box::new(aevent));
        self.requests.push(Request::Tell(event));
    }
}

impl Netns {
    /// Runs the aevent timers that are due (`xfrm_replay_timer_handler`).
    pub(crate) fn run_aevent_timers(&mut self, cx: &Context<'_>) {
        while let Some(&(due, handle)) = self.aevent_timers.first()
            && due <= cx.now.boot
        {
            self.aevent_timers.pop_first();
            let Some(sa) = self.sad.by_handle(handle) else {
                continue;
            };
            let mut told = sa.told(self.profile.hz);
            if told.timer != Some(due) {
                continue;
            }
            told.timer = None;
            told.is_set = false;
            if !sa.is_valid() {
                continue;
            }
            let value = sa.replay_value();
            if !self.listeners.aevents || value == told.value {
                told.deferred = true;
                continue;
            }
            told.tell(value, sa.aevent_wait(self.profile.hz, cx.now.boot));
            drop(told);
            let event = Event::Aevent(Box::new(sa.aevent(TIMEOUT)));
            self.events.push_back(event);
        }
    }
}
