//! An SA as bytes: NEWSA, UPDSA, DELSA, EXPIRE, NEWAE, FLUSHSA messages.
//!
//! Attribute order is the kernel's. 64-bit attributes get no XFRMA_PAD, as on
//! x86-64 and arm64.
//!
//! Source: `net/xfrm/xfrm_user.c copy_to_user_state_extra, xfrm_notify_sa,
//! build_expire, build_aevent, xfrm_notify_sa_flush`.

use dataplane::Profile;
use dataplane::event::{Aevent, SaExpire};
use dataplane::sad::Sa;
use dataplane::sad::replay::{EsnReplay, ReplayValue};
use dataplane::sad::sa::{ANY_CPU, KeyedAlgorithm};
use xfrm_proto::algo::NAME_BYTES;
use xfrm_proto::consts::*;
use xfrm_proto::reply::Writer;
use xfrm_proto::uapi::{EncapTmpl, Mark, UserMapping, UserSaFlush};
use zerocopy::IntoBytes;

/// Where a message says it comes from.
#[derive(Clone, Copy)]
pub(crate) struct Origin {
    pub(crate) seq: u32,
    pub(crate) pid: u32,
}

/// Appends a NEWSA or UPDSA message.
pub(crate) fn sa(out: &mut Vec<u8>, kind: u16, flags: u16, origin: Origin, sa: &Sa) {
    let mut writer = Writer::begin(out, kind, flags, origin.seq, origin.pid);
    writer.body(&sa.info());
    attributes(&mut writer, sa);
    writer.end();
}

/// Appends a DELSA message.
pub(crate) fn deleted(out: &mut Vec<u8>, origin: Origin, sa: &Sa) {
    let mut writer = Writer::begin(out, XFRM_MSG_DELSA, 0, origin.seq, origin.pid);
    writer.body(&sa.user_id());
    writer.attr_pod(XFRMA_SA, &sa.info());
    attributes(&mut writer, sa);
    writer.end();
}

/// Appends a FLUSHSA message.
pub(crate) fn flushed(out: &mut Vec<u8>, origin: Origin, proto: u8) {
    let mut writer = Writer::begin(out, XFRM_MSG_FLUSHSA, 0, origin.seq, origin.pid);
    writer.body(&UserSaFlush { proto });
    writer.end();
}

/// Appends an EXPIRE message; its sequence number is always 0.
pub(crate) fn expired(out: &mut Vec<u8>, pid: u32, expire: &SaExpire) {
    let mut writer = Writer::begin(out, XFRM_MSG_EXPIRE, 0, 0, pid);
    writer.body(&expire.body);
    mark(&mut writer, expire.mark);
    nonzero(&mut writer, XFRMA_IF_ID, expire.if_id);
    cpu(&mut writer, expire.pcpu);
    direction(&mut writer, expire.dir);
    writer.end();
}

/// Appends a NEWAE message with the given `XFRM_AE_*` flags.
pub(crate) fn aevent(out: &mut Vec<u8>, profile: &Profile, origin: Origin, event: &Aevent) {
    let mut writer = Writer::begin(out, XFRM_MSG_NEWAE, 0, origin.seq, origin.pid);
    writer.body(&event.body);
    replay(&mut writer, &event.replay);
    writer.attr_pod(XFRMA_LTIME_VAL, &event.lifetime);
    if event.body.flags & XFRM_AE_RTHR != 0 {
        writer.attr_u32(XFRMA_REPLAY_THRESH, event.maxdiff);
    }
    if event.body.flags & XFRM_AE_ETHR != 0 {
        // QUIRK: etimer_is_set_in_ticks_and_told_in_tenths.
        let tenths = event.maxage.wrapping_mul(10) / profile.hz;
        writer.attr_u32(XFRMA_ETIMER_THRESH, tenths);
    }
    mark(&mut writer, event.mark);
    nonzero(&mut writer, XFRMA_IF_ID, event.if_id);
    cpu(&mut writer, event.pcpu);
    direction(&mut writer, event.dir);
    writer.end();
}

/// Appends a MAPPING message.
pub(crate) fn mapping(out: &mut Vec<u8>, body: &UserMapping) {
    let mut writer = Writer::begin(out, XFRM_MSG_MAPPING, 0, 0, 0);
    writer.body(body);
    writer.end();
}

