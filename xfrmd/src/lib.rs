//! xfrmd: NETLINK_XFRM answered in userspace.
//!
//! * [`check`]: what is wrong with SAs and policies.
//! * [`emulator`]: the sans-I/O façade: datagrams in, datagrams out.
//! * `netlink`: the netlink protocol itself: walking a datagram, ACKs, dumps.
//! * `xfrm`: one handler per message type.
//! * [`faults`]: what is to go wrong, on purpose.
//! * [`store`]: state that outlives the process.
//! * [`tape`]: what an emulator is asked, as data; [`recording`]: that in a file, and again from it.
//! * [`testing`]: an instance in this process, for tests of programs that speak netlink.

pub mod check;
pub mod emulator;
pub mod faults;
mod netlink;
pub mod recording;
pub mod store;
pub mod tape;
pub mod testing;
mod xfrm;
