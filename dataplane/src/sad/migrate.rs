//! Moving an SA to other addresses: MIGRATE for the SAs of a policy, MIGRATE_STATE for one.
//!
//! The SA itself does not change: a clone with the new addresses is made, and
//! the old one deleted, in silence.
//!
//! Source: `net/xfrm/xfrm_state.c xfrm_migrate_state_find,
//! xfrm_state_clone_and_setup, xfrm_state_migrate_create,
//! xfrm_state_migrate_install`; `net/xfrm/xfrm_policy.c xfrm_migrate`.

use xfrm_proto::consts::*;
use xfrm_proto::extack::XfrmError;
use xfrm_proto::uapi::{Address, EncapTmpl, Mark, Selector, UserMigrate, UserOffload};

use super::construct::check_offload;
use super::replay;
use super::sa::SaOptions;
use super::window::Window;
use super::{Sa, SaId, Sad, SourceKey, TemplateKey};
use crate::netns::Context;
use crate::security::SecurityContext;

/// What a clone has that its original has not.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// Destination.
    pub daddr: Address,
    /// Source.
    pub saddr: Address,
    /// Family of both.
    pub family: u16,
    /// Request id.
    pub reqid: u32,
    /// Selector.
    pub sel: Selector,
    /// Mark.
    pub mark: Mark,
    /// Mark of packets after the transform.
    pub smark: Mark,
    /// UDP encapsulation.
    pub encap: Option<EncapTmpl>,
    /// Seconds between MAPPING events.
    pub mapping_maxage_secs: u32,
    /// Seconds between NAT keepalives.
    pub nat_keepalive_secs: u32,
    /// Offload request.
    pub offload: Option<UserOffload>,
}

impl Sad {
    /// The SA that an entry of MIGRATE means (`xfrm_migrate_state_find`); `if_id` 0 is any.
    #[must_use]
    pub fn migrate_find(&self, entry: &UserMigrate, if_id: u32) -> Option<SaId> {
        let source = SourceKey {
            daddr: entry.old_daddr.for_family(entry.old_family),
            saddr: entry.old_saddr.for_family(entry.old_family),
            proto: entry.proto,
            family: entry.old_family,
        };
        let fits = |&id: &SaId| {
            self.get(id)
                .is_some_and(|sa| sa.mode == entry.mode && (if_id == 0 || sa.if_id == if_id))
        };
        if entry.reqid == 0 {
            self.source_chain(source).find(fits)
        } else {
            let template = TemplateKey {
                source,
                reqid: entry.reqid,
                mode: entry.mode,
            };
            self.template_chain(template).find(fits)
        }
    }

    /// Adds a clone of an SA with the new addresses of an entry of MIGRATE; the caller deletes
    /// the original once all has gone well, or else the clone (`xfrm_state_migrate`).
    ///
    /// # Errors
    /// ENODATA, with the text of releases that give one.
    pub fn migrate_clone(
        &mut self,
        cx: &Context<'_>,
        id: SaId,
        entry: &UserMigrate,
        encap: Option<EncapTmpl>,
        offload: Option<UserOffload>,
    ) -> Result<SaId, XfrmError> {
        let profile = self.profile;
        let Some(sa) = self.get(id) else {
            return Err(XfrmError::new(errno::ENODATA));
        };
        let options = sa.options();
        // QUIRK: migrate_without_encap_drops_it.
        let kept = options.encap.filter(|_| !profile.migrate_drops_encap);
        let migration = Migration {
            daddr: entry.new_daddr,
            saddr: entry.new_saddr,
            family: entry.new_family,
            reqid: sa.reqid,
            sel: sa.sel,
            mark: sa.mark,
            smark: options.smark,
            encap: encap.or(kept),
            mapping_maxage_secs: options.mapping_maxage_secs,
            nat_keepalive_secs: options.nat_keepalive_secs,
            offload: offload.filter(|_| profile.migrate_drops_encap),
        };
        let (old_daddr, old_family) = (sa.id.daddr, entry.old_family);
        let clone = self.migrate_create(cx, id, &migration);
        clone
            .and_then(|clone| self.migrate_install(cx, clone, old_daddr, old_family))
            .map_err(|error| XfrmError {
                errno: errno::ENODATA,
                extack: if profile.migrate_drops_encap {
                    error.extack
                } else {
                    XfrmError::new(errno::ENODATA).extack
                },
            })
    }

