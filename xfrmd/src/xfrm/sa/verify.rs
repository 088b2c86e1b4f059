//! What NEWSA and UPDSA are checked for before anything is made of them.
//!
//! In the kernel's order, with the kernel's texts. A release that does not
//! know an attribute has never parsed it, so its checks need no switch here.
//!
//! Source: `net/xfrm/xfrm_user.c verify_newsa_info, verify_replay`.

use dataplane::Profile;
use xfrm_proto::algo::{AlgoBlob, Layout};
use xfrm_proto::attrs::Attrs;
use xfrm_proto::consts::*;
use xfrm_proto::extack::XfrmError;
use xfrm_proto::uapi::{Pod, ReplayState, ReplayStateEsn, Selector, UserSaInfo, UserSecCtx};

type Checked = Result<(), XfrmError>;

const IPTFS: [u16; 6] = [
    XFRMA_IPTFS_DROP_TIME,
    XFRMA_IPTFS_REORDER_WINDOW,
    XFRMA_IPTFS_DONT_FRAG,
    XFRMA_IPTFS_INIT_DELAY,
    XFRMA_IPTFS_MAX_QSIZE,
    XFRMA_IPTFS_PKT_SIZE,
];

const PLAIN_LENGTH: &str = "Invalid AUTH/CRYPT/COMP attribute length";

/// Checks a request (`verify_newsa_info`).
///
/// `rewrites` takes what the checks write into it: an offset and two bytes.
pub(super) fn new_sa(
    profile: &Profile,
    info: &UserSaInfo,
    attrs: &Attrs<'_>,
    rewrites: &mut Vec<(usize, u16)>,
) -> Checked {
    let dir = attrs.u8(XFRMA_SA_DIR).unwrap_or(0);
    family(info.family)?;
    let sel_family = match info.sel.family {
        AF_UNSPEC if info.flags & XFRM_STATE_AF_UNSPEC == 0 => info.family,
        family => family,
    };
    selector_prefixes(sel_family, &info.sel)?;
    protocol(info, attrs)?;
    lengths(attrs, rewrites)?;
    replay(info, attrs, dir)?;
    mode(profile, info, dir)?;
    if attrs.has(XFRMA_MTIMER_THRESH) {
        mtimer_thresh(profile, attrs.has(XFRMA_ENCAP), dir)?;
    }
    match dir {
        XFRM_SA_DIR_OUT => output(info, attrs)?,
        XFRM_SA_DIR_IN => input(info, attrs)?,
        _ => {}
    }
    require(
        dir != 0 || !attrs.has(XFRMA_SA_PCPU),
        "SA_PCPU only supported with SA_DIR",
    )
}

/// Checks an address family (`verify_xfrm_family`).
pub(crate) fn family(family: u16) -> Checked {
    require(
        matches!(family, AF_INET | AF_INET6),
        "Invalid address family",
    )
}

/// Checks the prefix lengths of a selector (`verify_selector_prefixlen`).
pub(crate) fn selector_prefixes(family: u16, sel: &Selector) -> Checked {
    let longest = sel.prefixlen_d.max(sel.prefixlen_s);
    match family {
        AF_UNSPEC => Ok(()),
        AF_INET => require(
            longest <= 32,
            "Invalid prefix length in selector (must be <= 32 for IPv4)",
        ),
        AF_INET6 => require(
            longest <= 128,
            "Invalid prefix length in selector (must be <= 128 for IPv6)",
        ),
        _ => Err(XfrmError::invalid("Invalid address family in selector")),
    }
}

/// Checks who may have a mapping timer (`verify_mtimer_thresh`).
pub(crate) fn mtimer_thresh(profile: &Profile, has_encap: bool, dir: u8) -> Checked {
    require(has_encap, profile.mtimer_needs_encap)?;
    require(dir != XFRM_SA_DIR_OUT, profile.mtimer_not_for_output)
}

fn require(holds: bool, text: &'static str) -> Checked {
    if holds {
        Ok(())
    } else {
        Err(XfrmError::invalid(text))
    }
}

