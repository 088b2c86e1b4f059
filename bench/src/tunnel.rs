//! What the packet path is measured with: namespaces with tunnels, packets for
//! them, and one packet's way. `bench packets` does nothing else, so that a
//! profiler can count.

use std::hint::black_box;
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, bail};
use dataplane::netns::Limits;
use dataplane::packet::{PacketBuf, ip4};
use dataplane::path::{
    Departure, InputMeta, OneRoute, OutputMeta, PathInfo, Received, Verdict, Worker,
};
use dataplane::sad::construct::SaRequest;
use dataplane::spd::{Policy, Templates};
use dataplane::{BootNanos, Context, Netns, Now, SeededEntropy, WallSecs, profile};
use xfrm_proto::algo::AlgoBlob;
use xfrm_proto::consts::*;
use xfrm_proto::uapi::{Address, LifetimeCfg, Selector, UserPolicyInfo, UserSaInfo, UserTmpl};

use crate::crypto::BareAead;

pub(crate) const LOCAL: Address = Address::v4(192, 0, 2, 1);
const REMOTE: Address = Address::v4(192, 0, 2, 2);
pub(crate) const NOW: Now = Now {
    boot: BootNanos(1),
    real: WallSecs(1_700_000_000),
};
/// Packets in hand, where it is more than one.
pub(crate) const IN_HAND: usize = 32;

/// The sender's host, or with `REMOTE` the receiver's.
const fn host(local: Address) -> OneRoute {
    OneRoute {
        local,
        path: PathInfo {
            mtu: 9_000,
            hop_limit: 64,
        },
    }
}

const META: OutputMeta = OutputMeta {
    mark: 0,
    if_id: 0,
    ifindex: 2,
    socket: None,
    forwarded: true,
    bypasses: false,
    loopback: false,
    mtu: 9_000,
    hop_limit: 64,
};

