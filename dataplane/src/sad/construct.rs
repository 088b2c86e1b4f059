//! Making an SA of a request.
//!
//! The request has passed the checks of `xfrm_user.c` that look at it alone
//! (`xfrmd::xfrm::sa::verify`); here it meets what the machine can do.
//!
//! Source: `net/xfrm/xfrm_user.c xfrm_state_construct, attach_*`;
//! `net/xfrm/xfrm_device.c xfrm_dev_state_add`.

use xfrm_proto::algo::AlgoBlob;
use xfrm_proto::consts::*;
use xfrm_proto::extack::XfrmError;
use xfrm_proto::uapi::{Address, EncapTmpl, Mark, UserOffload, UserSaInfo};

use super::replay::{self, AeventParams, EsnReplay};
use super::sa::{IptfsConfig, KeyedAlgorithm, SaOptions};
use super::{Sa, Sad, init};
use crate::crypto;
use crate::netns::Context;
use crate::profile::Profile;
use crate::security::SecurityContext;
use crate::sysctl::Sysctls;

/// `IP_MAX_MTU`.
const MOST_TFC_PADDING: u32 = 65535;

/// NEWSA or UPDSA, attributes taken apart.
#[derive(Debug, Default)]
pub struct SaRequest<'a> {
    /// The fixed part.
    pub info: UserSaInfo,
    /// ALG_AEAD.
    pub aead: Option<AlgoBlob>,
    /// ALG_AUTH.
    pub auth: Option<AlgoBlob>,
    /// ALG_AUTH_TRUNC.
    pub auth_trunc: Option<AlgoBlob>,
    /// ALG_CRYPT.
    pub crypt: Option<AlgoBlob>,
    /// ALG_COMP.
    pub comp: Option<AlgoBlob>,
    /// ENCAP.
    pub encap: Option<EncapTmpl>,
    /// COADDR.
    pub coaddr: Option<Address>,
    /// SA_EXTRA_FLAGS.
    pub extra_flags: u32,
    /// TFCPAD.
    pub tfcpad: u32,
    /// MARK.
    pub mark: Mark,
    /// SET_MARK and SET_MARK_MASK.
    pub smark: Mark,
    /// IF_ID.
    pub if_id: u32,
    /// SA_DIR.
    pub dir: u8,
    /// NAT_KEEPALIVE_INTERVAL.
    pub nat_keepalive_secs: u32,
    /// SA_PCPU.
    pub pcpu: Option<u32>,
    /// Thresholds and counters; its ESN value is the window to begin with.
    pub params: AeventParams<'a>,
    /// SEC_CTX.
    pub security: Option<&'a [u8]>,
    /// OFFLOAD_DEV.
    pub offload: Option<UserOffload>,
    /// IPTFS_*.
    pub iptfs: IptfsRequest,
}

/// `XFRMA_IPTFS_*`, `None` for absent.
#[derive(Clone, Copy, Debug, Default)]
pub struct IptfsRequest {
    /// IPTFS_DROP_TIME.
    pub drop_time_usecs: Option<u32>,
    /// IPTFS_REORDER_WINDOW.
    pub reorder_window: Option<u16>,
    /// IPTFS_DONT_FRAG.
    pub dont_frag: bool,
    /// IPTFS_INIT_DELAY.
    pub init_delay_usecs: Option<u32>,
    /// IPTFS_MAX_QSIZE.
    pub max_queue_bytes: Option<u32>,
    /// IPTFS_PKT_SIZE.
    pub packet_bytes: Option<u32>,
}

impl Sad {
    /// Makes an SA, which is not in the SAD yet; its hidden tunnel SA is.
    ///
    /// # Errors
    /// As `xfrm_state_construct`: ENOMEM, ENOSYS, EINVAL, ERANGE, EPROTONOSUPPORT.
    pub fn construct(
        &mut self,
        cx: &Context<'_>,
        sysctls: &Sysctls,
        request: SaRequest<'_>,
    ) -> Result<Box<Sa>, XfrmError> {
        if self.is_full() {
            return Err(XfrmError::new(errno::ENOMEM));
        }
        let mut sa = Box::new(Sa::blank(cx.now.real.0));
        copy_info(&mut sa, &request.info);
        match self.fill(&mut sa, cx, sysctls, request) {
            Ok(()) => Ok(sa),
            Err(error) => {
                self.discard(&sa);
                Err(error)
            }
        }
    }

