//! xfrmd: NETLINK_XFRM answered in userspace.
//!
//! * [`emulator`]: the sans-I/O façade: datagrams in, datagrams out.
//! * `netlink`: the netlink protocol itself: walking a datagram, ACKs, dumps.
//! * `xfrm`: one handler per message type.
//! * [`faults`]: what is to go wrong, on purpose.
//! * [`store`]: state that outlives the process.

pub mod emulator;
pub mod faults;
mod netlink;
pub mod store;
mod xfrm;
