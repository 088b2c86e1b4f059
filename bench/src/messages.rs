//! Requests for the benchmarks, numbered: request `i` of a data set is always the same.

use xfrm_proto::consts::*;
use xfrm_proto::reply::Writer;
use xfrm_proto::uapi::*;
use zerocopy::IntoBytes;

/// How the selectors of a set of policies differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Host to host.
    Pairs,
    /// Prefixes of 16 to 30 bits on both sides, in two networks of 8 bits: many cover each other.
    Mixed,
    /// The same, anywhere: Linux's trees have nearly as many nodes as there are policies, all of
    /// which it visits when one goes.
    Scattered,
    /// The same two hosts, other ports.
    Ports,
}

impl Shape {
    pub(crate) const ALL: [Self; 4] = [Self::Pairs, Self::Mixed, Self::Scattered, Self::Ports];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pairs => "pairs",
            Self::Mixed => "mixed",
            Self::Scattered => "scattered",
            Self::Ports => "ports",
        }
    }

    pub(crate) fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|shape| shape.name() == name)
    }
}

/// A repeatable scrambling of `i`, so that neighbours in number are not neighbours in memory.
pub(crate) fn scramble(i: u32) -> u32 {
    let mut x = i.wrapping_mul(0x9e37_79b1) ^ 0x85eb_ca6b;
    x ^= x >> 15;
    x = x.wrapping_mul(0x2c1b_3c6d);
    x ^ (x >> 13)
}

fn host(net: u8, i: u32) -> Address {
    let [_, b, c, d] = i.to_be_bytes();
    Address::v4(net, b, c, d)
}

/// The selector of policy `i`.
pub(crate) fn selector(shape: Shape, i: u32) -> Selector {
    let base = Selector {
        family: AF_INET,
        prefixlen_d: 32,
        prefixlen_s: 32,
        ..Selector::default()
    };
    match shape {
        Shape::Pairs => Selector {
            daddr: host(10, i),
            saddr: host(11, i),
            ..base
        },
        Shape::Mixed | Shape::Scattered => {
            let x = scramble(i);
            let plen = |bits: u32| 16 + u8::try_from(bits % 15).unwrap_or(0);
            let masked = |net: u32, bits: u32, plen: u8| {
                let bits = match shape {
                    Shape::Mixed => net << 24 | bits >> 8,
                    _ => bits,
                };
                Address::from(std::net::IpAddr::V4(
                    (bits & (u32::MAX << (32 - plen))).into(),
                ))
            };
            let (plen_d, plen_s) = (plen(x >> 4), plen(x >> 20));
            Selector {
                daddr: masked(10, scramble(x), plen_d),
                saddr: masked(11, scramble(!x), plen_s),
                prefixlen_d: plen_d,
                prefixlen_s: plen_s,
                // Tells masked neighbours apart without changing what the prefixes are.
                user: i,
                ..base
            }
        }
        Shape::Ports => {
            let [a, b, c, d] = i.to_be_bytes();
            Selector {
                daddr: host(10, 1),
                saddr: host(11, 1),
                proto: IPPROTO_UDP,
                dport: u16::from_be_bytes([c, d]).into(),
                dport_mask: u16::MAX.into(),
                sport: (1024 + u16::from_be_bytes([a, b])).into(),
                sport_mask: u16::MAX.into(),
                ..base
            }
        }
    }
}

/// `NEWPOLICY` or `UPDPOLICY` of policy `i`, one ESP tunnel template.
pub(crate) fn put_policy(out: &mut Vec<u8>, kind: u16, flags: u16, shape: Shape, i: u32) {
    let info = UserPolicyInfo {
        sel: selector(shape, i),
        lft: LifetimeCfg::UNLIMITED,
        priority: 1000,
        dir: XFRM_POLICY_OUT,
        ..UserPolicyInfo::default()
    };
    let tmpl = UserTmpl {
        id: XfrmId {
            daddr: host(10, 1),
            proto: IPPROTO_ESP,
            ..XfrmId::default()
        },
        family: AF_INET,
        saddr: host(11, 1),
        reqid: i,
        mode: XFRM_MODE_TUNNEL,
        aalgos: u32::MAX,
        ealgos: u32::MAX,
        calgos: u32::MAX,
        ..UserTmpl::default()
    };
    let mut w = Writer::begin(out, kind, NLM_F_REQUEST | flags, i, 0);
    w.body(&info);
    w.attr_pod(XFRMA_TMPL, &tmpl);
    w.end();
}

