//! Which kernel is modelled: what differs between releases, as data.
//!
//! A difference that a client can see is a field here, named after the
//! behaviour, never a comparison of version numbers in a handler.

use xfrm_proto::consts::*;
use xfrm_proto::extack::XfrmError;

/// A kernel release, as a table of behaviours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// `6.1`, `6.12` or `7.2`.
    pub name: &'static str,
    /// Highest message type.
    pub msg_max: u16,
    /// Highest attribute type; higher ones are ignored.
    pub attr_max: u16,
    /// Handlers beyond NEWSA and NEWPOLICY give extended-ack texts.
    pub extack_everywhere: bool,
    /// A dump's DONE says which attribute was wrong, not only what about it.
    pub dump_done_names_attribute: bool,
    /// SA_PCPU on a message that has no use for it is an error.
    pub rejects_misplaced_pcpu: bool,
    /// `XFRM_POLICY_CPU_ACQUIRE` is honoured: a CPU without an SA of its own asks for one.
    pub acquires_for_cpus: bool,
    /// IPComp sends a compressed payload that, with its header, is just as long as the plain one.
    pub ipcomp_may_keep_length: bool,
    /// Bytes by which a decompressed payload must be longer than the compressed one.
    ///
    /// QUIRK: ipcomp_growth_of_one. The header's four, until its size was taken from the wrong thing.
    pub ipcomp_least_growth_bytes: usize,
    /// Timer ticks a second. Aevent timers are set in ticks and told in tenths of a second.
    pub hz: u32,
    /// Between lookup lists policies are ordered by position, not by age.
    pub policies_have_positions: bool,
    /// MIGRATE finds its policy by selector, not by flow.
    pub migrate_by_selector: bool,
    /// CPUs that SA_PCPU may name.
    pub possible_cpus: u32,
    /// IPTFS is a known mode.
    pub knows_iptfs: bool,
    /// IPTFS is built in: its SAs have a configuration.
    pub has_iptfs: bool,
    /// SELinux runs, without a policy.
    pub has_selinux: bool,
    /// `hmac(rmd160)`.
    pub has_rmd160: bool,
    /// `hmac(sm3)` and `cbc(sm4)`.
    pub has_shangmi: bool,
    /// `xcbc(aes)` takes 192 and 256 bit keys too.
    pub xcbc_takes_long_keys: bool,
    /// ALG_AUTH replaces an AUTH_TRUNC whose algorithm has no PF_KEY number (`cmac(aes)`).
    pub auth_replaces_unnumbered_trunc: bool,
    /// ESP in UDP with the non-IKE marker (encapsulation type 1).
    pub has_non_ike_encap: bool,
    /// An ESN SA for output needs no replay window.
    pub esn_output_needs_no_window: bool,
    /// TFC padding beyond 65535 bytes is an error.
    pub limits_tfc_padding: bool,
    /// What MTIMER_THRESH without encapsulation is told.
    pub mtimer_needs_encap: &'static str,
    /// What MTIMER_THRESH on an output SA is told.
    pub mtimer_not_for_output: &'static str,
    /// ALLOCSPI gives an SPI once per protocol; otherwise once per destination too.
    pub spi_unique_per_proto: bool,
    /// What an offload request is checked for.
    pub offload: OffloadChecks,
    /// MIGRATE without ENCAP removes an SA's encapsulation.
    pub migrate_drops_encap: bool,
    /// MIGRATE initialises the new SA before it has its new addresses.
    pub migrate_inits_early: bool,
    /// Policies know OFFLOAD_DEV.
    pub policy_offload: bool,
    /// Packets on their way through show policies the type of a mobility header.
    pub decodes_mobility: bool,
    /// An SA that brought a packet is held to the family of its selector.
    pub sec_path_compares_families: bool,
    /// SAs other than those of mobile IPv6 tell when they were last used.
    pub tells_last_use: bool,
    /// An ICMP error may pass by the policies of the packet that it is about.
    pub icmp_errors_follow_their_flow: bool,
}

/// What `xfrm_dev_state_add` checks before it looks for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffloadChecks {
    /// The protocol must be one that can be offloaded at all.
    pub protocol: bool,
    /// No encapsulation.
    pub encap: bool,
    /// Whole packets may be offloaded, and direction has to agree with the SA's.
    pub packets: bool,
    /// No interface id on input.
    pub if_id: bool,
}

