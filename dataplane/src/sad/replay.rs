//! Sequence numbers and replay windows, as far as they are configuration.
//!
//! Source: `net/xfrm/xfrm_replay.c xfrm_init_replay`; `net/xfrm/xfrm_user.c
//! xfrm_alloc_replay_state_esn, xfrm_replay_verify_len, xfrm_update_ae_params`.

use xfrm_proto::consts::*;
use xfrm_proto::extack::XfrmError;
use xfrm_proto::uapi::{LifetimeCur, Pod, ReplayState, ReplayStateEsn};
use zerocopy::IntoBytes;

use super::sa::Sa;
use crate::profile::Profile;
use crate::replay::{Numbers, ReplayWindow, Ring};
use crate::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use crate::time::BootNanos;
use crate::transform::Sequence;

/// The sequence numbers of an SA as messages have them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplayValue {
    /// REPLAY_VAL.
    Legacy(ReplayState),
    /// REPLAY_ESN_VAL.
    Esn(EsnReplay),
}

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

    fn ring(&self) -> Box<Ring> {
        let (words, _) = self.bitmap.as_chunks();
        Box::new(Ring {
            seq: self.head.seq,
            seq_hi: self.head.seq_hi,
            idle_oseq_hi: self.head.oseq_hi,
            window: self.head.replay_window,
            bitmap: words.iter().map(|&word| u32::from_ne_bytes(word)).collect(),
        })
    }
}

impl Sa {
    /// The numbers as they are told.
    #[must_use]
    pub fn replay_value(&self) -> ReplayValue {
        let sent = self.traffic.last_sent();
        match &*self.window() {
            &ReplayWindow::Legacy { seq, bitmap, .. } => ReplayValue::Legacy(ReplayState {
                oseq: sent.low(),
                seq,
                bitmap,
            }),
            ReplayWindow::Bitmap(ring) => {
                ReplayValue::Esn(value_of(ring, sent.low(), ring.idle_oseq_hi))
            }
            ReplayWindow::Esn(ring) => ReplayValue::Esn(value_of(ring, sent.low(), sent.high())),
        }
    }

    /// Takes REPLAY_ESN_VAL.
    pub(super) fn set_esn(&mut self, value: &EsnReplay) {
        let ring = value.ring();
        let esn = self.is_esn();
        let window = if esn {
            ReplayWindow::Esn(ring)
        } else {
            ReplayWindow::Bitmap(ring)
        };
        *self.window() = window;
        self.set_sent(value.head.oseq, value.head.oseq_hi);
    }

    /// Takes REPLAY_VAL, which means nothing to an SA that has REPLAY_ESN_VAL.
    fn set_legacy(&mut self, value: ReplayState) {
        if let ReplayWindow::Legacy { seq, bitmap, .. } = &mut *self.window() {
            (*seq, *bitmap) = (value.seq, value.bitmap);
        } else {
            return;
        }
        self.set_sent(value.oseq, 0);
    }

    /// Key managers know the numbers, because one of them has set them.
    fn suppose_told(&mut self) {
        let value = self.replay_value();
        match self.told.get_mut() {
            Some(told) => told.get_mut().unwrap_or_else(PoisonError::into_inner).value = value,
            None => self.told = OnceLock::from(Told::nothing_since(value)),
        }
    }

    fn set_sent(&mut self, low: u32, high: u32) {
        let (esn, may_wrap) = (self.is_esn(), self.may_wrap());
        let next = Numbers::set(self.traffic.last_sent(), low, high, esn);
        self.traffic.set_sent(next, esn, may_wrap);
    }
}

fn value_of(ring: &Ring, oseq: u32, oseq_hi: u32) -> EsnReplay {
    EsnReplay {
        head: ReplayStateEsn {
            bmp_len: u32::try_from(ring.bitmap.len()).unwrap_or(u32::MAX),
            oseq,
            seq: ring.seq,
            oseq_hi,
            seq_hi: ring.seq_hi,
            replay_window: ring.window,
        },
        bitmap: ring.bitmap.as_bytes().into(),
    }
}

/// Bytes of the bitmap that `head` announces; the request check keeps them at 512.
fn bitmap_bytes(head: &ReplayStateEsn) -> usize {
    usize::try_from(head.bmp_len.min(XFRMA_REPLAY_ESN_MAX_WORDS)).map_or(0, |words| words * 4)
}

fn window_fits(head: &ReplayStateEsn) -> bool {
    u64::from(head.replay_window) <= u64::from(head.bmp_len) * 32
}

