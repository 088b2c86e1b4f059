//! What an instance was asked and what it said: comparing it.
//!
//! * [`normalize`]: what two honest runs may differ in, renamed.
#![forbid(unsafe_code)]

pub mod normalize;
