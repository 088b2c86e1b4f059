//! What an SA does to packets, made when the first one comes.
//!
//! An SA that never sees a packet keeps no key schedule, so that a million of
//! them stay cheap. Whoever needs the transform first makes it; the randomness
//! for its IVs comes with the packet.
//!
//! Source: the `init_state` of `net/ipv4/esp4.c`, `ah4.c`, `ipcomp.c` and their IPv6 twins.

use xfrm_proto::consts::*;

use super::Sa;
use super::sa::KeyedAlgorithm;
use crate::crypto::{AeadAlgorithm, AuthAlgorithm, CipherAlgorithm, EspTransform, mac};
use crate::entropy::Entropy;
use crate::packet::Family;
use crate::packet::encap::Encap;
use crate::path::aggregate::Iptfs;
use crate::profile::Profile;
use crate::transform::ah::{Ah, AhParams};
use crate::transform::esp::Esp;
use crate::transform::ipcomp::IpComp;
use crate::transform::route_optimization::{Kind, RouteOptimization};
use crate::transform::{Mode, ModeParams, Protocol, Transform};

/// Payloads shorter than this are not compressed (`calg_list[].threshold`).
const DEFLATE_THRESHOLD_BYTES: usize = 90;

/// What the packet path keeps of an SA that has seen a packet.
#[derive(Debug)]
pub(super) struct Engine {
    transform: Transform,
    iptfs: Option<Box<Iptfs>>,
}

impl Sa {
    /// What it does to packets; `None` for a larval SA and for modes that have no packet path.
    #[inline]
    pub fn transform(
        &self,
        profile: &'static Profile,
        entropy: &mut dyn Entropy,
    ) -> Option<&Transform> {
        match self.engine.get() {
            Some(engine) => Some(&engine.transform),
            None => self.make_engine(profile, entropy),
        }
    }

    #[cold]
    fn make_engine(
        &self,
        profile: &'static Profile,
        entropy: &mut dyn Entropy,
    ) -> Option<&Transform> {
        let mut seeds = self.traffic.iv_seeds(entropy);
        let transform = Transform::new(
            &self.mode_params()?,
            self.protocol(profile, &mut seeds)?,
            self.encap(),
        );
        let config = self.options().iptfs.as_ref();
        let iptfs = config
            .and_then(|config| Iptfs::new(&transform, config, self.flags))
            .map(Box::new);
        // Another worker may have been faster: then that one's counts.
        let engine = self
            .engine
            .get_or_init(|| Box::new(Engine { transform, iptfs }));
        Some(&engine.transform)
    }

    /// Its queue and its window, of an IPTFS SA that has a transform.
    pub(crate) fn iptfs(&self) -> Option<&Iptfs> {
        self.engine.get()?.iptfs.as_deref()
    }

    /// Takes over what UPDSA changed. Keys stay, and with them what makes IVs.
    pub(super) fn refresh_engine(&mut self) {
        let encap = self.encap();
        if matches!(self.id.proto, IPPROTO_DSTOPTS | IPPROTO_ROUTING) {
            self.engine.take();
        } else if let Some(engine) = self.engine.get_mut() {
            engine.transform.set_encap(encap);
        }
    }

    /// UDP encapsulation.
    #[must_use]
    pub fn encap(&self) -> Option<Encap> {
        self.options().encap.map(|encap| Encap {
            kind: encap.kind,
            sport: encap.sport.get(),
            dport: encap.dport.get(),
        })
    }

    fn mode_params(&self) -> Option<ModeParams> {
        Some(ModeParams {
            mode: match &self.options().iptfs {
                Some(config) => Mode::Iptfs {
                    splits: !config.dont_frag,
                },
                None => Mode::from_xfrm(self.mode)?,
            },
            family: Family::from_af(self.family)?,
            selector_family: Family::from_af(self.sel.family),
            src: self.saddr,
            dst: self.id.daddr,
            selector_src: self.sel.saddr,
            selector_dst: self.sel.daddr,
            flags: self.flags,
            extra_flags: self.options().extra_flags,
        })
    }

    fn protocol(&self, profile: &'static Profile, entropy: &mut dyn Entropy) -> Option<Protocol> {
        let spi = self.id.spi.get();
        Some(match self.id.proto {
            IPPROTO_ESP => Protocol::Esp(Esp::new(spi, self.esp(entropy)?, self.options().tfcpad)),
            IPPROTO_AH => Protocol::Ah(self.ah(spi)?),
            IPPROTO_COMP => {
                self.comp?;
                let cpi = u16::try_from(spi).ok()?;
                Protocol::IpComp(IpComp::new(cpi, DEFLATE_THRESHOLD_BYTES, profile))
            }
            IPPROTO_IPIP | IPPROTO_IPV6 => Protocol::Tunnel,
            IPPROTO_DSTOPTS => self.route_optimization(Kind::HomeAddress)?,
            IPPROTO_ROUTING => self.route_optimization(Kind::Routing)?,
            _ => return None,
        })
    }

    fn esp(&self, entropy: &mut dyn Entropy) -> Option<EspTransform> {
        let esn = self.is_esn();
        if let Some(KeyedAlgorithm {
            algorithm,
            key,
            icv_bits,
            ..
        }) = &self.aead
        {
            let aead = AeadAlgorithm::from_name(algorithm.name)?;
            return EspTransform::aead(aead, key.expose(), bytes(*icv_bits), esn, entropy).ok();
        }
        let crypt = self.crypt.as_ref()?;
        let cipher = CipherAlgorithm::from_name(crypt.algorithm.name)?;
        let (auth, auth_key, icv_bits) = match &self.auth {
            Some(auth) => (
                AuthAlgorithm::from_name(auth.algorithm.name)?,
                auth.key.expose(),
                auth.icv_bits,
            ),
            None => (AuthAlgorithm::Null, &[][..], 0),
        };
        let cipher = (cipher, crypt.key.expose());
        EspTransform::authenc(cipher, (auth, auth_key), bytes(icv_bits), esn, entropy).ok()
    }

    fn ah(&self, spi: u32) -> Option<Ah> {
        let auth = self.auth.as_ref()?;
        let algorithm = AuthAlgorithm::from_name(auth.algorithm.name)?;
        let params = AhParams {
            spi,
            family: Family::from_af(self.family)?,
            full_icv_bytes: bytes(auth.algorithm.icv_full_bits),
            align4: self.flags & XFRM_STATE_ALIGN4 != 0,
            esn: self.is_esn(),
        };
        let mac = mac(algorithm, auth.key.expose(), bytes(auth.icv_bits)).ok()?;
        Some(Ah::new(&params, mac))
    }

    fn route_optimization(&self, kind: Kind) -> Option<Protocol> {
        let care_of = self.options().coaddr?;
        Some(Protocol::RouteOptimization(RouteOptimization {
            kind,
            care_of,
        }))
    }
}

fn bytes(bits: u32) -> usize {
    usize::try_from(bits / 8).unwrap_or(usize::MAX)
}
