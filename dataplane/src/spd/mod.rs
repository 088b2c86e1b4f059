//! The security policy database.

use std::collections::VecDeque;

use crate::event::Event;
use crate::netns::{Context, Limits};
use crate::profile::Profile;
use crate::time::BootNanos;

/// The policies of one namespace.
pub struct Spd {
    profile: &'static Profile,
    limits: Limits,
}

impl Spd {
    /// An empty database.
    #[must_use]
    pub fn new(profile: &'static Profile, limits: Limits) -> Self {
        Self { profile, limits }
    }

    pub(crate) fn handle_timeout(&mut self, _cx: &mut Context<'_>, _events: &mut VecDeque<Event>) {}

    pub(crate) fn poll_timeout(&self) -> Option<BootNanos> {
        None
    }
}
