//! ACQUIRE sent by a user: every template of its policy is asked for.
//!
//! Source: `net/xfrm/xfrm_user.c xfrm_add_acquire`, `build_acquire`.

use dataplane::event::Acquire;
use dataplane::sad::sa::ANY_CPU;
use xfrm_proto::consts::*;
use xfrm_proto::extack::XfrmError;
use xfrm_proto::uapi::{Mark, UserAcquire, UserPolicyInfo};

use super::{construct, encode, verify};
use crate::xfrm::{Call, Request};

pub(crate) fn acquire(call: &mut Call<'_, '_>, request: &Request<'_>) -> Result<(), XfrmError> {
    let wanted: UserAcquire = request.fixed();
    let pcpu = request.attrs.u32(XFRMA_SA_PCPU);
    if pcpu.is_some_and(|cpu| cpu >= call.ns.profile.possible_cpus) {
        return Err(XfrmError::invalid("pCPU number too big"));
    }
    verify::info(&wanted.policy)?;
    verify::security_context(&request.attrs)?;
    let mut policy = construct(call, request, &wanted.policy)?;
    // This policy is never stored, so its mark is never masked.
    policy.key.mark = request.attrs.pod::<Mark>(XFRMA_MARK).unwrap_or_default();

    for number in 0..policy.templates.len() {
        let Some(tmpl) = policy.templates.iter_mut().nth(number) else {
            break;
        };
        tmpl.aalgos = wanted.aalgos;
        tmpl.ealgos = wanted.ealgos;
        tmpl.calgos = wanted.calgos;
        let body = UserAcquire {
            id: tmpl.id,
            policy: UserPolicyInfo {
                dir: XFRM_POLICY_OUT,
                ..policy.info()
            },
            seq: call.cx.next_acqseq(),
            ..wanted
        };
        let event = Acquire {
            body,
            templates: policy.templates.clone(),
            security: None,
            kind: policy.key.kind,
            mark: policy.key.mark,
            if_id: policy.key.if_id,
            pcpu: pcpu.unwrap_or(ANY_CPU),
        };
        call.multicast(group::ACQUIRE, |out| encode::acquire(out, &event));
    }
    Ok(())
}