/// Gives a new SA its window and its first number.
pub(super) fn begin(sa: &mut Sa, esn: Option<&EsnReplay>) {
    let (esn_numbers, may_wrap) = (sa.is_esn(), sa.may_wrap());
    sa.traffic.set_sent(Sequence(0), esn_numbers, may_wrap);
    match esn {
        Some(esn) => {
            sa.set_esn(esn);
            sa.told = OnceLock::from(Told::nothing_since(sa.replay_value()));
        }
        None => {
            *sa.window() = ReplayWindow::Legacy {
                window: sa.replay_window,
                seq: 0,
                bitmap: 0,
            };
        }
    }
}

/// Checks an SA's window (`xfrm_init_replay`).
pub(super) fn init(profile: &Profile, sa: &Sa) -> Result<(), XfrmError> {
    let ReplayValue::Esn(esn) = sa.replay_value() else {
        return Ok(());
    };
    if !window_fits(&esn.head) {
        return Err(XfrmError::invalid(
            "ESN replay window is too large for the chosen bitmap size",
        ));
    }
    let spared = profile.esn_output_needs_no_window && sa.dir == XFRM_SA_DIR_OUT;
    if sa.is_esn() && esn.head.replay_window == 0 && !spared {
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
        let (ReplayValue::Esn(old), Some(attr)) = (sa.replay_value(), self.esn) else {
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
        let has_ring = !matches!(*sa.window(), ReplayWindow::Legacy { .. });
        if let Some(new) = self.esn.filter(|_| has_ring).and_then(EsnReplay::read) {
            sa.set_esn(&new);
        }
        if let Some(replay) = self.replay {
            sa.set_legacy(replay);
        }
        if self.esn.is_some() || self.replay.is_some() {
            sa.suppose_told();
        }
        if let Some(curlft) = self.curlft {
            sa.traffic.set_lifetime(curlft);
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

/// What key managers were told of an SA's numbers, and when they will be again.
#[derive(Debug)]
pub(crate) struct Told {
    /// `preplay`, `preplay_esn`.
    pub(crate) value: ReplayValue,
    /// When the timer runs out, while it runs.
    pub(crate) timer: Option<BootNanos>,
    /// Somebody looks at it then. Nobody needs to while nothing has changed.
    pub(crate) is_set: bool,
    /// The timer ran out and there was nothing to tell (`XFRM_TIME_DEFER`).
    pub(crate) deferred: bool,
    /// The timer that began with the SA has been thought of.
    began: bool,
}

impl Told {
    pub(super) fn nothing_since(value: ReplayValue) -> Box<Mutex<Self>> {
        Box::new(Mutex::new(Self {
            value,
            timer: None,
            is_set: false,
            deferred: false,
            began: false,
        }))
    }

    /// Notes what is being told; `next` is when the timer runs out again.
    pub(crate) fn tell(&mut self, value: ReplayValue, next: Option<BootNanos>) {
        self.value = value;
        if next.is_some() {
            self.deferred &= self.timer.is_some();
            self.timer = next;
            self.is_set = false;
        }
    }
}

impl ReplayValue {
    /// How far the input and the output number have gone on.
    pub(crate) fn since(&self, before: &Self) -> [u32; 2] {
        let numbers = |value: &Self| match value {
            Self::Legacy(state) => [state.seq, state.oseq],
            Self::Esn(EsnReplay { head, .. }) => [head.seq, head.oseq],
        };
        let ([seq, oseq], [old_seq, old_oseq]) = (numbers(self), numbers(before));
        [seq.wrapping_sub(old_seq), oseq.wrapping_sub(old_oseq)]
    }
}

impl Sa {
    /// What key managers were told, held for as short as possible.
    pub(crate) fn told(&self, hz: u32) -> MutexGuard<'_, Told> {
        let nothing = || Told::nothing_since(ReplayValue::Legacy(ReplayState::default()));
        let told = self.told.get_or_init(nothing);
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        if !told.began {
            told.began = true;
            told.timer = self.aevent_wait(hz, self.inserted);
        }
        told
    }

    /// When the aevent timer runs out that starts at `now`; `None` when it does not run.
    pub(crate) fn aevent_wait(&self, hz: u32, now: BootNanos) -> Option<BootNanos> {
        let nanos = u64::from(self.replay_maxage) * 1_000_000_000 / u64::from(hz.max(1));
        (self.replay_maxage != 0).then(|| now.plus_nanos(nanos))
    }
}
