//! MIGRATE_STATE.
//!
//! Source: `net/xfrm/xfrm_user.c xfrm_do_migrate_state, build_migrate_state`.

use dataplane::sad::migrate::Migration;
use dataplane::sad::sa::mark_key;
use dataplane::sad::{Sa, SaId};
use xfrm_proto::attrs::Attrs;
use xfrm_proto::consts::*;
use xfrm_proto::extack::XfrmError;
use xfrm_proto::reply::Writer;
use xfrm_proto::uapi::{EncapTmpl, Mark, Selector, UserMigrateState, UserOffload};

use super::sa::{encode, origin_of, request, require_valid, verify};
use super::{Call, Request};

const KNOWN_FLAGS: u32 = XFRM_MIGRATE_STATE_CLEAR_OFFLOAD | XFRM_MIGRATE_STATE_UPDATE_H2H_SEL;

/// All that MIGRATE_STATE may carry.
pub(crate) const STATE_ATTRS: [u16; 7] = [
    XFRMA_MARK,
    XFRMA_ENCAP,
    XFRMA_OFFLOAD_DEV,
    XFRMA_SET_MARK,
    XFRMA_SET_MARK_MASK,
    XFRMA_MTIMER_THRESH,
    XFRMA_NAT_KEEPALIVE_INTERVAL,
];

/// Moves one SA to other addresses; what the request leaves out is inherited.
pub(crate) fn state(call: &mut Call<'_, '_>, request: &Request<'_>) -> Result<(), XfrmError> {
    let wanted = request.fixed::<UserMigrateState>();
    verify_state(&wanted)?;
    let id = wanted.id;
    let find = |mark, daddr, family| {
        call.ns
            .sad
            .lookup(mark, daddr, id.spi.get(), id.proto, family)
    };
    let old = find(mark_key(wanted.old_mark), id.daddr, id.family)
        .ok_or(XfrmError::with_text(errno::ESRCH, "Can not find state"))?;
    let Some(sa) = call.ns.sad.get(old) else {
        return Err(XfrmError::new(errno::ESRCH));
    };
    let migration = migration(call, &wanted, sa, &request.attrs)?;
    let new_mark = request.attrs.pod::<Mark>(XFRMA_MARK);
    if (wanted.new_family != id.family || !wanted.new_daddr.equal(id.daddr, id.family))
        && find(
            mark_key(migration.mark),
            wanted.new_daddr,
            wanted.new_family,
        )
        .is_some()
    {
        let text = "New SA tuple already occupied";
        return Err(XfrmError::with_text(errno::EEXIST, text));
    }
    let new = replace(call, old, &migration, id.family)?;
    let Some(sa) = call.ns.sad.get(new) else {
        return Ok(());
    };
    let event = Event {
        body: UserMigrateState {
            new_sel: sa.sel,
            ..wanted
        },
        encap: request.attrs.pod(XFRMA_ENCAP).or(migration.encap),
        offload: migration.offload,
        new_mark,
        smark: migration.smark,
        mapping_maxage_secs: sa.options().mapping_maxage_secs,
        nat_keepalive_secs: sa.options().nat_keepalive_secs,
        dir: sa.dir,
    };
    let origin = origin_of(request);
    // QUIRK: unheard_migration_warns.
    if !call.sockets.has_listeners(group::MIGRATE) {
        call.warning.text = Some("Failed to send migration notification".into());
    }
    call.multicast(group::MIGRATE, |out| event.write(out, origin));
    Ok(())
}

fn verify_state(wanted: &UserMigrateState) -> Result<(), XfrmError> {
    if wanted.id.spi.get() == 0 {
        return Err(XfrmError::invalid("Invalid SPI 0x0"));
    }
    if wanted.reserved != 0 {
        return Err(XfrmError::invalid("Reserved field must be zero"));
    }
    let unknown = wanted.flags & !KNOWN_FLAGS;
    if unknown != 0 {
        let text = format!("Unknown flags: {unknown:#x}");
        return Err(XfrmError::with_text(errno::EINVAL, text));
    }
    verify::family(wanted.new_family)?;
    if wanted.flags & XFRM_MIGRATE_STATE_UPDATE_H2H_SEL == 0 {
        verify::selector_prefixes(wanted.new_sel.family, &wanted.new_sel)?;
    }
    Ok(())
}