    fn fill(
        &mut self,
        sa: &mut Sa,
        cx: &Context<'_>,
        sysctls: &Sysctls,
        request: SaRequest<'_>,
    ) -> Result<(), XfrmError> {
        let profile = self.profile;
        attach_algorithms(profile, sa, &request)?;
        if profile.limits_tfc_padding && request.tfcpad > MOST_TFC_PADDING {
            return Err(XfrmError::invalid("Excessive TFC padding"));
        }
        sa.mark = request.mark;
        sa.if_id = request.if_id;
        sa.dir = request.dir;
        if let Some(cpu) = request.pcpu {
            if cpu >= profile.possible_cpus {
                return Err(XfrmError::with_text(errno::ERANGE, "pCPU number too big"));
            }
            sa.pcpu = cpu;
        }
        let options = SaOptions {
            encap: request.encap,
            coaddr: request.coaddr,
            smark: request.smark,
            extra_flags: request.extra_flags,
            tfcpad: request.tfcpad,
            nat_keepalive_secs: request.nat_keepalive_secs,
            ..SaOptions::default()
        };
        if options != SaOptions::default() {
            sa.options = Some(Box::new(options));
        }
        self.init(sa, cx)?;
        if let Some(attr) = request.security
            && let Some(context) = SecurityContext::admit(profile, attr)?
        {
            sa.options_mut().security = Some(context);
        }
        sa.seq = request.info.seq;
        sa.replay_maxdiff = sysctls.aevent_rseqth;
        sa.replay_maxage = sysctls.aevent_etime.wrapping_mul(profile.hz) / 10;
        let esn = request.params.esn.and_then(EsnReplay::read);
        replay::begin(sa, esn.as_ref());
        replay::init(profile, sa)?;
        AeventParams {
            esn: None,
            ..request.params
        }
        .apply(sa);
        if let Some(offload) = &request.offload {
            check_offload(profile, sa, offload)?;
        }
        if profile.has_iptfs && sa.mode == XFRM_MODE_IPTFS {
            configure_iptfs(sa, &request.iptfs)?;
        }
        Ok(())
    }
}

/// `copy_from_user_state`.
fn copy_info(sa: &mut Sa, info: &UserSaInfo) {
    sa.id = info.id;
    sa.sel = info.sel;
    sa.lft = info.lft;
    sa.mode = info.mode;
    sa.replay_window = info.replay_window.min(32);
    sa.reqid = info.reqid;
    sa.family = info.family;
    sa.saddr = info.saddr;
    sa.flags = info.flags;
    // QUIRK: selector_family_is_inherited.
    if sa.sel.family == AF_UNSPEC && info.flags & XFRM_STATE_AF_UNSPEC == 0 {
        sa.sel.family = info.family;
    }
}

