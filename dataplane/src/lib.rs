//! The engine: SAD, SPD, their timers and counters, one [`Netns`] per network
//! namespace.
//!
//! Sans-I/O but for [`io`]: time comes in as [`Now`], randomness as [`Entropy`], and facts
//! leave as [`Event`]s. Nothing here reads a clock, blocks, or knows netlink;
//! the `xfrm-proto` structures are used as plain data.
//!
//! * [`netns`]: the owner of everything that one namespace has.
//! * [`sad`]: security associations (`net/xfrm/xfrm_state.c`).
//! * [`spd`]: security policies (`net/xfrm/xfrm_policy.c`).
//! * [`crypto`]: which algorithms there are, and the transforms behind an SA.
//! * [`profile`]: which kernel is modelled.
//! * [`packet`]: packets as bytes; [`transform`]: what an SA does to them;
//!   [`replay`]: sequence numbers; [`drop_reason`]: why a packet died.
//! * [`io`]: where packets come from and go to.
//! * [`keep`]: state that outlives the process.
//! * [`security`]: security contexts.
//! * [`mib`], [`sysctl`]: counters and settings, under Linux's names.
#![deny(unsafe_code)]

pub mod crypto;
pub mod drop_reason;
pub mod entropy;
pub mod event;
pub mod io;
pub mod keep;
pub mod mib;
pub mod netns;
pub mod packet;
pub mod path;
pub mod profile;
pub mod replay;
pub mod sad;
pub mod security;
mod slots;
pub mod spd;
mod sync;
pub mod sysctl;
pub mod time;
pub mod transform;

pub use drop_reason::DropReason;
pub use entropy::{Entropy, SeededEntropy};
pub use event::Event;
pub use netns::{Context, Netns};
pub use profile::Profile;
pub use time::{BootNanos, Now, WallSecs};
pub use xfrm_proto::extack::XfrmError;
