//! One security association (`struct xfrm_state`).
//!
//! What most SAs have sits in [`Sa`] itself; what few have is boxed, so that a
//! million of them stay cheap. Identity and keys never change once an SA is in
//! the SAD; what packets change ([`Traffic`], [`Sa::window`]) changes under a
//! shared borrow.

use xfrm_proto::algo::Key;
use xfrm_proto::consts::*;
use xfrm_proto::uapi::{
    Address, AeventId, EncapTmpl, LifetimeCfg, Mark, Selector, UserExpire, UserSaId, UserSaInfo,
    XfrmId,
};

use super::lifetime::Expiry;
use super::replay::Told;
use super::traffic::Traffic;
use super::transform::Engine;
use super::tunnel::TunnelKey;
use super::window::{Window, WindowGuard};
use crate::crypto::Algorithm;
use crate::event::{Aevent, SaExpire};
use crate::replay::{Refusal, ReplayWindow};
use crate::security::SecurityContext;
use crate::sync::{Mutex, OnceLock};
use crate::time::BootNanos;
use crate::transform::Sequence;

/// Place of an SA in its SAD; another SA may have it later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SaId(pub(super) u32);

/// An SA, whatever has happened since: it is not found once it is gone. The default is nobody's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SaHandle {
    pub(super) id: SaId,
    pub(super) serial: u64,
}

impl SaHandle {
    /// What no other SA of its SAD ever has.
    pub(crate) const fn serial(self) -> u64 {
        self.serial
    }
}

/// No CPU in particular.
pub const ANY_CPU: u32 = u32::MAX;

/// Where an SA is in its life (`x->km.state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    /// Waits for a key manager to fill it in (`XFRM_STATE_ACQ`).
    Larval,
    /// In use.
    Valid,
}

/// An algorithm with its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyedAlgorithm {
    /// Which one.
    pub algorithm: &'static Algorithm,
    /// Its key.
    pub key: Key,
    /// Key length as the client gave it.
    pub key_bits: u32,
    /// ICV length, 0 for ciphers.
    pub icv_bits: u32,
}

/// Settings that few SAs have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SaOptions {
    /// UDP encapsulation.
    pub encap: Option<EncapTmpl>,
    /// Care-of address (Mobile IPv6).
    pub coaddr: Option<Address>,
    /// Mark of packets after the transform.
    pub smark: Mark,
    /// `XFRM_SA_XFLAG_*` and whatever else the client set.
    pub extra_flags: u32,
    /// Pad to this many bytes, 0 for no.
    pub tfcpad: u32,
    /// Seconds between NAT keepalives, 0 for none.
    pub nat_keepalive_secs: u32,
    /// Seconds between MAPPING events of the same port, 0 for every packet.
    pub mapping_maxage_secs: u32,
    /// Security context.
    pub security: Option<SecurityContext>,
    /// IPTFS, of SAs in that mode.
    pub iptfs: Option<IptfsConfig>,
}

/// IPTFS settings of an SA (`net/xfrm/xfrm_iptfs.c struct xfrm_iptfs_config`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IptfsConfig {
    /// Input: how long to wait for a missing packet.
    pub drop_time_usecs: u32,
    /// Input: packets to hold for one that is missing.
    pub reorder_window: u16,
    /// Output: never split an inner packet.
    pub dont_frag: bool,
    /// Output: how long to wait for more to fill a packet.
    pub init_delay_usecs: u32,
    /// Output: bytes that may wait.
    pub max_queue_bytes: u32,
    /// Output: size of outer packets, 0 for the path MTU.
    pub packet_bytes: u32,
}