/// What the clone will have, checked against what the SA has.
fn migration(
    call: &Call<'_, '_>,
    wanted: &UserMigrateState,
    sa: &Sa,
    attrs: &Attrs<'_>,
) -> Result<Migration, XfrmError> {
    let sel = new_selector(wanted, sa)?;
    let options = sa.options();
    let encap = match attrs.pod::<EncapTmpl>(XFRMA_ENCAP) {
        None => options.encap,
        Some(encap) => match encap.kind {
            // Type 0 takes the encapsulation away.
            0 => None,
            UDP_ENCAP_ESPINUDP => Some(encap),
            _ => return Err(XfrmError::invalid("Unsupported encapsulation type")),
        },
    };
    let mapping_maxage = attrs.u32(XFRMA_MTIMER_THRESH);
    if mapping_maxage.is_some() {
        verify::mtimer_thresh(call.ns.profile, encap.is_some(), sa.dir)?;
    }
    let nat_keepalive = attrs.u32(XFRMA_NAT_KEEPALIVE_INTERVAL);
    if nat_keepalive.unwrap_or(0) != 0 && encap.is_none() {
        return Err(XfrmError::invalid(
            "NAT_KEEPALIVE_INTERVAL requires encapsulation",
        ));
    }
    let smark = match attrs.has(XFRMA_SET_MARK) {
        true => request::set_mark(attrs),
        false => options.smark,
    };
    Ok(Migration {
        daddr: wanted.new_daddr,
        saddr: wanted.new_saddr,
        family: wanted.new_family,
        reqid: wanted.new_reqid,
        sel,
        mark: attrs.pod(XFRMA_MARK).unwrap_or(wanted.old_mark),
        smark,
        encap,
        mapping_maxage_secs: mapping_maxage.unwrap_or(options.mapping_maxage_secs),
        nat_keepalive_secs: nat_keepalive.unwrap_or(options.nat_keepalive_secs),
        offload: attrs.pod(XFRMA_OFFLOAD_DEV),
    })
}

fn new_selector(wanted: &UserMigrateState, sa: &Sa) -> Result<Selector, XfrmError> {
    if wanted.flags & XFRM_MIGRATE_STATE_UPDATE_H2H_SEL == 0 {
        return Ok(wanted.new_sel);
    }
    let host = |family| match family {
        AF_INET6 => 128,
        _ => 32,
    };
    let single_host = sa.sel.prefixlen_s == sa.sel.prefixlen_d
        && sa.sel.prefixlen_d == host(sa.family)
        && sa.sel.daddr.equal(sa.id.daddr, sa.family)
        && sa.sel.saddr.equal(sa.saddr, sa.family);
    if !single_host {
        return Err(XfrmError::invalid(
            "SA selector is not a single-host match for SA addresses",
        ));
    }
    Ok(Selector {
        family: wanted.new_family,
        prefixlen_d: host(wanted.new_family),
        prefixlen_s: host(wanted.new_family),
        daddr: wanted.new_daddr,
        saddr: wanted.new_saddr,
        ..sa.sel
    })
}

/// Puts the clone in the place of the SA.
fn replace(
    call: &mut Call<'_, '_>,
    old: SaId,
    migration: &Migration,
    old_family: u16,
) -> Result<SaId, XfrmError> {
    let clone = call
        .ns
        .sad
        .migrate_create(call.cx, old, migration)
        .map_err(|error| XfrmError {
            errno: errno::EINVAL,
            ..error.or_text("State migration clone failed")
        })?;
    let is_valid = require_valid(call, old).is_ok();
    let sad = &mut call.ns.sad;
    if !is_valid {
        sad.discard(&clone);
        return Err(XfrmError::with_text(errno::ESRCH, "State already deleted"));
    }
    let old_daddr = sad.delete(old).map_or(migration.daddr, |sa| sa.id.daddr);
    sad.migrate_install(call.cx, clone, old_daddr, old_family)
}

/// The MIGRATE_STATE that key managers are sent.
struct Event {
    body: UserMigrateState,
    encap: Option<EncapTmpl>,
    offload: Option<UserOffload>,
    new_mark: Option<Mark>,
    smark: Mark,
    mapping_maxage_secs: u32,
    nat_keepalive_secs: u32,
    dir: u8,
}

impl Event {
    fn write(&self, out: &mut Vec<u8>, origin: encode::Origin) {
        let kind = XFRM_MSG_MIGRATE_STATE;
        let mut writer = Writer::begin(out, kind, 0, origin.seq, origin.pid);
        writer.body(&self.body);
        if let Some(encap) = &self.encap {
            writer.attr_pod(XFRMA_ENCAP, encap);
        }
        if let Some(offload) = &self.offload {
            writer.attr_pod(XFRMA_OFFLOAD_DEV, offload);
        }
        if let Some(mark) = &self.new_mark {
            writer.attr_pod(XFRMA_MARK, mark);
        }
        encode::set_mark(&mut writer, self.smark);
        encode::nonzero(&mut writer, XFRMA_MTIMER_THRESH, self.mapping_maxage_secs);
        let keepalive = XFRMA_NAT_KEEPALIVE_INTERVAL;
        encode::nonzero(&mut writer, keepalive, self.nat_keepalive_secs);
        encode::direction(&mut writer, self.dir);
        writer.end();
    }
}
