//! What became of a packet, in words: of captures, recordings and their comparison.

use std::borrow::Cow;

use dataplane::DropReason;
use dataplane::path::{Received, Verdict};

/// Of a packet that was to leave; nothing for one that did.
#[must_use]
pub fn of_departure(verdict: &Verdict) -> Cow<'static, str> {
    match verdict {
        Verdict::Sent(_) => "".into(),
        Verdict::Plain => "no policy is for it".into(),
        Verdict::Held => "waits for SAs".into(),
        Verdict::Queued => "waits in an IPTFS SA".into(),
        Verdict::TooBig { mtu } => format!("too big, {mtu} bytes would be right").into(),
        Verdict::Dropped { reason, .. } => dropped(*reason).into(),
    }
}

/// Of a packet that came; nothing for one that goes on.
#[must_use]
pub fn of_arrival(received: &Received) -> Cow<'static, str> {
    match received {
        Received::Local | Received::Forward => "".into(),
        Received::Kept => "a fragment, the rest is awaited".into(),
        Received::Consumed => "a keepalive".into(),
        Received::Inner => "an IPTFS payload".into(),
        Received::Dropped(reason) => dropped(*reason).into(),
    }
}

fn dropped(reason: DropReason) -> String {
    match reason.counter() {
        Some(counter) => format!("dropped: {} ({})", reason.text(), counter.name()),
        None => format!("dropped: {}", reason.text()),
    }
}
