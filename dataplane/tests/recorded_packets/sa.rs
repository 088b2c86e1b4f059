//! SAs from their recorded parameters, made as NEWSA makes them.

use dataplane::crypto::{AuthAlgorithm, CipherAlgorithm, EspTransform};
use dataplane::entropy::Entropy;
use dataplane::netns::Limits;
use dataplane::packet::Family;
use dataplane::replay::ReplayWindow;
use dataplane::sad::construct::SaRequest;
use dataplane::sad::{Sad, WindowGuard};
use dataplane::sysctl::Sysctls;
use dataplane::transform::{Mode, ModeParams, Protocol, Sequence, Transform};
use dataplane::{Context, Now, Profile};
use xfrm_proto::algo::AlgoBlob;
use xfrm_proto::consts::*;
use xfrm_proto::uapi::{Address, EncapTmpl, ReplayState, ReplayStateEsn, Selector, UserSaInfo};
use zerocopy::IntoBytes;

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
    sa: Box<dataplane::sad::Sa>,
    profile: &'static Profile,
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

/// Bytes between AH's ICV and its end.
pub(crate) fn ah_pad_bytes(params: &Params) -> usize {
    let (_, _, icv_bytes) = algorithm(params, "auth").unwrap();
    (12 + icv_bytes).next_multiple_of(8) - 12 - icv_bytes
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
            "iptfs" => Mode::Iptfs {
                splits: !params.contains_key("dont-frag"),
            },
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

fn blob(params: &Params, key: &str) -> Option<AlgoBlob> {
    let (name, key, icv_bytes) = algorithm(params, key)?;
    let icv_bits = u32::try_from(icv_bytes * 8).unwrap();
    Some(AlgoBlob::new(&name, &key, icv_bits))
}

fn selector(params: &Params) -> Option<Selector> {
    let (family, saddr) = address(params.get("sel-src")?);
    let (_, daddr) = address(&params["sel-dst"]);
    let (family, bits) = match family {
        Family::V4 => (AF_INET, 32),
        Family::V6 => (AF_INET6, 128),
    };
    Some(Selector {
        saddr,
        daddr,
        family,
        prefixlen_s: bits,
        prefixlen_d: bits,
        ..Selector::default()
    })
}

/// NEWSA with these parameters.
fn request<'a>(params: &Params, replay: &'a [u8]) -> SaRequest<'a> {
    let (family, saddr) = address(&params["src"]);
    let mode = mode_params(params);
    let esn = flag(params, "flags", "esn");
    let mut flags = mode.flags;
    if esn {
        flags |= XFRM_STATE_ESN;
    }
    if flag(params, "flags", "align4") {
        flags |= XFRM_STATE_ALIGN4;
    }
    let sel = selector(params).unwrap_or_else(|| {
        flags |= XFRM_STATE_AF_UNSPEC;
        Selector::default()
    });
    let window = number(params, "replay-window");
    let mut request = SaRequest {
        info: UserSaInfo {
            sel,
            saddr,
            family: match family {
                Family::V4 => AF_INET,
                Family::V6 => AF_INET6,
            },
            mode: match mode.mode {
                Mode::Transport => XFRM_MODE_TRANSPORT,
                Mode::Tunnel => XFRM_MODE_TUNNEL,
                Mode::Beet => XFRM_MODE_BEET,
                Mode::RouteOptimization => XFRM_MODE_ROUTEOPTIMIZATION,
                Mode::Iptfs { .. } => XFRM_MODE_IPTFS,
            },
            flags,
            replay_window: u8::try_from(window).unwrap_or(0),
            ..UserSaInfo::default()
        },
        aead: blob(params, "aead"),
        auth_trunc: blob(params, "auth"),
        crypt: blob(params, "enc"),
        extra_flags: mode.extra_flags,
        tfcpad: number(params, "tfcpad"),
        coaddr: params.get("coa").map(|text| address(text).1),
        ..SaRequest::default()
    };
    if esn || window > 32 {
        request.params.esn = Some(replay);
    } else {
        request.params.replay = Some(ReplayState {
            seq: number(params, "replay-seq"),
            ..ReplayState::default()
        });
    }
    request.info.id.daddr = address(&params["dst"]).1;
    request.info.id.proto = match &params["proto"][..] {
        "esp" => IPPROTO_ESP,
        "ah" => IPPROTO_AH,
        "comp" => IPPROTO_COMP,
        "hao" => IPPROTO_DSTOPTS,
        "route2" => IPPROTO_ROUTING,
        other => panic!("{other}"),
    };
    if !matches!(request.info.id.proto, IPPROTO_DSTOPTS | IPPROTO_ROUTING) {
        request.info.id.spi = number(params, "spi").into();
    }
    if request.info.id.proto == IPPROTO_COMP {
        request.comp = Some(AlgoBlob::new("deflate", &[], 0));
    }
    request.iptfs.dont_frag = params.contains_key("dont-frag");
    request.encap = params.get("encap").map(|text| {
        let mut parts = text.split(':').map(|part| part.parse::<u16>().unwrap());
        let mut next = || parts.next().unwrap();
        EncapTmpl {
            kind: next(),
            sport: next().into(),
            dport: next().into(),
            ..EncapTmpl::default()
        }
    });
    request
}

/// REPLAY_ESN_VAL with these parameters.
fn replay(params: &Params) -> Vec<u8> {
    let window = number(params, "replay-window");
    let words = window.div_ceil(32);
    let head = ReplayStateEsn {
        bmp_len: words,
        seq: number(params, "replay-seq"),
        seq_hi: number(params, "replay-seq-hi"),
        replay_window: window,
        ..ReplayStateEsn::default()
    };
    let mut attr = head.as_bytes().to_vec();
    attr.resize(attr.len() + 4 * usize::try_from(words).unwrap(), 0);
    attr
}

impl Sa {
    pub(crate) fn new(params: &Params, profile: &'static Profile, seeds: [u64; 2]) -> Self {
        let mut sad = Sad::new(profile, Limits::default());
        let cx = Context {
            now: Now::default(),
            entropy: &mut Given(Vec::new()),
            acqseq: &mut 0,
        };
        let attr = replay(params);
        let sa = sad
            .construct(&cx, &Sysctls::default(), request(params, &attr))
            .unwrap_or_else(|error| panic!("{params:?}: {error:?}"));
        assert!(sa.transform(profile, &mut Given(seeds.to_vec())).is_some());
        Self {
            spi: sa.id.spi.get(),
            protocol: sa.id.proto,
            profile,
            first_high: number(params, "replay-oseq-hi"),
            first: Sequence(
                Sequence::new(
                    number(params, "replay-oseq-hi"),
                    number(params, "replay-oseq"),
                )
                .0 + 1,
            ),
            sa,
        }
    }

    pub(crate) fn transform(&self) -> &Transform {
        // It has been made already.
        let transform = self.sa.transform(self.profile, &mut Given(Vec::new()));
        transform.unwrap()
    }

    pub(crate) fn replay(&self) -> WindowGuard<'_> {
        self.sa.window()
    }

    pub(crate) fn encap_kind(&self) -> u16 {
        self.sa.encap().map_or(0, |encap| encap.kind)
    }

    pub(crate) fn is_esn(&self) -> bool {
        self.sa.is_esn()
    }

    pub(crate) fn mode(&self) -> Mode {
        self.transform().mode().params().mode
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
        let high = self.first_high + u32::from(self.sa.is_esn() && low < 4 && self.wraps());
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
        matches!(&*self.replay(), ReplayWindow::Esn(ring) if ring.seq > u32::MAX - 4)
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