fn any(attrs: &Attrs<'_>, kinds: &[u16]) -> bool {
    kinds.iter().any(|&kind| attrs.has(kind))
}

fn protocol(info: &UserSaInfo, attrs: &Attrs<'_>) -> Checked {
    match info.id.proto {
        IPPROTO_AH => {
            require(
                any(attrs, &[XFRMA_ALG_AUTH, XFRMA_ALG_AUTH_TRUNC]),
                "Missing required attribute for AH: AUTH_TRUNC or AUTH",
            )?;
            require(
                !any(
                    attrs,
                    &[
                        XFRMA_ALG_AEAD,
                        XFRMA_ALG_CRYPT,
                        XFRMA_ALG_COMP,
                        XFRMA_TFCPAD,
                    ],
                ),
                "Invalid attributes for AH: AEAD, CRYPT, COMP, TFCPAD",
            )
        }
        IPPROTO_ESP => esp(info, attrs),
        IPPROTO_COMP => {
            require(
                attrs.has(XFRMA_ALG_COMP),
                "Missing required attribute for COMP: COMP",
            )?;
            require(
                !any(
                    attrs,
                    &[
                        XFRMA_ALG_AEAD,
                        XFRMA_ALG_AUTH,
                        XFRMA_ALG_AUTH_TRUNC,
                        XFRMA_ALG_CRYPT,
                        XFRMA_TFCPAD,
                    ],
                ),
                "Invalid attributes for COMP: AEAD, AUTH, AUTH_TRUNC, CRYPT, TFCPAD",
            )?;
            require(
                info.id.spi.get() < 0x10000,
                "SPI is too large for COMP (must be < 0x10000)",
            )
        }
        IPPROTO_DSTOPTS | IPPROTO_ROUTING => {
            require(
                !any(
                    attrs,
                    &[
                        XFRMA_ALG_COMP,
                        XFRMA_ALG_AUTH,
                        XFRMA_ALG_AUTH_TRUNC,
                        XFRMA_ALG_AEAD,
                        XFRMA_ALG_CRYPT,
                        XFRMA_ENCAP,
                        XFRMA_SEC_CTX,
                        XFRMA_TFCPAD,
                    ],
                ),
                "Invalid attributes for DSTOPTS/ROUTING",
            )?;
            require(
                attrs.has(XFRMA_COADDR),
                "Missing required COADDR attribute for DSTOPTS/ROUTING",
            )
        }
        _ => Err(XfrmError::invalid("Unsupported protocol")),
    }
}

fn esp(info: &UserSaInfo, attrs: &Attrs<'_>) -> Checked {
    let separate = [XFRMA_ALG_AUTH, XFRMA_ALG_AUTH_TRUNC, XFRMA_ALG_CRYPT];
    let has_separate = any(attrs, &separate);
    let has_aead = attrs.has(XFRMA_ALG_AEAD);
    require(
        !attrs.has(XFRMA_ALG_COMP),
        "Invalid attribute for ESP: COMP",
    )?;
    require(
        has_separate || has_aead,
        "Missing required attribute for ESP: at least one of AUTH, AUTH_TRUNC, CRYPT, AEAD",
    )?;
    require(
        !(has_separate && has_aead),
        "Invalid attribute combination for ESP: AEAD can't be used with AUTH, AUTH_TRUNC, CRYPT",
    )?;
    require(
        !attrs.has(XFRMA_TFCPAD) || info.mode == XFRM_MODE_TUNNEL,
        "TFC padding can only be used in tunnel mode",
    )?;
    require(
        !any(attrs, &IPTFS) || info.mode == XFRM_MODE_IPTFS,
        "IP-TFS options can only be used in IP-TFS mode",
    )
}