fn attach_algorithms(
    profile: &Profile,
    sa: &mut Sa,
    request: &SaRequest<'_>,
) -> Result<(), XfrmError> {
    let missing = |text| XfrmError::with_text(errno::ENOSYS, text);
    let keyed = |algorithm, blob: &AlgoBlob, icv_bits| KeyedAlgorithm {
        algorithm,
        key: blob.key.clone(),
        key_bits: blob.key_bits,
        icv_bits,
    };
    if let Some(blob) = &request.aead {
        let algorithm = crypto::aead(blob.name_bytes(), blob.icv_bits)
            .ok_or_else(|| missing("Requested AEAD algorithm not found"))?;
        sa.aead = Some(keyed(algorithm, blob, blob.icv_bits));
    }
    if let Some(blob) = &request.auth_trunc {
        let algorithm = crypto::auth(profile, blob.name_bytes())
            .ok_or_else(|| missing("Requested AUTH_TRUNC algorithm not found"))?;
        if blob.icv_bits > algorithm.icv_full_bits {
            return Err(XfrmError::invalid(
                "Invalid length requested for truncated ICV",
            ));
        }
        let icv_bits = match blob.icv_bits {
            0 => algorithm.icv_bits,
            bits => bits,
        };
        sa.auth = Some(keyed(algorithm, blob, icv_bits));
    }
    // QUIRK: auth_replaces_unnumbered_trunc. Older kernels asked for the PF_KEY number of the
    // first algorithm to learn whether there was one.
    let takes_auth = match &sa.auth {
        None => true,
        Some(auth) => profile.auth_replaces_unnumbered_trunc && auth.algorithm.id == 0,
    };
    if let Some(blob) = request.auth.as_ref().filter(|_| takes_auth) {
        let algorithm = crypto::auth(profile, blob.name_bytes())
            .ok_or_else(|| missing("Requested AUTH algorithm not found"))?;
        sa.auth = Some(keyed(algorithm, blob, algorithm.icv_bits));
    }
    if let Some(blob) = &request.crypt {
        let algorithm = crypto::cipher(profile, blob.name_bytes())
            .ok_or_else(|| missing("Requested CRYPT algorithm not found"))?;
        sa.crypt = Some(keyed(algorithm, blob, 0));
    }
    if let Some(blob) = &request.comp {
        let algorithm = crypto::compressor(blob.name_bytes())
            .ok_or_else(|| missing("Requested COMP algorithm not found"))?;
        sa.comp = Some(algorithm);
    }
    Ok(())
}

/// What a machine says to an offload request when none of its devices can do it: crypto offload
/// falls back to software without a word, packet offload is refused.
pub(super) fn check_offload(
    profile: &Profile,
    sa: &Sa,
    offload: &UserOffload,
) -> Result<(), XfrmError> {
    let checks = profile.offload;
    if checks.protocol && sa.id.proto != IPPROTO_ESP {
        return Err(XfrmError::invalid("Type doesn't support offload"));
    }
    let options = sa.options();
    if checks.encap && (options.encap.is_some() || options.tfcpad != 0) {
        return Err(XfrmError::invalid(
            "Encapsulation and TFC padding can't be offloaded",
        ));
    }
    let mut known = XFRM_OFFLOAD_IPV6 | XFRM_OFFLOAD_INBOUND;
    if checks.packets {
        known |= XFRM_OFFLOAD_PACKET;
    }
    if offload.flags & !known != 0 {
        return Err(XfrmError::invalid("Unrecognized flags in offload request"));
    }
    let inbound = offload.flags & XFRM_OFFLOAD_INBOUND != 0;
    let against = if inbound {
        XFRM_SA_DIR_OUT
    } else {
        XFRM_SA_DIR_IN
    };
    if checks.packets && sa.dir == against {
        return Err(XfrmError::invalid("Mismatched SA and offload direction"));
    }
    if checks.if_id && inbound && sa.if_id != 0 {
        return Err(XfrmError::invalid("XFRM if_id is not supported in RX path"));
    }
    if options.tfcpad != 0 {
        return Err(XfrmError::invalid("TFC padding can't be offloaded"));
    }
    if offload.flags & XFRM_OFFLOAD_PACKET != 0 {
        return Err(XfrmError::new(errno::EINVAL));
    }
    Ok(())
}

/// `iptfs_user_init`.
fn configure_iptfs(sa: &mut Sa, request: &IptfsRequest) -> Result<(), XfrmError> {
    let packet_bytes = request.packet_bytes.unwrap_or(0);
    if packet_bytes != 0 && packet_bytes <= init::esp_header_bytes(sa) {
        return Err(XfrmError::invalid(
            "Packet size must be 0 or greater than IPTFS/ESP header length",
        ));
    }
    sa.options_mut().iptfs = Some(IptfsConfig {
        drop_time_usecs: request.drop_time_usecs.unwrap_or(1_000_000),
        reorder_window: request.reorder_window.unwrap_or(3),
        dont_frag: request.dont_frag,
        init_delay_usecs: request.init_delay_usecs.unwrap_or(0),
        max_queue_bytes: request.max_queue_bytes.unwrap_or(1024 * 10240),
        packet_bytes,
    });
    Ok(())
}
