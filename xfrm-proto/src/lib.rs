//! The NETLINK_XFRM wire format: structures, attributes, replies and errors.
//!
//! Everything here is pure: bytes in, values out, and back. No module reads a
//! clock, a file or the environment, and no input makes it panic. The crate
//! knows what a message looks like; what it *means* is `dataplane`'s business
//! (SAs, policies) and `xfrmd`'s (which handler, which errno).
//!
//! * [`uapi`]: the fixed structures, byte for byte as `linux/xfrm.h` lays them out.
//! * [`consts`]: message, attribute, flag and group numbers.
//! * [`policy`]: the attribute table: minimum lengths and strictness.
//! * [`attrs`]: parsed attributes of a request, last one wins.
//! * [`algo`]: algorithm blobs and [`algo::Key`], which never shows itself.
//! * [`reply`]: building messages in the kernel's layout.
//! * [`extack`]: `NLMSG_ERROR` and `NLMSG_DONE` with their TLVs.
//! * [`decode`]: messages as text that leaves nothing out.
//! * [`control`]: frames between the shim and the daemon; [`clock`]: what they share of a virtual clock.
//!   Without the feature `messages` there is nothing else, because the shim needs nothing else.
#![forbid(unsafe_code)]

#[cfg(feature = "messages")]
pub mod algo;
#[cfg(feature = "messages")]
pub mod attrs;
pub mod clock;
pub mod consts;
pub mod control;
#[cfg(feature = "messages")]
pub mod decode;
#[cfg(feature = "messages")]
pub mod extack;
#[cfg(feature = "messages")]
pub mod policy;
#[cfg(feature = "messages")]
pub mod reply;
#[cfg(feature = "messages")]
pub mod uapi;

/// Rounds up to netlink's four-byte alignment.
#[must_use]
pub const fn align4(len: usize) -> usize {
    (len + 3) & !3
}
