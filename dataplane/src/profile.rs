//! Which kernel is modelled: what differs between releases, as data.
//!
//! A difference that a client can see is a field here, named after the
//! behaviour, never a comparison of version numbers in a handler.

use xfrm_proto::consts::*;
use xfrm_proto::extack::XfrmError;

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
    /// MIGRATE finds its policy by selector, not by flow.
    pub migrate_by_selector: bool,
    /// CPUs that SA_PCPU may name.
    pub possible_cpus: u32,
    /// IPTFS is a known mode.
    pub knows_iptfs: bool,
    /// Policies know OFFLOAD_DEV.
    pub policy_offload: bool,
}

/// Linux 6.1 (Debian 12).
pub static V6_1: Profile = Profile {
    name: "6.1",
    msg_max: XFRM_MSG_GETDEFAULT,
    attr_max: XFRMA_MTIMER_THRESH,
    extack_everywhere: false,
    rejects_misplaced_pcpu: false,
    migrate_by_selector: true,
    possible_cpus: 1,
    knows_iptfs: false,
    policy_offload: false,
};

/// Linux 6.12 (Debian 13).
pub static V6_12: Profile = Profile {
    name: "6.12",
    msg_max: XFRM_MSG_GETDEFAULT,
    attr_max: XFRMA_SA_PCPU,
    extack_everywhere: true,
    rejects_misplaced_pcpu: false,
    migrate_by_selector: false,
    possible_cpus: 1,
    knows_iptfs: false,
    policy_offload: true,
};

/// Linux 7.2.
pub static V7_2: Profile = Profile {
    name: "7.2",
    msg_max: XFRM_MSG_MIGRATE_STATE,
    attr_max: XFRMA_IPTFS_PKT_SIZE,
    extack_everywhere: true,
    rejects_misplaced_pcpu: true,
    migrate_by_selector: false,
    possible_cpus: 1,
    knows_iptfs: true,
    policy_offload: true,
};

impl Profile {
    /// Every release, oldest first.
    pub const ALL: [&'static Self; 3] = [&V6_1, &V6_12, &V7_2];

    /// An error whose text only releases with `extack_everywhere` give.
    #[must_use]
    pub fn late_error(&self, errno: i32, text: &'static str) -> XfrmError {
        if self.extack_everywhere {
            XfrmError::with_text(errno, text)
        } else {
            XfrmError::new(errno)
        }
    }

    /// The release of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<&'static Self> {
        Self::ALL.into_iter().find(|profile| profile.name == name)
    }
}