    /// Makes a clone of an SA (`xfrm_state_migrate_create`).
    ///
    /// # Errors
    /// Those of initialising an SA, or of its offload request.
    pub fn migrate_create(
        &mut self,
        cx: &Context<'_>,
        id: SaId,
        migration: &Migration,
    ) -> Result<Box<Sa>, XfrmError> {
        let early = self.profile.migrate_inits_early;
        if self.is_full() {
            return Err(XfrmError::invalid("Failed to clone and setup state"));
        }
        let Some(original) = self.get(id) else {
            return Err(XfrmError::new(errno::ESRCH));
        };
        let mut clone = Box::new(clone_of(original, migration, early));
        if !early {
            move_to(&mut clone, migration);
        }
        let made = self.init(&mut clone, cx).and_then(|()| {
            replay::init(self.profile, &clone).map_err(|error| XfrmError::new(error.errno))
        });
        let made = made.map_err(|error| error.or_text("Failed to initialize migrated state"));
        let checked = made.and_then(|()| match &migration.offload {
            Some(offload) => check_offload(self.profile, &clone, offload),
            None => Ok(()),
        });
        if let Err(error) = checked {
            self.discard(&clone);
            return Err(error);
        }
        if early {
            move_to(&mut clone, migration);
        }
        Ok(clone)
    }

    /// Puts a clone into the SAD (`xfrm_state_migrate_install`).
    ///
    /// # Errors
    /// EEXIST.
    pub fn migrate_install(
        &mut self,
        cx: &Context<'_>,
        clone: Box<Sa>,
        old_daddr: Address,
        old_family: u16,
    ) -> Result<SaId, XfrmError> {
        let keeps_family = self.profile.migrate_inits_early || clone.family == old_family;
        if keeps_family && clone.id.daddr.equal(old_daddr, clone.family) {
            Ok(self.insert(clone, cx.now))
        } else {
            self.add(clone, cx.now)
                .map_err(|error| XfrmError::with_text(error.errno, "Failed to add migrated state"))
        }
    }
}

fn move_to(clone: &mut Sa, migration: &Migration) {
    clone.id.daddr = migration.daddr;
    clone.saddr = migration.saddr;
}

/// `xfrm_state_clone_and_setup`, and the counters of `xfrm_migrate_sync`.
fn clone_of(original: &Sa, migration: &Migration, keeps_mapping: bool) -> Sa {
    let has = original.options();
    let encapsulated = migration.encap.is_some();
    let options = SaOptions {
        encap: migration.encap,
        smark: migration.smark,
        mapping_maxage_secs: if encapsulated || keeps_mapping {
            migration.mapping_maxage_secs
        } else {
            0
        },
        nat_keepalive_secs: if encapsulated {
            migration.nat_keepalive_secs
        } else {
            0
        },
        security: has.security.as_ref().map(SecurityContext::of_clone),
        ..has.clone()
    };
    Sa {
        id: original.id,
        saddr: original.saddr,
        family: migration.family,
        mode: original.mode,
        dir: original.dir,
        flags: original.flags,
        replay_window: original.replay_window,
        reqid: migration.reqid,
        mark: migration.mark,
        if_id: original.if_id,
        pcpu: original.pcpu,
        seq: original.seq,
        sel: migration.sel,
        lft: original.lft,
        traffic: original
            .traffic
            .of_clone(original.is_esn(), original.may_wrap()),
        window: Window::new(original.window().clone()),
        replay_maxage: original.replay_maxage,
        replay_maxdiff: original.replay_maxdiff,
        aead: original.aead.clone(),
        auth: original.auth.clone(),
        crypt: original.crypt.clone(),
        comp: original.comp,
        options: (options != SaOptions::default()).then(|| Box::new(options)),
        ..Sa::blank(0)
    }
}
