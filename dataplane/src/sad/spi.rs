//! Larval SAs on request, and SPIs for them.
//!
//! Source: `net/xfrm/xfrm_state.c xfrm_find_acq, verify_spi_info,
//! xfrm_alloc_spi`.

use xfrm_proto::consts::*;
use xfrm_proto::extack::XfrmError;
use xfrm_proto::uapi::{Mark, UserSaInfo, UserSpiInfo};

use super::find::LarvalQuery;
use super::sa::{ANY_CPU, Lifecycle, mark_key};
use super::{Sa, SaId, Sad, SpiAlone, hash_of, holds_at};
use crate::netns::Context;
use crate::sysctl::Sysctls;

/// ALLOCSPI, attributes taken apart.
#[derive(Clone, Copy, Debug)]
pub struct SpiRequest {
    /// The fixed part.
    pub body: UserSpiInfo,
    /// MARK.
    pub mark: Mark,
    /// IF_ID.
    pub if_id: u32,
    /// SA_PCPU.
    pub pcpu: Option<u32>,
    /// SA_DIR.
    pub dir: Option<u8>,
}

impl Sad {
    /// Gives a larval SA an SPI; makes the larval SA if there is none (`xfrm_alloc_userspi`).
    ///
    /// # Errors
    /// EINVAL, ENOENT. A larval SA made on the way stays.
    pub fn alloc_spi(
        &mut self,
        cx: &mut Context<'_>,
        sysctls: &Sysctls,
        request: &SpiRequest,
    ) -> Result<SaId, XfrmError> {
        let profile = self.profile;
        let info = &request.body.info;
        let (low, high) = (request.body.min, request.body.max);
        if let Some(text) = complaint(info.id.proto, low, high) {
            return Err(profile.late_error(errno::EINVAL, text));
        }
        let pcpu = request.pcpu.unwrap_or(ANY_CPU);
        if request.pcpu.is_some_and(|cpu| cpu >= profile.possible_cpus) {
            return Err(XfrmError::invalid("pCPU number too big"));
        }
        let mark = mark_key(request.mark);
        let numbered = (info.seq != 0)
            .then(|| self.find_larval_by_seq(mark, info.seq, pcpu))
            .flatten()
            .filter(|&id| {
                self.get(id)
                    .is_some_and(|sa| sa.id.daddr.equal(info.id.daddr, info.family))
            });
        let query = LarvalQuery {
            mark,
            family: info.family,
            mode: info.mode,
            reqid: info.reqid,
            pcpu,
            proto: info.id.proto,
            daddr: info.id.daddr,
            saddr: info.saddr,
        };
        let id = match numbered.or_else(|| self.find_larval(&query)) {
            Some(id) => id,
            None if self.is_full() => {
                return Err(profile.late_error(errno::ENOENT, "Target ACQUIRE not found"));
            }
            None => self.create_larval(cx, sysctls, info, request, pcpu),
        };
        self.choose_spi(cx, id, low, high)?;
        if let (Some(dir), Some(sa)) = (request.dir, self.get_mut(id)) {
            sa.dir = dir;
        }
        Ok(id)
    }

    fn create_larval(
        &mut self,
        cx: &Context<'_>,
        sysctls: &Sysctls,
        info: &UserSaInfo,
        request: &SpiRequest,
        pcpu: u32,
    ) -> SaId {
        let mut sa = Box::new(Sa::blank(cx.now.real.0));
        // QUIRK: larval_selector_has_no_family.
        let prefix = match info.family {
            AF_INET => 32,
            AF_INET6 => 128,
            _ => 0,
        };
        if prefix != 0 {
            sa.id.daddr = info.id.daddr.for_family(info.family);
            sa.saddr = info.saddr.for_family(info.family);
            sa.sel.daddr = sa.id.daddr;
            sa.sel.saddr = sa.saddr;
            sa.sel.prefixlen_d = prefix;
            sa.sel.prefixlen_s = prefix;
        }
        sa.pcpu = pcpu;
        sa.state = Lifecycle::Larval;
        sa.id.proto = info.id.proto;
        sa.family = info.family;
        sa.mode = info.mode;
        sa.reqid = info.reqid;
        sa.if_id = request.if_id;
        sa.mark = request.mark;
        sa.lft.hard_add_expires_seconds = u64::from(sysctls.acq_expires);
        let id = self.link(sa);
        let due = cx.now.boot.plus_secs(u64::from(sysctls.acq_expires));
        self.arm(id, due);
        id
    }

    /// Draws an SPI that is free; as many draws as there are numbers (`xfrm_alloc_spi`).
    fn choose_spi(
        &mut self,
        cx: &mut Context<'_>,
        id: SaId,
        low: u32,
        high: u32,
    ) -> Result<(), XfrmError> {
        let none = || {
            self.profile
                .late_error(errno::ENOENT, "No SPI available in the requested range")
        };
        let sa = self.get(id).ok_or_else(none)?;
        if sa.id.spi.get() != 0 {
            return Ok(());
        }
        let draws = match high - low {
            0 => 1,
            // QUIRK: full_spi_range_is_empty. The number of draws wraps to 0.
            span => span.wrapping_add(1),
        };
        for _ in 0..draws {
            let spi = match draws {
                1 => low,
                _ => low + cx.entropy.below(draws),
            };
            if spi != 0 && self.spi_is_free(sa, spi) {
                self.set_spi(id, spi);
                return Ok(());
            }
            if spi == 0 && !self.profile.spi_unique_per_proto {
                break;
            }
        }
        Err(none())
    }

    fn spi_is_free(&self, sa: &Sa, spi: u32) -> bool {
        if self.profile.spi_unique_per_proto {
            let proto = sa.id.proto;
            let wanted = SpiAlone { spi, proto };
            let same = |p| holds_at(&self.slots, p, |sa| SpiAlone::of(sa) == wanted);
            let hash = hash_of(&self.hasher, &wanted);
            self.by_spi_alone.is_free(hash, same)
        } else {
            let mark = mark_key(sa.mark);
            self.lookup(mark, sa.id.daddr, spi, sa.id.proto, sa.family)
                .is_none()
        }
    }

    fn set_spi(&mut self, id: SaId, spi: u32) {
        let Some(sa) = self.unindex_larval(id) else {
            return;
        };
        sa.id.spi = spi.into();
        self.link_spi(id);
    }
}

/// What is wrong with a range (`verify_spi_info`).
fn complaint(proto: u8, low: u32, high: u32) -> Option<&'static str> {
    match proto {
        IPPROTO_AH | IPPROTO_ESP => {}
        IPPROTO_COMP if high > 0xffff => return Some("IPCOMP SPI must be <= 65535"),
        IPPROTO_COMP => {}
        _ => return Some("Invalid protocol, must be one of AH, ESP, IPCOMP"),
    }
    (low > high).then_some("Invalid SPI range: min > max")
}