/// Name, key bytes, ICV bits.
pub(crate) type Algorithm = (&'static str, usize, u32);

pub(crate) const GCM_128: Algorithm = ("rfc4106(gcm(aes))", 20, 128);

pub(crate) fn blob((name, key_bytes, icv_bits): Algorithm) -> AlgoBlob {
    AlgoBlob::new(name, &vec![7; key_bytes], icv_bits)
}

fn template(reqid: u32) -> UserTmpl {
    let mut template = UserTmpl {
        family: AF_INET,
        saddr: LOCAL,
        reqid,
        mode: XFRM_MODE_TUNNEL,
        aalgos: u32::MAX,
        ealgos: u32::MAX,
        calgos: u32::MAX,
        ..UserTmpl::default()
    };
    template.id.daddr = REMOTE;
    template.id.proto = IPPROTO_ESP;
    template
}

pub(crate) fn add_policy(
    netns: &mut Netns,
    (sel, dir): (Selector, u8),
    priority: u32,
    templates: &[UserTmpl],
) -> Result<()> {
    let info = UserPolicyInfo {
        sel,
        priority,
        dir,
        lft: LifetimeCfg::UNLIMITED,
        ..UserPolicyInfo::default()
    };
    let templates = Templates::new(templates.iter().copied());
    let policy = Policy::new(&info, XFRM_POLICY_TYPE_MAIN, templates);
    let added = netns.spd.insert(policy, false, NOW);
    added.map(|_| ()).map_err(|e| anyhow!("errno {}", e.errno))
}

fn add_sa(netns: &mut Netns, spi: u32, fill: impl FnOnce(&mut SaRequest<'_>)) -> Result<()> {
    let mut request = SaRequest {
        info: UserSaInfo {
            lft: LifetimeCfg::UNLIMITED,
            family: AF_INET,
            mode: XFRM_MODE_TUNNEL,
            saddr: LOCAL,
            reqid: spi,
            replay_window: 32,
            ..UserSaInfo::default()
        },
        ..SaRequest::default()
    };
    request.info.id.daddr = REMOTE;
    request.info.id.spi = spi.into();
    request.info.id.proto = IPPROTO_ESP;
    fill(&mut request);
    let cx = Context {
        now: NOW,
        entropy: &mut SeededEntropy::new(1),
        acqseq: &mut 0,
    };
    let refused = |e: dataplane::XfrmError| anyhow!("errno {}", e.errno);
    let sa = netns.sad.construct(&cx, &netns.sysctls, request);
    let sa = sa.map_err(refused)?;
    netns.sad.add(sa, NOW).map(|_| ()).map_err(refused)
}

pub(crate) fn network(third: u8) -> Selector {
    Selector {
        daddr: Address::v4(10, 2, third, 0),
        prefixlen_d: 24,
        family: AF_INET,
        ..Selector::default()
    }
}

/// A namespace with an SA and policies, one out and one in, for each of `count` networks.
pub(crate) fn tunnels(count: u8, fill: impl Fn(&mut SaRequest<'_>)) -> Result<Netns> {
    let mut netns = Netns::new(&profile::V7_2, Limits::default());
    for number in 0..count {
        let reqid = u32::from(number) + 1;
        add_sa(&mut netns, reqid, &fill)?;
        for dir in [XFRM_POLICY_OUT, XFRM_POLICY_FWD] {
            let which = (network(number), dir);
            add_policy(&mut netns, which, 0, &[template(reqid)])?;
        }
    }
    Ok(netns)
}

/// A namespace whose policies want no SA.
pub(crate) fn open_networks(count: u8) -> Result<Netns> {
    let mut netns = Netns::new(&profile::V7_2, Limits::default());
    for number in 0..count {
        add_policy(&mut netns, (network(number), XFRM_POLICY_OUT), 0, &[])?;
    }
    Ok(netns)
}

/// An IPv4 packet of `bytes` to 10.2.`third`.1.
pub(crate) fn packet(third: u8, bytes: usize) -> Vec<u8> {
    let mut packet = vec![
        0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 1, 0, 1, 10, 2, third, 1,
    ];
    packet.resize(bytes, 0x61);
    let _ = ip4::finish(&mut packet);
    packet
}

/// One end: a worker with its namespace and buffers.
pub(crate) struct End<'a> {
    netns: &'a Netns,
    worker: Worker,
    buffers: Vec<PacketBuf>,
}

impl<'a> End<'a> {
    pub(crate) fn new(netns: &'a Netns, number: u32, in_hand: usize) -> Self {
        Self {
            netns,
            worker: Worker::new(number, Box::new(SeededEntropy::new(u64::from(number)))),
            buffers: vec![PacketBuf::with_capacity(9_100); in_hand],
        }
    }

    /// A packet out.
    pub(crate) fn send(&mut self, inner: &[u8]) {
        self.send_to(inner, &mut |packet, _| {
            black_box(&**packet);
        });
    }

    fn send_to(&mut self, inner: &[u8], sink: &mut dyn FnMut(&mut PacketBuf, &Departure)) {
        let Some(buffer) = self.buffers.first_mut() else {
            return;
        };
        buffer.fill(inner);
        let worker = &mut self.worker;
        let verdict = worker.output(self.netns, NOW, buffer, &META, &host(LOCAL), sink);
        assert!(matches!(verdict, Verdict::Sent(1) | Verdict::Plain));
    }

    /// As many copies of a packet as there are buffers, in hand together.
    pub(crate) fn send_all(&mut self, inner: &[u8]) {
        for buffer in &mut self.buffers {
            buffer.fill(inner);
        }
        let mut sink = |packet: &mut PacketBuf, _: &_| {
            black_box(&**packet);
        };
        let mut done = |verdict| assert_eq!(verdict, Verdict::Sent(1));
        let (all, routes) = (&mut self.buffers, host(LOCAL));
        let worker = &mut self.worker;
        worker.output_batch(self.netns, NOW, all, &META, &routes, &mut sink, &mut done);
    }

    /// Packets as they go over the wire, one after the other.
    pub(crate) fn sealed(&mut self, inner: &[u8], count: usize) -> Vec<Vec<u8>> {
        let mut all = Vec::with_capacity(count);
        for _ in 0..count {
            self.send_to(inner, &mut |packet, _| all.push(packet.to_vec()));
        }
        all
    }

    /// A packet in.
    pub(crate) fn receive(&mut self, outer: &[u8]) {
        let Some(buffer) = self.buffers.first_mut() else {
            return;
        };
        buffer.fill(outer);
        let mut meta = InputMeta::default();
        let worker = &mut self.worker;
        let received = worker.receive(self.netns, NOW, buffer, &mut meta, &host(REMOTE));
        assert_eq!(received, Received::Forward);
        black_box(&**buffer);
    }

    /// As many packets in as there are buffers, in hand together.
    pub(crate) fn receive_all(&mut self, outers: &[Vec<u8>]) {
        let Some(all) = self.buffers.get_mut(..outers.len()) else {
            return;
        };
        for (buffer, outer) in all.iter_mut().zip(outers) {
            buffer.fill(outer);
        }
        let mut done = |packet: &mut PacketBuf, received| {
            assert_eq!(received, Received::Forward);
            black_box(&**packet);
        };
        let (meta, host) = (InputMeta::default(), host(REMOTE));
        let worker = &mut self.worker;
        worker.receive_batch(self.netns, NOW, all, &meta, &host, &mut done);
    }
}

/// Ways of a packet that `bench packets` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// A remembered flow without SAs.
    Plain,
    Out,
    OutInHand,
    /// What `In` needs as well.
    Sealed,
    In,
    InInHand,
    /// The bare cipher.
    BareSeal,
    BareOpen,
}

const WAYS: [(&str, Way); 8] = [
    ("plain", Way::Plain),
    ("out", Way::Out),
    ("out-in-hand", Way::OutInHand),
    ("sealed", Way::Sealed),
    ("in", Way::In),
    ("in-in-hand", Way::InInHand),
    ("bare-seal", Way::BareSeal),
    ("bare-open", Way::BareOpen),
];

/// `bench packets WAY BYTES COUNT`: that many AES-128-GCM packets of a size and nothing else. Two
/// runs give the instructions of one packet.
pub(crate) fn packets(args: &[String]) -> Result<bool> {
    let usage = || anyhow!("usage: packets WAY BYTES COUNT");
    let [way, bytes, count] = args else {
        return Err(usage());
    };
    let way = WAYS.iter().find(|(name, _)| name == way);
    let &(_, way) = way.ok_or_else(usage)?;
    let (bytes, count): (usize, usize) = (bytes.parse()?, count.parse()?);
    let netns = match way {
        Way::Plain => open_networks(1)?,
        _ => tunnels(1, |sa| sa.aead = Some(blob(GCM_128)))?,
    };
    let inner = packet(0, bytes);
    let mut end = End::new(&netns, 0, IN_HAND);
    match way {
        Way::Plain | Way::Out => (0..count).for_each(|_| end.send(&inner)),
        Way::OutInHand => (0..count / IN_HAND).for_each(|_| end.send_all(&inner)),
        Way::Sealed => {
            black_box(end.sealed(&inner, count));
        }
        Way::In => {
            let sealed = end.sealed(&inner, count);
            sealed.iter().for_each(|outer| end.receive(outer));
        }
        Way::InInHand => {
            let sealed = end.sealed(&inner, count);
            let groups = sealed.chunks(IN_HAND);
            groups.for_each(|outers| end.receive_all(outers));
        }
        Way::BareSeal | Way::BareOpen => {
            let mut bare = BareAead::new(&ring::aead::AES_128_GCM, &inner)?;
            for _ in 0..count {
                match way {
                    Way::BareSeal => bare.seal(),
                    _ => bare.open(),
                }
            }
        }
    }
    Ok(true)
}

/// Instructions of one packet, counted by valgrind; `None` where that is missing.
pub(crate) fn instructions(way: Way, bytes: usize) -> Result<Option<f64>> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        return Ok(None);
    }
    const FEW: usize = 20 * IN_HAND;
    const MANY: usize = 120 * IN_HAND;
    let each = |way| -> Result<f64> {
        let (few, many) = (count(way, bytes, FEW)?, count(way, bytes, MANY)?);
        Ok((many - few) / (MANY - FEW) as f64)
    };
    Ok(Some(match way {
        Way::In | Way::InInHand => each(way)? - each(Way::Sealed)?,
        way => each(way)?,
    }))
}

fn count(way: Way, bytes: usize, packets: usize) -> Result<f64> {
    let (name, _) = WAYS
        .iter()
        .find(|(_, other)| *other == way)
        .context("a way without a name")?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(["packets", name, &bytes.to_string(), &packets.to_string()])
        .output()?;
    let told = String::from_utf8_lossy(&output.stderr);
    let collected = told
        .lines()
        .find_map(|line| line.split_once("Collected :"))
        .and_then(|(_, number)| number.trim().parse().ok());
    match collected {
        Some(count) if output.status.success() => Ok(count),
        _ => bail!("valgrind: {told}"),
    }
}
