//! Sequence numbers and replay windows, as far as they are configuration.
//!
//! Source: `net/xfrm/xfrm_replay.c xfrm_init_replay`; `net/xfrm/xfrm_user.c
//! xfrm_alloc_replay_state_esn, xfrm_replay_verify_len, xfrm_update_ae_params`.

use xfrm_proto::consts::*;
use xfrm_proto::extack::XfrmError;
use xfrm_proto::uapi::{LifetimeCur, Pod, ReplayState, ReplayStateEsn};

use super::sa::Sa;
use crate::profile::Profile;

/// REPLAY_ESN_VAL: numbers and bitmap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EsnReplay {
    /// The fixed part.
    pub head: ReplayStateEsn,
    /// `head.bmp_len` words, native order.
    pub bitmap: Box<[u8]>,
}

impl EsnReplay {
    /// Reads an attribute; a bitmap that is not all there counts as zeros.
    ///
    /// QUIRK: esn_bitmap_may_be_left_out. The request check lets only the bare structure through.
    #[must_use]
    pub fn read(attr: &[u8]) -> Option<Self> {
        let head = ReplayStateEsn::read(attr)?;
        let bytes = bitmap_bytes(&head);
        let bitmap = match attr.get(ReplayStateEsn::SIZE..ReplayStateEsn::SIZE + bytes) {
            Some(bitmap) => bitmap.into(),
            None => vec![0; bytes].into(),
        };
        Some(Self { head, bitmap })
    }

    /// Bytes that the attribute takes.
    #[must_use]
    pub fn wire_bytes(&self) -> usize {
        ReplayStateEsn::SIZE + self.bitmap.len()
    }
}

/// Bytes of the bitmap that `head` announces; the request check keeps them at 512.
fn bitmap_bytes(head: &ReplayStateEsn) -> usize {
    usize::try_from(head.bmp_len.min(XFRMA_REPLAY_ESN_MAX_WORDS)).map_or(0, |words| words * 4)
}

fn window_fits(head: &ReplayStateEsn) -> bool {
    u64::from(head.replay_window) <= u64::from(head.bmp_len) * 32
}

/// Checks an SA's window (`xfrm_init_replay`).
pub(super) fn init(profile: &Profile, sa: &Sa) -> Result<(), XfrmError> {
    let Some(esn) = &sa.esn else { return Ok(()) };
    if !window_fits(&esn.head) {
        return Err(XfrmError::invalid(
            "ESN replay window is too large for the chosen bitmap size",
        ));
    }
    let spared = profile.esn_output_needs_no_window && sa.dir == XFRM_SA_DIR_OUT;
    if sa.flags & XFRM_STATE_ESN != 0 && esn.head.replay_window == 0 && !spared {
        return Err(XfrmError::invalid("ESN replay window must be > 0"));
    }
    Ok(())
}

/// Counters and thresholds that NEWSA and NEWAE set.
#[derive(Clone, Copy, Debug, Default)]
pub struct AeventParams<'a> {
    /// REPLAY_VAL.
    pub replay: Option<ReplayState>,
    /// REPLAY_ESN_VAL, all of its payload; NEWSA takes it another way.
    pub esn: Option<&'a [u8]>,
    /// LTIME_VAL.
    pub curlft: Option<LifetimeCur>,
    /// ETIMER_THRESH, in ticks.
    pub maxage: Option<u32>,
    /// REPLAY_THRESH.
    pub maxdiff: Option<u32>,
    /// MTIMER_THRESH.
    pub mapping_maxage_secs: Option<u32>,
}

impl AeventParams<'_> {
    /// Checks that a new ESN value has the shape of the one `sa` has
    /// (`xfrm_replay_verify_len`).
    ///
    /// # Errors
    /// EINVAL.
    pub fn verify(&self, profile: &Profile, sa: &Sa) -> Result<(), XfrmError> {
        let (Some(old), Some(attr)) = (&sa.esn, self.esn) else {
            return Ok(());
        };
        let refuse = |text| Err(profile.late_error(errno::EINVAL, text));
        let new = ReplayStateEsn::read(attr).unwrap_or_default();
        // 32-bit arithmetic, as the kernel has it: huge lengths wrap.
        let size = |head: &ReplayStateEsn| head.bmp_len.wrapping_mul(4).wrapping_add(24);
        if i64::try_from(attr.len()).unwrap_or(i64::MAX) < i64::from(size(&new).cast_signed()) {
            return refuse("ESN attribute is too short");
        }
        if size(&old.head) != size(&new) {
            return refuse("New ESN size doesn't match the existing SA's ESN size");
        }
        if old.head.bmp_len != new.bmp_len {
            return refuse("New ESN bitmap size doesn't match the existing SA's ESN bitmap");
        }
        if !window_fits(&new) {
            return refuse("ESN replay window is longer than the bitmap");
        }
        Ok(())
    }

    /// Takes them over (`xfrm_update_ae_params`).
    pub fn apply(&self, sa: &mut Sa) {
        if let (Some(old), Some(new)) = (&mut sa.esn, self.esn.and_then(EsnReplay::read)) {
            **old = new;
        }
        if let Some(replay) = self.replay {
            sa.replay = replay;
        }
        if let Some(curlft) = self.curlft {
            sa.curlft = curlft;
        }
        if let Some(maxage) = self.maxage {
            sa.replay_maxage = maxage;
        }
        if let Some(maxdiff) = self.maxdiff {
            sa.replay_maxdiff = maxdiff;
        }
        if let Some(secs) = self.mapping_maxage_secs {
            sa.options_mut().mapping_maxage_secs = secs;
        }
    }
}
