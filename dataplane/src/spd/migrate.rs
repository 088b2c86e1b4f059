//! New tunnel endpoints for a policy: the policy's half of MIGRATE.
//!
//! Source: `net/xfrm/xfrm_policy.c xfrm_migrate_check`,
//! `xfrm_migrate_policy_find`, `xfrm_policy_migrate`.

use xfrm_proto::consts::*;
use xfrm_proto::extack::XfrmError;
use xfrm_proto::uapi::{Selector, UserMigrate, UserTmpl};

use super::flow::Flow;
use super::{PolicyId, Spd};
use crate::profile::Profile;

/// `IPSEC_ULPROTO_ANY`: what a MIGRATE selector says for "any protocol".
///
/// QUIRK: migrate_takes_protocol_255_for_any: policies and flows have 0 for that, so
/// from 6.12 on only a policy without protocol, ports and interface is found by it.
const ANY_PROTOCOL: u8 = 255;

/// What a MIGRATE request asks of the policy side.
#[derive(Clone, Copy, Debug)]
pub struct Migration<'a> {
    /// Which policy: a flow, or on older kernels the selector itself.
    pub sel: &'a Selector,
    /// Its direction.
    pub dir: u8,
    /// Its type.
    pub kind: u8,
    /// Its interface id.
    pub if_id: u32,
    /// Old and new endpoints.
    pub entries: &'a [UserMigrate],
}

impl Spd {
    /// Checks a migration and finds its policy.
    ///
    /// # Errors
    /// EINVAL, ENOENT or EAFNOSUPPORT with the kernel's text.
    pub fn find_migrated(&self, migration: &Migration<'_>) -> Result<PolicyId, XfrmError> {
        check_entries(self.profile, migration.entries)?;
        if migration.dir >= XFRM_POLICY_MAX {
            return Err(self
                .profile
                .late_error(errno::EINVAL, "Invalid policy direction"));
        }
        let missing = |errno| self.profile.late_error(errno, "Target policy not found");
        if self.profile.migrate_by_selector {
            return self
                .find_by_migrated_selector(migration)
                .ok_or(missing(errno::ENOENT));
        }
        let sel = migration.sel;
        if !matches!(sel.family, AF_INET | AF_INET6) {
            return Err(missing(errno::EAFNOSUPPORT));
        }
        let mut flow = Flow {
            family: sel.family,
            daddr: sel.daddr,
            saddr: sel.saddr,
            proto: sel.proto,
            ..Flow::default()
        };
        if sel.proto != ANY_PROTOCOL {
            flow = flow.with_ports(sel.dport.get(), sel.sport.get());
            flow.ifindex = sel.ifindex;
        }
        self.lookup_type(&flow, migration.dir, migration.kind, migration.if_id)
            .ok_or(missing(errno::ENOENT))
    }

    /// The policy of that selector, as Linux 6.1 finds it: byte for byte, but for a selector
    /// of protocol 255 only family and prefixes; interface id 0 is any. The lowest priority
    /// number wins, then a hashed policy, then the first inserted. A walk over all policies.
    fn find_by_migrated_selector(&self, migration: &Migration<'_>) -> Option<PolicyId> {
        let wanted = migration.sel;
        let same = |sel: &Selector| match wanted.proto {
            ANY_PROTOCOL => {
                sel.family == wanted.family
                    && sel.daddr.equal(wanted.daddr, wanted.family)
                    && sel.saddr.equal(wanted.saddr, wanted.family)
                    && sel.prefixlen_d == wanted.prefixlen_d
                    && sel.prefixlen_s == wanted.prefixlen_s
            }
            _ => sel == wanted,
        };
        let candidates = self.store.slots().filter_map(|slot| {
            let policy = self.store.get(slot)?;
            let key = &policy.key;
            let found = key.dir == migration.dir
                && key.kind == migration.kind
                && (migration.if_id == 0 || key.if_id == migration.if_id)
                && same(&key.selector);
            let place = &policy.place;
            let inexact = place.list != super::order::List::Exact;
            found.then_some((policy.priority, inexact, place.rank, slot))
        });
        candidates.min().map(|(_, _, _, slot)| PolicyId(slot))
    }

    /// Puts the new endpoints into the policy's templates.
    ///
    /// # Errors
    /// ENODATA when no template has the old ones.
    pub fn migrate(&mut self, id: PolicyId, entries: &[UserMigrate]) -> Result<(), XfrmError> {
        let profile = self.profile;
        let mut matched = false;
        self.generation += 1;
        self.change(id.0);
        let templates = self.store.get_mut(id.0).map(|policy| &mut policy.templates);
        for tmpl in templates.into_iter().flat_map(|t| t.iter_mut()) {
            for entry in entries {
                let tunnel = match tmpl.mode {
                    XFRM_MODE_TUNNEL | XFRM_MODE_BEET => true,
                    XFRM_MODE_IPTFS => profile.knows_iptfs,
                    _ => false,
                };
                if !template_matches(entry, tmpl, tunnel) {
                    continue;
                }
                matched = true;
                if tunnel {
                    tmpl.id.daddr = entry.new_daddr;
                    tmpl.saddr = entry.new_saddr;
                    tmpl.family = entry.new_family;
                }
            }
        }
        if matched {
            Ok(())
        } else {
            Err(XfrmError::new(errno::ENODATA))
        }
    }
}

/// QUIRK: migrate_matches_any_transport_template: a transport template holds no addresses.
fn template_matches(entry: &UserMigrate, tmpl: &UserTmpl, tunnel: bool) -> bool {
    let same = tmpl.mode == entry.mode
        && tmpl.id.proto == entry.proto
        && (entry.reqid == 0 || tmpl.reqid == entry.reqid);
    let endpoints = tmpl.id.daddr.equal(entry.old_daddr, entry.old_family)
        && tmpl.saddr.equal(entry.old_saddr, entry.old_family);
    same && (tmpl.mode == XFRM_MODE_TRANSPORT || tunnel && endpoints)
}

fn check_entries(profile: &Profile, entries: &[UserMigrate]) -> Result<(), XfrmError> {
    let invalid = |text| Err(profile.late_error(errno::EINVAL, text));
    if entries.is_empty() || entries.len() > XFRM_MAX_DEPTH {
        return invalid("Invalid number of SAs to migrate, must be 0 < num <= XFRM_MAX_DEPTH (6)");
    }
    for (i, entry) in entries.iter().enumerate() {
        if entry.new_daddr.is_any(entry.new_family) || entry.new_saddr.is_any(entry.new_family) {
            return invalid("Addresses in the MIGRATE attribute's list cannot be null");
        }
        let old = |e: &UserMigrate| {
            (
                e.old_daddr,
                e.old_saddr,
                e.proto,
                e.mode,
                e.reqid,
                e.old_family,
            )
        };
        if entries
            .iter()
            .skip(i + 1)
            .any(|other| old(other) == old(entry))
        {
            return invalid("Entries in the MIGRATE attribute's list must be unique");
        }
    }
    Ok(())
}