fn attributes(writer: &mut Writer<'_>, sa: &Sa) {
    let options = sa.options();
    nonzero(writer, XFRMA_SA_EXTRA_FLAGS, options.extra_flags);
    if let Some(coaddr) = &options.coaddr {
        writer.attr_pod(XFRMA_COADDR, coaddr);
    }
    let last_used = sa.traffic.last_used();
    if last_used != 0 {
        writer.attr(XFRMA_LASTUSED, &last_used.to_ne_bytes());
    }
    if let Some(aead) = &sa.aead {
        with_icv(writer, XFRMA_ALG_AEAD, aead);
    }
    if let Some(auth) = &sa.auth {
        plain(writer, XFRMA_ALG_AUTH, auth);
        with_icv(writer, XFRMA_ALG_AUTH_TRUNC, auth);
    }
    if let Some(crypt) = &sa.crypt {
        plain(writer, XFRMA_ALG_CRYPT, crypt);
    }
    if let Some(comp) = sa.comp {
        writer.attr_parts(XFRMA_ALG_COMP, &[&name(comp.name), &[0; 4]]);
    }
    if let Some(encap) = &options.encap {
        let encap = EncapTmpl {
            pad: [0; 2],
            ..*encap
        };
        writer.attr_pod(XFRMA_ENCAP, &encap);
    }
    nonzero(writer, XFRMA_TFCPAD, options.tfcpad);
    mark(writer, sa.mark);
    set_mark(writer, options.smark);
    replay(writer, &sa.replay_value());
    nonzero(writer, XFRMA_IF_ID, sa.if_id);
    if let Some(context) = &options.security {
        let head = context.head();
        writer.attr_parts(XFRMA_SEC_CTX, &[head.as_bytes(), context.bytes()]);
    }
    if let Some(iptfs) = &options.iptfs {
        if sa.dir == XFRM_SA_DIR_IN {
            writer.attr_u32(XFRMA_IPTFS_DROP_TIME, iptfs.drop_time_usecs);
            let window = iptfs.reorder_window.to_ne_bytes();
            writer.attr(XFRMA_IPTFS_REORDER_WINDOW, &window);
        } else {
            if iptfs.dont_frag {
                writer.attr(XFRMA_IPTFS_DONT_FRAG, &[]);
            }
            writer.attr_u32(XFRMA_IPTFS_INIT_DELAY, iptfs.init_delay_usecs);
            writer.attr_u32(XFRMA_IPTFS_MAX_QSIZE, iptfs.max_queue_bytes);
            writer.attr_u32(XFRMA_IPTFS_PKT_SIZE, iptfs.packet_bytes);
        }
    }
    nonzero(writer, XFRMA_MTIMER_THRESH, options.mapping_maxage_secs);
    cpu(writer, sa.pcpu);
    direction(writer, sa.dir);
    nonzero(
        writer,
        XFRMA_NAT_KEEPALIVE_INTERVAL,
        options.nat_keepalive_secs,
    );
}

fn replay(writer: &mut Writer<'_>, value: &ReplayValue) {
    match value {
        ReplayValue::Esn(EsnReplay { head, bitmap }) => {
            writer.attr_parts(XFRMA_REPLAY_ESN_VAL, &[head.as_bytes(), bitmap]);
        }
        ReplayValue::Legacy(state) => writer.attr_pod(XFRMA_REPLAY_VAL, state),
    }
}

fn plain(writer: &mut Writer<'_>, kind: u16, keyed: &KeyedAlgorithm) {
    writer.attr_parts(
        kind,
        &[
            &name(keyed.algorithm.name),
            &keyed.key_bits.to_ne_bytes(),
            keyed.key.expose(),
        ],
    );
}

fn with_icv(writer: &mut Writer<'_>, kind: u16, keyed: &KeyedAlgorithm) {
    writer.attr_parts(
        kind,
        &[
            &name(keyed.algorithm.name),
            &keyed.key_bits.to_ne_bytes(),
            &keyed.icv_bits.to_ne_bytes(),
            keyed.key.expose(),
        ],
    );
}

fn name(name: &str) -> [u8; NAME_BYTES] {
    let mut field = [0; NAME_BYTES];
    for (to, from) in field.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    field
}

/// `xfrm_mark_put`.
pub(crate) fn mark(writer: &mut Writer<'_>, mark: Mark) {
    if mark != Mark::default() {
        writer.attr_pod(XFRMA_MARK, &mark);
    }
}

/// `xfrm_smark_put`.
pub(crate) fn set_mark(writer: &mut Writer<'_>, mark: Mark) {
    if mark != Mark::default() {
        writer.attr_u32(XFRMA_SET_MARK, mark.v);
        writer.attr_u32(XFRMA_SET_MARK_MASK, mark.m);
    }
}

pub(crate) fn nonzero(writer: &mut Writer<'_>, kind: u16, value: u32) {
    if value != 0 {
        writer.attr_u32(kind, value);
    }
}

pub(crate) fn cpu(writer: &mut Writer<'_>, cpu: u32) {
    if cpu != ANY_CPU {
        writer.attr_u32(XFRMA_SA_PCPU, cpu);
    }
}

pub(crate) fn direction(writer: &mut Writer<'_>, dir: u8) {
    if dir != 0 {
        writer.attr(XFRMA_SA_DIR, &[dir]);
    }
}
