//! Whether an SA's mode, protocol and algorithms work together.
//!
//! Source: `net/xfrm/xfrm_state.c __xfrm_init_state, xfrm_get_mode`;
//! `net/ipv4/esp4.c esp_init_state`, `ah4.c ah_init_state`, `ipcomp.c
//! ipcomp4_init_state` and their IPv6 twins; `net/ipv6/mip6.c`.

use xfrm_proto::consts::*;
use xfrm_proto::extack::XfrmError;

use super::sa::KeyedAlgorithm;
use super::{Sa, Sad};
use crate::netns::Context;
use crate::profile::Profile;

const NO_CRYPTO: &str = "Kernel was unable to initialize cryptographic operations";

impl Sad {
    /// Initialises an SA (`__xfrm_init_state`), which may create its hidden tunnel SA.
    pub(super) fn init(&mut self, sa: &mut Sa, cx: &Context<'_>) -> Result<(), XfrmError> {
        let refuse = |text| Err(XfrmError::with_text(errno::EPROTONOSUPPORT, text));
        let inner_family = match sa.sel.family {
            AF_UNSPEC => sa.family,
            family => family,
        };
        let Some(is_tunnel) = mode_is_tunnel(self.profile, sa.mode, inner_family) else {
            return refuse("Requested mode not found");
        };
        if !is_tunnel && inner_family != sa.family {
            return refuse("Only tunnel modes can accommodate a change of family");
        }
        if !matches!(sa.family, AF_INET | AF_INET6) {
            return refuse("Requested type not found");
        }
        match (sa.id.proto, sa.family) {
            (IPPROTO_ESP, _) => init_esp(self.profile, sa)?,
            (IPPROTO_AH, _) => init_ah(self.profile, sa)?,
            (IPPROTO_COMP, _) => self.init_comp(sa, cx)?,
            (IPPROTO_DSTOPTS | IPPROTO_ROUTING, AF_INET6) => init_mobility(sa)?,
            _ => return refuse("Requested type not found"),
        }
        if sa.options().nat_keepalive_secs != 0 {
            if sa.dir != XFRM_SA_DIR_OUT {
                return Err(XfrmError::invalid(
                    "NAT keepalive is only supported for outbound SAs",
                ));
            }
            if !matches!(&sa.options().encap, Some(encap) if encap.kind == UDP_ENCAP_ESPINUDP) {
                return Err(XfrmError::invalid(
                    "NAT keepalive is only supported for UDP encapsulation",
                ));
            }
        }
        Ok(())
    }

    fn init_comp(&mut self, sa: &mut Sa, cx: &Context<'_>) -> Result<(), XfrmError> {
        if !matches!(sa.mode, XFRM_MODE_TRANSPORT | XFRM_MODE_TUNNEL) {
            return Err(XfrmError::invalid("Unsupported XFRM mode for IPcomp"));
        }
        if sa.comp.is_none() {
            return Err(XfrmError::invalid("Missing required compression algorithm"));
        }
        if sa.options().encap.is_some() {
            return Err(XfrmError::invalid(
                "IPComp is not compatible with encapsulation",
            ));
        }
        if sa.mode == XFRM_MODE_TUNNEL {
            self.attach_tunnel(sa, cx);
        }
        Ok(())
    }
}

/// Whether a mode is a tunnel mode; `None` when the family does not have it.
fn mode_is_tunnel(profile: &Profile, mode: u8, family: u16) -> Option<bool> {
    if !matches!(family, AF_INET | AF_INET6) {
        return None;
    }
    match mode {
        XFRM_MODE_TRANSPORT => Some(false),
        XFRM_MODE_TUNNEL | XFRM_MODE_BEET => Some(true),
        XFRM_MODE_ROUTEOPTIMIZATION if family == AF_INET6 => Some(false),
        XFRM_MODE_IPTFS if profile.knows_iptfs => Some(true),
        _ => None,
    }
}

fn init_esp(profile: &Profile, sa: &Sa) -> Result<(), XfrmError> {
    if let Some(aead) = &sa.aead {
        if !accepts_key(profile, aead) {
            return Err(XfrmError::invalid(NO_CRYPTO));
        }
    } else if let Some(crypt) = &sa.crypt {
        let mut keys_fit = accepts_key(profile, crypt);
        if let Some(auth) = &sa.auth {
            let icv_bytes = auth.icv_bits / 8;
            let fewest = match sa.flags & XFRM_STATE_ESN {
                0 => 1,
                _ => 4,
            };
            if icv_bytes < fewest && auth.algorithm.icv_full_bits != 0 {
                return Err(XfrmError::invalid(NO_CRYPTO));
            }
            keys_fit &= accepts_key(profile, auth);
        }
        // QUIRK: bad_cipher_key_has_no_text.
        if !keys_fit {
            return Err(XfrmError::new(errno::EINVAL));
        }
    } else {
        return Err(XfrmError::invalid("ESP: AEAD or CRYPT must be provided"));
    }
    match sa.options().encap.map(|encap| encap.kind) {
        None | Some(UDP_ENCAP_ESPINUDP) => Ok(()),
        Some(UDP_ENCAP_ESPINUDP_NON_IKE) if profile.has_non_ike_encap => Ok(()),
        Some(_) => Err(XfrmError::invalid("Unsupported encapsulation type for ESP")),
    }
}

fn init_ah(profile: &Profile, sa: &Sa) -> Result<(), XfrmError> {
    let Some(auth) = &sa.auth else {
        return Err(XfrmError::invalid(
            "AH requires a state with an AUTH algorithm",
        ));
    };
    if sa.options().encap.is_some() {
        return Err(XfrmError::invalid(
            "AH is not compatible with encapsulation",
        ));
    }
    if !accepts_key(profile, auth) {
        return Err(XfrmError::invalid(NO_CRYPTO));
    }
    let mode_fits = matches!(
        sa.mode,
        XFRM_MODE_TRANSPORT | XFRM_MODE_TUNNEL | XFRM_MODE_BEET
    );
    if sa.family == AF_INET6 && !mode_fits {
        return Err(XfrmError::invalid(
            "Invalid mode requested for AH, must be one of TRANSPORT, TUNNEL, BEET",
        ));
    }
    Ok(())
}

fn init_mobility(sa: &Sa) -> Result<(), XfrmError> {
    if sa.id.spi.get() != 0 {
        return Err(XfrmError::invalid("SPI must be 0"));
    }
    if sa.mode != XFRM_MODE_ROUTEOPTIMIZATION {
        return Err(XfrmError::invalid(
            "XFRM mode must be XFRM_MODE_ROUTEOPTIMIZATION",
        ));
    }
    Ok(())
}

fn accepts_key(profile: &Profile, keyed: &KeyedAlgorithm) -> bool {
    keyed.algorithm.accepts_key(profile, keyed.key.len())
}

/// Bytes that an IPTFS SA puts in front of its payload (`x->props.header_len`).
pub(super) fn esp_header_bytes(sa: &Sa) -> u32 {
    const ESP: u32 = 8;
    const UDP: u32 = 8;
    const IPTFS: u32 = 4;
    let keyed = sa.aead.as_ref().or(sa.crypt.as_ref());
    let iv = keyed.map_or(0, |k| u32::from(k.algorithm.iv_bytes));
    let ip = match sa.family {
        AF_INET6 => 40,
        _ => 20,
    };
    let udp = sa.options().encap.map_or(0, |_| UDP);
    ESP + iv + udp + ip + IPTFS
}