/// Linux 6.1 (Debian 12).
pub static V6_1: Profile = Profile {
    name: "6.1",
    msg_max: XFRM_MSG_GETDEFAULT,
    attr_max: XFRMA_MTIMER_THRESH,
    extack_everywhere: false,
    dump_done_names_attribute: false,
    rejects_misplaced_pcpu: false,
    acquires_for_cpus: false,
    ipcomp_may_keep_length: false,
    ipcomp_least_growth_bytes: 4,
    hz: 250,
    possible_cpus: 8192,
    knows_iptfs: false,
    has_iptfs: false,
    has_selinux: false,
    has_rmd160: true,
    has_shangmi: false,
    xcbc_takes_long_keys: true,
    auth_replaces_unnumbered_trunc: true,
    has_non_ike_encap: true,
    esn_output_needs_no_window: false,
    limits_tfc_padding: false,
    mtimer_needs_encap: "MTIMER_THRESH attribute can only be set on ENCAP states",
    mtimer_not_for_output: "",
    spi_unique_per_proto: false,
    offload: OffloadChecks {
        protocol: true,
        encap: true,
        packets: false,
        if_id: false,
    },
    migrate_drops_encap: false,
    migrate_inits_early: true,
    policies_have_positions: true,
    migrate_by_selector: true,
    policy_offload: false,
    decodes_mobility: true,
    sec_path_compares_families: false,
    tells_last_use: false,
    icmp_errors_follow_their_flow: false,
};

/// Linux 6.12 (Debian 13).
pub static V6_12: Profile = Profile {
    name: "6.12",
    msg_max: XFRM_MSG_GETDEFAULT,
    attr_max: XFRMA_SA_PCPU,
    extack_everywhere: true,
    dump_done_names_attribute: true,
    rejects_misplaced_pcpu: false,
    acquires_for_cpus: true,
    ipcomp_may_keep_length: false,
    ipcomp_least_growth_bytes: 4,
    hz: 250,
    possible_cpus: 8192,
    knows_iptfs: false,
    has_iptfs: false,
    has_selinux: false,
    has_rmd160: true,
    has_shangmi: false,
    xcbc_takes_long_keys: true,
    auth_replaces_unnumbered_trunc: true,
    has_non_ike_encap: false,
    esn_output_needs_no_window: true,
    limits_tfc_padding: false,
    mtimer_needs_encap: "MTIMER_THRESH attribute can only be set on ENCAP states",
    mtimer_not_for_output: "MTIMER_THRESH attribute should not be set on output SA",
    spi_unique_per_proto: true,
    offload: OffloadChecks {
        protocol: true,
        encap: false,
        packets: true,
        if_id: false,
    },
    migrate_drops_encap: false,
    migrate_inits_early: true,
    policies_have_positions: false,
    migrate_by_selector: false,
    policy_offload: true,
    decodes_mobility: false,
    sec_path_compares_families: true,
    tells_last_use: true,
    icmp_errors_follow_their_flow: true,
};

/// Linux 7.2.
pub static V7_2: Profile = Profile {
    name: "7.2",
    msg_max: XFRM_MSG_MIGRATE_STATE,
    attr_max: XFRMA_IPTFS_PKT_SIZE,
    extack_everywhere: true,
    dump_done_names_attribute: true,
    rejects_misplaced_pcpu: true,
    acquires_for_cpus: true,
    ipcomp_may_keep_length: true,
    ipcomp_least_growth_bytes: 1,
    hz: 250,
    possible_cpus: 8192,
    knows_iptfs: true,
    has_iptfs: true,
    has_selinux: false,
    has_rmd160: false,
    has_shangmi: false,
    xcbc_takes_long_keys: false,
    auth_replaces_unnumbered_trunc: false,
    has_non_ike_encap: false,
    esn_output_needs_no_window: true,
    limits_tfc_padding: true,
    mtimer_needs_encap: "MTIMER_THRESH requires encapsulation",
    mtimer_not_for_output: "MTIMER_THRESH should not be set on output SA",
    spi_unique_per_proto: true,
    offload: OffloadChecks {
        protocol: false,
        encap: false,
        packets: true,
        if_id: true,
    },
    migrate_drops_encap: true,
    migrate_inits_early: false,
    policies_have_positions: false,
    migrate_by_selector: false,
    policy_offload: true,
    decodes_mobility: false,
    sec_path_compares_families: true,
    tells_last_use: true,
    icmp_errors_follow_their_flow: true,
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

    /// Whether SAs have a direction.
    #[must_use]
    pub const fn knows_direction(&self) -> bool {
        self.attr_max >= XFRMA_SA_DIR
    }

    /// The release of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<&'static Self> {
        Self::ALL.into_iter().find(|profile| profile.name == name)
    }
}
