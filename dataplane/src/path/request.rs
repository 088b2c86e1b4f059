//! What packets ask of the control thread.
//!
//! A packet has only a shared borrow of its namespace. Where Linux would change
//! a table under a lock, or run a timer at once, it leaves a request; whether
//! there is still something to do is looked at again when the request is handled.

use crate::event::Event;
use crate::netns::{Context, Netns};
use crate::sad::SaHandle;

/// A thing to do.
#[derive(Debug)]
pub enum Request {
    /// Tell key managers. The event is what was true when the packet passed.
    Tell(Event),
    /// An SA has reached a hard limit in bytes or packets: it goes, and key managers are told.
    Expire(SaHandle),
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

    fn handle_request(&mut self, _cx: &mut Context<'_>, request: Request) {
        match request {
            Request::Tell(event) => self.events.push_back(event),
            Request::Expire(sa) => {
                if let Some(expire) = self.sad.expire(sa) {
                    self.events.push_back(Event::SaExpire(Box::new(expire)));
                }
            }
        }
    }
}
