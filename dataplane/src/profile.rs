//! Which kernel is modelled: what differs between releases, as data.
//!
//! A difference that a client can see is a field here, named after the
//! behaviour, never a comparison of version numbers in a handler.

use xfrm_proto::consts::*;

/// A kernel release, as a table of behaviours.
#[derive(Debug, PartialEq, Eq)]
pub struct Profile {
    /// `6.1`, `6.12` or `7.2`.
    pub name: &'static str,
    /// Highest message type.
    pub msg_max: u16,
    /// Highest attribute type; higher ones are ignored.
    pub attr_max: u16,
    /// Handlers beyond NEWSA and NEWPOLICY give extended-ack texts.
    pub extack_everywhere: bool,
    /// SA_PCPU on a message that has no use for it is an error.
    pub rejects_misplaced_pcpu: bool,
    /// IPComp sends a compressed payload that, with its header, is just as long as the plain one.
    pub ipcomp_may_keep_length: bool,
    /// Bytes by which a decompressed payload must be longer than the compressed one.
    ///
    /// QUIRK: ipcomp_growth_of_one. The header's four, until its size was taken from the wrong thing.
    pub ipcomp_least_growth_bytes: usize,
}

/// Linux 6.1 (Debian 12).
pub static V6_1: Profile = Profile {
    name: "6.1",
    msg_max: XFRM_MSG_GETDEFAULT,
    attr_max: XFRMA_MTIMER_THRESH,
    extack_everywhere: false,
    rejects_misplaced_pcpu: false,
    ipcomp_may_keep_length: false,
    ipcomp_least_growth_bytes: 4,
};

/// Linux 6.12 (Debian 13).
pub static V6_12: Profile = Profile {
    name: "6.12",
    msg_max: XFRM_MSG_GETDEFAULT,
    attr_max: XFRMA_SA_PCPU,
    extack_everywhere: true,
    rejects_misplaced_pcpu: false,
    ipcomp_may_keep_length: false,
    ipcomp_least_growth_bytes: 4,
};

/// Linux 7.2.
pub static V7_2: Profile = Profile {
    name: "7.2",
    msg_max: XFRM_MSG_MIGRATE_STATE,
    attr_max: XFRMA_IPTFS_PKT_SIZE,
    extack_everywhere: true,
    rejects_misplaced_pcpu: true,
    ipcomp_may_keep_length: true,
    ipcomp_least_growth_bytes: 1,
};

impl Profile {
    /// Every release, oldest first.
    pub const ALL: [&'static Self; 3] = [&V6_1, &V6_12, &V7_2];

    /// The release of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<&'static Self> {
        Self::ALL.into_iter().find(|profile| profile.name == name)
    }
}
