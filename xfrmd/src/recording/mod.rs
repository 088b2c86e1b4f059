//! What an instance was asked and what it said, in a file; and again from it.
//!
//! A recording is one pcapng file, which Wireshark opens: netlink messages as an nlmon device shows
//! them, packets as they are on the wire and as the host has them, with what became of them as
//! comments. In options and blocks that the format leaves to everybody is what else a fresh instance
//! has to be told so that it does the same again: the clock, who asked, random numbers that were drawn,
//! what the host said of routes. `docs/recording.md` describes all of it.
//!
//! * [`pcapng`]: blocks and options. [`format`]: what is in ours.
//! * [`reel`]: writes; [`keys`]: what is left out. [`packets`]: what a packet thread tells it.
//! * [`read`]: a file back as what happened. [`replay`]: the same to a fresh instance.
//! * [`kernel`]: what a Linux kernel was asked, as a recording.
//! * [`compare`]: two recordings. [`normalize`]: what two honest runs may differ in, renamed.
//! * [`fate`]: what became of a packet, in words.
#![forbid(unsafe_code)]

pub mod compare;
pub mod fate;
pub mod format;
pub mod kernel;
pub mod keys;
pub mod normalize;
pub mod packets;
pub mod pcapng;
pub mod read;
pub mod reel;
pub mod replay;

use std::fmt;

/// Why a file cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where, in bytes from its beginning.
    pub offset: usize,
    /// What is wrong there.
    pub what: String,
}

impl Damage {
    fn new(offset: usize, what: impl Into<String>) -> Self {
        let what = what.into();
        Self { offset, what }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at byte {}: {}", self.offset, self.what)
    }
}

impl std::error::Error for Damage {}

#[cfg(test)]
mod tests;
