//! `setsockopt(IP_XFRM_POLICY)` and `IPV6_XFRM_POLICY`: a policy of a socket's own.
//!
//! Source: `net/xfrm/xfrm_state.c xfrm_user_policy`,
//! `net/xfrm/xfrm_user.c xfrm_compile_policy`. A kernel whose last key manager
//! is PF_KEY reports EOPNOTSUPP where this one says EINVAL.

use dataplane::spd::{Policy, SocketKey};
use dataplane::{Netns, Now};
use xfrm_proto::consts::*;
use xfrm_proto::uapi::{Pod, UserPolicyInfo, UserTmpl};

use super::verify;

/// Longest value that is looked at: a page.
const LONGEST: usize = 4096;

/// Sets or, without a value, clears a socket's policies; the errno if that fails.
///
/// `family` is the socket's, `option_family` that of the option: AF_INET for
/// IP_XFRM_POLICY, AF_INET6 for IPV6_XFRM_POLICY.
pub(crate) fn set(
    ns: &mut Netns,
    now: Now,
    socket: SocketKey,
    family: u16,
    option_family: u16,
    value: Option<&[u8]>,
) -> Result<(), i32> {
    if (family, option_family) == (AF_INET, AF_INET6) {
        // Such a socket has no options of that level.
        return Err(errno::ENOPROTOOPT);
    }
    let Some(value) = value else {
        ns.spd.remove_socket_policies(socket);
        return Ok(());
    };
    if value.is_empty() || value.len() > LONGEST {
        return Err(errno::EMSGSIZE);
    }
    if !matches!(family, AF_INET | AF_INET6) {
        return Err(errno::EINVAL);
    }
    if family != option_family {
        return Err(errno::EOPNOTSUPP);
    }
    let info = UserPolicyInfo::read(value).ok_or(errno::EINVAL)?;
    let given = value
        .get(UserPolicyInfo::SIZE..)
        .unwrap_or_default()
        .chunks_exact(UserTmpl::SIZE)
        .map(|chunk| UserTmpl::read(chunk).unwrap_or_default());
    let refused = |error: xfrm_proto::extack::XfrmError| error.errno;
    verify::info(&info).map_err(refused)?;
    let templates =
        verify::templates(ns.profile, given, info.sel.family, info.dir, |_| ()).map_err(refused)?;
    if info.dir > XFRM_POLICY_OUT {
        return Err(errno::EINVAL);
    }
    ns.spd.reserve().map_err(|_| errno::ENOBUFS)?;
    let policy = Policy::new(&info, XFRM_POLICY_TYPE_MAIN, templates);
    ns.spd
        .insert_socket_policy(socket, policy, now.real)
        .map(drop)
        .map_err(refused)
}
