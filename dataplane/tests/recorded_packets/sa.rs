//! SAs from their recorded parameters.

use dataplane::Profile;
use dataplane::crypto::{AeadAlgorithm, AuthAlgorithm, CipherAlgorithm, EspTransform, mac};
use dataplane::entropy::Entropy;
use dataplane::packet::Family;
use dataplane::packet::encap::Encap;
use dataplane::replay::{ReplayWindow, Ring};
use dataplane::transform::ah::{Ah, AhParams};
use dataplane::transform::esp::Esp;
use dataplane::transform::ipcomp::IpComp;
use dataplane::transform::route_optimization::{Kind, RouteOptimization};
use dataplane::transform::{Mode, ModeParams, Protocol, Sequence, Transform};
use xfrm_proto::consts::*;
use xfrm_proto::uapi::Address;

use crate::recording::{Case, Exchange, Params, unhex};

/// Gives what it was told to give.
struct Given(Vec<u64>);

impl Entropy for Given {
    fn u64(&mut self) -> u64 {
        self.0.remove(0)
    }
}

pub(crate) struct Sa {
    pub(crate) spi: u32,
    pub(crate) protocol: u8,
    pub(crate) transform: Transform,
    pub(crate) replay: ReplayWindow,
    encap: Option<Encap>,
    esn: bool,
    first_high: u32,
    /// The number of its first packet.
    pub(crate) first: Sequence,
}

fn number(params: &Params, key: &str) -> u32 {
    let text = params.get(key).map_or("0", |text| text);
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).unwrap(),
        None => text.parse().unwrap(),
    }
}

fn address(text: &str) -> (Family, Address) {
    match text.split('/').next().unwrap().parse().unwrap() {
        std::net::IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            (Family::V4, Address::v4(a, b, c, d))
        }
        std::net::IpAddr::V6(v6) => (Family::V6, Address(v6.octets())),
    }
}

fn flag(params: &Params, key: &str, name: &str) -> bool {
    params
        .get(key)
        .is_some_and(|list| list.split(',').any(|one| one == name))
}

/// Name, key, and number behind it.
fn algorithm(params: &Params, key: &str) -> Option<(String, Vec<u8>, usize)> {
    let mut parts = params.get(key)?.split(':');
    let name = parts.next()?.to_owned();
    let material = unhex(parts.next()?.strip_prefix("0x")?);
    let icv_bits: usize = parts.next().map_or(0, |bits| bits.parse().unwrap());
    Some((name, material, icv_bits / 8))
}

fn full_icv_bytes(name: &str) -> usize {
    match name {
        "hmac(md5)" | "xcbc(aes)" | "cmac(aes)" => 16,
        "hmac(sha1)" | "hmac(rmd160)" => 20,
        "hmac(sha256)" | "hmac(sm3)" => 32,
        "hmac(sha384)" => 48,
        "hmac(sha512)" => 64,
        _ => panic!("{name}"),
    }
}

/// Bytes between AH's ICV and its end.
pub(crate) fn ah_pad_bytes(params: &Params) -> usize {
    let (_, _, icv_bytes) = algorithm(params, "auth").unwrap();
    (12 + icv_bytes).next_multiple_of(8) - 12 - icv_bytes
}

fn crypto(params: &Params, seeds: [u64; 2], esn: bool) -> EspTransform {
    let mut entropy = Given(seeds.to_vec());
    if let Some((name, key, icv_bytes)) = algorithm(params, "aead") {
        let algorithm = AeadAlgorithm::from_name(&name).unwrap();
        return EspTransform::aead(algorithm, &key, icv_bytes, esn, &mut entropy).unwrap();
    }
    let (cipher, key, _) = algorithm(params, "enc").unwrap();
    let cipher = CipherAlgorithm::from_name(&cipher).unwrap();
    let null = ("digest_null".to_owned(), Vec::new(), 0);
    let (auth, auth_key, icv_bytes) = algorithm(params, "auth").unwrap_or(null);
    let auth = AuthAlgorithm::from_name(&auth).unwrap();
    EspTransform::authenc(
        (cipher, &key),
        (auth, &auth_key),
        icv_bytes,
        esn,
        &mut entropy,
    )
    .unwrap()
}

