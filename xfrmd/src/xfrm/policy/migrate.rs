//! MIGRATE: the endpoints of tunnels move, in policies and in their SAs.
//!
//! Source: `net/xfrm/xfrm_user.c xfrm_do_migrate`, `build_migrate`;
//! `net/xfrm/xfrm_policy.c xfrm_migrate`.

use dataplane::sad::SaId;
use dataplane::spd::Migration;
use xfrm_proto::consts::*;
use xfrm_proto::extack::XfrmError;
use xfrm_proto::reply::Writer;
use xfrm_proto::uapi::{EncapTmpl, UserKmAddress, UserMigrate, UserPolicyId};

use super::{encode, verify};
use crate::xfrm::{Call, Request};

pub(crate) fn migrate(call: &mut Call<'_, '_>, request: &Request<'_>) -> Result<(), XfrmError> {
    let target: UserPolicyId = request.fixed();
    let attrs = &request.attrs;
    let invalid = |text| Err(call.ns.profile.late_error(errno::EINVAL, text));
    if !attrs.has(XFRMA_MIGRATE) {
        return invalid("Missing required MIGRATE attribute");
    }
    let kind = verify::policy_type(attrs)?;
    let entries: Vec<UserMigrate> = attrs.array(XFRMA_MIGRATE).collect();
    let migration = Migration {
        sel: &target.sel,
        dir: target.dir,
        kind,
        if_id: attrs.u32(XFRMA_IF_ID).unwrap_or_default(),
        entries: &entries,
    };
    let if_id = migration.if_id;
    let id = call.ns.spd.find_migrated(&migration)?;
    let moved = clone_states(call, request, &entries, if_id)?;
    let migrated = call.ns.spd.migrate(id, &entries);
    for (original, clone) in moved {
        let loser = if migrated.is_ok() { original } else { clone };
        call.ns.sad.delete(loser);
    }
    migrated?;

    call.multicast(group::MIGRATE, |out| {
        let mut w = Writer::begin(out, XFRM_MSG_MIGRATE, 0, 0, 0);
        w.body(&UserPolicyId {
            sel: target.sel,
            index: 0,
            dir: target.dir,
            pad: [0; 3],
        });
        if let Some(given) = attrs.pod::<UserKmAddress>(XFRMA_KMADDRESS) {
            w.attr_pod(
                XFRMA_KMADDRESS,
                &UserKmAddress {
                    pad: [0; 2],
                    ..given
                },
            );
        }
        if let Some(encap) = attrs.pod::<EncapTmpl>(XFRMA_ENCAP) {
            w.attr_pod(XFRMA_ENCAP, &encap);
        }
        encode::policy_type(&mut w, kind);
        for entry in &entries {
            w.attr_pod(
                XFRMA_MIGRATE,
                &UserMigrate {
                    reserved: 0,
                    ..*entry
                },
            );
        }
        w.end();
    });
    Ok(())
}

/// Clones the SA of each entry that has one; originals and clones, or the error after which no
/// clone is left.
fn clone_states(
    call: &mut Call<'_, '_>,
    request: &Request<'_>,
    entries: &[UserMigrate],
    if_id: u32,
) -> Result<Vec<(SaId, SaId)>, XfrmError> {
    let (encap, offload) = (
        request.attrs.pod(XFRMA_ENCAP),
        request.attrs.pod(XFRMA_OFFLOAD_DEV),
    );
    let sad = &mut call.ns.sad;
    let mut moved = Vec::new();
    for entry in entries {
        let Some(original) = sad.migrate_find(entry, if_id) else {
            continue;
        };
        match sad.migrate_clone(call.cx, original, entry, encap, offload) {
            Ok(clone) => moved.push((original, clone)),
            Err(error) => {
                for (_, clone) in moved {
                    sad.delete(clone);
                }
                return Err(error);
            }
        }
    }
    Ok(moved)
}