/// QUIRK: ack_echoes_what_was_rewritten. What has the right length gets a NUL at the end of its
/// name field, in the request itself: an error that echoes the request shows it.
fn lengths(attrs: &Attrs<'_>, rewrites: &mut Vec<(usize, u16)>) -> Checked {
    const LAYOUTS: [(u16, Layout, &str); 5] = [
        (
            XFRMA_ALG_AEAD,
            Layout::WithIcv,
            "Invalid AEAD attribute length",
        ),
        (
            XFRMA_ALG_AUTH_TRUNC,
            Layout::WithIcv,
            "Invalid AUTH_TRUNC attribute length",
        ),
        (XFRMA_ALG_AUTH, Layout::Plain, PLAIN_LENGTH),
        (XFRMA_ALG_CRYPT, Layout::Plain, PLAIN_LENGTH),
        (XFRMA_ALG_COMP, Layout::Plain, PLAIN_LENGTH),
    ];
    for (kind, layout, text) in LAYOUTS {
        let Some(bytes) = attrs.bytes(kind) else {
            continue;
        };
        let blob = AlgoBlob::read(bytes, layout);
        require(blob.is_some(), text)?;
        if let (Some(blob), Some(offset)) = (blob, attrs.offset(kind))
            && let [.., before, last] = blob.name
            && last != 0
        {
            let end = offset as usize + NLA_HDRLEN + blob.name.len();
            rewrites.push((end - 2, u16::from_ne_bytes([before, 0])));
        }
    }
    security_context(attrs)
}

/// Checks the length of a security context, which is all a kernel without an LSM does
/// (`verify_sec_ctx_len`).
pub(crate) fn security_context(attrs: &Attrs<'_>) -> Checked {
    let Some(bytes) = attrs.bytes(XFRMA_SEC_CTX) else {
        return Ok(());
    };
    let context = UserSecCtx::read(bytes).unwrap_or_default();
    let len = usize::from(context.len);
    require(
        len <= bytes.len() && len == UserSecCtx::SIZE + usize::from(context.ctx_len),
        "Invalid security context length",
    )
}

fn replay(info: &UserSaInfo, attrs: &Attrs<'_>, dir: u8) -> Checked {
    let is_esn = info.flags & XFRM_STATE_ESN != 0;
    let Some(bytes) = attrs.bytes(XFRMA_REPLAY_ESN_VAL) else {
        return require(!is_esn, "Missing required attribute for ESN");
    };
    let esn = ReplayStateEsn::read(bytes).unwrap_or_default();
    require(
        esn.bmp_len <= XFRMA_REPLAY_ESN_MAX_WORDS,
        "ESN bitmap length must be <= 128",
    )?;
    let bitmap = usize::try_from(esn.bmp_len).map_or(usize::MAX, |words| words * 4);
    require(
        bytes.len() >= ReplayStateEsn::SIZE + bitmap || bytes.len() == ReplayStateEsn::SIZE,
        "ESN attribute is too short to fit the full bitmap length",
    )?;
    require(
        matches!(info.id.proto, IPPROTO_ESP | IPPROTO_AH),
        "ESN only supported for ESP and AH",
    )?;
    require(
        info.replay_window == 0,
        "ESN not compatible with legacy replay_window",
    )?;
    match dir {
        XFRM_SA_DIR_OUT => output_replay(&esn, is_esn),
        XFRM_SA_DIR_IN => input_replay(&esn, is_esn),
        _ => Ok(()),
    }
}

fn output_replay(esn: &ReplayStateEsn, is_esn: bool) -> Checked {
    require(
        esn.replay_window == 0,
        "Replay window should be 0 for output SA",
    )?;
    require(
        esn.seq == 0 && esn.seq_hi == 0,
        "Replay seq and seq_hi should be 0 for output SA",
    )?;
    if is_esn {
        require(
            esn.oseq != u32::MAX || esn.oseq_hi != u32::MAX,
            "Replay oseq and oseq_hi should be less than 0xFFFFFFFF for output SA",
        )?;
    } else {
        require(
            esn.oseq_hi == 0,
            "Replay oseq_hi should be 0 in non-ESN mode for output SA",
        )?;
        require(
            esn.oseq != u32::MAX,
            "Replay oseq should be less than 0xFFFFFFFF in non-ESN mode for output SA",
        )?;
    }
    require(esn.bmp_len == 0, "Replay bmp_len should 0 for output SA")
}

