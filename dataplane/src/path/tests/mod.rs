//! One namespace with one worker, packets by hand, a virtual clock.

mod explain;
mod input;
mod iptfs;
mod limits;
mod output;
mod sizes;
mod states;
mod threads;
mod together;

use std::collections::BTreeMap;

use xfrm_proto::algo::AlgoBlob;
use xfrm_proto::consts::*;
use xfrm_proto::uapi::{
    Address, LifetimeCfg, Mark, Selector, UserPolicyInfo, UserSaInfo, UserTmpl,
};

use crate::mib::Counter;
use crate::netns::{Context, Limits, Netns};
use crate::packet::{PacketBuf, ip4, ip6};
use crate::path::{OutputMeta, PathInfo, RouteQuery, Routes, Verdict, Worker};
use crate::profile::{Profile, V7_2};
use crate::sad::construct::SaRequest;
use crate::sad::{Sa, SaId};
use crate::spd::{Policy, PolicyId, Templates};
use crate::time::{BootNanos, Now, WallSecs};
use crate::transform::{Delivery, Inbound, Scratch, Sequence};
use crate::{DropReason, Event, SeededEntropy};

pub(super) const LOCAL: Address = Address::v4(192, 0, 2, 1);
pub(super) const REMOTE: Address = Address::v4(192, 0, 2, 2);

/// Every destination, by one route; some have none.
pub(super) struct OneRoute {
    pub(super) mtu: u32,
    pub(super) fails: Option<i32>,
    pub(super) generation: u64,
}

impl Routes for OneRoute {
    fn generation(&self) -> u64 {
        self.generation
    }

    fn route(&self, _query: &RouteQuery) -> Result<PathInfo, i32> {
        match self.fails {
            Some(errno) => Err(errno),
            None => Ok(PathInfo {
                mtu: self.mtu,
                hop_limit: 61,
            }),
        }
    }

    fn source(&self, _query: &RouteQuery) -> Result<Address, i32> {
        self.fails.map_or(Ok(LOCAL), Err)
    }
}

pub(super) struct Host {
    pub(super) netns: Netns,
    pub(super) worker: Worker,
    pub(super) routes: OneRoute,
    pub(super) meta: OutputMeta,
    pub(super) sent: Vec<(Vec<u8>, u32)>,
    millis: u64,
    acqseq: u32,
    entropy: SeededEntropy,
}

impl Host {
    pub(super) fn new() -> Self {
        Self::of(&V7_2)
    }

    pub(super) fn of(profile: &'static Profile) -> Self {
        let mut netns = Netns::new(profile, Limits::default());
        netns.listeners.acquire = true;
        Self {
            netns,
            worker: Worker::new(0, Box::new(SeededEntropy::new(2))),
            routes: OneRoute {
                mtu: 1500,
                fails: None,
                generation: 0,
            },
            meta: OutputMeta {
                mark: 0,
                if_id: 0,
                ifindex: 2,
                socket: None,
                forwarded: false,
                bypasses: false,
                loopback: false,
                mtu: 1500,
                hop_limit: 64,
            },
            sent: Vec::new(),
            millis: 0,
            acqseq: 0,
            entropy: SeededEntropy::new(1),
        }
    }

    pub(super) fn now(&self) -> Now {
        Now {
            boot: BootNanos(self.millis * 1_000_000),
            real: WallSecs(1_000_000 + self.millis / 1000),
        }
    }

    /// Lets time pass, a tenth of a second at a time.
    pub(super) fn wait(&mut self, millis: u64) {
        let end = self.millis + millis;
        while self.millis < end {
            self.millis = end.min(self.millis + 100);
            let now = self.now();
            let mut cx = Context {
                now,
                entropy: &mut self.entropy,
                acqseq: &mut self.acqseq,
            };
            let sent = &mut self.sent;
            let mut sink = |packet: &mut PacketBuf, to: &super::Departure| {
                sent.push((packet.to_vec(), to.mark));
            };
            self.worker
                .timeout_alone(&mut self.netns, &mut cx, &self.routes, &mut sink);
        }
    }

    pub(super) fn send(&mut self, bytes: &[u8]) -> Verdict {
        let meta = self.meta;
        self.send_with(bytes, &meta)
    }

    pub(super) fn send_with(&mut self, bytes: &[u8], meta: &OutputMeta) -> Verdict {
        let mut packet = PacketBuf::copy_of(bytes);
        let mut cx = Context {
            now: Now {
                boot: BootNanos(self.millis * 1_000_000),
                real: WallSecs(1_000_000 + self.millis / 1000),
            },
            entropy: &mut self.entropy,
            acqseq: &mut self.acqseq,
        };
        let sent = &mut self.sent;
        let mut sink = |packet: &mut PacketBuf, to: &super::Departure| {
            sent.push((packet.to_vec(), to.mark));
        };
        self.worker.output_alone(
            &mut self.netns,
            &mut cx,
            &mut packet,
            meta,
            &self.routes,
            &mut sink,
        )
    }

