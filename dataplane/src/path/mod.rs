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

pub mod request;
pub mod worker;

pub use request::Request;
pub use worker::Worker;