/// A security association.
///
/// Fields that lookups compare come first and fill one cache line.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Sa {
    /// Destination, SPI, protocol.
    pub id: XfrmId,
    /// Source.
    pub saddr: Address,
    /// Which marks find it.
    pub mark: Mark,
    /// Which templates it serves.
    pub reqid: u32,
    /// Number of the acquire that it answers, 0 for none (`x->km.seq`).
    pub seq: u32,
    /// Family of both addresses.
    pub family: u16,
    /// `XFRM_MODE_*`.
    pub mode: u8,
    /// `XFRM_SA_DIR_*`, 0 for both.
    pub dir: u8,
    /// `XFRM_STATE_*`.
    pub flags: u8,
    /// Legacy replay window in packets, at most 32.
    pub replay_window: u8,
    /// Where it is in its life.
    pub state: Lifecycle,
    /// It is a hidden tunnel SA (`xfrm_state_kern`).
    pub(super) is_tunnel: bool,
    /// What packets count.
    pub traffic: Traffic,
    /// Which sequence numbers have come in.
    pub(super) window: Window,
    /// What key managers were told of sequence numbers; `None` for nothing yet.
    pub(super) told: OnceLock<Box<Mutex<Told>>>,
    /// When it was put into the SAD.
    pub(super) inserted: BootNanos,
    /// What the packet path needs beside, from the first packet on.
    pub(super) engine: OnceLock<Box<Engine>>,
    /// Interface id.
    pub if_id: u32,
    /// CPU it is for, or [`ANY_CPU`].
    pub pcpu: u32,
    /// Flows it is for.
    pub sel: Selector,
    /// Limits.
    pub lft: LifetimeCfg,
    /// Ticks between aevents, 0 for never.
    pub replay_maxage: u32,
    /// Packets between aevents, 0 for never.
    pub replay_maxdiff: u32,
    /// AEAD.
    pub aead: Option<KeyedAlgorithm>,
    /// Authentication.
    pub auth: Option<KeyedAlgorithm>,
    /// Encryption.
    pub crypt: Option<KeyedAlgorithm>,
    /// Compression.
    pub comp: Option<&'static Algorithm>,
    /// The rest.
    pub(super) options: Option<Box<SaOptions>>,
    /// Timers.
    pub(super) expiry: Expiry,
    /// Age rank: higher is younger. 0 outside the SAD.
    pub(super) serial: u64,
    /// The hidden tunnel SA it uses, or is.
    pub(super) tunnel: Option<TunnelKey>,
}

impl Sa {
    /// What `xfrm_state_alloc` gives: nothing but an age.
    pub(super) fn blank(add_time: u64) -> Self {
        Self {
            id: XfrmId::default(),
            saddr: Address::ANY,
            family: 0,
            mode: 0,
            dir: 0,
            flags: 0,
            replay_window: 0,
            state: Lifecycle::Valid,
            traffic: Traffic::added_at(add_time),
            window: Window::new(ReplayWindow::Legacy {
                window: 0,
                seq: 0,
                bitmap: 0,
            }),
            told: OnceLock::new(),
            inserted: BootNanos(0),
            engine: OnceLock::new(),
            reqid: 0,
            mark: Mark::default(),
            if_id: 0,
            pcpu: ANY_CPU,
            seq: 0,
            sel: Selector::default(),
            lft: LifetimeCfg::UNLIMITED,
            replay_maxage: 0,
            replay_maxdiff: 0,
            aead: None,
            auth: None,
            crypt: None,
            comp: None,
            options: None,
            expiry: Expiry::default(),
            serial: 0,
            tunnel: None,
            is_tunnel: false,
        }
    }

    /// The settings that few have.
    #[must_use]
    pub fn options(&self) -> &SaOptions {
        static NONE: SaOptions = SaOptions {
            encap: None,
            coaddr: None,
            smark: Mark { v: 0, m: 0 },
            extra_flags: 0,
            tfcpad: 0,
            nat_keepalive_secs: 0,
            mapping_maxage_secs: 0,
            security: None,
            iptfs: None,
        };
        self.options.as_deref().unwrap_or(&NONE)
    }

    /// The settings that few have, to be changed.
    pub(super) fn options_mut(&mut self) -> &mut SaOptions {
        self.options.get_or_insert_default()
    }

    /// Whether the engine keeps it for itself (`xfrm_state_kern`).
    #[must_use]
    pub fn is_kernel_owned(&self) -> bool {
        self.is_tunnel
    }

    /// The engine's name for it; of an SA outside the SAD, one that finds nothing.
    #[must_use]
    pub const fn handle(&self, id: SaId) -> SaHandle {
        SaHandle {
            id,
            serial: self.serial,
        }
    }

    /// Another one like it, on which a packet may leave its traces in its place.
    pub(crate) fn stand_in(&self) -> Box<Self> {
        let mut traffic = self.traffic.of_clone(self.is_esn(), self.may_wrap());
        traffic.set_expired(self.traffic.is_expired());
        Box::new(Self {
            state: self.state,
            traffic,
            window: Window::new(self.window().clone()),
            told: OnceLock::new(),
            engine: OnceLock::new(),
            expiry: Expiry::default(),
            inserted: self.inserted,
            serial: self.serial,
            tunnel: self.tunnel,
            aead: self.aead.clone(),
            auth: self.auth.clone(),
            crypt: self.crypt.clone(),
            options: self.options.clone(),
            ..*self
        })
    }

