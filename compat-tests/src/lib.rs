//! The suite that proves fidelity: the same scenarios run against xfrmd and
//! against real Linux kernels, and every reply and event is compared.
//!
//! * [`message`]: requests, well formed or deliberately not.
//! * [`session`]: what a scenario does: open, send, receive, sleep; all of it
//!   goes into a transcript.
//! * [`scenario`]: the scenarios, by name. None knows who answers.
//! * [`subject`]: who answers: the emulator in this process, or whatever is
//!   behind `AF_NETLINK` sockets.
//! * [`transcript`]: replies as text in which clock values and random numbers are
//!   renamed (`xfrmd::recording::normalize`), and nothing else is lost.
//! * [`golden`]: recorded transcripts of the kernels, and the list of
//!   divergences that are allowed.
//! * [`clients`]: whole programs (`ip`, libnl) whose printed output is compared.
//! * [`traffic`]: scenarios of packets, through links.
//! * [`fuzz`]: sequences of messages at random, compared where the kernel runs.
//! * [`kernel`]: boots a reference kernel to record from.
//! * [`trials`]: which test starts when, and what becomes of one that lacks its tool.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::type_complexity,
    reason = "all of this crate is test code: a panic is a failed test, a table of cases needs no type names"
)]

pub mod clients;
pub mod fuzz;
pub mod golden;
pub mod kernel;
pub mod makers;
pub mod message;
pub mod scenario;
pub mod session;
pub mod subject;
pub mod traffic;
pub mod transcript;
