//! What packets ask of the control thread.
//!
//! A packet has only a shared borrow of its namespace. Where Linux would change
//! a table under a lock, or run a timer at once, it leaves a request; whether
//! there is still something to do is looked at again when the request is handled.

use xfrm_proto::uapi::Address;

use crate::event::Event;
use crate::netns::{Context, Netns};
use crate::path::hold::{Held, Queue};
use crate::sad::SaHandle;
use crate::sad::choose::{Choice, Wanted};
use crate::spd::{Flow, PolicyHandle};
use crate::time::BootNanos;

/// A thing to do.
#[derive(Debug)]
pub enum Request {
    /// Tell key managers. The event is what was true when the packet passed.
    Tell(Event),
    /// An SA has reached a hard limit in bytes or packets: it goes, and key managers are told.
    Expire(SaHandle),
    /// A template has no SA: a larval one is made, and key managers are asked.
    Acquire(Box<AcquireRequest>),
    /// A packet is to wait for SAs.
    Hold(Box<Held>),
    /// Packets have to wait on.
    HoldOn(Box<Queue>),
    /// The aevent timer of an SA has something to look at when it runs out.
    AeventTimer(BootNanos, SaHandle),
    /// An IPTFS SA has something to send, or to give up, then.
    IptfsTimer(BootNanos, SaHandle),
}

/// What an SA is wanted for.
#[derive(Clone, Debug)]
pub struct AcquireRequest {
    pub(super) policy: PolicyHandle,
    pub(super) template: usize,
    pub(super) daddr: Address,
    pub(super) saddr: Address,
    pub(super) flow: Flow,
    pub(super) cpu: u32,
    /// When the policy was last used, before this packet.
    pub(super) last_use: u64,
    /// There is an SA, but none of this CPU's own.
    pub(super) for_cpu: bool,
}

impl Netns {
    /// Carries out what packets asked for; events wait in [`Netns::poll_event`].
    pub fn handle_requests(
        &mut self,
        cx: &mut Context<'_>,
        requests: impl IntoIterator<Item = Request>,
    ) {
        for request in requests {
            self.handle_request(cx, request);
        }
    }

    fn handle_request(&mut self, cx: &mut Context<'_>, request: Request) {
        match request {
            Request::Tell(event) => self.events.push_back(event),
            Request::Expire(sa) => {
                if let Some(expire) = self.sad.expire(sa) {
                    self.events.push_back(Event::SaExpire(Box::new(expire)));
                }
            }
            Request::Acquire(request) => self.acquire(cx, &request),
            Request::Hold(held) => self.hold(cx, *held),
            Request::AeventTimer(due, sa) => {
                self.aevent_timers.insert((due, sa));
            }
            Request::IptfsTimer(due, sa) => {
                self.iptfs_timers.insert((due, sa));
            }
            Request::HoldOn(queue) => self.hold_on(cx.now.boot, *queue),
        }
    }

    /// Asks again, because an earlier request may have made the SA.
    fn acquire(&mut self, cx: &mut Context<'_>, request: &AcquireRequest) {
        let policy = self.spd.by_handle(request.policy);
        let Some(policy) = policy else { return };
        let Some(template) = policy.templates.iter().nth(request.template) else {
            return;
        };
        let wanted = Wanted {
            policy,
            template,
            daddr: request.daddr,
            saddr: request.saddr,
            flow: &request.flow,
            cpu: request.cpu,
        };
        let choice = self.sad.choose(&wanted, self.listeners.acquire);
        if matches!(choice, Choice::Acquire | Choice::Sa { acquire: true, .. }) {
            let event = self
                .sad
                .acquire(cx, &self.sysctls, &wanted, request.for_cpu);
            let event = event.map(|mut event| {
                event.body.policy.curlft.use_time = request.last_use;
                Event::Acquire(Box::new(event))
            });
            self.events.extend(event);
            self.sad.run_workers();
        }
    }
}
