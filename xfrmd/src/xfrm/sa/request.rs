//! Attributes of NEWSA, UPDSA and NEWAE, taken apart for the engine.
//!
//! Source: `net/xfrm/xfrm_user.c xfrm_state_construct, xfrm_update_ae_params`.

use dataplane::sad::construct::{IptfsRequest, SaRequest};
use dataplane::sad::replay::AeventParams;
use xfrm_proto::algo::{AlgoBlob, Layout};
use xfrm_proto::attrs::Attrs;
use xfrm_proto::consts::*;
use xfrm_proto::uapi::{Mark, UserSaInfo};

/// All of a request that has passed its checks.
pub(super) fn sa<'a>(info: UserSaInfo, attrs: &Attrs<'a>) -> SaRequest<'a> {
    let blob = |kind, layout| AlgoBlob::read(attrs.bytes(kind)?, layout);
    SaRequest {
        info,
        aead: blob(XFRMA_ALG_AEAD, Layout::WithIcv),
        auth: blob(XFRMA_ALG_AUTH, Layout::Plain),
        auth_trunc: blob(XFRMA_ALG_AUTH_TRUNC, Layout::WithIcv),
        crypt: blob(XFRMA_ALG_CRYPT, Layout::Plain),
        comp: blob(XFRMA_ALG_COMP, Layout::Plain),
        encap: attrs.pod(XFRMA_ENCAP),
        coaddr: attrs.pod(XFRMA_COADDR),
        extra_flags: attrs.u32(XFRMA_SA_EXTRA_FLAGS).unwrap_or(0),
        tfcpad: attrs.u32(XFRMA_TFCPAD).unwrap_or(0),
        mark: mark(attrs),
        smark: set_mark(attrs),
        if_id: attrs.u32(XFRMA_IF_ID).unwrap_or(0),
        dir: attrs.u8(XFRMA_SA_DIR).unwrap_or(0),
        nat_keepalive_secs: attrs.u32(XFRMA_NAT_KEEPALIVE_INTERVAL).unwrap_or(0),
        pcpu: attrs.u32(XFRMA_SA_PCPU),
        params: aevent_params(attrs),
        security: attrs.bytes(XFRMA_SEC_CTX),
        offload: attrs.pod(XFRMA_OFFLOAD_DEV),
        iptfs: IptfsRequest {
            drop_time_usecs: attrs.u32(XFRMA_IPTFS_DROP_TIME),
            reorder_window: attrs.u16(XFRMA_IPTFS_REORDER_WINDOW),
            dont_frag: attrs.has(XFRMA_IPTFS_DONT_FRAG),
            init_delay_usecs: attrs.u32(XFRMA_IPTFS_INIT_DELAY),
            max_queue_bytes: attrs.u32(XFRMA_IPTFS_MAX_QSIZE),
            packet_bytes: attrs.u32(XFRMA_IPTFS_PKT_SIZE),
        },
    }
}

/// Thresholds and counters.
pub(crate) fn aevent_params<'a>(attrs: &Attrs<'a>) -> AeventParams<'a> {
    AeventParams {
        replay: attrs.pod(XFRMA_REPLAY_VAL),
        esn: attrs.bytes(XFRMA_REPLAY_ESN_VAL),
        curlft: attrs.pod(XFRMA_LTIME_VAL),
        maxage: attrs.u32(XFRMA_ETIMER_THRESH),
        maxdiff: attrs.u32(XFRMA_REPLAY_THRESH),
        mapping_maxage_secs: attrs.u32(XFRMA_MTIMER_THRESH),
    }
}

/// MARK, zero when absent (`xfrm_mark_get`).
pub(crate) fn mark(attrs: &Attrs<'_>) -> Mark {
    attrs.pod(XFRMA_MARK).unwrap_or_default()
}

/// SET_MARK; its mask alone counts for nothing (`xfrm_smark_init`).
pub(crate) fn set_mark(attrs: &Attrs<'_>) -> Mark {
    attrs.u32(XFRMA_SET_MARK).map_or(Mark::default(), |v| Mark {
        v,
        m: attrs.u32(XFRMA_SET_MARK_MASK).unwrap_or(u32::MAX),
    })
}
