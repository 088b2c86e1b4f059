//! The packet path: which policy is for a packet, which SAs, and what became of it.
//!
//! Packets pass under a shared borrow of their [`Netns`](crate::Netns): in the
//! daemon a read guard that is held for a batch of packets, while requests take
//! the write guard. There is no second copy of any table, so nothing has to be
//! published, and packets see what requests did in their order. What a packet
//! changes is atomic or behind a lock of its SA; what it cannot change under a
//! shared borrow (a larval SA, an SA that has expired) it writes down as a
//! [`Request`], which [`Netns::handle_requests`](crate::Netns::handle_requests)
//! carries out. With one worker and its requests handled after each packet,
//! everything happens in Linux's order.
//!
//! * [`worker`]: what a packet thread has of its own.
//! * [`request`]: what it asks the control thread to do.
//! * [`output`]: packets that leave. `lookup`: their policies and SAs; `bundle`: what is worked
//!   out for them; `transmit`: their way through the SAs; `flows`: what is remembered of it. [`route`]: what the host is asked.
//! * [`receive`]: packets that arrive. `input`: through their SAs; `together`: several at once; `sec_path`: which these were;
//!   `check`: whether policies want that; `admitted`: what is remembered of it. [`learn`]: MTUs on the way.
//! * [`hold`]: packets that wait for SAs. `aggregate`: packets that wait in IPTFS SAs.
//! * `notify`: limits and aevents.
//! * [`explain`]: the same decisions, told instead of done.

mod admitted;
pub(crate) mod aggregate;
mod arrivals;
mod bundle;
mod check;
pub mod explain;
mod flows;
pub mod hold;
mod input;
pub mod learn;
mod lookup;
pub(crate) mod notify;
pub mod output;
pub mod receive;
pub mod request;
pub mod route;
mod sec_path;
#[cfg(test)]
mod tests;
mod together;
mod transmit;
mod witness;
pub mod worker;

pub use explain::Explanation;
pub use learn::LearnedMtu;
pub use output::{Departure, OutputMeta, Verdict};
pub use receive::{Destination, Host, InputMeta, Owner, Received};
pub use request::Request;
pub use route::{OneRoute, PathInfo, RouteQuery, Routes};
pub use sec_path::SecPath;
pub use worker::Worker;
