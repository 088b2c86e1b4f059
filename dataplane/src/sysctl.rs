//! `net.core.xfrm_*`, per namespace. Source: `net/xfrm/xfrm_sysctl.c`.

/// The settings of one namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sysctls {
    /// `xfrm_aevent_etime`: units of 100 ms between aevents of a changed SA.
    pub aevent_etime: u32,
    /// `xfrm_aevent_rseqth`: packets between aevents.
    pub aevent_rseqth: u32,
    /// `xfrm_larval_drop`: drop (not 0) or hold (0) packets that wait for an SA.
    pub larval_drop: i32,
    /// `xfrm_acq_expires`: seconds that a larval SA lives.
    pub acq_expires: u32,
}

impl Default for Sysctls {
    fn default() -> Self {
        Self {
            aevent_etime: 10,
            aevent_rseqth: 2,
            larval_drop: 1,
            acq_expires: 30,
        }
    }
}