/// `DELPOLICY` or `GETPOLICY` of policy `i`, by selector.
pub(crate) fn put_policy_id(out: &mut Vec<u8>, kind: u16, flags: u16, shape: Shape, i: u32) {
    let id = UserPolicyId {
        sel: selector(shape, i),
        dir: XFRM_POLICY_OUT,
        ..UserPolicyId::default()
    };
    let mut w = Writer::begin(out, kind, NLM_F_REQUEST | flags, i, 0);
    w.body(&id);
    w.end();
}

const FIRST_SPI: u32 = 0x1000;

fn spi(i: u32) -> BeU32 {
    (FIRST_SPI + i).into()
}

/// Which SA it is that has this SPI.
pub(crate) fn of_spi(spi: u32) -> u32 {
    spi.wrapping_sub(FIRST_SPI)
}

/// `NEWSA` of SA `i`: ESP tunnel, AES-128-GCM.
pub(crate) fn put_sa(out: &mut Vec<u8>, flags: u16, i: u32) {
    put_sa_for(out, flags, i, [0; 2]);
}

/// The same for so many seconds, until its soft and its hard expiry.
pub(crate) fn put_sa_for(out: &mut Vec<u8>, flags: u16, i: u32, [soft, hard]: [u64; 2]) {
    let info = UserSaInfo {
        id: XfrmId {
            daddr: host(10, i),
            spi: spi(i),
            proto: IPPROTO_ESP,
            ..XfrmId::default()
        },
        saddr: host(11, i),
        lft: LifetimeCfg {
            soft_add_expires_seconds: soft,
            hard_add_expires_seconds: hard,
            ..LifetimeCfg::UNLIMITED
        },
        reqid: i,
        family: AF_INET,
        mode: XFRM_MODE_TUNNEL,
        replay_window: 32,
        ..UserSaInfo::default()
    };
    let mut name = [0_u8; 64];
    for (to, from) in name.iter_mut().zip(b"rfc4106(gcm(aes))") {
        *to = *from;
    }
    let mut key = [0x5a_u8; 20];
    for (to, from) in key.iter_mut().zip(i.to_ne_bytes()) {
        *to = from;
    }
    let mut w = Writer::begin(out, XFRM_MSG_NEWSA, NLM_F_REQUEST | flags, i, 0);
    w.body(&info);
    w.attr_parts(
        XFRMA_ALG_AEAD,
        &[&name, &160_u32.to_ne_bytes(), &128_u32.to_ne_bytes(), &key],
    );
    w.end();
}

/// `GETSA` or `DELSA` of SA `i`.
pub(crate) fn put_sa_id(out: &mut Vec<u8>, kind: u16, flags: u16, i: u32) {
    let id = UserSaId {
        daddr: host(10, i),
        spi: spi(i),
        family: AF_INET,
        proto: IPPROTO_ESP,
        pad: 0,
    };
    let mut w = Writer::begin(out, kind, NLM_F_REQUEST | flags, i, 0);
    w.body(&id);
    w.end();
}

/// `ALLOCSPI` for a destination of its own.
pub(crate) fn put_alloc_spi(out: &mut Vec<u8>, flags: u16, i: u32) {
    let info = UserSaInfo {
        id: XfrmId {
            daddr: host(12, i),
            proto: IPPROTO_ESP,
            ..XfrmId::default()
        },
        saddr: host(13, i),
        family: AF_INET,
        mode: XFRM_MODE_TUNNEL,
        ..UserSaInfo::default()
    };
    let body = UserSpiInfo {
        info,
        min: 0xc000_0000,
        max: 0xcfff_ffff,
    };
    let mut w = Writer::begin(out, XFRM_MSG_ALLOCSPI, NLM_F_REQUEST | flags, i, 0);
    w.body(&body);
    w.end();
}

/// `GETSADINFO`, the smallest request with an answer.
pub(crate) fn put_sad_info(out: &mut Vec<u8>, flags: u16, i: u32) {
    let mut w = Writer::begin(out, XFRM_MSG_GETSADINFO, NLM_F_REQUEST | flags, i, 0);
    w.put(0_u32.as_bytes());
    w.end();
}

/// A dump request.
pub(crate) fn put_dump(out: &mut Vec<u8>, kind: u16) {
    Writer::begin(out, kind, NLM_F_REQUEST | NLM_F_DUMP, 1, 0).end();
}

/// `FLUSHSA` or `FLUSHPOLICY`.
pub(crate) fn put_flush(out: &mut Vec<u8>, kind: u16) {
    let mut w = Writer::begin(out, kind, NLM_F_REQUEST | NLM_F_ACK, 1, 0);
    w.put(&[0; 4]);
    w.end();
}
