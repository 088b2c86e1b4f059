//! The checks of policy requests, in the kernel's order.
//!
//! Source: `net/xfrm/xfrm_user.c verify_newpolicy_info`, `validate_tmpl`,
//! `verify_sec_ctx_len`, `verify_policy_type`, `xfrm_policy_construct`;
//! `net/xfrm/xfrm_device.c xfrm_dev_policy_add`.

use dataplane::Profile;
use dataplane::spd::Templates;
use xfrm_proto::attrs::Attrs;
use xfrm_proto::consts::*;
use xfrm_proto::extack::XfrmError;
use xfrm_proto::uapi::{UserOffload, UserPolicyInfo, UserPolicyType, UserSecCtx, UserTmpl};

/// Index of the loopback device, the only one that a namespace is known to have.
const LOOPBACK: i32 = 1;

/// `verify_newpolicy_info`.
pub(super) fn info(info: &UserPolicyInfo) -> Result<(), XfrmError> {
    if info.share > XFRM_SHARE_UNIQUE {
        return Err(XfrmError::invalid("Invalid policy share"));
    }
    if info.action > XFRM_POLICY_BLOCK {
        return Err(XfrmError::invalid("Invalid policy action"));
    }
    let sel = &info.sel;
    let longest = sel.prefixlen_d.max(sel.prefixlen_s);
    match sel.family {
        AF_INET if longest > 32 => {
            return Err(XfrmError::invalid(
                "Invalid prefix length in selector (must be <= 32 for IPv4)",
            ));
        }
        AF_INET6 if longest > 128 => {
            return Err(XfrmError::invalid(
                "Invalid prefix length in selector (must be <= 128 for IPv6)",
            ));
        }
        AF_INET | AF_INET6 => {}
        _ => return Err(XfrmError::invalid("Invalid selector family")),
    }
    direction(info.dir)?;
    if info.index != 0 && info.index & 7 != u32::from(info.dir) {
        return Err(XfrmError::invalid("Policy index doesn't match direction"));
    }
    Ok(())
}

/// `verify_policy_dir`.
pub(super) fn direction(dir: u8) -> Result<(), XfrmError> {
    match dir {
        XFRM_POLICY_IN | XFRM_POLICY_OUT | XFRM_POLICY_FWD => Ok(()),
        _ => Err(XfrmError::invalid("Invalid policy direction")),
    }
}

/// The policy type of a request (`copy_from_user_policy_type`), main unless given.
pub(super) fn policy_type(attrs: &Attrs<'_>) -> Result<u8, XfrmError> {
    let kind = attrs
        .pod::<UserPolicyType>(XFRMA_POLICY_TYPE)
        .map_or(XFRM_POLICY_TYPE_MAIN, |given| given.kind);
    match kind {
        XFRM_POLICY_TYPE_MAIN | XFRM_POLICY_TYPE_SUB => Ok(kind),
        _ => Err(XfrmError::invalid("Invalid policy type")),
    }
}

/// `verify_sec_ctx_len`. Without an LSM a context that passes means nothing more.
pub(super) fn security_context(attrs: &Attrs<'_>) -> Result<(), XfrmError> {
    let Some(bytes) = attrs.bytes(XFRMA_SEC_CTX) else {
        return Ok(());
    };
    let given = attrs.pod::<UserSecCtx>(XFRMA_SEC_CTX).unwrap_or_default();
    let len = usize::from(given.len);
    if len > bytes.len() || len != 8 + usize::from(given.ctx_len) {
        return Err(XfrmError::invalid("Invalid security context length"));
    }
    Ok(())
}

/// The templates of a request, checked (`validate_tmpl`).
///
/// QUIRK: template_family_zero_is_written_into_the_request: the kernel fills the family in
/// where the request lies, so an error that echoes the request shows it. `filled` is told the
/// number of every template that this happens to.
pub(super) fn templates(
    profile: &Profile,
    given: impl ExactSizeIterator<Item = UserTmpl>,
    family: u16,
    dir: u8,
    mut filled: impl FnMut(usize),
) -> Result<Templates, XfrmError> {
    if given.len() > XFRM_MAX_DEPTH {
        return Err(XfrmError::invalid(
            "Template count must be <= XFRM_MAX_DEPTH (6)",
        ));
    }
    let mut checked = Vec::with_capacity(given.len());
    let mut outer = family;
    for (number, mut tmpl) in given.enumerate() {
        if tmpl.family == 0 {
            tmpl.family = family;
            filled(number);
        }
        template(profile, &tmpl, outer, dir)?;
        outer = tmpl.family;
        checked.push(tmpl);
    }
    Ok(Templates::new(checked))
}

fn template(profile: &Profile, tmpl: &UserTmpl, outer: u16, dir: u8) -> Result<(), XfrmError> {
    match tmpl.mode {
        XFRM_MODE_TUNNEL | XFRM_MODE_BEET if tmpl.optional != 0 && dir == XFRM_POLICY_OUT => {
            return Err(XfrmError::invalid(
                "Mode in optional template not allowed in outbound policy",
            ));
        }
        XFRM_MODE_IPTFS if profile.knows_iptfs && tmpl.optional != 0 && dir == XFRM_POLICY_OUT => {
            return Err(XfrmError::invalid(
                "Mode in optional template not allowed in outbound policy",
            ));
        }
        XFRM_MODE_TUNNEL | XFRM_MODE_BEET => {}
        XFRM_MODE_IPTFS if profile.knows_iptfs => {}
        _ if tmpl.family != outer => {
            return Err(XfrmError::invalid(
                "Mode in template doesn't support a family change",
            ));
        }
        _ => {}
    }
    if profile.knows_iptfs && tmpl.mode > XFRM_MODE_IPTFS {
        return Err(XfrmError::invalid(
            "Mode in template must be < XFRM_MODE_MAX (6)",
        ));
    }
    if !profile.knows_iptfs && tmpl.mode > XFRM_MODE_BEET {
        return Err(XfrmError::invalid(
            "Mode in template must be < XFRM_MODE_MAX (5)",
        ));
    }
    if !matches!(tmpl.family, AF_INET | AF_INET6) {
        return Err(XfrmError::invalid("Invalid family in template"));
    }
    match tmpl.id.proto {
        IPPROTO_AH | IPPROTO_ESP | IPPROTO_COMP | IPPROTO_ROUTING | IPPROTO_DSTOPTS => Ok(()),
        _ => Err(XfrmError::invalid("Invalid XFRM protocol in template")),
    }
}

/// An offload request, refused as by a machine without devices that could serve it.
pub(super) fn offload(profile: &Profile, attrs: &Attrs<'_>) -> Result<(), XfrmError> {
    let Some(wanted) = attrs.pod::<UserOffload>(XFRMA_OFFLOAD_DEV) else {
        return Ok(());
    };
    if !profile.policy_offload {
        return Ok(());
    }
    if wanted.flags != XFRM_OFFLOAD_PACKET {
        return Err(XfrmError::invalid("Unrecognized flags in offload request"));
    }
    if wanted.ifindex != LOOPBACK {
        return Err(XfrmError::new(errno::EINVAL));
    }
    Err(XfrmError::invalid("Policy offload is not supported"))
}