    pub(super) fn add_sa(&mut self, spi: u32, change: impl FnOnce(&mut SaRequest<'_>)) -> SaId {
        let mut request = SaRequest {
            info: UserSaInfo {
                lft: LifetimeCfg::UNLIMITED,
                family: AF_INET,
                mode: XFRM_MODE_TUNNEL,
                saddr: LOCAL,
                reqid: 1,
                ..UserSaInfo::default()
            },
            ..SaRequest::default()
        };
        request.info.id.daddr = REMOTE;
        request.info.id.spi = spi.into();
        request.info.id.proto = IPPROTO_ESP;
        request.aead = Some(AlgoBlob::new("rfc4106(gcm(aes))", &[7; 20], 128));
        change(&mut request);
        let now = self.now();
        let cx = Context {
            now,
            entropy: &mut self.entropy,
            acqseq: &mut self.acqseq,
        };
        let sa = self.netns.sad.construct(&cx, &self.netns.sysctls, request);
        self.netns.sad.add(sa.unwrap(), now).unwrap()
    }

    pub(super) fn add_policy(&mut self, policy: Policy) -> PolicyId {
        let now = self.now();
        self.netns.spd.insert(policy, true, now).unwrap()
    }

    pub(super) fn sa(&self, id: SaId) -> &Sa {
        self.netns.sad.get(id).unwrap()
    }

    pub(super) fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.netns.poll_event()).collect()
    }

    /// Counters that are not 0.
    pub(super) fn counters(&self) -> BTreeMap<String, u64> {
        let counts = Counter::ALL
            .iter()
            .map(|&counter| (format!("{counter:?}"), self.netns.mib.value(counter)));
        counts.filter(|(_, count)| *count != 0).collect()
    }

    /// Opens the last packet that was sent, SAs from the outermost in.
    pub(super) fn open(&self, sas: &[SaId]) -> Vec<u8> {
        let mut packet = PacketBuf::copy_of(&self.sent.last().unwrap().0);
        let mut inbound = Inbound::locate(&packet, UDP_ENCAP_ESPINUDP).unwrap();
        let mut scratch = Scratch::default();
        for (number, &id) in sas.iter().enumerate() {
            let sa = self.sa(id);
            let (spi, low) = inbound.spi(&packet).unwrap().unwrap();
            assert_eq!(spi, sa.id.spi.get(), "SA {number}");
            let transform = sa.transform(self.netns.profile, &mut SeededEntropy::new(9));
            let transform = transform.unwrap();
            let sequence = Sequence::new(sa.traffic.last_sent().high(), low);
            let opened = transform.open(&mut packet, &inbound, sequence, &mut scratch);
            match transform
                .unwrap(&mut packet, &inbound, &opened.unwrap())
                .unwrap()
            {
                Delivery::Next(next) => inbound = next,
                Delivery::Packet(_) if number + 1 < sas.len() => {
                    inbound = Inbound::locate(&packet, 0).unwrap();
                }
                Delivery::Packet(_) | Delivery::Aggfrag => return packet.to_vec(),
            }
        }
        inbound.finish(&mut packet).unwrap();
        packet.to_vec()
    }
}

pub(super) fn template() -> UserTmpl {
    let mut template = UserTmpl {
        family: AF_INET,
        saddr: LOCAL,
        reqid: 1,
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

/// A policy for 10.1.0.0/16 to 10.2.0.0/16.
pub(super) fn policy(templates: &[UserTmpl]) -> Policy {
    let info = UserPolicyInfo {
        sel: Selector {
            saddr: Address::v4(10, 1, 0, 0),
            daddr: Address::v4(10, 2, 0, 0),
            prefixlen_s: 16,
            prefixlen_d: 16,
            family: AF_INET,
            ..Selector::default()
        },
        dir: XFRM_POLICY_OUT,
        lft: LifetimeCfg::UNLIMITED,
        ..UserPolicyInfo::default()
    };
    let templates = Templates::new(templates.iter().copied());
    Policy::new(&info, XFRM_POLICY_TYPE_MAIN, templates)
}

/// A UDP packet from 10.1.0.1 to 10.2.0.1.
pub(super) fn udp(port: u16, payload: usize) -> Vec<u8> {
    let mut packet = vec![
        0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 1, 0, 1, 10, 2, 0, 1,
    ];
    packet.extend(4000u16.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend(vec![0x61; payload]);
    ip4::finish(&mut packet).unwrap();
    packet
}

pub(super) fn with_df(mut packet: Vec<u8>) -> Vec<u8> {
    packet[6] |= 0x40;
    ip4::finish(&mut packet).unwrap();
    packet
}

pub(super) fn udp6(payload: usize) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, 17, 64];
    packet.extend([0xfd; 15]);
    packet.push(1);
    packet.extend([0xfd; 15]);
    packet.push(2);
    packet.extend([1, 2, 3, 4, 0, 0, 0, 0]);
    packet.extend(vec![0x61; payload]);
    ip6::finish(&mut packet).unwrap();
    packet
}

pub(super) fn dropped(reason: DropReason, errno: i32) -> Verdict {
    Verdict::Dropped { reason, errno }
}

/// What happened, in a word each.
pub(super) fn names(events: &[Event]) -> Vec<String> {
    let name = |event: &Event| match event {
        Event::SaExpire(expire) => format!("expire hard {}", expire.body.hard),
        Event::PolicyExpire(expire) => format!("policy expire hard {}", expire.hard),
        Event::Acquire(acquire) => format!("acquire {}", acquire.body.seq),
        Event::Aevent(aevent) => format!("aevent {:#x}", aevent.body.flags),
        Event::Mapping(_) => "mapping".to_owned(),
    };
    events.iter().map(name).collect()
}

pub(super) fn marked(mut policy: Policy, v: u32, m: u32) -> Policy {
    policy.key.mark = Mark { v, m };
    policy
}
