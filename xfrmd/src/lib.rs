//! xfrmd: NETLINK_XFRM answered in userspace.
//!
//! * [`check`]: what is wrong with SAs and policies.
//! * [`emulator`]: the sans-I/O façade: datagrams in, datagrams out.
//! * `netlink`: the netlink protocol itself: walking a datagram, ACKs, dumps.
//! * `xfrm`: one handler per message type.
//! * [`store`]: state that outlives the process.

pub mod check;
pub mod emulator;
mod netlink;
pub mod store;
mod xfrm;