fn mode_params(params: &Params) -> ModeParams {
    let (family, src) = address(&params["src"]);
    let (_, dst) = address(&params["dst"]);
    let selector = |key: &str| params.get(key).map(|text| address(text));
    let flags = [
        ("noecn", XFRM_STATE_NOECN),
        ("decap-dscp", XFRM_STATE_DECAP_DSCP),
        ("nopmtudisc", XFRM_STATE_NOPMTUDISC),
    ];
    let flags = flags
        .iter()
        .filter(|(name, _)| flag(params, "flags", name))
        .map(|(_, bit)| bit)
        .sum();
    ModeParams {
        mode: match &params["mode"][..] {
            "transport" => Mode::Transport,
            "tunnel" => Mode::Tunnel,
            "beet" => Mode::Beet,
            "ro" => Mode::RouteOptimization,
            other => panic!("{other}"),
        },
        family,
        selector_family: selector("sel-src").map(|(family, _)| family),
        src,
        dst,
        selector_src: selector("sel-src").map_or(Address::ANY, |(_, address)| address),
        selector_dst: selector("sel-dst").map_or(Address::ANY, |(_, address)| address),
        flags,
        extra_flags: u32::from(flag(params, "xflags", "dont-encap-dscp")),
    }
}

impl Sa {
    pub(crate) fn new(params: &Params, profile: &'static Profile, seeds: [u64; 2]) -> Self {
        let mode = mode_params(params);
        let family = mode.family;
        let esn = flag(params, "flags", "esn");
        let spi = number(params, "spi");
        let encap = params.get("encap").map(|text| {
            let mut parts = text.split(':').map(|part| part.parse().unwrap());
            let mut next = || parts.next().unwrap();
            Encap {
                kind: next(),
                sport: next(),
                dport: next(),
            }
        });
        let (number_of, protocol) = match &params["proto"][..] {
            "esp" => {
                let crypto = crypto(params, seeds, esn);
                let esp = Esp::new(spi, crypto, number(params, "tfcpad"));
                (IPPROTO_ESP, Protocol::Esp(esp))
            }
            "ah" => {
                let (name, key, icv_bytes) = algorithm(params, "auth").unwrap();
                let auth = AuthAlgorithm::from_name(&name).unwrap();
                let params = AhParams {
                    spi,
                    family,
                    full_icv_bytes: full_icv_bytes(&name),
                    align4: flag(params, "flags", "align4"),
                    esn,
                };
                let mac = mac(auth, &key, icv_bytes).unwrap();
                (IPPROTO_AH, Protocol::Ah(Ah::new(&params, mac)))
            }
            "comp" => {
                let comp = IpComp::new(u16::try_from(spi).unwrap(), 90, profile);
                (IPPROTO_COMP, Protocol::IpComp(comp))
            }
            "hao" | "route2" => {
                let (number, kind) = match &params["proto"][..] {
                    "hao" => (IPPROTO_DSTOPTS, Kind::HomeAddress),
                    _ => (IPPROTO_ROUTING, Kind::Routing),
                };
                let (_, care_of) = address(&params["coa"]);
                let header = RouteOptimization { kind, care_of };
                (number, Protocol::RouteOptimization(header))
            }
            other => panic!("{other}"),
        };
        Self {
            spi,
            protocol: number_of,
            transform: Transform::new(&mode, protocol, encap),
            replay: replay(params, esn),
            encap,
            esn,
            first_high: number(params, "replay-oseq-hi"),
            first: Sequence(
                Sequence::new(
                    number(params, "replay-oseq-hi"),
                    number(params, "replay-oseq"),
                )
                .0 + 1,
            ),
        }
    }

    pub(crate) fn encap_kind(&self) -> u16 {
        self.encap.map_or(0, |encap| encap.kind)
    }

    pub(crate) fn mode(&self) -> Mode {
        self.transform.mode().params().mode
    }

