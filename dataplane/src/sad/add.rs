//! NEWSA and UPDSA: putting a constructed SA into the SAD, or its changes into another.
//!
//! Source: `net/xfrm/xfrm_state.c xfrm_state_add, xfrm_state_update,
//! __xfrm_state_insert`.

use xfrm_proto::consts::*;
use xfrm_proto::extack::XfrmError;

use super::find::LarvalQuery;
use super::sa::{has_spi, mark_key};
use super::{Lifecycle, Sa, SaId, Sad};
use crate::event::SaExpire;
use crate::time::Now;

/// What became of an UPDSA.
#[derive(Debug)]
pub enum Updated {
    /// It took the place of a larval SA and is in the SAD.
    Inserted(SaId),
    /// It changed an SA and is left over.
    Changed {
        /// The SA as requested.
        request: Box<Sa>,
        /// The change took the other SA over a limit; it is gone if that was a hard one.
        expired: Option<Box<SaExpire>>,
    },
}

impl Sad {
    /// Adds an SA and removes the larval SA that it answers (`xfrm_state_add`).
    ///
    /// # Errors
    /// EEXIST.
    pub fn add(&mut self, sa: Box<Sa>, now: Now) -> Result<SaId, XfrmError> {
        if self.locate(&sa).is_some() {
            self.discard(&sa);
            return Err(XfrmError::new(errno::EEXIST));
        }
        let larval = if has_spi(sa.id.proto) {
            self.find_answered(&sa)
        } else {
            None
        };
        let id = self.insert(sa, now);
        if let Some(larval) = larval {
            self.delete(larval);
        }
        Ok(id)
    }

    /// Changes the SA that has the identity of `sa` (`xfrm_state_update`).
    ///
    /// # Errors
    /// ESRCH, EEXIST for an SA of the engine's own, EINVAL.
    pub fn update(&mut self, sa: Box<Sa>, now: Now) -> Result<Updated, XfrmError> {
        let target = self.locate(&sa);
        let result = match target.and_then(|id| Some((id, self.get(id)?))) {
            None => Err(errno::ESRCH),
            Some((_, old)) if old.is_tunnel => Err(errno::EEXIST),
            Some((id, old)) if old.state == Lifecycle::Larval => {
                if sa.dir != 0 && old.dir != sa.dir {
                    Err(errno::ESRCH)
                } else {
                    let new = self.insert(sa, now);
                    self.delete(id);
                    return Ok(Updated::Inserted(new));
                }
            }
            Some((_, old)) if old.dir != sa.dir => Err(errno::ESRCH),
            Some((id, _)) => Ok(id),
        };
        self.discard(&sa);
        let id = result.map_err(XfrmError::new)?;
        let expired = self.change(id, &sa, now)?;
        Ok(Updated::Changed {
            request: sa,
            expired: expired.map(Box::new),
        })
    }

    /// Puts an SA in and starts its timer (`xfrm_state_insert`).
    pub(super) fn insert(&mut self, mut sa: Box<Sa>, now: Now) -> SaId {
        sa.mark.v &= sa.mark.m;
        sa.inserted = now.boot;
        let id = self.link(sa);
        self.arm(id, now.boot.plus_secs(1));
        id
    }

    /// Takes over what UPDSA may change, and checks whether that reached a limit.
    ///
    /// QUIRK: update_cannot_add_or_remove_encap.
    fn change(&mut self, id: SaId, new: &Sa, now: Now) -> Result<Option<SaExpire>, XfrmError> {
        let Some(old) = self.get_mut(id) else {
            return Err(XfrmError::new(errno::ESRCH));
        };
        let (wanted, had) = (new.options(), old.options());
        let encap_fits = match (wanted.encap, had.encap) {
            (Some(wanted), Some(had)) => wanted.kind == had.kind,
            (None, None) => true,
            _ => false,
        };
        if !encap_fits {
            return Err(XfrmError::new(errno::EINVAL));
        }
        let changes_coaddr = wanted.coaddr.is_some() && had.coaddr.is_some();
        let changes_smark = wanted.smark.v != 0 || wanted.smark.m != 0;
        if wanted.encap.is_some() || changes_coaddr || changes_smark {
            let options = old.options_mut();
            options.encap = wanted.encap;
            if changes_coaddr {
                options.coaddr = wanted.coaddr;
            }
            if changes_smark {
                options.smark = wanted.smark;
            }
            old.refresh_engine();
        }
        if !has_spi(new.id.proto) {
            old.sel = new.sel;
        }
        old.lft = new.lft;
        old.traffic.set_dying(false);
        if new.if_id != 0 {
            old.if_id = new.if_id;
        }
        let is_used = old.traffic.use_time() != 0;
        self.arm(id, now.boot.plus_secs(1));
        Ok(is_used.then(|| self.check_expire(id, now)).flatten())
    }

    fn find_answered(&self, sa: &Sa) -> Option<SaId> {
        let mark = mark_key(sa.mark);
        let by_seq = (sa.seq != 0)
            .then(|| self.find_larval_by_seq(mark, sa.seq, sa.pcpu))
            .flatten()
            .filter(|&id| {
                self.get(id).is_some_and(|larval| {
                    larval.id.proto == sa.id.proto && larval.id.daddr.equal(sa.id.daddr, sa.family)
                })
            });
        by_seq.or_else(|| {
            self.find_larval(&LarvalQuery {
                mark,
                family: sa.family,
                mode: sa.mode,
                reqid: sa.reqid,
                pcpu: sa.pcpu,
                proto: sa.id.proto,
                daddr: sa.id.daddr,
                saddr: sa.saddr,
            })
        })
    }
}