fn input_replay(esn: &ReplayStateEsn, is_esn: bool) -> Checked {
    require(
        esn.oseq == 0 && esn.oseq_hi == 0,
        "Replay oseq and oseq_hi should be 0 for input SA",
    )?;
    if is_esn {
        return require(
            esn.seq != u32::MAX || esn.seq_hi != u32::MAX,
            "Replay seq and seq_hi should be less than 0xFFFFFFFF for input SA",
        );
    }
    require(
        esn.seq_hi == 0,
        "Replay seq_hi should be 0 in non-ESN mode for input SA",
    )?;
    require(
        esn.seq != u32::MAX,
        "Replay seq should be less than 0xFFFFFFFF in non-ESN mode for input SA",
    )
}

fn mode(profile: &Profile, info: &UserSaInfo, dir: u8) -> Checked {
    match info.mode {
        XFRM_MODE_TRANSPORT | XFRM_MODE_TUNNEL | XFRM_MODE_ROUTEOPTIMIZATION | XFRM_MODE_BEET => {
            Ok(())
        }
        XFRM_MODE_IPTFS if profile.knows_iptfs => {
            require(
                info.id.proto == IPPROTO_ESP,
                "IP-TFS mode only supported with ESP",
            )?;
            require(
                dir != 0,
                "IP-TFS mode requires in or out direction attribute",
            )
        }
        _ => Err(XfrmError::invalid("Unsupported mode")),
    }
}

fn output(info: &UserSaInfo, attrs: &Attrs<'_>) -> Checked {
    require(
        info.flags & XFRM_STATE_DECAP_DSCP == 0,
        "Flag DECAP_DSCP should not be set for output SA",
    )?;
    require(
        info.flags & XFRM_STATE_ICMP == 0,
        "Flag ICMP should not be set for output SA",
    )?;
    require(
        info.flags & XFRM_STATE_WILDRECV == 0,
        "Flag WILDRECV should not be set for output SA",
    )?;
    require(
        info.replay_window == 0,
        "Replay window should be 0 for output SA",
    )?;
    require(
        !attrs.has(XFRMA_IPTFS_DROP_TIME),
        "IP-TFS drop time should not be set for output SA",
    )?;
    require(
        !attrs.has(XFRMA_IPTFS_REORDER_WINDOW),
        "IP-TFS reorder window should not be set for output SA",
    )?;
    let replay = attrs
        .pod::<ReplayState>(XFRMA_REPLAY_VAL)
        .unwrap_or_default();
    require(
        replay.seq == 0 && replay.bitmap == 0,
        "Replay seq and bitmap should be 0 for output SA",
    )
}

fn input(info: &UserSaInfo, attrs: &Attrs<'_>) -> Checked {
    let extra_flags = attrs.u32(XFRMA_SA_EXTRA_FLAGS).unwrap_or(0);
    require(
        info.flags & XFRM_STATE_NOPMTUDISC == 0,
        "Flag NOPMTUDISC should not be set for input SA",
    )?;
    require(
        extra_flags & XFRM_SA_XFLAG_DONT_ENCAP_DSCP == 0,
        "Flag DONT_ENCAP_DSCP should not be set for input SA",
    )?;
    require(
        extra_flags & XFRM_SA_XFLAG_OSEQ_MAY_WRAP == 0,
        "Flag OSEQ_MAY_WRAP should not be set for input SA",
    )?;
    require(
        !attrs.has(XFRMA_IPTFS_DONT_FRAG),
        "IP-TFS don't fragment should not be set for input SA",
    )?;
    require(
        !attrs.has(XFRMA_IPTFS_INIT_DELAY),
        "IP-TFS initial delay should not be set for input SA",
    )?;
    require(
        !attrs.has(XFRMA_IPTFS_MAX_QSIZE),
        "IP-TFS max queue size should not be set for input SA",
    )?;
    require(
        !attrs.has(XFRMA_IPTFS_PKT_SIZE),
        "IP-TFS packet size should not be set for input SA",
    )
}