    /// Whether packets may use it (`XFRM_STATE_VALID`).
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.state == Lifecycle::Valid && !self.traffic.is_expired()
    }

    /// `XFRM_STATE_ESN`.
    #[must_use]
    pub const fn is_esn(&self) -> bool {
        self.flags & XFRM_STATE_ESN != 0
    }

    /// `XFRM_SA_XFLAG_OSEQ_MAY_WRAP`.
    pub(super) fn may_wrap(&self) -> bool {
        self.options().extra_flags & XFRM_SA_XFLAG_OSEQ_MAY_WRAP != 0
    }

    /// The sequence numbers that have come in; held for as short as possible.
    #[inline]
    pub fn window(&self) -> WindowGuard<'_> {
        self.window.lock()
    }

    /// What [`ReplayWindow::check`] and [`ReplayWindow::infer`] say of a number, mostly without the lock.
    ///
    /// # Errors
    /// As `check`.
    #[inline]
    pub(crate) fn first_look(&self, low: u32) -> Result<Sequence, Refusal> {
        if let Some(newer) = self.window.newer(low) {
            return Ok(newer);
        }
        let window = self.window();
        window.check(low)?;
        Ok(window.infer(low))
    }

    /// The whole number of a packet that is newer than all that have come, if whatever comes after it
    /// with a greater low half has the same high one and is newer still. `None` says nothing.
    #[inline]
    pub(crate) fn newer_from(&self, low: u32) -> Option<Sequence> {
        self.window.newer(low)
    }

    /// Whether a lookup with that mark finds it.
    #[must_use]
    pub fn matches_mark(&self, mark: u32) -> bool {
        mark & self.mark.m == self.mark.v
    }

    /// The fixed part of what is told of it (`copy_to_user_state`).
    #[must_use]
    pub fn info(&self) -> UserSaInfo {
        UserSaInfo {
            sel: self.sel,
            id: self.id,
            saddr: self.saddr,
            lft: self.lft,
            curlft: self.traffic.lifetime(),
            stats: self.traffic.stats(),
            seq: self.seq,
            reqid: self.reqid,
            family: self.family,
            mode: self.mode,
            replay_window: self.replay_window,
            flags: self.flags,
            pad: [0; 7],
        }
    }

    /// What a NEWAE message tells of it (`build_aevent`).
    #[must_use]
    pub fn aevent(&self, flags: u32) -> Aevent {
        Aevent {
            body: AeventId {
                sa_id: self.user_id(),
                saddr: self.saddr,
                flags,
                reqid: self.reqid,
            },
            replay: self.replay_value(),
            lifetime: self.traffic.lifetime(),
            maxdiff: self.replay_maxdiff,
            maxage: self.replay_maxage,
            mark: self.mark,
            if_id: self.if_id,
            pcpu: self.pcpu,
            dir: self.dir,
        }
    }

    /// How messages name it.
    #[must_use]
    pub fn user_id(&self) -> UserSaId {
        UserSaId {
            daddr: self.id.daddr,
            spi: self.id.spi,
            family: self.family,
            proto: self.id.proto,
            pad: 0,
        }
    }

    /// What an EXPIRE message tells of it (`build_expire`).
    #[must_use]
    pub fn expire(&self, hard: bool) -> SaExpire {
        SaExpire {
            body: UserExpire {
                state: self.info(),
                hard: u8::from(hard),
                pad: [0; 7],
            },
            mark: self.mark,
            if_id: self.if_id,
            pcpu: self.pcpu,
            dir: self.dir,
        }
    }
}

/// The key of a lookup with that mark attribute (`xfrm_mark_get`).
#[must_use]
pub fn mark_key(mark: Mark) -> u32 {
    mark.v & mark.m
}

/// Whether an SA of that protocol is found by its SPI.
///
/// QUIRK: protocol_255_has_an_spi. It equals the "any" that Linux matches it against.
#[must_use]
pub fn has_spi(proto: u8) -> bool {
    matches!(
        proto,
        IPPROTO_AH | IPPROTO_ESP | IPPROTO_COMP | IPSEC_PROTO_ANY
    )
}