    /// The sequence number that Linux gave the packet: in the clear when the SA is the outermost
    /// or stands behind an AH, the one that every SA of the case counts otherwise.
    pub(crate) fn sequence(&self, exchange: &Exchange, at: usize, count: usize) -> Sequence {
        let Some(out) = exchange.out.first() else {
            return Sequence(1);
        };
        let numbered = matches!(self.protocol, IPPROTO_ESP | IPPROTO_AH);
        let outermost = at + 1 == count && numbered;
        let low = if outermost { self.low(&out.start) } else { 1 };
        // Each case begins just below or at a wrap, if it has one.
        let high = self.first_high + u32::from(self.esn && low < 4 && self.wraps());
        Sequence::new(high, low)
    }

    /// What is behind the SPI in a packet.
    fn low(&self, packet: &[u8]) -> u32 {
        let at = self.spi_at(packet) + 4;
        u32::from_be_bytes(packet[at..at + 4].try_into().unwrap())
    }

    fn spi_at(&self, packet: &[u8]) -> usize {
        let spi = self.spi.to_be_bytes();
        packet.windows(4).position(|word| word == spi).unwrap()
    }

    fn wraps(&self) -> bool {
        matches!(&self.replay, ReplayWindow::Esn(ring) if ring.seq > u32::MAX - 4)
    }
}

fn replay(params: &Params, esn: bool) -> ReplayWindow {
    let window = number(params, "replay-window");
    let words = window.div_ceil(32);
    let seq = number(params, "replay-seq");
    if !esn && window <= 32 {
        return ReplayWindow::Legacy {
            window: u8::try_from(window).unwrap(),
            seq,
            bitmap: 0,
        };
    }
    let ring = Box::new(Ring {
        seq,
        seq_hi: number(params, "replay-seq-hi"),
        idle_oseq_hi: 0,
        window,
        bitmap: vec![0; usize::try_from(words).unwrap()].into(),
    });
    if esn {
        ReplayWindow::Esn(ring)
    } else {
        ReplayWindow::Bitmap(ring)
    }
}

/// The tunnel SA that a tunnel mode IPComp SA brings with it.
pub(crate) fn beside_ipcomp(params: &Params) -> Option<Transform> {
    let wanted = params["proto"] == "comp" && params["mode"] == "tunnel";
    wanted.then(|| Transform::new(&mode_params(params), Protocol::Tunnel, None))
}

/// What ESP's IVs were made from: the numbers that give the packet's IV when they are combined
/// with its sequence number.
pub(crate) fn seeds(case: &Case, exchange: &Exchange) -> [u64; 2] {
    let Some(params) = case.sas.iter().find(|sa| sa["proto"] == "esp") else {
        return [0, 0];
    };
    let Some(out) = exchange.out.first() else {
        return [0, 0];
    };
    let sa = Sa::new(params, case.profile, [0, 0]);
    let low = sa.low(&out.start);
    let sequence = Sequence::new(sa.first_high + u32::from(low < 4 && sa.wraps()), low).0;
    let frame = &out.start[sa.spi_at(&out.start)..];
    let Some((cipher, key, _)) = algorithm(params, "enc") else {
        let iv = u64::from_be_bytes(frame[8..16].try_into().unwrap());
        return [iv ^ sequence, 0];
    };
    let cipher = CipherAlgorithm::from_name(&cipher).unwrap();
    let bare = EspTransform::authenc(
        (cipher, &key),
        (AuthAlgorithm::Null, &[]),
        0,
        false,
        &mut Given(vec![0, 0]),
    );
    let bare = bare.unwrap();
    let iv_bytes = bare.layout().iv_bytes;
    let Some(iv) = frame.get(8..8 + iv_bytes) else {
        return [0, 0];
    };
    if cipher == CipherAlgorithm::AesCtr {
        return [u64::from_be_bytes(iv.try_into().unwrap()) ^ sequence, 0];
    }
    // CBC's IV is an encrypted block: decrypted, as the first block behind an IV of zeros, it is
    // what was encrypted.
    let mut block = vec![0; 8 + iv_bytes];
    block.extend(iv);
    bare.open(0, &mut block).unwrap();
    let mut plain = block[8 + iv_bytes..].to_vec();
    plain.resize(16, 0);
    let half = |at: usize| u64::from_be_bytes(plain[at..at + 8].try_into().unwrap());
    [half(0) ^ sequence, half(8)]
}
